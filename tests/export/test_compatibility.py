"""The compatibility table, on a tiny model and the integrations that need nothing but this package's own extras."""

import json

import pytest

from gpt_scratch.errors import UserError


@pytest.mark.thorough
def test_rows_are_measured_and_other_models_rows_are_kept(script, checkpoint, tmp_path):
    pytest.importorskip("gguf")
    module = script("measure_compatibility")
    text, output = tmp_path / "text.txt", tmp_path / "compatibility.json"
    text.write_text("The cat sat on the mat, and they're at 12 o'clock. " * 40)
    other = {"model": "other", "road": "original", "what": "", "version": "1"}
    output.write_text(json.dumps({"rows": [other], "runs": {}}))
    names = ["original", "Trainer", "GGUF f32", "GGUF q8_0"]
    argv = [
        str(checkpoint),
        "--text",
        str(text),
        "--windows",
        "4",
        "--length",
        "32",
        "--output",
        str(output),
        "--integrations",
        *names,
    ]
    original, trainer, exact, rounded = module.main(module.parse(argv))
    assert trainer["difference"] < 1e-5 and trainer["perplexity"] == pytest.approx(original["perplexity"], rel=1e-5)
    assert exact["difference"] < 1e-4 and exact["perplexity"] == pytest.approx(original["perplexity"], rel=1e-5)
    assert rounded["difference"] > 1e-3 and rounded["bytes"] < exact["bytes"]
    record = json.loads(output.read_text())
    assert [row["integration"] for row in record["rows"]] == ["original", *names] and record["rows"][0] == {
        "model": "other",
        "integration": "original",
        "what": "",
        "version": "1",
    }
    assert output.with_suffix(".md").read_text().count("\n") == 7


@pytest.mark.thorough
def test_an_integration_that_fails_is_a_row_and_an_error_at_the_end(script, checkpoint, tmp_path, monkeypatch):
    module = script("measure_compatibility")
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 40)

    def broken(setting):
        """Breaks."""
        raise RuntimeError("no such\nkernel")

    monkeypatch.setitem(module.INTEGRATIONS, "peft", ("torch", broken))
    monkeypatch.setitem(module.INTEGRATIONS, "trl", ("no-such-package", broken))
    argv = [str(checkpoint), "--text", str(tmp_path / "text.txt"), "--windows", "2", "--length", "16", "--roads", "peft", "trl"]
    with pytest.raises(UserError, match="1 of 2 integrations failed: peft"):
        module.main(module.parse([*argv, "--output", str(tmp_path / "compatibility.json")]))
    rows = json.loads((tmp_path / "compatibility.json").read_text())["rows"]
    assert (
        rows[0]["failed"] == "RuntimeError: no such kernel" and rows[1]["failed"] == "not run: no-such-package is not installed"
    )
    with pytest.raises(UserError, match="the text has"):
        module.main(module.parse([*argv, "--windows", "9999"]))


class Arrived(Exception):
    """What a function of the script was called with."""


def test_each_flag_reaches_the_measurement(script, tmp_path, monkeypatch):
    module = script("measure_compatibility")
    (tmp_path / "text.csv").write_text("text\none\ntwo\n", encoding="utf-8")

    def stop(*arguments):
        raise Arrived(*arguments)

    monkeypatch.setattr(module, "measure_compatibility", stop)
    flags = ["--text", str(tmp_path / "text.csv"), "--windows", "3", "--length", "32", "--integrations", "peft", "trl"]
    with pytest.raises(Arrived) as arrived:
        module.main(module.parse(["runs/model", *flags]))
    assert arrived.value.args == ("runs/model", "one\ntwo", 3, 32, ["peft", "trl"])
