"""Instruction rows against text and tokens written by hand: prompt layouts, labels, packing, padding, and what is refused."""

import json

import datasets
import pytest
import torch
from tiny_models import tiny_model, token_ids
from transformers import AutoTokenizer

from gpt_scratch.data.instruction import (
    Conversations,
    InstructionCollator,
    encode_conversations,
    encode_record,
    pack_rows,
    prompt_text,
    read_conversations,
    set_prompt_style,
    shared_prompts,
    split_conversations,
    to_messages,
)
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

ADD = {"instruction": "Add.", "input": "1 2", "output": "3"}
GREET = {"instruction": "Greet.", "input": "", "output": "Hi"}
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
)


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, and the end of text, which is the padding too: masking by id would be wrong here."""
    tokenizer = train_byte_level_bpe(["a"], vocab_size=258)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save(path, rows) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("style", "record", "prompt"),
    [
        ("alpaca", ADD, ALPACA + "Add.\n\n### Input:\n1 2\n\n### Response:\n"),
        ("alpaca", GREET, ALPACA + "Greet.\n\n### Response:\n"),
        ("phi3", ADD, "<|user|>\nAdd.\n1 2\n<|assistant|>:\n"),
        ("phi3", GREET, "<|user|>\nGreet.\n<|assistant|>:\n"),
        ("chatml", GREET, "<|im_start|>user\nGreet.<|endoftext|>\n<|im_start|>assistant\n"),
    ],
)
def test_prompts_are_the_published_layouts_and_labels_are_the_reply_and_its_end(tokenizer, style, record, prompt):
    set_prompt_style(tokenizer, style)
    assert prompt_text(record, tokenizer, style) == prompt
    ids, labels = encode_record(record, tokenizer, style, mask_prompt=True)
    assert tokenizer.decode(ids) == prompt + record["output"] + "<|endoftext|>"
    reply = [*tokenizer(record["output"])["input_ids"], tokenizer.eos_token_id]
    assert labels == [-100] * (len(ids) - len(reply)) + reply
    # What generation is given is exactly the beginning of what was trained.
    assert tokenizer(prompt)["input_ids"] == ids[: -len(reply)]
    assert encode_record(record, tokenizer, style, mask_prompt=False) == (ids, [-100, *ids[1:]])


def test_every_reply_of_a_conversation_is_trained_and_every_form_becomes_messages(tokenizer):
    set_prompt_style(tokenizer, "chatml")
    talk = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    ids, labels = encode_record({"messages": talk}, tokenizer, "chatml", mask_prompt=True)
    assert tokenizer.decode([label for label in labels if label != -100]) == "b<|endoftext|>d<|endoftext|>"
    assert to_messages({"prompt": "a", "completion": "b"}, "chatml") == talk[1:3]
    assert to_messages({"prompt": talk[:2], "completion": talk[2:3]}, "chatml") == talk[:3]


def test_given_labels_are_kept(tokenizer):
    row = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]}
    assert encode_record(row, tokenizer, "alpaca", mask_prompt=False) == ([5, 6, 7, 8], [-100, 6, -100, 8])


def test_collated_by_hand_padding_by_length_and_never_by_id():
    eos = 9
    rows = [
        {"input_ids": [1, 2, eos], "labels": [-100, 2, eos]},
        {"input_ids": [3, eos, 4, 5, eos], "labels": [-100, -100, 4, 5, eos]},
    ]
    batch = InstructionCollator(pad_id=eos)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 9, 9, 9], [3, 9, 4, 5, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 9, -100, -100], [-100, -100, 4, 5, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert set(batch) == {"input_ids", "labels", "attention_mask"}


def test_packed_by_hand_best_fit():
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [[1, 1], [2, 2, 2, 2], [3, 3, 3], [4], [5] * 7],
            "labels": [[1, 1], [2, 2, 2, 2], [-100, 3, 3], [4], [5] * 7],
            "length": [2, 4, 3, 1, 7],
        }
    )
    packed = pack_rows(rows, 6)
    assert packed["input_ids"] == [[5] * 7, [2, 2, 2, 2, 1, 1], [3, 3, 3, 4]]
    assert packed["labels"] == [[-100] + [5] * 6, [-100, 2, 2, 2, -100, 1], [-100, 3, 3, -100]]
    assert packed["position_ids"] == [list(range(7)), [0, 1, 2, 3, 0, 1], [0, 1, 2, 0]]
    batch = InstructionCollator(pad_id=0)([packed[1], packed[2]])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_a_packed_batch_has_the_loss_and_the_gradients_of_its_rows(style):
    ids = [token_ids(length, seed=length).tolist() for length in (9, 5, 7, 3)]
    rows = datasets.Dataset.from_dict(
        {"input_ids": ids, "labels": [[-100, -100, *row[2:]] for row in ids], "length": list(map(len, ids))}
    )
    results = []
    for data in (rows, pack_rows(rows, 13)):
        model = tiny_model(style)
        batch = InstructionCollator(pad_id=0)([{k: v for k, v in row.items() if k != "length"} for row in data])
        loss = model(**batch, num_items_in_batch=10).loss
        loss.backward()
        results.append((loss, [parameter.grad for parameter in model.parameters()]))
    (alone, alone_grads), (packed, packed_grads) = results
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    for one, other in zip(alone_grads, packed_grads):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_cut_rows_are_counted_and_rows_without_a_trainable_token_are_named(tokenizer):
    set_prompt_style(tokenizer, "phi3")
    data = Conversations([GREET, ADD], ["f row 0", "f row 1"])
    prompt = len(prompt_text(GREET, tokenizer, "phi3"))
    encoded = encode_conversations(data.take([0]), tokenizer, "phi3", True, max_length=prompt + 1)
    assert encoded.cut == 1 and encoded.trainable_tokens == 1 and encoded.tokens == prompt + 1
    with pytest.raises(UserError, match=f"f row 0: no trainable token within {prompt} tokens"):
        encode_conversations(data.take([0]), tokenizer, "phi3", True, max_length=prompt)
    longer = max(prompt, len(prompt_text(ADD, tokenizer, "phi3"))) + 5
    empty = Conversations([GREET, {**ADD, "output": " "}], ["f row 0", "f row 1"])
    with pytest.raises(UserError, match="f row 1: the reply is empty"):
        encode_conversations(empty, tokenizer, "phi3", True, longer)
    assert encode_conversations(empty, tokenizer, "phi3", True, longer, skip_unusable=True).left_out == 1


def test_templates_without_markers_or_without_the_end_of_text_are_refused(tokenizer):
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="no {% generation %} markers"):
        set_prompt_style(tokenizer, "tokenizer")
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] }}{% else %}"
        "{% generation %}{{ message['content'] }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    set_prompt_style(tokenizer, "tokenizer")
    with pytest.raises(UserError, match="f row 0: no end-of-text token among the labels"):
        encode_conversations(Conversations([GREET], ["f row 0"]), tokenizer, "tokenizer", True, 100)


def test_the_style_is_saved_with_the_tokenizer(tokenizer, tmp_path):
    set_prompt_style(tokenizer, "alpaca")
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.apply_chat_template([{"role": "user", "content": "Greet."}], tokenize=False, add_generation_prompt=True) == (
        ALPACA + "Greet.\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "a", "output": "b"},\n {"instruction": "c" "output"}]', "not valid JSON.*line 2"),
        ('[{"instruction": "a"}]', "row 0: 'output' is missing"),
        ('[{"instruction": "a", "output": "b"}, {"instruction": 3, "output": "b"}]', "row 1: 'instruction' is int"),
        ('[{"body": "a"}]', "row 0: the keys are body"),
        ('[{"messages": [{"role": "user", "content": "a"}]}]', "row 0: messages contain no reply"),
        ('[{"messages": [{"role": "robot", "content": "a"}]}]', "message 0 has the role 'robot'"),
        ('[{"input_ids": [1, 2], "labels": [1]}]', "row 0: 2 input_ids but 1 labels"),
        ("[]", "contains no records"),
    ],
)
def test_broken_files_are_refused_with_their_place(tmp_path, text, message):
    path = tmp_path / "data.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_conversations(str(path))


def test_broken_json_lines_are_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n{"instruction": \n', encoding="utf-8")
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        read_conversations(str(path))


def test_the_ordered_split_is_the_published_one_and_shared_prompts_are_found(tmp_path):
    rows = [{"instruction": str(i % 19), "output": str(i)} for i in range(20)]
    data = read_conversations(save(tmp_path / "data.json", rows))
    parts = split_conversations(data, [0.85, 0.05, 0.1])
    assert [[int(record["output"]) for record in parts[name].records] for name in ("train", "test", "validation")] == [
        list(range(17)), [17, 18], [19]]  # fmt: skip
    assert shared_prompts(parts["validation"], parts["train"]) == [0] and shared_prompts(parts["test"], parts["train"]) == []
    shuffled = split_conversations(data, [0.85, 0.05, 0.1], seed=1)
    assert sorted(int(r["output"]) for part in shuffled.values() for r in part.records) == list(range(20))
    with pytest.raises(UserError, match="add up to 1"):
        split_conversations(data, [0.5, 0.1, 0.1])


def test_the_published_file(shared_data):
    """1,100 rows; 935, 110 and 55; 2 test and 4 validation prompts stand in train (LLMs-from-scratch, chapter 7, counted)."""
    parts = split_conversations(read_conversations(str(shared_data / "instruction-data.json")), [0.85, 0.05, 0.1])
    assert {name: len(part) for name, part in parts.items()} == {"train": 935, "validation": 55, "test": 110}
    assert len(shared_prompts(parts["test"], parts["train"])) == 2
    assert len(shared_prompts(parts["validation"], parts["train"])) == 4
