"""--push_to_hub in a training script, and push_to_hub=True in a custom Trainer, against the stand-in Hub."""

import json

import pytest
from tiny_models import tiny_model, token_ids
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator

from gpt_scratch.errors import UserError
from gpt_scratch.hub.contents import list_contents
from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments
from gpt_scratch.training.pretraining import PretrainingArguments

TEXT = "One day, Anna lost her key. She looked by the river, and there it was. Tom had a cat. The cat sat on the mat.\n" * 40


@pytest.fixture
def train(script, tmp_path):
    """Runs scripts/pretrain.py for four steps, saving after two."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")

    def run(*flags: str):
        argv = ["--train_file", str(tmp_path / "text.txt"), "--output_dir", str(tmp_path / "run"), "--config_overrides",
                "n_embd=32,n_layer=2,n_head=2", "--block_size", "32", "--vocab_size", "300", "--use_cpu", "--disable_tqdm", "true",
                "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--sample_tokens", "0", "--eval_strategy", "steps",
                "--eval_steps", "2", "--load_best_model_at_end", "--push_to_hub", *flags]  # fmt: skip
        return script("pretrain").main(*parse_arguments((PretrainingArguments, ScratchTrainingArguments), argv))

    return run


@pytest.mark.thorough
def test_every_commit_is_a_complete_repository_with_our_card(train, logged_in, tmp_path, capsys):
    hub = logged_in()
    train("--hub_model_id", "story", "--hub_private_repo", "true")
    repo = hub.repos["ada/story"]
    assert repo.private
    commits = list(repo.commits.values())[1:]  # the first is the Hub's own
    assert len(commits) == 3  # two steps, and the end
    for i, files in enumerate(commits):
        assert not {"training_args.bin", "optimizer.pt"} & files.keys()
        folder = tmp_path / f"commit-{i}"
        for name, blob in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(blob.content)
        list_contents(folder)  # refuses what is not complete
        AutoModelForCausalLM.from_pretrained(folder)
    last = hub.files("ada/story")
    assert last.keys() - {".gitattributes"} == set(list_contents(tmp_path / "run").files)
    metrics = json.loads(last["metrics.json"])["metrics"]
    assert f"| validation_loss | {metrics['validation_loss']:.4f}".rstrip("0") in last["README.md"].decode()
    assert b"has been automatically generated" not in last["README.md"] and b"A GPT pretrained with" in last["README.md"]
    assert json.loads(last["trainer_state.json"])["best_model_checkpoint"] == "checkpoint-4"  # not the folder of this machine
    assert f"uploaded to {hub.endpoint}/ada/story/commit/{repo.branches['main']}" in capsys.readouterr().out


def test_errors_of_the_upload_are_found_before_training(train, logged_in, tmp_path):
    logged_in(token=None)
    with pytest.raises(UserError, match="not logged in to the Hub"):
        train("--hub_model_id", "story")
    logged_in()
    with pytest.raises(UserError, match="no permission to write to bob/story"):
        train("--hub_model_id", "bob/story")
    with pytest.raises(UserError, match="--hub_strategy checkpoint would upload the optimizer"):
        train("--hub_model_id", "story", "--hub_strategy", "checkpoint")
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.thorough
def test_a_lost_network_does_not_end_the_run(train, script, logged_in, tmp_path, capsys, monkeypatch):
    hub = logged_in()
    hub.drop = lambda method, path: "/commit/" in path
    with pytest.raises(
        UserError, match="everything is in .*/run, but was not uploaded: the connection to the Hub broke off"
    ) as error:
        train("--hub_model_id", "story")
    assert "warning: step 2 was not uploaded" in capsys.readouterr().out
    hub.drop = lambda method, path: False
    command = str(error.value).split("then: python scripts/push_to_hub.py ")[1].split()
    module = script("push_to_hub")
    monkeypatch.setattr(module, "verify_upload", lambda contents, uploaded: 0.0)
    module.main(module.parse(command))
    assert hub.files("ada/story").keys() == set(list_contents(tmp_path / "run").files)


@pytest.mark.thorough
def test_push_to_hub_in_a_custom_trainer(logged_in, tmp_path):
    hub = logged_in()
    args = TrainingArguments(
        str(tmp_path / "mine"), push_to_hub=True, max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    rows = [{"input_ids": row, "labels": row} for row in token_ids(8, 9)]
    trainer = Trainer(tiny_model("gpt2"), args, train_dataset=rows, data_collator=default_data_collator)
    trainer.train()
    trainer.push_to_hub()
    assert {"modeling_gpt_scratch.py", "configuration_gpt_scratch.py", "model.safetensors"} <= hub.files("ada/mine").keys()
    model = AutoModelForCausalLM.from_pretrained("ada/mine", cache_dir=tmp_path / "cache")
    weights = trainer.model.state_dict()
    assert all((value == weights[name]).all() for name, value in model.state_dict().items())
