"""Model cards, filled from a run's own `metrics.json` or `conversion.json`. What was not measured is left out."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..files import atomic_path

PACKAGE = "[gpt_scratch](https://pypi.org/project/gpt_scratch/), a GPT written from scratch for the Hugging Face ecosystem"

USE_LANGUAGE_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME")
model = AutoModelForCausalLM.from_pretrained("PATH_OR_NAME", trust_remote_code=True)
inputs = tokenizer("Every effort moves you", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"""

USE_CLASSIFIER = """from transformers import pipeline

classify = pipeline("text-classification", model="PATH_OR_NAME", trust_remote_code=True)
print(classify("a text"))"""

USE_CHAT = """from transformers import pipeline

chat = pipeline("text-generation", model="PATH_OR_NAME", trust_remote_code=True)
messages = [{"role": "user", "content": "Rewrite the sentence in the passive voice. The cat caught the mouse."}]
print(chat(messages, max_new_tokens=100)[0]["generated_text"][-1]["content"])"""

PRETRAINING_FIGURES = (
    "validation_loss",
    "validation_perplexity",
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


def write_card(output_dir: str, record: dict[str, Any]) -> None:
    """Write `README.md` into a pretraining run's directory from what its `metrics.json` holds."""
    metrics, source = record["metrics"], _source(record)
    figures = {name: metrics[name] for name in PRETRAINING_FIGURES if name in metrics}
    measured = {kind: metrics[f"validation_{kind}"] for kind in ("loss", "perplexity")}
    _write(
        output_dir,
        _metadata(output_dir, "text-generation", f"{source} (validation split)", measured),
        [
            f"A GPT pretrained with {PACKAGE}. {record['parameters']:,} parameters, trained on {source}.",
            _use(USE_LANGUAGE_MODEL),
            _table("Results", "measured", figures),
            "Losses are nats per predicted token, over the whole validation text, without dropout.",
            _table("Training", "setting", _settings(record)),
            _picture(output_dir, "loss"),
            "## Limits\n\nThe model has seen the text named above and nothing else. It repeats and invents; it was not aligned, "
            "filtered or tested for any use beyond experiments and teaching.",
        ],
    )


def write_classifier_card(output_dir: str, record: dict[str, Any]) -> None:
    """Write `README.md` into a classifier's directory from what its `metrics.json` holds."""
    metrics, source = record["metrics"], _source(record)
    split = metrics["data"]["test"]
    figures = {name: metrics[name] for name in CLASSIFIER_FIGURES if name in metrics}
    measured = {kind: metrics[f"test_{kind}"] for kind in ("accuracy", "f1", "macro_f1") if f"test_{kind}" in metrics}
    shared = split["texts_also_in_train"]
    overlap = f" {shared} of the {split['rows']} test texts also stand in the training data." if shared else ""
    _write(
        output_dir,
        _metadata(output_dir, "text-classification", f"{source} (test split)", measured),
        [
            f"A classifier finetuned with {PACKAGE}, on {source}: {', '.join(metrics['labels'])}.",
            _use(USE_CLASSIFIER),
            _table("Results", "measured", figures),
            f"Over the whole of each split; the test split has {split['rows']:,} texts.{overlap} Confident mistakes are in `mistakes.tsv`.",
            _picture(output_dir, "confusion_matrix"),
            _table("Training", "setting", _settings(record)),
            _picture(output_dir, "loss"),
            "## Limits\n\nThe classes mean what they mean in the training texts, their language and their time. Scores are not "
            "calibrated beyond the error given above; do not delete anybody's messages on this model's word alone.",
        ],
    )


def write_instruction_card(output_dir: str, record: dict[str, Any]) -> None:
    """Write `README.md` into an instruction-finetuned model's directory from what its `metrics.json` holds."""
    metrics, source, style = record["metrics"], _source(record), record["script_arguments"]["prompt_style"]
    figures = {name: metrics[name] for name in INSTRUCTION_FIGURES if name in metrics}
    _write(
        output_dir,
        _metadata(output_dir, "text-generation", f"{source} (validation split)", {"loss": metrics["validation_response_loss"]}),
        [
            f"An assistant finetuned with {PACKAGE}, on {source}, with the prompt style `{style}`, which is its chat template.",
            _use(USE_CHAT),
            _table("Results", "measured", figures),
            "Losses are nats per predicted token over the whole split, without dropout: of the replies alone, and of prompt and reply.",
            _table("Training", "setting", _settings(record)),
            _picture(output_dir, "loss"),
            "## Limits\n\nA small model repeats the form of its training data and invents facts. It was not aligned against harmful "
            "requests; do not rely on what it says.",
        ],
    )


def write_conversion_card(output_dir: str, title: str, record: dict[str, Any]) -> None:
    """Write `README.md` into a converted checkpoint's directory from what its `conversion.json` holds."""
    classifier = "head" in record and record["head"] == "classifier"
    notes = "\n".join(f"- {note}" for note in record["notes"])
    task = "text-classification" if classifier else "text-generation"
    _write(
        output_dir,
        ModelCardData(library_name="transformers", pipeline_tag=task, tags=["gpt_scratch", "custom_code"], model_name=title),
        [
            f"Weights converted by {PACKAGE}, from the format `{record['format']}`. What they were trained on, and under which license "
            "they may be used, is told where they came from.",
            _use(USE_CLASSIFIER if classifier else USE_LANGUAGE_MODEL),
            _table("Conversion", "measured", record["proof"]),
            notes,
        ],
        title,
    )


def _write(output_dir: str, metadata: ModelCardData, sections: list[str], title: str | None = None) -> None:
    heading = f"# {title or Path(output_dir).resolve().name}"
    text = "\n\n".join([f"---\n{metadata.to_yaml()}\n---", heading, *(section for section in sections if section)]) + "\n"
    with atomic_path(Path(output_dir) / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _metadata(output_dir: str, task: str, dataset: str, measured: dict[str, float]) -> ModelCardData:
    results = [
        EvalResult(task_type=task, dataset_type="text", dataset_name=dataset, metric_type=kind, metric_value=round(value, 4))
        for kind, value in measured.items()
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=["gpt_scratch", "custom_code"],
        model_name=Path(output_dir).resolve().name,
        eval_results=results,
    )


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


def _use(code: str) -> str:
    return (
        f"## Use\n\n```python\n{code}\n```\n\n`trust_remote_code=True` runs the Python files of this directory; pin them with `revision=`. "
        "With `import gpt_scratch` beforehand it is not needed."
    )


def _table(heading: str, column: str, values: dict[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in values.items() if value is not None)
    return f"## {heading}\n\n| {column} | value |\n|---|---|\n{rows}"


def _cell(value: Any) -> str:
    text = f"{value:,.4f}".rstrip("0").rstrip(".") if isinstance(value, float) and abs(value) >= 1e-3 else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _picture(output_dir: str, name: str) -> str:
    return f"![{name}]({name}.png)" if (Path(output_dir) / f"{name}.png").is_file() else ""
