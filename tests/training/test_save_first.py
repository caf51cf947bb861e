"""The trained model is on disk before anything is measured, plotted, written about or uploaded, in every script; text in plots is not read as formulas."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.plots import new_figure, plot_losses, save_figure
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments
from gpt_scratch.training.classification import ClassificationArguments, plot_confusion
from gpt_scratch.training.instructions import InstructionArguments
from gpt_scratch.training.pretraining import PretrainingArguments

pytestmark = pytest.mark.thorough

COMMON = ["--use_cpu", "--disable_tqdm", "true", "--max_steps", "2", "--save_strategy", "no", "--eval_strategy", "steps", "--eval_steps", "1",
          "--logging_steps", "1", "--per_device_train_batch_size", "4"]  # fmt: skip
NAME = r"$\frac{ spam"  # no formula that any typesetter takes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("save-first")
    text = "One day, Anna lost her key. Tom had it all the time, and said so. "
    (root / "text.txt").write_text(text * 40, encoding="utf-8")
    labelled = [{"text": f"{kind} number {i}", "label": f"{NAME} {kind}"} for i in range(20) for kind in ("win", "tea")]
    (root / "labelled.jsonl").write_text("\n".join(map(json.dumps, labelled)), encoding="utf-8")
    records = [{"instruction": f"Say {i}.", "input": "", "output": f"It is {i}."} for i in range(40)]
    pairs = [{"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": "No."} for i in range(40)]
    (root / "records.json").write_text(json.dumps(records), encoding="utf-8")
    (root / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    tokenizer = train_byte_level_bpe([text], vocab_size=280)
    torch.manual_seed(0)
    config = GPTScratchConfig(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPTScratchForCausalLM(config).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    return root


def start(script, kind: str, folder: Path, output: Path):
    """The script's module, and a function that runs it."""
    base = ["--model_name_or_path", str(folder / "base"), "--output_dir", str(output), "--run_name", NAME]
    module = script({"pretrain": "pretrain"}.get(kind, f"finetune_{kind}"))
    if kind == "preferences":
        pytest.importorskip("trl")
        flags = ["--bf16", "false", "--gradient_checkpointing", "false", "--report_to", "none", "--prompt_style", "phi3"]
        argv = ["dpo", *COMMON, *flags, "--train_file", str(folder / "pairs.json"), *base]
        return module, lambda: module.main(*module.parse(argv))
    arguments, file, flags = {
        "pretrain": (PretrainingArguments, "text.txt", ["--block_size", "16", "--sample_tokens", "4"]),
        "classifier": (ClassificationArguments, "labelled.jsonl", []),
        "instructions": (InstructionArguments, "records.json", ["--prompt_style", "phi3", "--sample_replies", "0"]),
    }[kind]
    argv = [*COMMON, "--train_file", str(folder / file), *flags, *base]
    return module, lambda: module.main(*parse_arguments((arguments, ScratchTrainingArguments), argv))


KINDS = {"pretrain": "measure", "classifier": "measure", "instructions": "held_out_losses", "preferences": "write_record"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.quick_cases("pretrain")
def test_an_error_after_training_keeps_the_model(script, folder, tmp_path, monkeypatch, capsys, kind):
    output = tmp_path / "out"
    module, run = start(script, kind, folder, output)
    function = getattr(module, KINDS[kind])

    def stop(*args, **kwargs):
        if "before" in args:  # what an instruction run measures before it trains
            return function(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, KINDS[kind], stop)
    with pytest.raises(KeyboardInterrupt):
        run()
    classes = AutoModelForSequenceClassification if kind == "classifier" else AutoModelForCausalLM
    weights = classes.from_pretrained(output).state_dict()
    before = AutoModelForCausalLM.from_pretrained(folder / "base").state_dict()
    assert any(not torch.equal(weights[name], before[name]) for name in before.keys() & weights.keys())
    assert {"tokenizer.json", "trainer_state.json"} <= {path.name for path in output.iterdir()}
    assert f"the trained model is saved in {output}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.quick_cases("pretrain")
def test_a_plot_that_fails_is_a_warning(script, folder, tmp_path, capsys, kind):
    output = tmp_path / "out"
    for name in ("loss.png", "confusion_matrix.pdf"):
        (output / name).mkdir(parents=True)  # where the plot would go
    record = start(script, kind, folder, output)[1]()
    printed = capsys.readouterr().out
    assert "warning: a plot could not be drawn and is skipped: " in printed
    assert json.loads((output / "metrics.json").read_text(encoding="utf-8")) == record
    assert (output / "README.md").is_file() and (output / "model.safetensors").is_file()
    assert printed.rstrip().splitlines()[-1].startswith(f"everything is in {output}")


def test_dollars_in_names_are_drawn(tmp_path):
    plot_confusion([[1, 0], [0, 1]], [NAME, "$a^$"], tmp_path / "confusion_matrix")
    plot_losses([{"step": 1, "loss": 2.0}], tmp_path / "loss", NAME)
    figure, axes = new_figure()
    axes.plot([1, 2], [10, 1000], label=NAME)
    axes.set_yscale("log")
    axes.legend(title=NAME)
    axes.annotate(NAME, (1, 10))
    axes.set_xlabel(NAME)
    save_figure(figure, tmp_path / "log")
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert all(label.get_parse_math() for label in axes.get_yticklabels()) and r"$\mathdefault{10^{2}}$" in labels
    assert len(list(tmp_path.iterdir())) == 6
