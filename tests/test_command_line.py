"""What a script prints before torch and transformers are imported: its help, and errors of its command line."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from command_line_table import SCRIPTS, make_table, script_names

from gpt_scratch import command_line
from gpt_scratch.command_line import check_command_line
from gpt_scratch.errors import UserError

ROOT = SCRIPTS.parent
PINNED = dict(re.findall(r"^(transformers|trl)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current directory: texts, a model, a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("GPT_SCRATCH_API_KEY", raising=False)
    for name in ("text.txt", "runs/model/config.json", "runs/old/checkpoint-3/config.json", "runs/nothing/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "latin.csv").write_text("text,label\nGr\xfc\xdfe,Lob\n", encoding="latin-1")
    (tmp_path / "table.csv").write_text("Text,Label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(30)))
    (tmp_path / "commas.csv").write_text("Text,Label\n" + ("one, two,a\n" + "one,a\n" * 15) * 2)
    (tmp_path / "late.csv").write_text("text,label\n" + "one,a\n" * 20 + "one, two,a\n")
    (tmp_path / "rows.jsonl").write_text('{"body": "a", "label": 1}\n{"body": \n', encoding="utf-8")
    (tmp_path / "alpaca.json").write_text('[{"instruction": "Add.", "output": "3"}]')
    (tmp_path / "ids.json").write_text('[{"input_ids": [1], "labels": [1]}]')
    (tmp_path / "tools.json").write_text('[{"instruction": "Add.", "output": "3", "tools": [{"name": "f"}]}]')
    (tmp_path / "others.json").write_text('[{"instruction": "Add.", "output": "3", "note": "4"}]')
    (tmp_path / "pairs.json").write_text('[{"prompt": "Add.", "chosen": "3", "rejected": "4"}]')
    (tmp_path / "runs/written").mkdir()
    (tmp_path / "runs/written/model.pth").write_text("weights")
    (tmp_path / "runs/written/.gpt_scratch.json").write_text('{"files": [".gpt_scratch.json", "model.pth"]}')
    (tmp_path / "recipe.yaml").write_text("train_file: [text.txt]\nlearnin_rate: 1\n", encoding="utf-8")
    return tmp_path


def test_the_table_equals_the_scripts_parsers():
    pytest.importorskip("trl")
    if command_line.releases() != PINNED:
        pytest.skip(f"the flags of {PINNED} are in the table")
    found, kept = json.loads(json.dumps(make_table())), json.loads(command_line.TABLE.read_text(encoding="utf-8"))
    for name in found["scripts"]:
        assert found["scripts"][name] == kept["scripts"].get(name), f"{name}: `make flags` writes the table anew"
    assert found == kept, "`make flags` writes the table anew"


@pytest.mark.parametrize("script", script_names())
def test_help_names_each_flag_once(script, capsys):
    with pytest.raises(SystemExit) as end:
        check_command_line(script, ["--help"], "What it is for.")
    shown = capsys.readouterr().out
    assert end.value.code == 0 and shown.startswith(f"usage: {script}.py ") and "What it is for." in shown
    assert len(shown.partition("\n\n")[0].splitlines()) <= 2 and "SUPPRESS" not in shown
    flags = re.findall(r"^  (--\w+)", shown, re.MULTILINE)
    assert len(flags) == len(set(flags))


def test_a_script_s_own_flags_stand_before_those_of_the_library(capsys):
    for argv, library, flag in (
        (["finetune_preferences"], "flags of TRL's DPOConfig:", "--beta"),
        (["finetune_preferences", "grpo"], "flags of TRL's GRPOConfig:", "--num_generations"),
        (["pretrain"], "flags of transformers' TrainingArguments:", "--learning_rate"),
    ):
        with pytest.raises(SystemExit):
            check_command_line(argv[0], [*argv[1:], "--help"], None)
        shown = capsys.readouterr().out
        places = [shown.index(part) for part in ("flags of this script:", "\n  --train_file", library, f"\n  {flag}")]
        assert places == sorted(places)


WRONG = {
    "pretrain --learnin_rate 1": "unknown flag 'learnin_rate'; did you mean 'learning_rate'?",
    "pretrain --learning_rate fast": "invalid float value: 'fast'",
    "pretrain --learning_rate -1": "--learning_rate is -1.0: it must be between 0 and 1,000",
    "pretrain --optimizer sgd": "invalid choice: 'sgd'",
    "pretrain --append_eos maybe": "'maybe' is neither true nor false",
    "pretrain recipe.yaml": "recipe recipe.yaml: unknown key 'learnin_rate'; did you mean 'learning_rate'?",
    "pretrain nowhere.yaml": "recipe nowhere.yaml cannot be read",
    "pretrain --train_file nowhere.txt": "nowhere.txt: no such file",
    "pretrain --train_file text.txt --output_dir runs/old": "runs/old already contains a run",
    "pretrain --train_file text.txt --tokenizer_name gpt2": "gpt2: no such directory here, and the Hub cannot be reached (127.0.0.1: ",
    "pretrain --block_size 64": "give either --train_file or --dataset_name",
    "finetune_classifier --vocab_size 500": "--train_file is missing: give the labelled texts to train on",
    "finetune_instructions --train_file text.txt": "--model_name_or_path is missing: give the checkpoint to start from",
    "finetune_classifier --train_file empty.csv": "empty.csv is empty",
    "finetune_classifier --train_file text.txt --model_name_or_path runs/nothing": "runs/nothing is not a model directory: it contains no config.json",
    "finetune_preferences": "the first argument must be the method (dpo, reward, grpo)",
    "finetune_preferences sft": ", not 'sft'",
    "finetune_preferences dpo --bet 1": "unknown flag 'bet'; did you mean 'beta'?",
    "compare_classifiers --recipes random --train_file text.txt --output_dir x --lerning_rate 1": "did you mean 'learning_rate'?",
    "compare_reports runs/old runs/typo": "runs/typo: no such file or directory",
    "analyze runs runs/old runs/typo": "runs/typo: no such file or directory",
    "verify_checkpoint ./typo": "./typo: no such file or directory",
    "distill --teacher runs/nothing --train_file text.txt": "runs/nothing is not a model directory: it contains no config.json",
    "zero_to_chat --pretraining_file none.txt": "none.txt: no such file",
    "export onnx runs/model out --type q8_0": "--type is for gguf: onnx is written in float32",
    "export gguf runs/model out.gguf --overwrite": "--overwrite is for onnx",
    "zero_to_chat --size 99": "--size 99: use tiny, small, medium, 124M, or a number of layers from 2 to 48",
    "zero_to_chat --test_file text.txt": "--instruction_file is missing",
    "push_to_hub runs/nothing me/x": "runs/nothing is not a model directory: it contains no config.json",
    "benchmark step --shape 4": "argument --shape: '4' is not a shape: 4x256 is 4 rows of 256 tokens",
    "generate ./typo": "./typo: no such file or directory",
    "generate runs/model --top_p 2": "--top_p is 2.0: it must be between 0 and 1",
    "finetune_classifier --train_file latin.csv": "latin.csv: byte 13 is not UTF-8 (invalid start byte, line 2): give its --encoding",
    "finetune_classifier --train_file latin.csv --encoding klingon": "--encoding klingon: unknown encoding",
    "pretrain --train_file latin.csv --delimiter ab": "--delimiter 'ab': it must be one character",
    "pretrain --train_file text.txt --delimiter ;": "--delimiter has no effect: text.txt is not csv or tsv",
    "classify runs/model --text One --output a.csv.gz": "--output a.csv.gz: the file is not compressed; leave out .gz",
    "classify runs/model --file nowhere.csv": "nowhere.csv: no such file",
    "analyze attention runs/model": "the following arguments are required: --text",
    "serve runs/model --port x": "invalid int value: 'x'",
    "serve runs/model --host 0.0.0.0": "--host 0.0.0.0 would let other machines use this server: set an API key in the variable GPT_SCRATCH_API_KEY",
    "demo --modle runs/model": "unknown flag 'modle'; did you mean 'model'?",
    "demo --model runs/model runs/nothing": "runs/nothing is not a model directory",
    "demo --model ./typo": "./typo: no such file or directory",
    "demo --port 99999": "--port is 99999: it must be between 0 and 65,535",
    "demo --host 0.0.0.0": "--host 0.0.0.0 would let other machines use this page without a fixed list of models: give the models with --model",
    "convert_checkpoint text.txt runs/old": "runs/old exists and is not empty: it contains 'checkpoint-3', which this package did not write",
    "convert_checkpoint text.txt runs/written": "runs/written exists and is not empty: choose another output directory, or pass --overwrite",
    "convert_checkpoint runs/written/model.pth runs/written --overwrite": "runs/written contains the source /",
    "train_tokenizer --train_file text.txt --output_dir text.txt": "text.txt exists and is not a directory",
    "export onnx runs/model runs/old": "runs/old exists and is not empty",
    # Flags that exclude or need one another
    "pretrain --train_file text.txt --streaming": "--streaming needs --max_steps",
    "pretrain --train_file text.txt --streaming --max_steps 5": "--streaming needs --tokenizer_name",
    "pretrain --train_file text.txt --model_name_or_path runs/model --config_overrides n_embd=8": "--config_overrides is for new models",
    "pretrain --train_file text.txt --config_overrides n_embed=8": "unknown name 'n_embed'; did you mean 'n_embd'?",
    "pretrain --train_file text.txt --config_overrides 8": "write name=value pairs separated by commas, or a JSON object",
    "pretrain --train_file text.txt --block_size 64 --stride 65": "stride is 65: it must be between 1 and block_size 64",
    "pretrain --train_file text.txt --max_steps 0": "--max_steps is 0: nothing would be trained",
    "pretrain --train_file text.txt --num_train_epochs 0": "--num_train_epochs is 0.0: training would have no steps",
    "pretrain --train_file text.txt --eval_strategy epochs": "invalid choice: 'epochs'",
    "pretrain --train_file text.txt --early_stopping_patience 2 --eval_strategy no": "--early_stopping_patience needs evaluations",
    "pretrain --train_file text.txt --output_dir runs/model --resume_from_checkpoint latest": "runs/model contains no complete checkpoint-N directory",
    "pretrain --train_file text.txt --output_dir runs/new --resume_from_checkpoint runs/model": "not a checkpoint, it contains no trainer_state.json",
    "finetune_classifier --train_file table.csv --split files": "--split files needs --train_file, --validation_file and --test_file",
    "finetune_classifier --train_file table.csv --test_file table.csv": "--test_file is only used with --split files",
    "finetune_classifier --train_file table.csv --split_fractions 0.8 0.2": "expected 3 positive numbers that add up to 1",
    "finetune_classifier --train_file table.csv --lora_rank 4": "--lora_rank needs --trainable lora",
    "finetune_classifier --train_file table.csv --model_name_or_path runs/model --config_overrides n_embd=8": "only the dropout of a checkpoint can be changed",
    "finetune_instructions --train_file alpaca.json --model_name_or_path runs/model --train_last_blocks 1": "needs --trainable last_blocks",
    "finetune_preferences grpo --train_file pairs.json --model_name_or_path runs/model": "grpo needs --reward_model (train one",
    "finetune_preferences dpo --train_file pairs.json --model_name_or_path runs/model --max_steps 0": "--max_steps is 0",
    "evaluate_instructions --model runs/model": "--model needs --data_file (what to reply to) and --output",
    "classify runs/model --text One --file data.csv": "--text and --file cannot be combined",
    "generate runs/model --weights int8 --num_beams 2": "--weights does not support beam search",
    "convert_checkpoint out": "give the checkpoint to convert, or --download one",
    "convert_checkpoint text.txt out --max_shard_size lots": "size 'lots': write 500MB",
    "train_tokenizer --output_dir out": "give one of --train_file, --word_list and --from_files",
    # What transformers would refuse after seconds, or once data and model are there
    "pretrain --train_file text.txt --load_best_model_at_end --eval_strategy steps": "needs a checkpoint of each evaluation: --eval_strategy is steps, --save_strategy epoch",
    "pretrain --train_file text.txt --load_best_model_at_end --eval_strategy steps --save_strategy steps --eval_steps 30 --save_steps 50": "needs a multiple of --eval_steps as --save_steps, and 50 is none of 30",
    "pretrain --train_file text.txt --load_best_model_at_end --eval_strategy steps --save_strategy steps --save_steps 55": "and 55 is none of 10",
    "finetune_classifier --train_file table.csv --save_strategy best --eval_strategy no": "--save_strategy best needs evaluations",
    "finetune_classifier --train_file table.csv --eval_steps 50": "--eval_steps has no effect with --eval_strategy epoch: set --eval_strategy steps",
    "pretrain --train_file text.txt --save_steps 50": "--save_steps has no effect with --save_strategy epoch",
    "pretrain --train_file text.txt --logging_steps 2.5": "--logging_steps is 2.5: above 1 it must be whole",
    "pretrain --train_file text.txt --bf16 --fp16": "--fp16 and --bf16 exclude each other",
    "pretrain --train_file text.txt --warmup_steps -1": "--warmup_steps is -1.0: it must be between 0 and",
    "pretrain --train_file text.txt --gradient_accumulation_steps 0": "--gradient_accumulation_steps is 0: it must be between 1 and",
    "pretrain --train_file text.txt --optim adam": "invalid choice: 'adam'",
    "pretrain --train_file text.txt --lr_scheduler_type cosinus": "invalid choice: 'cosinus'",
    "pretrain --train_file text.txt --lr_scheduler_type reduce_lr_on_plateau --eval_strategy no": "--lr_scheduler_type reduce_lr_on_plateau needs evaluations",
    "pretrain --train_file text.txt --lr_scheduler_type cosine_with_min_lr": "needs --lr_scheduler_kwargs with min_lr_rate or min_lr",
    "pretrain --train_file text.txt --lr_scheduler_kwargs {min_lr:1}": "--lr_scheduler_kwargs {min_lr:1}: not valid JSON",
    "pretrain --train_file text.txt --lr_scheduler_kwargs min_lr=1": "--lr_scheduler_kwargs min_lr=1: write a JSON object",
    "pretrain --train_file text.txt --deepspeed ds.json": "--deepspeed ds.json: no such file",
    "pretrain --train_file text.txt --dataloader_prefetch_factor 2": "needs --dataloader_num_workers",
    "pretrain --train_file text.txt --optim lomo": "--optim lomo needs the package lomo_optim, which is not installed",
    "pretrain --train_file text.txt --report_to tensorbord": "--report_to: unknown name 'tensorbord'; did you mean 'tensorboard'?",
    "pretrain --train_file text.txt --report_to clearml": "--report_to clearml needs the package clearml, which is not installed",
    "finetune_preferences dpo --train_file pairs.json --model_name_or_path runs/model --bf16 true --fp16": "--fp16 and --bf16 exclude each other",
    "finetune_preferences grpo --train_file alpaca.json --model_name_or_path runs/model --reward exact": "--reward exact is unknown: use exact_match",
    "finetune_preferences grpo --train_file alpaca.json --model_name_or_path runs/model --reward mine.py:f": "--reward mine.py:f: there is no file mine.py",
    "finetune_preferences grpo --train_file alpaca.json --model_name_or_path runs/model --reward length --reward_weights 1 2": "--reward_weights has 2 numbers for 1 of --reward",
    "generate runs/model --temperature 0 --top_k 5": "--top_k chooses among tokens to sample, and --temperature 0 takes the likeliest one always",
    "generate runs/model --temperature 0 --top_p 1": "--top_p chooses among tokens to sample",
    "train_tokenizer --train_file text.txt --output_dir out --special_tokens <a> <a>": "--special_tokens '<a>': each must be text, given once",
    "train_tokenizer --train_file text.txt --output_dir out --type word --special_tokens <a>": "they have no effect on other tokenizers",
    # The first rows of files
    "finetune_preferences grpo --train_file pairs.json --model_name_or_path runs/model --reward length": "pairs.json row 0: unknown keys 'chosen', 'rejected'",
    "finetune_preferences grpo --train_file ids.json --model_name_or_path runs/model --reward length": "ids.json row 0: it contains token ids: --reward needs",
    "finetune_preferences grpo --train_file alpaca.json --validation_file tools.json --model_name_or_path runs/model --reward length": "tools.json row 0: it contains 'tools'",
    "pretrain --train_file table.csv --text_column body": "table.csv has no column 'body': its columns are Text, Label; pass --text_column",
    "pretrain --train_file runs/written/model.pth": "unknown format '.pth'",
    "finetune_classifier --train_file table.csv --label_column stars": "no column 'stars': its columns are Text, Label; pass --label_column",
    "finetune_classifier --train_file commas.csv": "commas.csv: lines 2, 18: 3 fields",
    "finetune_classifier --train_file rows.jsonl --text_column body": "rows.jsonl line 2: not valid JSON",
    "finetune_instructions --train_file others.json --model_name_or_path runs/model": "others.json row 0: unknown key 'note'",
    "finetune_preferences dpo --train_file alpaca.json --model_name_or_path runs/model": "alpaca.json row 0: 'chosen' is missing",
    "evaluate_instructions --model runs/model --data_file pairs.json --output x.json": "pairs.json row 0: ",
    "classify runs/model --file table.csv --text_column body": "table.csv has no column 'body'",
    "train_tokenizer --train_file rows.jsonl --output_dir out": "rows.jsonl has no column 'text'",
}  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_wrong_flags_are_refused_in_one_line(folder, line):
    script, *argv = line.split()
    with pytest.raises(UserError, match=re.escape(WRONG[line])) as error:
        check_command_line(script, argv, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "argv", [["--run_name", "caf\udce9"], ["--output_dir", "runs/caf\udce9"], ["--train_file", "caf\udce9.txt"]]
)
def test_arguments_that_are_not_utf8_are_refused_before_training(argv):
    """They would fail when they are printed or written to the card."""
    with pytest.raises(
        UserError, match=r"the argument '.*caf\\udce9.*': .* at character \d+: .*: arguments and file names must be UTF-8"
    ):
        check_command_line("pretrain", argv, None)


RIGHT = [
    "pretrain --train_file text.txt --learning_rate 1e-3 --bf16 --no_append_eos --output_dir runs/new",
    "pretrain --train_file text.txt --output_dir runs/old --resume_from_checkpoint latest",
    "pretrain --train_file text.txt --lr_scheduler_kwargs {}",
    "finetune_classifier --train_file a_name_of_datasets",
    "finetune_classifier --train_file latin.csv --encoding latin-1",
    "finetune_preferences grpo --top_k 0 --use_cpu --train_file pairs.json --model_name_or_path runs/model --reward_model runs/model",
    "finetune_classifier --train_file table.csv --trainable last_two_blocks --model_name_or_path runs/model",
    "finetune_classifier --train_file late.csv",  # what is wrong beyond the first rows is found when all are read
    "finetune_instructions --train_file others.json --ignore_keys note --model_name_or_path runs/model",
    "classify runs/model --file table.csv",
    "compare_classifiers --recipes random --train_file text.txt --output_dir x --learning_rate 1e-3 --bf16",
    "generate runs/model --prompt a b --temperature 0.5",
    "generate runs/model --temperature 0",
    "generate runs/model --top_k 5 --top_p 0.9",
    "pretrain --train_file text.txt --load_best_model_at_end",  # evaluation and saving are of each epoch both
    "pretrain --train_file text.txt --load_best_model_at_end --eval_strategy steps --save_strategy steps --eval_steps 0.1 --save_steps 0.3",
    "pretrain --train_file text.txt --load_best_model_at_end --eval_strategy steps --save_strategy best --save_steps 7",
    "pretrain --train_file text.txt --eval_steps 50 --eval_strategy no",  # of a recipe, with the evaluation switched off
    "finetune_preferences grpo --train_file alpaca.json --model_name_or_path runs/model --reward exact_match length --reward_weights 1 0.1",
    "analyze runs runs/old runs/model --labels a b",
    "benchmark step --shape 4x256",
    "demo --model runs/model --port 8000",
    "demo --model runs/model --host 0.0.0.0",
    "convert_checkpoint text.txt runs/written --overwrite",
    "export gguf runs/model text.txt",  # a file, replaced when the new one is whole
    "serve runs/model --max_tokens 0",  # its limits say themselves what they may be
]


@pytest.mark.parametrize("line", RIGHT)
def test_right_flags_pass(folder, capsys, line):
    script, *argv = line.split()
    check_command_line(script, argv, None)
    assert not capsys.readouterr().err  # notes about a file are printed once, by the script


RECORDS = {
    "finetune_classifier": {"text": "a", "label": "b"},
    "finetune_instructions": {"instruction": "Add.", "output": "3"},
    "finetune_preferences": {"prompt": "Add.", "chosen": "3", "rejected": "4"},
}


def test_every_recipe_passes(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    (tmp_path / "config.json").write_text("{}")
    folders = {"instructions": ["finetune_instructions"], "spam": ["finetune_classifier"]}
    for path in sorted((SCRIPTS / "configs").rglob("*.yaml")):
        folder = path.parent.name
        if folder == "accelerate":
            continue
        command = (
            ["finetune_preferences", path.stem.split("_")[0]] if folder == "preferences" else folders.get(folder, ["pretrain"])
        )
        flags = ["--output_dir", "runs/none-of-this-name"]
        if "dataset_name" not in path.read_text(encoding="utf-8"):
            name = "README.md" if command[0] == "pretrain" else f"{command[0]}.json"
            (tmp_path / name).write_text(json.dumps([RECORDS.get(command[0], {})]))
            flags += ["--train_file", str(tmp_path / name)]
        if command[0] not in ("pretrain", "finetune_classifier"):
            flags += ["--model_name_or_path", str(tmp_path)]
        if command[1:] == ["grpo"] and "\nreward:" not in path.read_text(encoding="utf-8"):
            flags += ["--reward_model", str(tmp_path)]
        check_command_line(command[0], [*command[1:], str(path), *flags], None)


def test_a_table_of_other_code_or_releases_checks_nothing(monkeypatch):
    for name in ("definitions", "releases"):
        with monkeypatch.context() as patch:
            patch.setattr(command_line, name, lambda *_: {"transformers": "4.0", "trl": None} if not _ else "0")
            check_command_line("pretrain", ["--no_such_flag"], None)
    with pytest.raises(UserError, match="no_such_flag"):
        check_command_line("pretrain", ["--no_such_flag"], None)


def test_definitions_are_the_code_of_the_flags():
    """A flag added to a dataclass or to a `parse` changes the checksum, other code does not."""
    found = command_line.DEFINITION.findall(
        "x = 1\n@dataclass\nclass TinyArguments:\n    a: int = 1\n\n\ndef main():\n    pass\n"
    )
    assert [text.rstrip() for text in found] == ["class TinyArguments:\n    a: int = 1"]
    found = command_line.DEFINITION.findall("def parse(\n    argv,\n) -> int:\n    parser.add('a')\n\n\nz = 3\n")
    assert "parser.add('a')" in found[0] and "z = 3" not in found[0]


def test_flags_are_checked_without_importing_torch(tmp_path):
    """Measured on a process: 8 s where torch and transformers are imported."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "pretrain.py"), "--help"], env=environment, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stdout.startswith("usage: pretrain.py"), done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    (tmp_path / "table.csv").write_text("text,label\na,b\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    for argv, said in (
        ("generate.py ./typo", "./typo: no such file or directory"),
        ("generate.py model --weights int8 --num_beams 2", "--weights does not support beam search"),
        ("pretrain.py --train_file table.csv --streaming", "--streaming needs --max_steps"),
        ("finetune_classifier.py --train_file table.csv --label_column stars", "table.csv has no column 'stars'"),
        (
            "finetune_preferences.py dpo --train_file table.csv --model_name_or_path model",
            "table.csv row 0: unknown keys 'text', 'label'",
        ),
    ):
        script, *flags = argv.split()
        command = [sys.executable, str(SCRIPTS / script), *flags]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {said}"), done.stderr
