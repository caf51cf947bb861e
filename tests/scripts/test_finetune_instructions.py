"""Instruction finetuning, small: it learns to answer and to stop, packed as well as padded; LoRA; what is frozen; what is refused."""

import json
from pathlib import Path

import pytest
import torch
from old_releases import assert_old_releases_open
from transformers import AutoModelForCausalLM, pipeline

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.data.instruction import InstructionCollator
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments
from gpt_scratch.training.instructions import InstructionArguments
from gpt_scratch.training.language_model_trainer import LanguageModelTrainer
from gpt_scratch.verify_checkpoint import EQUAL, verify_checkpoint

ROOT = Path(__file__).resolve().parents[2]
COMMON = ["--use_cpu", "--disable_tqdm", "true", "--per_device_train_batch_size", "8", "--save_strategy", "no", "--logging_steps", "5",
          "--prompt_style", "phi3"]  # fmt: skip
ANSWERS = {"colour of snow": "white", "colour of coal": "black", "colour of grass": "green", "colour of blood": "red"}


def records(count: int) -> list[dict[str, str]]:
    things = list(ANSWERS)
    return [
        {"instruction": f"Name the {things[i % 4]}.", "input": "now" * (i // 4 % 3), "output": ANSWERS[things[i % 4]]}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A checkpoint whose padding is its end of text."""
    path = tmp_path_factory.mktemp("base")
    tokenizer = train_byte_level_bpe([" ".join(record.values()) for record in records(40)], vocab_size=300)
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    config = GPTScratchConfig(
        vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=4, n_positions=96, initializer_range=0.2, drop_rate=0.0
    )
    GPTScratchForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "instructions.json"
    path.write_text(json.dumps(records(80)), encoding="utf-8")
    return str(path)


def run(script, *argv: str) -> dict:
    parsed = parse_arguments((InstructionArguments, ScratchTrainingArguments), [*COMMON, *argv])
    return script("finetune_instructions").main(*parsed)


@pytest.fixture(scope="module")
def finished(script, base, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "instruct"
    record = run(script, "--train_file", data, "--model_name_or_path", base, "--output_dir", str(output), "--mask_prompt",
                 "--num_train_epochs", "12", "--learning_rate", "5e-3", "--train_sampling_strategy", "group_by_length",
                 "--sample_tokens", "8", "--eval_strategy", "steps", "--eval_steps", "54")  # fmt: skip
    return output, record


def test_it_learns_to_answer_and_to_stop(finished):
    output, record = finished
    metrics = record["metrics"]
    assert metrics["validation_response_loss"] < 0.2 < 2 < metrics["validation_response_loss_before"]
    assert metrics["curve"][-1]["eval_loss"] == pytest.approx(metrics["validation_response_loss"], rel=1e-3)
    chat = pipeline("text-generation", model=str(output), device="cpu")
    for thing, answer in ANSWERS.items():
        messages = [{"role": "user", "content": f"Name the {thing}."}]
        # 20 tokens are allowed, and none comes after the answer
        assert chat(messages, max_new_tokens=20, do_sample=False)[0]["generated_text"][-1]["content"].strip() == answer
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert samples[-1]["prompt"].endswith("<|assistant|>:\n") and samples[-1]["text"] in ANSWERS.values()


def test_the_directory_is_whole(finished):
    output, record = finished
    files = {path.name for path in output.iterdir()}
    assert_old_releases_open(output)
    assert files >= {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "metrics.json", "samples.jsonl", "README.md",
                     "loss.png", "loss.pdf", "test.json", "modeling_gpt_scratch.py"}  # fmt: skip
    assert verify_checkpoint(str(output)).status == EQUAL
    assert json.loads((output / "test.json").read_text(encoding="utf-8")) == records(80)[68:76]
    assert record["metrics"]["data"]["train"]["records"] == 68 and record["metrics"]["padding_share"] < 0.1


def test_evaluation_weighs_tokens_whatever_the_batches(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    rows = [{"input_ids": list(range(5, 5 + n)), "labels": [-100, *range(6, 5 + n)]} for n in (3, 12, 5)]
    total = sum(float(model(**InstructionCollator(0)([row]), num_items_in_batch=1).loss) for row in rows)
    trainer = LanguageModelTrainer(
        model=model,
        args=ScratchTrainingArguments(output_dir=str(tmp_path), per_device_eval_batch_size=2, use_cpu=True, disable_tqdm=True),
        eval_dataset=rows,
        data_collator=InstructionCollator(0),
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / 17, rel=1e-5)


def test_muon_trains_the_matrices_of_the_blocks(script, base, data, tmp_path):
    run(script, "--train_file", data, "--model_name_or_path", base, "--output_dir", str(tmp_path / "out"), "--max_steps", "1",
        "--optimizer", "muon", "--muon_learning_rate", "0.3", "--learning_rate", "0.1", "--warmup_steps", "0", "--weight_decay", "0",
        "--eval_strategy", "no", "--sample_replies", "0")  # fmt: skip
    start, end = (AutoModelForCausalLM.from_pretrained(path) for path in (base, tmp_path / "out"))
    for (name, before), after in zip(start.named_parameters(), end.parameters(), strict=True):
        if "layers." in name and before.ndim == 2:  # an orthogonal matrix has a root mean square of 1 / sqrt(longer side)
            assert 0.5 < (after - before).square().mean().sqrt() / (0.3 * 0.2) < 1.2, name


@pytest.mark.thorough
def test_packed_and_accumulated_training_give_the_weights_of_padded_batches(script, base, data, tmp_path):
    weights = {}
    for name, flags in {
        "padded": ["--per_device_train_batch_size", "80"],
        "packed": ["--per_device_train_batch_size", "80", "--packing", "--pack_length", "96"],
        "accumulated": ["--per_device_train_batch_size", "17", "--gradient_accumulation_steps", "4"],
    }.items():
        run(script, "--train_file", data, "--model_name_or_path", base, "--output_dir", str(tmp_path / name), "--max_steps", "2",
            "--optim", "sgd", "--learning_rate", "0.5", "--eval_strategy", "no", "--sample_replies", "0", *flags)  # fmt: skip
        weights[name] = AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, padded in weights["padded"].items():
        assert not torch.equal(padded, start[name])
        torch.testing.assert_close(weights["packed"][name], padded, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(weights["accumulated"][name], padded, atol=1e-5, rtol=1e-4)


@pytest.mark.thorough
def test_lora_is_small_and_its_merged_model_gives_the_adapters_logits(script, base, data, tmp_path):
    peft = pytest.importorskip("peft")
    record = run(script, "--train_file", data, "--model_name_or_path", base, "--output_dir", str(tmp_path / "out"), "--trainable", "lora",
                 "--lora_rank", "1", "--lora_alpha", "4", "--lora_targets", "q_proj", "v_proj", "--neftune_noise_alpha", "5",
                 "--max_steps", "10", "--learning_rate", "1e-2", "--eval_strategy", "no")  # fmt: skip
    assert record["metrics"]["trainable_parameters"] < 0.05 * record["metrics"]["all_parameters"]
    adapter_bytes = (tmp_path / "out" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert adapter_bytes < 0.05 * (tmp_path / "out" / "model.safetensors").stat().st_size
    assert verify_checkpoint(str(tmp_path / "out")).status == EQUAL
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    original = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        before = original(ids).logits
        adapted = peft.PeftModel.from_pretrained(original, tmp_path / "out" / "adapter").eval()(ids).logits
        torch.testing.assert_close(merged(ids).logits, adapted, atol=1e-4, rtol=0)
        assert (adapted - before).abs().max() > 1e-2


@pytest.mark.thorough
def test_frozen_blocks_stay_and_the_last_ones_move(script, base, data, tmp_path):
    run(script, "--train_file", data, "--model_name_or_path", base, "--output_dir", str(tmp_path / "out"), "--trainable", "last_blocks",
        "--train_last_blocks", "1", "--max_steps", "2", "--eval_strategy", "no", "--sample_replies", "0")  # fmt: skip
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith(("model.norm", "model.layers.2")), name


@pytest.mark.thorough
def test_shared_prompts_are_removed_from_train_and_early_stopping_keeps_the_best(script, base, data, tmp_path):
    record = run(script, "--train_file", data, "--split", "random", "--model_name_or_path", base, "--output_dir", str(tmp_path / "out"),
                 "--num_train_epochs", "20", "--learning_rate", "5e-2", "--early_stopping_patience", "1", "--sample_replies", "0",
                 "--skip_unusable", "--remove_shared_prompts", "--per_device_train_batch_size", "2")  # fmt: skip
    described, curve = record["metrics"]["data"], record["metrics"]["curve"]
    assert described["training_records_removed"] > 0 and described["test"]["prompts_also_in_train"] == 0
    assert len(curve) < 20
    assert record["metrics"]["validation_loss_all_tokens"] == pytest.approx(min(e["eval_loss"] for e in curve), rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--train_file is missing"),
        (["--train_file", "DATA"], "--model_name_or_path is missing"),
        (["--train_file", "DATA", "--model_name_or_path", "nowhere"], "nowhere cannot be loaded"),
        (["--train_file", "DATA", "--model_name_or_path", "BASE", "--split", "files"], "--split files needs"),
        (["--train_file", "DATA", "--model_name_or_path", "BASE", "--prompt_style", "tokenizer"], "has no chat template"),
        (["--train_file", "DATA", "--model_name_or_path", "BASE", "--max_length", "10", "--mask_prompt"], "rows 0, 1, .*: no trainable token within 10 tokens.*68 faults in total"),
        (["--train_file", "DATA", "--model_name_or_path", "BASE", "--muon_learning_rate", "0.1"], "needs --optimizer muon"),
        (["--train_file", "DATA", "--model_name_or_path", "BASE", "--packing"], "--pack_length 512 is longer"),
        (["--train_file", "DATA", "--model_name_or_path", "BASE", "--trainable", "lora", "--lora_targets", "c_attn"], "--lora_targets c_attn"),
        (["--train_file", "DATA", "--model_name_or_path", "BASE", "--trainable", "last_blocks", "--train_last_blocks", "9"], "has 3 blocks"),
    ],
)  # fmt: skip
def test_bad_input_ends_before_training(script, base, data, tmp_path, flags, message):
    flags = [{"DATA": data, "BASE": base}.get(flag, flag) for flag in flags]
    with pytest.raises(UserError, match=message):
        run(script, "--output_dir", str(tmp_path / "out"), *flags)


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "scripts" / "configs" / "instructions").glob("*.yaml")), ids=lambda path: path.stem
)
def test_recipes_parse(recipe, tmp_path):
    parse_arguments((InstructionArguments, ScratchTrainingArguments), [str(recipe), "--output_dir", str(tmp_path)])
