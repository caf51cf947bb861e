"""The report of a zero_to_chat run: inputs, cost and results of each stage, as report.json, report.md and an HTML page.

Everything is read from the files that the stages wrote; missing results are left out. `compare` shows two reports side by side.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import UserError, one_line
from ..files import atomic_path, read_json_object, write_json
from ..plots import new_figure, save_figure, save_lines
from ..provenance import describe_environment
from .sizes import Size, as_record, training_bytes
from .stages import MODELS, Stage

FIGURES = {
    "accuracy": "Accuracy on held-out questions by kind, with 95 % intervals (Wilson)",
    "pretraining": "Pretraining: loss in nats per token",
    "instructions": "Instruction tuning: loss of the replies in nats per token",
    "reward": "Reinforcement: mean reward of the replies sampled in each step",
    "length": "Reinforcement: tokens per reply",
    "entropy": "Reinforcement: entropy in nats per token",
    "divergence": "Reinforcement: KL divergence from the initial model, in nats per token",
    "samples": "Accuracy against the number of sampled replies",
}


def collect(output: Path, size: Size, stages: Sequence[Stage], command: str) -> dict[str, Any]:
    """Collect the contents of the report, for JSON.

    Raises:
        UserError: a stage's record is missing or broken.
    """
    records = {}
    for stage in stages:
        path = output / "stages" / f"{stage.name.replace(' ', '-')}.json"
        if path.is_file():
            records[stage.name] = _read(path)
    pretrained, instructed, reinforced = (_read(output / name / "metrics.json") for name in MODELS)
    evaluations = {name: _read(output / "evaluation" / f"{name}.metrics.json") for name in MODELS}
    return {
        "size": as_record(size),
        "training_bytes_estimated": training_bytes(size),
        "seed": _read(output / "plan.json")["seed"],
        "command": command,
        "stages": list(records.values()),
        "pretraining": _chosen(
            pretrained["metrics"],
            "validation_loss",
            "validation_bits_per_byte",
            "tokens_seen",
            "steps",
            "train_tokens_per_second",
        )
        | {"data": pretrained["metrics"]["data"]},
        "instructions": _chosen(
            instructed["metrics"], "validation_response_loss", "validation_response_loss_before", "tokens_seen", "steps", "epochs"
        )
        | {"data": instructed["metrics"]["data"]},
        "reinforcement": _chosen(reinforced["metrics"], "steps", "data")
        | {
            name: {kind: reinforced["metrics"][name][kind] for kind in ("greedy", "sampled")}
            for name in ("success_before", "success")
        },
        "accuracy": {
            name: _chosen(evaluation, "accuracy", "accuracy_by_kind", "response_bits_per_byte", "samples")
            for name, evaluation in evaluations.items()
        },
        "replies": sample_replies(output),
        "environment": describe_environment() | {"command": command},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"the report needs {path}: {one_line(error)}") from error


def _chosen(metrics: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: metrics[name] for name in names if name in metrics}


def sample_replies(output: Path) -> list[dict[str, str]]:
    """The first question of each kind, with each model's reply."""
    replies = {name: json.loads((output / "evaluation" / f"{name}.json").read_text(encoding="utf-8")) for name in MODELS}
    rows: dict[str, dict[str, str]] = {}
    for number, record in enumerate(replies["pretrained"]):
        kind = record.get("category", f"question {number}")
        if kind not in rows and len(rows) < 12 and "instruction" in record:
            earlier = " / ".join(text for pair in record.get("history", []) for text in pair)
            rows[kind] = {
                "kind": kind,
                "question": " / ".join(filter(None, [earlier, record["instruction"]])),
                "reference": record["output"],
            }
            rows[kind] |= {name: part[number]["model_response"] for name, part in replies.items()}
    return list(rows.values())


def write_report(output: Path, report: dict[str, Any]) -> None:
    """Write report.json, report.md, report.html and figures/."""
    write_json(output / "report.json", report)
    drawn = draw_figures(output, report)
    text = as_markdown(report, drawn)
    for name, content in (("report.md", text), ("report.html", as_html(output, report, drawn))):
        with atomic_path(output / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------------------ figures


def draw_figures(output: Path, report: dict[str, Any]) -> list[str]:
    """Draw PNG files into figures/; return the names of those for which there are data."""
    folder = output / "figures"
    folder.mkdir(exist_ok=True)
    _draw_accuracy(report, folder / "accuracy")
    drawn = ["accuracy"]
    for name, directory in (("pretraining", "pretrained"), ("instructions", "instructed")):
        history = _read(output / directory / "trainer_state.json")["log_history"]
        labels = {"loss": "training", "eval_loss": "validation"}
        save_lines(history, labels, "step", folder / name, "step", "loss (nats per token)")
        drawn.append(name)
    curve = _read(output / "reinforced" / "metrics.json")["metrics"].get("reinforcement_curve", [])
    for name, column in (
        ("reward", "reward"),
        ("length", "completions/mean_length"),
        ("entropy", "entropy"),
        ("divergence", "kl"),
    ):
        if any(column in row for row in curve):
            save_lines(curve, {column: name}, "step", folder / name, "step", name)
            drawn.append(name)
    samples = report["accuracy"]["reinforced"].get("samples")
    if samples:
        labels = {"majority": "majority", "any": "any of them is correct"}
        save_lines(samples["curve"], labels, "samples", folder / "samples", "sampled replies", "accuracy")
        drawn.append("samples")
    return drawn


def _draw_accuracy(report: dict[str, Any], path: Path) -> None:
    figure, axes = new_figure((9, 4.2))
    kinds = [*report["accuracy"]["reinforced"].get("accuracy_by_kind", {}), "all"]
    for place, (name, after) in enumerate(MODELS.items()):
        found = report["accuracy"][name]
        rows = [{**found.get("accuracy_by_kind", {}), "all": found["accuracy"]}[kind] for kind in kinds]
        values = [row["accuracy"] for row in rows]
        ends = [[row["accuracy"] - row["interval"][0] for row in rows], [row["interval"][1] - row["accuracy"] for row in rows]]
        axes.bar([i + (place - 1) * 0.27 for i in range(len(kinds))], values, 0.25, yerr=ends, label=f"after {after}", capsize=2)
    axes.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.05)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="upper left")
    save_figure(figure, path)


# --------------------------------------------------------------------------------------------------------------------------- text


def tables(report: dict[str, Any]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Heading -> (columns, rows) of strings."""
    size, found = report["size"], report["accuracy"]
    kinds = [*found["reinforced"].get("accuracy_by_kind", {})]
    by_kind = [[kind, *(_share(found[name]["accuracy_by_kind"][kind]) for name in MODELS)] for kind in kinds] + [
        ["**all**", *(_share(found[name]["accuracy"]) for name in MODELS)]
    ]
    pretraining, instructions, reinforcement = (report[name] for name in ("pretraining", "instructions", "reinforcement"))
    cost = [
        [
            stage["name"],
            f"{stage['seconds']:,.0f}",
            f"{stage['estimated_seconds']:,.0f}",
            f"{stage['cpu_seconds']:,.0f}",
            f"{stage['peak_bytes'] / 2**20:,.0f}",
            str(stage["attempts"]),
        ]
        for stage in report["stages"]
    ]
    total = [sum(stage[name] for stage in report["stages"]) for name in ("seconds", "estimated_seconds", "cpu_seconds")]
    peak = max((stage["peak_bytes"] for stage in report["stages"]), default=0)
    cost.append(["**all**", *(f"{value:,.0f}" for value in total), f"{peak / 2**20:,.0f}", ""])
    data = [
        ["pretraining", f"{pretraining['data']['train']['documents']:,} documents, {pretraining['data']['train']['tokens']:,} tokens",
         f"{pretraining.get('tokens_seen', 0):,}", f"{pretraining['steps']:,}"],
        ["instruction tuning", f"{instructions['data']['train']['records']:,} dialogues",
         f"{instructions.get('tokens_seen', 0):,}", f"{instructions['steps']:,}"],
        ["reinforcement", f"{reinforcement['data']['train']['questions']:,} questions", "", f"{reinforcement['steps']:,}"],
    ]  # fmt: skip
    measures = [
        ["validation loss of the text, nats per token", f"{pretraining['validation_loss']:.3f}"],
        ["validation text, bits per byte", f"{pretraining['validation_bits_per_byte']:.3f}"],
        ["loss of the validation replies before and after instruction tuning",
         f"{instructions['validation_response_loss_before']:.3f}, {instructions['validation_response_loss']:.3f}"],
        *([f"test replies after {MODELS[name]}, bits per byte", f"{found[name]['response_bits_per_byte']:.3f}"]
          for name in MODELS if "response_bits_per_byte" in found[name]),
        ["sampled replies rewarded before and after reinforcement",
         f"{reinforcement['success_before']['sampled']['success']:.1%}, {reinforcement['success']['sampled']['success']:.1%}"],
    ]  # fmt: skip
    model = [
        ["parameters", f"{size['parameters']:,}"],
        ["depth, width, heads", f"{size['depth']}, {size['width']}, {size['heads']}"],
        ["vocabulary, positions", f"{size['vocabulary']:,}, {size['positions']:,}"],
        ["learning rates", ", ".join(f"{name} {rate:g}" for name, rate in size["rates"].items())],
        ["memory of a training step, estimated", f"{report['training_bytes_estimated'] / 2**20:,.0f} MiB"],
    ]
    columns = ["question", "reference", *(f"after {after}" for after in MODELS.values())]
    replies = [[row["question"], row["reference"], *(row[name] for name in MODELS)] for row in report["replies"]]
    result = {
        "Accuracy": (["kind", *(f"after {after}" for after in MODELS.values())], by_kind),
        "Replies": (columns, replies),
        "Measures": (["measure", "value"], measures),
        "Data": (["stage", "given", "tokens seen", "steps"], data),
        "Cost": (["stage", "seconds", "estimated", "processor seconds", "peak memory, MiB", "attempts"], cost),
        "Model": (["", "value"], model),
    }
    if samples := found["reinforced"].get("samples"):
        rows = [[str(row["samples"]), f"{row['majority']:.1%}", f"{row['any']:.1%}"] for row in samples["curve"]]
        result["Several replies"] = (["sampled replies", "correct by majority", "any correct"], rows)
    return result


def _share(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['accuracy'] * 100:.1f} % ({low * 100:.1f} to {high * 100:.1f})"


def first_lines(report: dict[str, Any]) -> list[str]:
    """The opening lines of the report."""
    shares = [report["accuracy"][name]["accuracy"] for name in MODELS]
    minutes = sum(stage["seconds"] for stage in report["stages"]) / 60
    rises = [after["interval"][0] > before["interval"][1] for before, after in pairwise(shares)]
    verdict = (
        "Each stage raised it beyond the 95 % intervals."
        if all(rises)
        else "Not every stage raised it beyond the 95 % intervals: "
        + "; ".join(f"{MODELS[name]} {'did' if rise else 'did not'}" for name, rise in zip(list(MODELS)[1:], rises))
        + "."
    )
    environment = report["environment"]
    values = ", ".join(f"{share['accuracy'] * 100:.1f} %" for share in shares)
    return [
        f"A GPT of {report['size']['parameters']:,} parameters, from random weights to a model that answers, in {minutes:.0f} minutes on "
        f"{environment['hardware']}, seed {report['seed']}.",
        f"Accuracy on {shares[0]['count']:,} held-out questions: {values} after {', '.join(MODELS.values())}. {verdict}",
    ]


def as_markdown(report: dict[str, Any], figures: Sequence[str]) -> str:
    """The report as a Markdown page."""
    parts = [f"# From text to chat: {report['size']['name']}", *first_lines(report), f"    {report['command']}"]
    for heading, (columns, rows) in tables(report).items():
        lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
        parts += [f"## {heading}", "\n".join(lines)]
    parts.append("## Figures")
    parts += [f"{FIGURES[name]}:\n\n![{name}](figures/{name}.png)" for name in figures]
    return "\n\n".join([*parts, "## Versions", _versions(report)]) + "\n"


def _cell(text: str) -> str:
    return one_line(text, 400).replace("|", "\\|") or " "


def _versions(report: dict[str, Any]) -> str:
    environment = report["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    return f"{versions}, Python {environment['python']}, commit {environment['commit']}, {environment['date']}, seed {report['seed']}."


def as_html(output: Path, report: dict[str, Any], figures: Sequence[str]) -> str:
    """The report as one HTML file with embedded figures; it loads nothing else."""
    parts = [f"<h1>From text to chat: {html.escape(report['size']['name'])}</h1>"]
    parts += [f"<p>{html.escape(line)}</p>" for line in first_lines(report)]
    parts.append(f"<pre>{html.escape(report['command'])}</pre>")
    for heading, (columns, rows) in tables(report).items():
        head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(one_line(cell, 400).replace('**', ''))}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        parts.append(f"<h2>{html.escape(heading)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    parts.append("<h2>Figures</h2>")
    for name in figures:
        data = base64.b64encode((output / "figures" / f"{name}.png").read_bytes()).decode()
        caption = html.escape(FIGURES[name])
        parts.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
        )
    parts.append(f"<h2>Versions</h2><p>{html.escape(_versions(report))}</p>")
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}"
        "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid #ccc;padding:.25rem .6rem;text-align:left}"
        "img{max-width:100%}pre{background:#f4f4f4;padding:.6rem;overflow-x:auto}figure{margin:1.5rem 0}"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>From text to chat</title><style>{style}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


# --------------------------------------------------------------------------------------------------------------------- comparison


def read_report(name: str) -> dict[str, Any]:
    """Read `report.json`, given by its path or the run's directory.

    Raises:
        UserError: it is not a report.
    """
    path = Path(name) / "report.json" if Path(name).is_dir() else Path(name)
    report = _read(path)
    missing = [key for key in ("size", "stages", "accuracy", "pretraining", "environment") if key not in report]
    if missing:
        raise UserError(f"{path} is no report of scripts/zero_to_chat.py: it has no {missing[0]!r}")
    return report


def compare(first: dict[str, Any], second: dict[str, Any], names: tuple[str, str]) -> str:
    """Compare two reports in a Markdown table: model, results and cost."""

    def row(label: str, value: Any) -> str:
        return f"| {label} | {value(first)} | {value(second)} |"

    lines = [f"| | {_cell(names[0])} | {_cell(names[1])} |", "|---|---|---|"]
    lines.append(row("size", lambda r: r["size"]["name"]))
    for key in ("parameters", "depth", "width", "vocabulary", "pretraining_tokens", "dialogues", "questions"):
        lines.append(row(key.replace("_", " "), lambda r, key=key: f"{r['size'][key]:,}"))
    lines.append(row("seed", lambda r: str(r["seed"])))
    lines.append(row("validation text, bits per byte", lambda r: f"{r['pretraining']['validation_bits_per_byte']:.3f}"))
    for name, after in MODELS.items():
        lines.append(row(f"accuracy after {after}", lambda r, name=name: _share(r["accuracy"][name]["accuracy"])))
    kinds = dict.fromkeys([k for r in (first, second) for k in r["accuracy"]["reinforced"].get("accuracy_by_kind", {})])
    for kind in kinds:
        lines.append(
            row(
                f"{kind}, at the end",
                lambda r, kind=kind: (
                    _share(by_kind[kind])
                    if kind in (by_kind := r["accuracy"]["reinforced"].get("accuracy_by_kind", {}))
                    else "not asked"
                ),
            )
        )
    for name in dict.fromkeys([stage["name"] for r in (first, second) for stage in r["stages"]]):
        lines.append(
            row(
                f"{name}, seconds",
                lambda r, name=name: next((f"{s['seconds']:,.0f}" for s in r["stages"] if s["name"] == name), "none"),
            )
        )
    lines.append(row("all, minutes", lambda r: f"{sum(s['seconds'] for s in r['stages']) / 60:,.1f}"))
    lines.append(row("hardware", lambda r: r["environment"]["hardware"]))
    lines.append(row("commit", lambda r: str(r["environment"]["commit"])))
    return "\n".join(lines)
