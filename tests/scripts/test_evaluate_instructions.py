"""Replies written in the published format, their figures, and what is kept when they are looked at again."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.data.beginnings import check_first_rows
from gpt_scratch.data.instruction import set_prompt_style
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

RECORDS = [{"instruction": f"Say {word}.", "input": "", "output": word} for word in ("yes", "no", "perhaps")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    tokenizer = train_byte_level_bpe([json.dumps(RECORDS)], vocab_size=270)
    torch.manual_seed(0)
    config = GPTScratchConfig(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=256, initializer_range=0.2, drop_rate=0.0
    )
    GPTScratchForCausalLM(config).save_pretrained("model")
    set_prompt_style(tokenizer, "phi3")
    tokenizer.save_pretrained("model")
    return tmp_path


def test_replies_and_what_is_known_of_them(script, folder):
    module = script("evaluate_instructions")
    argv = [
        "--model",
        "model",
        "--data_file",
        "test.json",
        "--output",
        "replies.json",
        "--prompt_style",
        "phi3",
        "--max_new_tokens",
        "3",
    ]
    metrics = module.main(module.parse(argv))
    replies = json.loads((folder / "replies.json").read_text(encoding="utf-8"))
    assert [{name: row[name] for name in RECORDS[0]} for row in replies] == RECORDS and all(
        "model_response" in row for row in replies
    )
    assert metrics["records"] == 3 and metrics["reply_tokens"] <= 9

    model, tokenizer = AutoModelForCausalLM.from_pretrained("model").eval(), AutoTokenizer.from_pretrained("model")
    losses, ended = [], 0
    for record in RECORDS:
        prompt = tokenizer(f"<|user|>\n{record['instruction']}\n<|assistant|>:\n")["input_ids"]
        ids = torch.tensor([[*prompt, *tokenizer(record["output"])["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            scores = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        losses += (-scores.gather(1, ids[0, len(prompt) :, None])).flatten().tolist()
        reply = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False, pad_token_id=tokenizer.eos_token_id)[0]
        ended += tokenizer.eos_token_id in reply[len(prompt) :].tolist()
    assert metrics["response_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert metrics["response_perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    size = sum(len(record["output"]) for record in RECORDS)
    assert metrics["response_bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / size, rel=1e-4)
    assert (metrics["ended_by_eos"], metrics["max_new_tokens"], metrics["exact_matches"]) == (ended, 3, 0)

    again = module.main(module.parse(["--replies_file", "replies.json"]))
    assert again == metrics == json.loads((folder / "replies.metrics.json").read_text(encoding="utf-8"))
    replies[0]["model_response"] = "yes"  # another text: what was measured of the one before says nothing of it
    (folder / "replies.json").write_text(json.dumps(replies), encoding="utf-8")
    (folder / "replies.metrics.json").write_text("{broken", encoding="utf-8")
    changed = module.main(module.parse(["--replies_file", "replies.json"]))
    assert changed["exact_matches"] == 1 and "response_loss" not in changed


def test_accuracy_by_kind_and_several_replies(script, folder):
    rows = [{**record, "category": "short" if len(record["output"]) < 4 else "long"} for record in RECORDS]
    (folder / "kinds.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "mine.py").write_text("def longest(prompt, reply, reference):\n    return len(reply)\n", encoding="utf-8")
    module = script("evaluate_instructions")
    argv = ["--model", "model", "--data_file", "kinds.json", "--output", "replies.json", "--prompt_style", "phi3", "--max_new_tokens", "3",
            "--samples", "4", "--temperature", "1", "--best_of", "mine.py:longest"]  # fmt: skip
    metrics = module.main(module.parse(argv))
    assert {kind: row["count"] for kind, row in metrics["accuracy_by_kind"].items()} == {"short": 2, "long": 1}
    assert metrics["accuracy"]["count"] == 3
    assert [row["samples"] for row in metrics["samples"]["curve"]] == [1, 2, 4]
    written = [json.loads(line) for line in (folder / "replies.samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(len(row["samples"]) == 4 for row in written) and len({text for row in written for text in row["samples"]}) > 3
    assert (folder / "replies.samples.png").is_file()
    assert module.main(module.parse(argv))["samples"] == metrics["samples"]  # the same seed
    # Replies that are right, judged by their text: an interval within 0 and 1.
    right = [{**row, "model_response": row["output"].upper() if row["category"] == "short" else "?"} for row in rows]
    (folder / "right.json").write_text(json.dumps(right), encoding="utf-8")
    found = module.main(module.parse(["--replies_file", "right.json"]))
    assert found["accuracy"]["right"] == 2 and found["accuracy_by_kind"]["short"]["accuracy"] == 1.0
    with pytest.raises(UserError, match="kinds.json row 0 has no text 'level'"):
        module.main(module.parse([*argv, "--kind_key", "level"]))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--model"),
        (["--model", "model"], "--data_file"),
        (["--model", "nowhere", "--data_file", "test.json", "--output", "x.json"], "nowhere"),
        (["--replies_file", "test.json"], "model_response"),
        (["--replies_file", "none.json"], "none.json: no such file"),
        (["--replies_file", "test.json", "--samples", "4"], "--samples draws replies of --model"),
        (["--model", "model", "--data_file", "test.json", "--output", "x.json", "--best_of", "length"], "give their number"),
        (["--replies_file", "test.json", "--judge_url", "http://127.0.0.1:1"], "--judge_model"),
    ],
)
def test_bad_input_is_refused_in_one_line(script, folder, argv, message):
    module = script("evaluate_instructions")
    with pytest.raises(UserError, match=message):
        module.main(module.parse(argv))
    assert not list(folder.glob("*.metrics.json"))


class Arrived(Exception):
    """What a function of the script was called with."""


def test_each_flag_reaches_its_function(script, folder, monkeypatch, capsys):
    module = script("evaluate_instructions")

    def stop(*arguments, **settings):
        raise Arrived(*arguments, settings)

    records = [{**record, "answer": "yes"} for record in RECORDS]
    (folder / "replies.json").write_text(json.dumps(records), encoding="utf-8")
    monkeypatch.setattr(module, "judge_replies", stop)
    flags = ["--replies_file", "replies.json", "--reply_key", "answer", "--judge_url", "http://127.0.0.1:9", "--judge_model", "j", "--judge_api",
             "ollama", "--rubric", "1-5", "--judge_seed", "7", "--timeout", "2.5", "--retries", "1", "--concurrency", "3"]  # fmt: skip
    with pytest.raises(Arrived) as arrived:
        module.main(module.parse(flags))
    judge, asked, replies, file, concurrency, _ = arrived.value.args
    assert (judge.url, judge.model, judge.api, judge.rubric, judge.seed, judge.timeout, judge.retries) == (
        "http://127.0.0.1:9", "j", "ollama", "1-5", 7, 2.5, 1)  # fmt: skip
    assert (asked, replies, file, concurrency) == (records, ["yes"] * 3, "replies.verdicts.jsonl", 3)

    monkeypatch.setattr(module, "generate_replies", stop)
    marked = [{**record, "input": "<|endoftext|>"} for record in RECORDS]
    (folder / "marked.json").write_text(json.dumps(marked), encoding="utf-8")
    flags = ["--model", "model", "--data_file", "marked.json", "--output", "x.json", "--prompt_style", "alpaca", "--max_new_tokens", "5",
             "--batch_size", "2", "--dtype", "bfloat16"]  # fmt: skip
    with pytest.raises(Arrived) as arrived:
        module.main(module.parse(flags))
    model, _, prompts, tokens, batch_size, _ = arrived.value.args
    assert (model.dtype, tokens, batch_size, len(prompts)) == (torch.bfloat16, 5, 2, 3)
    assert "special tokens written in the text are read as characters: 3 <|endoftext|>" in capsys.readouterr().out


def test_all_records_that_cannot_be_answered_are_named_at_once(script, folder):
    rows = [{**record, "input": "x" * 300 * (i < 2)} for i, record in enumerate(RECORDS)]
    (folder / "long.json").write_text(json.dumps(rows), encoding="utf-8")
    module = script("evaluate_instructions")
    flags = ["--model", "model", "--data_file", "long.json", "--output", "x.json", "--prompt_style", "phi3"]
    with pytest.raises(
        UserError, match="long.json: row 0: the prompt has .*256 positions leave no room.*; row 1: the prompt has"
    ):
        module.main(module.parse(flags))
    assert not (folder / "x.json").exists()


def test_records_without_a_loss_are_counted(script, folder, capsys):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "Say yes."},
            {"role": "assistant", "content": "yes"}]  # fmt: skip
    module = script("evaluate_instructions")
    flags = [
        "--model",
        "model",
        "--data_file",
        "some.json",
        "--output",
        "x.json",
        "--prompt_style",
        "phi3",
        "--max_new_tokens",
        "1",
    ]
    (folder / "some.json").write_text(json.dumps([{"messages": talk}, {"messages": talk[2:]}]), encoding="utf-8")
    some = module.main(module.parse(flags))
    assert "loss of the references: of 2 records, 1 are left out" in capsys.readouterr().out
    assert "response_loss" in some and "response_bits_per_byte" not in some
    (folder / "some.json").write_text(json.dumps([{"messages": talk}]), encoding="utf-8")
    assert "response_loss" not in module.main(module.parse(flags))
    assert (
        "the loss of the references is not measured: some.json row 0 and all other rows are unusable" in capsys.readouterr().out
    )


def drawn(folder) -> list[list[str]]:
    lines = (folder / "replies.samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["samples"] for line in lines]


def test_flags_of_sampled_replies_and_kinds(script, folder, monkeypatch):
    rows = [{**record, "category": "a", "level": "easy" if i else "hard"} for i, record in enumerate(RECORDS)]
    (folder / "levels.json").write_text(json.dumps(rows), encoding="utf-8")
    module, seen = script("evaluate_instructions"), []
    generate = module.generate_replies
    monkeypatch.setattr(module, "generate_replies", lambda *given: seen.append(given[3:]) or generate(*given))
    argv = ["--model", "model", "--data_file", "levels.json", "--output", "replies.json", "--prompt_style", "phi3", "--max_new_tokens", "4",
            "--batch_size", "3", "--samples", "4", "--temperature", "1.5"]  # fmt: skip
    found = module.main(module.parse([*argv, "--kind_key", "level", "--seed", "1"]))
    assert {kind: row["count"] for kind, row in found["accuracy_by_kind"].items()} == {"hard": 1, "easy": 2}
    assert seen == [(4, 3), (4, 3, True, 1.5)]
    replies = json.loads((folder / "replies.json").read_text(encoding="utf-8"))
    assert [row["level"] for row in replies] == ["hard", "easy", "easy"]
    first = drawn(folder)
    module.main(module.parse([*argv, "--ignore_keys", "level", "--seed", "2"]))
    assert drawn(folder) != first
    check_first_rows("evaluate_instructions", vars(module.parse([*argv, "--kind_key", "level"])))
    with pytest.raises(UserError, match="unknown key 'level'"):
        check_first_rows("evaluate_instructions", vars(module.parse(argv)))
