"""Model cards, filled from a run's own `metrics.json`. What was not measured is left out."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..files import atomic_path

CARD = """---
{metadata}
---

# {title}

A GPT pretrained with [gpt_scratch](https://pypi.org/project/gpt_scratch/), a GPT written from scratch for the Hugging Face ecosystem.
{parameters:,} parameters, trained on {data}.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME")
model = AutoModelForCausalLM.from_pretrained("PATH_OR_NAME", trust_remote_code=True)
inputs = tokenizer("Every effort moves you", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

`trust_remote_code=True` runs the three Python files of this directory; with `import gpt_scratch` beforehand it is not needed.

## Results

| measured | value |
|---|---|
{results}

Losses are nats per predicted token, over the whole validation text, without dropout.

## Training

| setting | value |
|---|---|
{settings}

{curve}
## Limits

The model has seen the text named above and nothing else. It repeats and invents; it was not aligned, filtered or tested for any
use beyond experiments and teaching.
"""


def write_card(output_dir: str, record: dict[str, Any]) -> None:
    """Write `README.md` into a pretraining run's directory from what its `metrics.json` holds."""
    metrics, arguments = record["metrics"], record["script_arguments"]
    sources = arguments.get("dataset_name") or ", ".join(Path(name).name for name in arguments.get("train_file", []))
    title = Path(output_dir).resolve().name
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt_scratch", "text-generation", "custom_code"],
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type="text",
                dataset_name=f"{sources} (validation split)",
                metric_type=kind,
                metric_value=round(metrics[f"validation_{kind}"], 4),
            )
            for kind in ("loss", "perplexity")
        ],
    )
    wanted = ("validation_loss", "validation_perplexity", "best_validation_loss", "best_validation_step", "train_loss", "tokens_seen",
              "steps", "epochs", "train_seconds", "train_tokens_per_second")  # fmt: skip
    environment = record["environment"]
    settings = {
        "command": f"`{environment['command']}`",
        "hardware": environment["hardware"],
        "versions": ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        "commit": environment["commit"],
        "date": environment["date"],
        **{name: value for name, value in arguments.items() if name not in ("train_file", "validation_file")},
        **record["training_arguments"],
    }
    card = ModelCard(
        CARD.format(
            metadata=metadata.to_yaml(),
            title=title,
            parameters=record["parameters"],
            data=sources,
            results=_rows({name: metrics[name] for name in wanted if name in metrics}),
            settings=_rows(settings),
            curve="![loss](loss.png)\n" if (Path(output_dir) / "loss.png").is_file() else "",
        )
    )
    with atomic_path(Path(output_dir) / "README.md") as temporary:
        temporary.write_text(str(card), encoding="utf-8")


def _rows(values: dict[str, Any]) -> str:
    return "\n".join(f"| {name} | {_cell(value)} |" for name, value in values.items() if value is not None)


def _cell(value: Any) -> str:
    text = f"{value:,.4f}".rstrip("0").rstrip(".") if isinstance(value, float) and abs(value) >= 1e-3 else str(value)
    return " ".join(text.split()).replace("|", "\\|")


CONVERSION_CARD = """---
{metadata}
---

# {title}

Weights converted by [gpt_scratch](https://pypi.org/project/gpt_scratch/) from the format `{format}`. What they were trained on, and under which
license they may be used, is told where they came from.

## Use

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("PATH_OR_NAME", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME")
```

## Conversion

| measured | value |
|---|---|
{proof}

{notes}
"""


def write_conversion_card(output_dir: str, title: str, record: dict[str, Any]) -> None:
    """Write `README.md` into a converted checkpoint's directory from what its `conversion.json` holds."""
    language_model = "greedy_tokens_equal" in record["proof"] or record["proof"]["tied"]
    task, auto = (
        ("text-generation", "AutoModelForCausalLM")
        if language_model
        else ("text-classification", "AutoModelForSequenceClassification")
    )
    metadata = ModelCardData(
        library_name="transformers", pipeline_tag=task, tags=["gpt_scratch", "custom_code"], model_name=title
    )
    card = CONVERSION_CARD.format(
        metadata=metadata.to_yaml(),
        title=title,
        format=record["format"],
        auto=auto,
        proof=_rows(record["proof"]),
        notes="\n".join(f"- {note}" for note in record["notes"]),
    )
    with atomic_path(Path(output_dir) / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
