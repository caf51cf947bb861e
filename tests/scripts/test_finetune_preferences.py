"""Learning from preferences, small: DPO starts at log 2 and widens the margin; a reward model ranks; GRPO uses it."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from old_releases import assert_old_releases_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.verify_checkpoint import EQUAL, verify_checkpoint

pytest.importorskip("trl")
ROOT = Path(__file__).resolve().parents[2]
COMMON = ["--use_cpu", "--disable_tqdm", "true", "--bf16", "false", "--gradient_checkpointing", "false", "--save_strategy", "no",
          "--report_to", "none", "--logging_steps", "4", "--prompt_style", "phi3", "--per_device_train_batch_size", "8",
          "--lr_scheduler_type", "constant"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """The polite reply is always the chosen one."""
    words = ["red", "blue", "green", "white", "black", "gold"]
    rows = [
        {
            "instruction": f"Name colour {i}.",
            "input": "",
            "output": "",
            "chosen": f"Please: {words[i % 6]}",
            "rejected": f"Shut up, {words[i % 6]}",
        }
        for i in range(60)
    ]
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[4]["instruction"] += " Not <|endoftext|>."
    path = tmp_path_factory.mktemp("pairs") / "pairs.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory, data) -> str:
    path = tmp_path_factory.mktemp("base")
    texts = [" ".join(row.values()) for row in json.loads(Path(data).read_text(encoding="utf-8"))]
    tokenizer = train_byte_level_bpe(texts, vocab_size=300)
    torch.manual_seed(0)
    config = GPTScratchConfig(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=96, initializer_range=0.2, drop_rate=0.0
    )
    GPTScratchForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def run(script, method: str, *argv: str) -> dict:
    module = script("finetune_preferences")
    return module.main(*module.parse([method, *COMMON, *argv]))


def test_dpo_starts_at_log_2_and_the_margin_grows_on_held_out_pairs(script, base, data, tmp_path, capsys):
    record = run(script, "dpo", "--train_file", data, "--model_name_or_path", base, "--output_dir", str(tmp_path / "dpo"), "--max_steps", "8",
                 "--learning_rate", "1e-3", "--eval_strategy", "steps", "--eval_steps", "8", "--eval_on_start")  # fmt: skip
    first, last = record["metrics"]["curve"][0], record["metrics"]["curve"][-1]
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=1e-5) and first["eval_rewards/margins"] == pytest.approx(
        0, abs=1e-5
    )
    assert last["eval_loss"] < 0.6 and last["eval_rewards/margins"] > 0.2 and last["eval_rewards/accuracies"] == 1
    assert record["metrics"]["data"]["train"]["pairs_of_equal_replies_left_out"] == 1
    assert "special tokens written in the text are read as characters: 1 <|endoftext|>" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "dpo").iterdir()}
    assert files >= {"model.safetensors", "tokenizer.json", "chat_template.jinja", "metrics.json", "margins.png", "loss.png"}
    assert verify_checkpoint(str(tmp_path / "dpo")).status == EQUAL
    assert_old_releases_open(tmp_path / "dpo")
    AutoModelForCausalLM.from_pretrained(tmp_path / "dpo")


@pytest.mark.thorough
def test_resuming_skips_a_broken_checkpoint_and_ends_with_the_same_weights(script, base, data, tmp_path):
    flags = ["--train_file", data, "--model_name_or_path", base, "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3",
             "--eval_strategy", "no"]  # fmt: skip
    run(script, "dpo", *flags, "--output_dir", str(tmp_path / "whole"))
    for name in ("checkpoint-3", "checkpoint-6"):
        assert_old_releases_open(tmp_path / "whole" / name)
        shutil.copytree(tmp_path / "whole" / name, tmp_path / "killed" / name)
    (tmp_path / "killed" / "checkpoint-6" / "optimizer.pt").unlink()
    run(script, "dpo", *flags, "--output_dir", str(tmp_path / "killed"), "--resume_from_checkpoint", "latest")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-3").state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(tmp_path / "killed").state_dict().items():
        assert torch.equal(tensor, expected[name]) and not torch.equal(tensor, start[name]), name


@pytest.mark.thorough
def test_a_reward_model_ranks_and_grpo_reinforces_what_it_prefers(script, base, data, tmp_path):
    reward, grpo = str(tmp_path / "reward"), str(tmp_path / "grpo")
    record = run(script, "reward", "--train_file", data, "--model_name_or_path", base, "--output_dir", reward, "--max_steps", "12",
                 "--learning_rate", "3e-3", "--eval_strategy", "steps", "--eval_steps", "12")  # fmt: skip
    assert record["metrics"]["eval_accuracy"] == 1
    model = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    assert isinstance(model, GPTScratchForSequenceClassification) and model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(reward)
    scores = []
    for reply in ("Please: gold", "Shut up, gold"):
        messages = [{"role": "user", "content": "Name colour 99."}, {"role": "assistant", "content": reply}]
        inputs = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        scores.append(float(model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits))
    assert scores[0] > scores[1] + 0.5

    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    record = run(script, "grpo", "--train_file", data, "--model_name_or_path", base, "--reward_model", reward, "--output_dir", grpo,
                 "--max_steps", "2", "--num_generations", "4", "--max_completion_length", "8", "--learning_rate", "1e-3",
                 "--eval_strategy", "no", "--logging_steps", "1")  # fmt: skip
    after = AutoModelForCausalLM.from_pretrained(grpo).state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    assert (tmp_path / "grpo" / "reward.png").is_file()
    assert verify_checkpoint(reward).status == verify_checkpoint(grpo).status == EQUAL


@pytest.mark.thorough
def test_grpo_learns_a_reward_that_is_computed(script, base, tmp_path, capsys):
    """More of one letter: any reply reaches a little of it, so the reward must rise, and by it the share of the letter."""
    rows = [{"instruction": f"Name colour {i}.", "output": "red"} for i in range(48)]
    (tmp_path / "asked.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        "def letter(prompt, reply, reference):\n    assert prompt[-1]['content'].startswith('Name') and reference == 'red'\n"
        "    return reply.count('e')\n",
        encoding="utf-8",
    )
    output = tmp_path / "grpo"
    record = run(script, "grpo", "--train_file", str(tmp_path / "asked.json"), "--model_name_or_path", base, "--output_dir", str(output),
                 "--reward", f"{tmp_path / 'mine.py'}:letter", "length", "--reward_weights", "1", "0.01", "--split_fractions", "0.8", "0.1",
                 "0.1", "--max_steps", "25", "--num_generations", "8", "--per_device_train_batch_size", "32", "--max_completion_length", "8",
                 "--learning_rate", "3e-3", "--beta", "0.01", "--eval_strategy", "no", "--logging_steps", "1")  # fmt: skip
    curve = record["metrics"]["reinforcement_curve"]
    assert curve[0].keys() >= {"step", "reward", "entropy", "kl", "completions/mean_length", "rewards/mine.py:letter/mean"}
    first, last = (sum(row["reward"] for row in part) / 5 for part in (curve[:5], curve[-5:]))
    assert last > first + 0.1
    before, after = (record["metrics"][name]["sampled"]["rewards"]["mine.py:letter"] for name in ("success_before", "success"))
    assert after > before
    assert record["metrics"]["data"] == {
        "train": {"questions": 38},
        "validation": {"questions": 6, "questions_also_in_train": 0},
    }
    assert {path.name for path in output.glob("*.png")} == {"reward.png", "length.png", "entropy.png", "divergence.png"}
    assert "of its likeliest replies and" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the first argument must be the method"),
        (["ppo"], ", not 'ppo'"),
        (["dpo"], "--train_file is missing"),
        (["dpo", "--train_file", "DATA"], "--model_name_or_path is missing"),
        (["grpo", "--train_file", "DATA", "--model_name_or_path", "BASE"], "needs --reward_model"),
        (["grpo", "--train_file", "DATA", "--model_name_or_path", "BASE", "--reward", "exact"], "--reward exact is unknown"),
        (
            ["grpo", "--train_file", "DATA", "--model_name_or_path", "BASE", "--reward", "length", "--reward_model", "BASE"],
            "not both",
        ),
        (
            ["dpo", "--train_file", "DATA", "--model_name_or_path", "BASE", "--reward", "length"],
            "--reward needs the method grpo",
        ),
        (
            ["dpo", "--train_file", "DATA", "--model_name_or_path", "BASE", "--validation_file", "DATA"],
            "only used with --reward",
        ),
        (["grpo", "--train_file", "DATA", "--model_name_or_path", "BASE", "--reward_model", "BASE"], "is not a reward model"),
        (["dpo", "--betta", "1"], "unknown flag 'betta'; did you mean 'beta'"),
    ],
)
def test_bad_input_ends_before_training(script, base, data, tmp_path, argv, message):
    module = script("finetune_preferences")
    argv = [{"DATA": data, "BASE": base}.get(word, word) for word in argv]
    flags = [*COMMON, "--output_dir", str(tmp_path / "out")] if argv[1:] or argv == ["dpo"] else []
    with pytest.raises(UserError, match=message):
        module.main(*module.parse([*argv[:1], *flags, *argv[1:]]))


@pytest.mark.parametrize("recipe", ["dpo", "reward", "grpo", "grpo_exact_match"])
def test_recipes_parse(script, recipe, tmp_path):
    file = ROOT / "scripts" / "configs" / "preferences" / f"{recipe}.yaml"
    script("finetune_preferences").parse([recipe.split("_")[0], str(file), "--use_cpu", "--output_dir", str(tmp_path)])
