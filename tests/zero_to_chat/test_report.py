"""The report of a run: everything in it comes from what the stages wrote, and untrusted text is escaped."""

import json
from pathlib import Path

import pytest

from gpt_scratch.errors import UserError
from gpt_scratch.evaluation.accuracy import accuracy, accuracy_by_kind
from gpt_scratch.files import write_json
from gpt_scratch.hub.cards import write_chat_card
from gpt_scratch.zero_to_chat.report import collect, compare, read_report, write_report
from gpt_scratch.zero_to_chat.sizes import make_size
from gpt_scratch.zero_to_chat.stages import MODELS, Files, make_stages

pytestmark = pytest.mark.thorough

KINDS = ["names", "days"] * 100
RIGHT = {"pretrained": 2, "instructed": 100, "reinforced": 150}  # of 200
NASTY = "a | b <script>alert(1)</script>\nnext"


def make_run(output: Path, right: dict[str, int] = RIGHT, seed: int = 7) -> dict:
    """A directory as the stages leave it, and its report, which is written there."""
    size = make_size("tiny", 240_000)
    stages = make_stages(output, size, Files(), seed, 5000.0, 2)
    write_json(output / "plan.json", {"seed": seed})
    for number, stage in enumerate(stages):
        (output / "stages").mkdir(exist_ok=True)
        record = {"name": stage.name, "seconds": 60.0 * number, "cpu_seconds": 90.0 * number, "peak_bytes": 2**30, "attempts": 1}
        write_json(output / "stages" / f"{stage.name.replace(' ', '-')}.json", record | {"estimated_seconds": stage.seconds})
    history = {"log_history": [{"step": 1, "loss": 3.0}, {"step": 2, "eval_loss": 2.0}]}
    metrics = {
        "pretrained": {"validation_loss": 1.5, "validation_bits_per_byte": 0.61, "tokens_seen": 960_000, "steps": 200,
                       "data": {"train": {"documents": 2163, "tokens": 200_000}}},
        "instructed": {"validation_response_loss": 0.2, "validation_response_loss_before": 4.0, "steps": 2400,
                       "data": {"train": {"records": 25_600}}},
        "reinforced": {"steps": 100, "data": {"train": {"questions": 3200}},
                       "reinforcement_curve": [{"step": i, "reward": i / 10, "entropy": 1.0, "kl": 0.1} for i in (1, 2)],
                       **{name: {kind: {"success": value} for kind in ("greedy", "sampled")}
                          for name, value in (("success_before", 0.4), ("success", 0.7))}},
    }  # fmt: skip
    (output / "evaluation").mkdir()
    for name in MODELS:
        (output / name).mkdir()
        write_json(output / name / "metrics.json", {"metrics": metrics[name]})
        write_json(output / name / "trainer_state.json", history)
        answered = [i < right[name] for i in range(200)]
        found = {"accuracy": accuracy(answered), "accuracy_by_kind": accuracy_by_kind(answered, KINDS)}
        found |= (
            {"samples": {"curve": [{"samples": n, "majority": 0.7, "any": 0.9} for n in (1, 2)]}} if name == "reinforced" else {}
        )
        write_json(output / "evaluation" / f"{name}.metrics.json", found)
        replies = [{"instruction": f"{NASTY} {i}", "output": "yes", "category": kind, "model_response": f"{name} {i}"}
                   for i, kind in enumerate(KINDS)]  # fmt: skip
        (output / "evaluation" / f"{name}.json").write_text(json.dumps(replies), encoding="utf-8")
    report = collect(output, size, stages, f"python scripts/zero_to_chat.py --seed {seed}")
    write_report(output, report)
    return report


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    return folder


def test_accuracy_time_and_replies_are_those_of_the_stages(run):
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "1.0 %, 50.0 %, 75.0 % after pretraining, instruction tuning, reinforcement" in text
    assert "Each stage raised it beyond the 95 % intervals." in text
    assert "| **all** | 1.0 % (0.3 to 3.6) | 50.0 % (43.1 to 56.9) | 75.0 % (68.6 to 80.5) |" in text
    assert "| days | 1.0 % (0.2 to 5.4) | 50.0 % (40.4 to 59.6) |" in text
    assert "in 28 minutes" in text and "0.610" in text and "40.0%, 70.0%" in text  # 0 + 60 + ... + 420 seconds
    assert "pretrained 0 | instructed 0 | reinforced 0 |" in text and "pretrained 1 | instructed 1 | reinforced 1 |" in text
    assert "python scripts/zero_to_chat.py --seed 7" in text
    figures = ("accuracy", "pretraining", "instructions", "reward", "entropy", "divergence", "samples")
    assert all(f"figures/{name}.png" in text and (run / "figures" / f"{name}.png").is_file() for name in figures)
    assert "length.png" not in text  # no run wrote it


def test_untrusted_text_in_the_report_is_escaped(run):
    page, text = ((run / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "a \\| b" in text and all(line.count("|") > 3 for line in text.splitlines() if line.startswith("| a "))
    assert (
        "http" not in page.replace("http-equiv", "") and page.count("data:image/png;base64,") == 7
    )  # nothing is loaded from elsewhere


def test_a_stage_without_improvement_is_named(tmp_path):
    make_run(tmp_path, {"pretrained": 2, "instructed": 100, "reinforced": 108})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Not every stage raised it beyond the 95 % intervals: instruction tuning did; reinforcement did not." in text


def test_two_reports_side_by_side(run, tmp_path, script):
    make_run(tmp_path, {"pretrained": 0, "instructed": 60, "reinforced": 90}, seed=8)
    module = script("compare_reports")
    table = module.main(module.parse([str(run), str(tmp_path / "report.json"), "--output", str(tmp_path / "both.md")]))
    assert "| seed | 7 | 8 |" in table
    assert "| accuracy after reinforcement | 75.0 % (68.6 to 80.5) | 45.0 % (38.3 to 51.9) |" in table
    assert "| all, minutes | 28.0 | 28.0 |" in table
    assert (tmp_path / "both.md").read_text(encoding="utf-8") == table + "\n"
    assert compare(read_report(str(run)), read_report(str(run)), ("a", "b")).count("| 28.0 | 28.0 |") == 1


@pytest.mark.parametrize(
    ("content", "message"), [("{", "the report needs"), ('{"size": {}}', "it has no 'stages'"), (None, "the report needs")]
)
def test_an_invalid_report_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_report(str(tmp_path))


def test_the_card_is_made_from_the_report(run):
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    write_chat_card(str(run / "reinforced"), report)
    card = (run / "reinforced" / "README.md").read_text(encoding="utf-8")
    assert "75.0% (68.6% to 80.5%) of 200" in card and "| days |" in card
    assert "value: 0.75" in card and "Ella has 9 eggs and gives 3 away" in card and "0.610 bits per byte" in card
