"""Every subject of the analysis script, on a small model and a small run."""

import json

import pytest
import torch

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model")
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)
    torch.manual_seed(0)
    config = GPTScratchConfig(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.4)
    GPTScratchForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def run(script, *argv: str) -> dict:
    analyze = script("analyze")
    return analyze.main(analyze.parse(argv))


@pytest.mark.parametrize(
    ("subject", "suffixes"),
    [
        ("attention", ["-grid.png", "-grid.svg", "-head.png", "-head.svg", "-rollout.png", "-rollout.svg"]),
        ("tokens", [".html", ".png", ".svg"]),
        ("lens", [".png", ".svg"]),
        ("temperature", [".png", ".svg"]),
    ],
)
@pytest.mark.quick_cases("tokens-suffixes1")
def test_figures_are_printed_and_pictures_written(script, folder, tmp_path, capsys, subject, suffixes):
    result = run(script, subject, folder, "--text", "One day, Anna", "--output", str(tmp_path / "x"))
    assert sorted(result["files"]) == sorted(f"{tmp_path / 'x'}{suffix}" for suffix in suffixes)
    assert capsys.readouterr().out.strip()
    run(script, subject, folder, "--text", "One day, Anna", "--output", str(tmp_path / "x"), "--json")
    assert json.loads(capsys.readouterr().out)


def test_summary(script, folder, capsys):
    summary = run(script, "summary", folder, "--batch", "2", "--flops", "1e9")
    assert f"{summary['parameters']:,}" in capsys.readouterr().out


def test_bad_input(script, folder, tmp_path):
    with pytest.raises(UserError, match="layer 2: this model has layers 0 to 1"):
        run(script, "attention", folder, "--text", "One", "--layer", "2", "--output", str(tmp_path / "x"))
    with pytest.raises(UserError, match="cannot be loaded"):
        run(script, "lens", str(tmp_path / "nothing"), "--text", "One")
    assert not list(tmp_path.iterdir())


def test_output_is_a_start_of_names_or_a_folder(script, tmp_path):
    prepare = script("analyze").prepare_output
    assert prepare(f"{tmp_path}/new/one", "lens") == f"{tmp_path}/new/one" and (tmp_path / "new").is_dir()
    assert prepare(f"{tmp_path}/pictures/", "lens") == f"{tmp_path}/pictures/lens" and (tmp_path / "pictures").is_dir()
    assert prepare(f"{tmp_path}/pictures", "tokens") == f"{tmp_path}/pictures/tokens"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be made"):
        prepare(f"{tmp_path}/file/one", "lens")


@pytest.mark.thorough
def test_each_flag_counts(script, folder, tmp_path):
    output = ["--output", str(tmp_path / "x"), "--json"]
    five, two = (run(script, "tokens", folder, "--text", "One day", "--top", top, *output)["next"] for top in ("5", "2"))
    assert len(five) == 5 and two == five[:2]
    likely = run(script, "temperature", folder, "--text", "One day", "--temperatures", "0.5", "2", "--top", "3", *output)[
        "likely"
    ]
    assert (
        list(likely) == ["0.5", "2.0"]
        and all(len(row) == 3 for row in likely.values())
        and likely["0.5"][0][1] > likely["2.0"][0][1]
    )
    one = run(script, "temperature", folder, "--text", "One day", "--temperatures", "2", "--top_k", "1", *output)["likely"]["2.0"]
    assert one[0][1] == pytest.approx(1)
    few = run(script, "temperature", folder, "--text", "One day", "--temperatures", "2", "--top_p", "1e-6", *output)["likely"][
        "2.0"
    ]
    assert few[0][1] == pytest.approx(1)
    flags = {"--batch": "3", "--length": "10", "--tokens": "600", "--flops": "1e9"}
    first = run(script, "summary", folder, *(word for pair in flags.items() for word in pair), "--json")
    for flag, other in {"--batch": "6", "--length": "20", "--tokens": "1200", "--flops": "1e6"}.items():
        changed = run(script, "summary", folder, *(word for pair in (flags | {flag: other}).items() for word in pair), "--json")
        assert changed != first and changed["parameters"] == first["parameters"], flag


def test_each_flag_reaches_its_plot(script, folder, tmp_path, monkeypatch):
    module, seen = script("analyze"), []
    for name in ("plot_attention", "plot_attention_grid", "plot_temperatures", "plot_histories"):
        monkeypatch.setattr(module, name, lambda *given, name=name, **more: seen.append((name, given, more)) or [])
    text, output = ["--text", "One<|endoftext|>"], ["--output", str(tmp_path / "x")]

    def call(*argv: str) -> tuple[dict, list]:
        seen.clear()
        return module.main(module.parse([*argv, *output])), list(seen)

    found, [(_, (maps, tokens, _), _), (_, (one, _, _, title), _), _] = call(
        "attention", folder, *text, "--layer", "1", "--head", "2"
    )
    assert torch.equal(one, maps[1, 2]) and title == "layer 1, head 2" and "<|endoftext|>" not in tokens
    assert "<|endoftext|>" in call("attention", folder, *text, "--parse_special_tokens")[0]["tokens"]
    flags = ["--temperatures", "0.5", "2", "--top_k", "7", "--top_p", "0.9"]
    _, [(_, (_, _, _, temperatures), more)] = call("temperature", folder, *text, *flags)
    assert (temperatures, more["top_k"], more["top_p"]) == ([0.5, 2.0], 7, 0.9) and "top-k 7, top-p 0.9" in more["title"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 2.0}]}', encoding="utf-8")
    flags = ["--labels", "one", "two", "--x", "epoch", "--title", "Both"]
    _, [(_, (histories, _, x, title), _)] = call("runs", str(tmp_path / "a"), str(tmp_path / "b"), *flags)
    assert (list(histories), x, title) == (["one", "two"], "epoch", "Both")
