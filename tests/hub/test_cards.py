"""Model cards: what they say comes from the run's files, and the Hub takes them."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from run_records import RECORD, metrics
from stand_in_hub import card_problems

from gpt_scratch.hub.cards import (
    CLOSING,
    OPENING,
    PROPOSAL,
    keep_card,
    name_repository,
    write_card,
    write_chat_card,
    write_classifier_card,
    write_conversion_card,
    write_instruction_card,
    write_preference_card,
)

CARDS = Path(__file__).resolve().parents[2] / "model_cards"


def written(folder) -> tuple[str, ModelCard]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert card_problems(text) == ([], [])
    return text, ModelCard(text)


def test_a_card_holds_what_was_measured_and_nothing_else(tmp_path):
    (tmp_path / "loss.png").touch()
    write_card(str(tmp_path), RECORD)
    text, card = written(tmp_path)
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.*) \|$", text, re.M))
    assert {name: rows[name] for name in ("validation_loss", "tokens_seen", "learning_rate", "train", "command")} == {
        "validation_loss": "1.2346",
        "tokens_seen": "9000000",
        "learning_rate": "5e-05",
        "train": "2 documents, 12,345 tokens",
        "command": "`x.py --a \\| b`",
    }
    assert not {"train_loss", "commit", "epochs", "best_validation_loss"} & rows.keys()  # not measured: left out
    assert "None" not in text and "/home/ada" not in text
    assert "![loss](loss.png)" in text and "comparison" not in text
    [loss, perplexity] = card.data.eval_results
    assert (loss.metric_type, loss.metric_value, loss.dataset_split) == ("loss", 1.2346, "validation")
    assert (perplexity.metric_value, perplexity.dataset_name) == (3.4368, "a.txt (validation split)")
    assert card.data.pipeline_tag == "text-generation" and card.data.library_name == "transformers"
    assert 'revision="main", trust_remote_code=True)' in text and "## Intended use and limits\n\nThe model has seen" in text
    assert re.search(r"teaching\.\n<!-- gpt_scratch: end of the card, [0-9a-f]{16} -->\n$", text) and "\n\n\n" not in text


def test_a_card_names_the_command_that_verifies_the_model(tmp_path):
    command = 'python -m gpt_scratch.verify_checkpoint "{}" --trust_remote_code\n'
    write_card(str(tmp_path), RECORD)
    assert "verify_checkpoint" not in written(tmp_path)[0]  # there is nothing to compare with
    (tmp_path / "reference_outputs.json").touch()
    write_card(str(tmp_path), RECORD)
    assert "\n## Verify\n" in written(tmp_path)[0] and command.format("PATH_OR_NAME") in written(tmp_path)[0]
    name_repository(str(tmp_path), "ada/story")
    assert command.format("ada/story") in written(tmp_path)[0]


WRITERS = {
    "classifier": lambda folder: write_classifier_card(
        folder,
        metrics(labels=["ham", "spam"], test_accuracy=0.9, data={"test": {"rows": 300, "texts_also_in_train": 37}}),
    ),
    "assistant": lambda folder: write_instruction_card(folder, metrics(validation_response_loss=0.5)),
    "dpo": lambda folder: write_preference_card(folder, "dpo", metrics(eval_loss=0.6)),
    "grpo": lambda folder: write_preference_card(folder, "grpo", metrics(eval_reward=0.6)),
    "reward": lambda folder: write_preference_card(folder, "reward", metrics(eval_loss=0.6)),
    "converted": lambda folder: write_conversion_card(
        folder, "gpt2", {"format": "openai", "notes": ["a note"], "proof": {"parameters": 5}}
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_each_kind_of_card_is_one_that_the_hub_takes(kind, tmp_path):
    WRITERS[kind](str(tmp_path))
    text, card = written(tmp_path)
    assert card.data.tags == ["gpt_scratch", "custom_code"] and "None" not in text
    assert (card.data.pipeline_tag == "text-classification") == (kind in ("classifier", "reward"))
    assert {"classifier": "37 of the 300 test texts", "converted": "- a note"}.get(kind, "Data") in text
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        compile(code, kind, "exec")


def test_the_name_of_the_repository_is_written_into_the_example_once(tmp_path):
    write_card(str(tmp_path), RECORD)
    assert name_repository(str(tmp_path), "ada/story") and not name_repository(str(tmp_path), "ada/other")
    text, _ = written(tmp_path)
    assert text.count('from_pretrained("ada/story", revision="main"') == 2 and "PATH_OR_NAME" not in text
    assert not name_repository(str(tmp_path / "nowhere"), "ada/story")


def test_text_around_a_card_is_kept_when_it_is_written_again(tmp_path, capsys):
    write_card(str(tmp_path), RECORD)
    assert name_repository(str(tmp_path), "ada/story")  # no edit by a person
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    text = text.replace("library_name:", "license: mit\nlanguage: [en, de]\nlibrary_name:", 1)
    text = text.replace(OPENING, f"Written for my daughter.\n\n{OPENING}") + "\n## Thanks\n\nTo Bob.\n"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    for loss in (0.5, 0.25):
        write_card(str(tmp_path), metrics(validation_loss=loss))
        text, card = written(tmp_path)
        assert (card.data.license, card.data.language, card.data.eval_results[0].metric_value) == ("mit", ["en", "de"], loss)
        assert f"\n---\n\nWritten for my daughter.\n\n{OPENING}\n# test" in text and text.endswith(
            " -->\n\n## Thanks\n\nTo Bob.\n"
        )
        assert f"| validation_loss | {loss} |" in text and "1.2346" not in text and text.count(OPENING) == 1
        assert capsys.readouterr().out == "note: README.md: what was written above or below the card is kept\n"
    assert not (tmp_path / PROPOSAL).exists()


EDITS = {
    "a figure": lambda text: text.replace("| 1.2346 |", "| 0.1 |"),
    "a result of the metadata": lambda text: text.replace("value: 1.2346", "value: 0.1"),
    "a comment is gone": lambda text: text.replace(OPENING, ""),
    "a file of one's own": lambda text: "# My model\n",
    "another encoding": lambda text: text.replace("The model has seen", "Das Modell hört, es hat gesehen").encode("latin-1"),
    "metadata that are none": lambda text: text.replace("library_name:", "library_name: [", 1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_card_that_a_person_edited_is_kept_and_the_new_one_lies_beside_it(edit, tmp_path, capsys):
    write_card(str(tmp_path), RECORD)
    text = EDITS[edit]((tmp_path / "README.md").read_text(encoding="utf-8"))
    edited = text if isinstance(text, bytes) else text.encode("utf-8")
    (tmp_path / "README.md").write_bytes(edited)
    write_card(str(tmp_path), metrics(validation_loss=0.5))
    assert (tmp_path / "README.md").read_bytes() == edited
    proposal = (tmp_path / PROPOSAL).read_text(encoding="utf-8")
    assert card_problems(proposal) == ([], []) and "| validation_loss | 0.5 |" in proposal
    assert f"is kept; the card of this run is {PROPOSAL}" in capsys.readouterr().out


def test_a_card_is_kept_where_a_directory_is_replaced(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(), new.mkdir()
    keep_card(str(tmp_path / "nowhere"), str(new))
    write_conversion_card(str(old), "gpt2", {"format": "openai", "notes": [], "proof": {"parameters": 5}})
    (old / "README.md").write_text((old / "README.md").read_text(encoding="utf-8") + "\nMine.\n", encoding="utf-8")
    keep_card(str(old), str(new))
    write_conversion_card(str(new), "gpt2", {"format": "openai", "notes": [], "proof": {"parameters": 7}})
    text = (new / "README.md").read_text(encoding="utf-8")
    assert "| parameters | 7 |" in text and text.endswith("\nMine.\n") and CLOSING[:20] in text


@pytest.mark.parametrize("card", sorted(path.parent.name for path in CARDS.glob("*/metrics.json")))
def test_the_published_cards_say_what_their_metrics_say(card, tmp_path):
    """Written again from metrics.json they are the same, so that every number can be traced."""
    folder = shutil.copytree(CARDS / card, tmp_path / card)
    (folder / "README.md").unlink()
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    names = {
        "labels": write_classifier_card,
        "validation_response_loss": write_instruction_card,
        "eval_rewards/margins": lambda folder, record: write_preference_card(folder, "dpo", record),
        "eval_mean_reward": lambda folder, record: write_preference_card(folder, "reward", record),
    }
    next((writer for name, writer in names.items() if name in record["metrics"]), write_card)(str(folder), record)
    text, _ = written(folder)
    assert text == (CARDS / card / "README.md").read_text(encoding="utf-8")


def test_the_published_chat_card_says_what_its_report_says(tmp_path):
    folder = shutil.copytree(CARDS / "zero-to-chat-tiny", tmp_path / "zero-to-chat-tiny")
    (folder / "README.md").unlink()
    write_chat_card(str(folder), json.loads((folder / "report.json").read_text(encoding="utf-8")))
    text, _ = written(folder)
    assert text == (CARDS / "zero-to-chat-tiny" / "README.md").read_text(encoding="utf-8")
