"""Model cards, generated from `metrics.json` or `conversion.json` of a run. They contain only measured results.

The text comes from `model_card_template.md` in this folder; the metadata are `huggingface_hub`'s `ModelCardData` and `EvalResult`.

A card is enclosed in two comments, the second with a checksum. When a run writes its card again, text that the user has added above or
below it and the user's metadata (license, language, ...) are kept. A README.md without the comments, or edited between them, is left
unchanged, and the card is written to `README.proposed.md` instead.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from yaml import YAMLError

from ..evaluation.classification import figures_by_class
from ..files import atomic_path
from ..provenance import PROJECT_PAGE
from ..verify_checkpoint import FILE as REFERENCE_OUTPUTS

TEMPLATE = Path(__file__).with_name("model_card_template.md")
PROPOSAL = "README.proposed.md"
OPENING = "<!-- gpt_scratch: this card is written again by the next run; write above or below it, what stands there is kept -->"
CLOSING = "<!-- gpt_scratch: end of the card, {} -->"
CARD = re.compile(
    re.escape(OPENING) + "\n(?P<body>.*)\n" + re.escape(CLOSING).replace(r"\{\}", "(?P<checksum>[0-9a-f]{16})"), re.DOTALL
)
PACKAGE = (
    f"[gpt_scratch]({PROJECT_PAGE})" if PROJECT_PAGE else "gpt_scratch"
) + ", a GPT written from scratch for the Hugging Face ecosystem"
# NAME stands for the repository until it has a name. Without trust_remote_code every loader asks about the code, even the tokenizer's.
NAME = "PATH_OR_NAME"
LOADING = 'revision="main", trust_remote_code=True'

USE_LANGUAGE_MODEL = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{NAME}", {LOADING})
model = AutoModelForCausalLM.from_pretrained("{NAME}", {LOADING})
inputs = tokenizer("Every effort moves you", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))"""

USE_CLASSIFIER = f"""from transformers import pipeline

classify = pipeline("text-classification", model="{NAME}", {LOADING})
print(classify("a text"))"""

USE_CHAT = f"""from transformers import pipeline

chat = pipeline("text-generation", model="{NAME}", {LOADING})
messages = [{{"role": "user", "content": "Rewrite the sentence in the passive voice. The cat caught the mouse."}}]
print(chat(messages, max_new_tokens=100)[0]["generated_text"][-1]["content"])"""

PRETRAINING_FIGURES = (
    "validation_loss",
    "validation_perplexity",
    "validation_bits_per_byte",
    "best_validation_loss",
    "best_validation_step",
    "train_loss",
    "tokens_seen",
    "steps",
    "epochs",
    "train_seconds",
    "train_tokens_per_second",
)
CLASSIFIER_FIGURES = (
    "test_accuracy",
    "test_precision",
    "test_recall",
    "test_f1",
    "test_macro_f1",
    "test_roc_auc",
    "test_calibration_error",
    "validation_accuracy",
    "train_accuracy",
    "trainable_parameters",
    "steps",
    "epochs",
    "train_seconds",
)
INSTRUCTION_FIGURES = (
    "validation_response_loss",
    "validation_response_loss_before",
    "validation_loss_all_tokens",
    "validation_loss_all_tokens_before",
    "test_response_loss",
    "trainable_parameters",
    "padding_share",
    "steps",
    "epochs",
    "train_seconds",
)
ASSISTANT_LIMITS = (
    "A small model repeats the form of its training data and invents facts. It was not aligned against harmful requests; do not rely on "
    "what it says."
)


def write_card(output_dir: str, record: dict[str, Any]) -> None:
    """Write the `README.md` of a pretraining run from the contents of its `metrics.json`."""
    metrics, source = record["metrics"], _source(record)
    measured = {kind: metrics[f"validation_{kind}"] for kind in ("loss", "perplexity")}
    _write(
        output_dir,
        _metadata(output_dir, "text-generation", source, "validation", measured),
        summary=f"A GPT pretrained with {PACKAGE}. {record['parameters']:,} parameters, trained on {source}.",
        use=USE_LANGUAGE_MODEL,
        sections=[
            _table("Results", "measured", _chosen(metrics, PRETRAINING_FIGURES)),
            "Losses are nats per predicted token, over the whole validation text, without dropout.",
            _picture(output_dir, "loss"),
            _picture(output_dir, "comparison"),
            _data(metrics["data"]),
            _table("Training", "setting", _settings(record)),
        ],
        limits="The model has seen the text named above and nothing else. It repeats and invents; it was not aligned, filtered or tested "
        "for any use beyond experiments and teaching.",
    )


def write_classifier_card(output_dir: str, record: dict[str, Any]) -> None:
    """Write the `README.md` of a classifier from the contents of its `metrics.json`."""
    metrics, source = record["metrics"], _source(record)
    split = metrics["data"]["test"]
    measured = {kind: metrics[f"test_{kind}"] for kind in ("accuracy", "f1", "macro_f1") if f"test_{kind}" in metrics}
    shared = split["texts_also_in_train"]
    overlap = f" {shared} of the {split['rows']} test texts also occur in the training data." if shared else ""
    _write(
        output_dir,
        _metadata(output_dir, "text-classification", source, "test", measured),
        summary=f"A classifier finetuned with {PACKAGE}, on {source}: {', '.join(metrics['labels'])}.",
        use=USE_CLASSIFIER,
        sections=[
            _table("Results", "measured", _chosen(metrics, CLASSIFIER_FIGURES)),
            f"Over the whole of each split; the test split has {split['rows']:,} texts.{overlap} Confident mistakes are in `mistakes.tsv`.",
            _classes(metrics),
            _picture(output_dir, "confusion_matrix"),
            _picture(output_dir, "loss"),
            _data(metrics["data"]),
            _table("Training", "setting", _settings(record)),
        ],
        limits="The training texts, with their language and period, define the classes. Scores are not calibrated beyond the error given "
        "above; do not delete messages because of this model's prediction alone.",
    )


def write_instruction_card(output_dir: str, record: dict[str, Any]) -> None:
    """Write the `README.md` of an instruction-finetuned model from the contents of its `metrics.json`."""
    metrics, source, style = record["metrics"], _source(record), record["script_arguments"]["prompt_style"]
    _write(
        output_dir,
        _metadata(output_dir, "text-generation", source, "validation", {"loss": metrics["validation_response_loss"]}),
        summary=f"An assistant finetuned with {PACKAGE}, on {source}, with the prompt style `{style}`, which is its chat template.",
        use=USE_CHAT,
        sections=[
            _table("Results", "measured", _chosen(metrics, INSTRUCTION_FIGURES)),
            "Losses are nats per predicted token over the whole split, without dropout: of the replies alone, and of prompt and reply.",
            _picture(output_dir, "loss"),
            _data(metrics["data"]),
            _table("Training", "setting", _settings(record)),
        ],
        limits=ASSISTANT_LIMITS,
    )


def write_preference_card(output_dir: str, method: str, record: dict[str, Any]) -> None:
    """Write the `README.md` of a model trained on preferences, replacing TRL's own card.

    Args:
        method: "dpo", "grpo", or "reward" for a model that scores replies.
    """
    metrics, source = record["metrics"], _source(record)
    figures = {name: value for name, value in metrics.items() if name.startswith("eval_")}
    scores = method == "reward"
    measured = {"loss": metrics["eval_loss"]} if "eval_loss" in metrics else {}
    task = "text-classification" if scores else "text-generation"
    what = "A reward model, which scores replies" if scores else f"An assistant taught by preferences ({method.upper()})"
    pictures = sorted(path.stem for path in Path(output_dir).glob("*.png"))
    _write(
        output_dir,
        _metadata(output_dir, task, source, "validation", measured),
        summary=f"{what}, trained with {PACKAGE} and TRL on {source}.",
        use=USE_CLASSIFIER if scores else USE_CHAT,
        sections=[
            _table(
                "Results", "measured on the validation split", figures | _chosen(metrics, ("steps", "epochs", "train_seconds"))
            ),
            *(_picture(output_dir, name) for name in pictures),
            _data(metrics["data"]),
            _table("Training", "setting", _settings(record)),
        ],
        limits=ASSISTANT_LIMITS,
    )


CHAT_QUESTION = "Ella has 9 eggs and gives 3 away. How many eggs does Ella have now?"


def write_chat_card(output_dir: str, report: dict[str, Any]) -> None:
    """Write the `README.md` of a chat model trained from scratch, from the contents of its `report.json`."""
    found, size, environment = report["accuracy"], report["size"], report["environment"]
    after = {"pretrained": "pretraining", "instructed": "instruction tuning", "reinforced": "reinforcement"}

    def share(row: dict[str, Any]) -> str:
        return f"{row['accuracy']:.1%} ({row['interval'][0]:.1%} to {row['interval'][1]:.1%}) of {row['count']:,}"

    by_kind = found["reinforced"].get("accuracy_by_kind", {})
    steps = {f"after {what}": share(found[name]["accuracy"]) for name, what in after.items()}
    seconds = {stage["name"]: f"{stage['seconds']:,.0f}" for stage in report["stages"]}
    _write(
        output_dir,
        _metadata(
            output_dir, "text-generation", "held-out questions", "test", {"accuracy": found["reinforced"]["accuracy"]["accuracy"]}
        ),
        summary=f"A small chat model made with {PACKAGE}, from random weights: pretrained, finetuned on instructions, and reinforced on a "
        f"reward that is computed (exact match). {size['parameters']:,} parameters, seed {report['seed']}.",
        use=USE_CHAT.replace("Rewrite the sentence in the passive voice. The cat caught the mouse.", CHAT_QUESTION),
        sections=[
            _table("Results", "right on held-out questions, 95 % intervals", steps),
            _table("By kind", "right at the end", {kind: share(row) for kind, row in by_kind.items()}) if by_kind else "",
            f"Validation text: {report['pretraining']['validation_bits_per_byte']:.3f} bits per byte after pretraining.",
            *(_picture(output_dir, name) for name in ("reward", "entropy", "divergence")),
            _table("Seconds", "of the stage", seconds),
            _table(
                "Training",
                "setting",
                {
                    "command": f"`{report['command']}`",
                    "hardware": environment["hardware"],
                    "versions": ", ".join(f"{name} {number}" for name, number in environment["versions"].items()),
                },
            ),
        ],
        limits="It answers the kinds of questions that it was taught, about names, places, colours, days and small numbers. It knows "
        "nothing else, and invents an answer to most other questions.",
    )


def write_conversion_card(output_dir: str, title: str, record: dict[str, Any]) -> None:
    """Write the `README.md` of a converted checkpoint from the contents of its `conversion.json`."""
    classifier = "head" in record and record["head"] == "classifier"
    task = "text-classification" if classifier else "text-generation"
    _write(
        output_dir,
        ModelCardData(library_name="transformers", pipeline_tag=task, tags=["gpt_scratch", "custom_code"], model_name=title),
        summary=f"Weights converted by {PACKAGE}, from the format `{record['format']}`.",
        use=USE_CLASSIFIER if classifier else USE_LANGUAGE_MODEL,
        sections=[_table("Conversion", "measured", record["proof"]), "\n".join(f"- {note}" for note in record["notes"])],
        limits="The training data, intended uses and license of the weights are documented at their source.",
        title=title,
    )


def name_repository(output_dir: str, repository: str) -> bool:
    """Fill the repository's name, once known, into the example of this package's card; return whether there was a place for it."""
    path = Path(output_dir) / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if f'"{NAME}"' not in text:
        return False
    unedited = _is_unedited(text)
    text = text.replace(f'"{NAME}"', f'"{repository}"')
    found = CARD.search(text)
    if found and unedited:
        text = text[: found.start("checksum")] + _checksum(ModelCard(text).data, found["body"]) + text[found.end("checksum") :]
    _write_text(path, text)
    return True


def keep_card(previous: str, output_dir: str) -> None:
    """Copy the card in `previous` to `output_dir`, which will replace that directory, so that the user's additions survive."""
    if (Path(previous) / "README.md").is_file():
        shutil.copyfile(Path(previous) / "README.md", Path(output_dir) / "README.md")


def _write(output_dir: str, metadata: ModelCardData, sections: list[str], title: str | None = None, **texts: str) -> None:
    title, sections = title or Path(output_dir).resolve().name, [section for section in sections if section]
    verifiable = (Path(output_dir) / REFERENCE_OUTPUTS).is_file()
    card = ModelCard.from_template(
        metadata, template_path=TEMPLATE, title=title, sections=sections, verifiable=verifiable, **texts
    )
    body = card.text.strip()
    marked = f"{OPENING}\n{body}\n{CLOSING.format(_checksum(metadata, body))}"
    path = Path(output_dir) / "README.md"
    previous = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not previous:
        _write_text(path, f"---\n{metadata}\n---\n\n{marked}\n")
    elif _is_unedited(previous):
        kept, found = ModelCard(previous), CARD.search(previous)
        assert found is not None  # it is unedited
        kept.data.eval_results, kept.data.model_name = metadata.eval_results, metadata.model_name
        above = previous[: found.start()].partition("\n---")[2].lstrip("-").strip("\n")
        below = previous[found.end() :].strip("\n")
        _write_text(path, "\n\n".join(part for part in (f"---\n{kept.data}\n---", above, marked, below) if part) + "\n")
        if above or below:
            print("note: README.md: what was written above or below the card is kept")
    else:
        _write_text(path.with_name(PROPOSAL), f"---\n{metadata}\n---\n\n{marked}\n")
        print(f"note: README.md was not written by this package, or was edited, and is kept; the card of this run is {PROPOSAL}")


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _checksum(metadata: ModelCardData, body: str) -> str:
    """Checksum of the text between the comments and of the evaluation results in the metadata."""
    results = [result.__dict__ for result in metadata.eval_results or []]
    return hashlib.sha256(json.dumps([body, results], default=str).encode()).hexdigest()[:16]


def _is_unedited(text: str) -> bool:
    """Whether `text` holds a card of this package without edits between its comments."""
    found = CARD.search(text)
    try:
        return found is not None and _checksum(ModelCard(text).data, found["body"]) == found["checksum"]
    except (YAMLError, ValueError, AttributeError, TypeError):  # invalid metadata
        return False


def _metadata(output_dir: str, task: str, dataset: str, split: str, measured: dict[str, float]) -> ModelCardData:
    results = [
        EvalResult(
            task_type=task,
            dataset_type="text",
            dataset_name=f"{dataset} ({split} split)",
            dataset_split=split,
            metric_type=kind,
            metric_value=round(value, 4),
        )
        for kind, value in measured.items()
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=["gpt_scratch", "custom_code"],
        model_name=Path(output_dir).resolve().name,
        eval_results=results or None,
    )


def _chosen(metrics: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: metrics[name] for name in names if name in metrics}


def _data(description: dict[str, Any]) -> str:
    """Statistics of each split, as counted by the run."""
    splits = {
        split: ", ".join(
            f"{value:,} {name.replace('_', ' ')}"
            for name, value in counts.items()
            if type(value) is int and name != "texts_also_in_train"
        )
        for split, counts in description.items()
        if isinstance(counts, dict)
    }
    return _table("Data", "split", splits) if any(splits.values()) else ""


def _source(record: dict[str, Any]) -> str:
    arguments = record["script_arguments"]
    files = arguments.get("train_file") or []
    return arguments.get("dataset_name") or ", ".join(Path(name).name for name in ([files] if isinstance(files, str) else files))


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    environment = record["environment"]
    files = ("train_file", "validation_file", "test_file")
    return {
        "command": f"`{environment['command']}`",
        "hardware": environment["hardware"],
        "versions": ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        "commit": environment["commit"],
        "date": environment["date"],
        **{
            name: Path(value).name if name.endswith(("_path", "_name")) and isinstance(value, str) else value
            for name, value in record["script_arguments"].items()
            if name not in files
        },
        **record["training_arguments"],
    }


def _table(heading: str, column: str, values: dict[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in values.items() if value is not None)
    return f"## {heading}\n\n| {column} | value |\n|---|---|\n{rows}"


def _cell(value: Any) -> str:
    text = f"{value:,.4f}".rstrip("0").rstrip(".") if isinstance(value, float) and abs(value) >= 1e-3 else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _classes(metrics: dict[str, Any]) -> str:
    """Counts, precision, recall and F1 of each class on the test split."""
    if "test_confusion_matrix" not in metrics:
        return ""
    rows = "\n".join(
        f"| {_cell(row.name)} | {row.texts:,} | {row.predicted:,} | {row.precision:.3f} | {row.recall:.3f} | {row.f1:.3f} |"
        for row in figures_by_class(metrics["test_confusion_matrix"], metrics["labels"])
    )
    return f"## Classes\n\n| class | test texts | predicted | precision | recall | F1 |\n|---|---|---|---|---|---|\n{rows}"


def _picture(output_dir: str, name: str) -> str:
    return f"![{name}]({name}.png)" if (Path(output_dir) / f"{name}.png").is_file() else ""
