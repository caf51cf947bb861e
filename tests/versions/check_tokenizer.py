"""What a saved tokenizer does, in whichever release of transformers runs this: imports nothing else, and of it only what 4.46 has.

python tests/versions/check_tokenizer.py describe FOLDER > expected.json     # in the release that wrote FOLDER
python tests/versions/check_tokenizer.py check FOLDER expected.json          # in any other; exit status 1 for a difference
python tests/versions/check_tokenizer.py check-all FOLDERS                   # NAME beside NAME.json, as write_tokenizers.py leaves them
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer

TEXTS = [
    "", " ", "\n", "\r\n\r\n", "\t \t\n x  y   z", " a" * 40 + " ", "\x00\x01 \x7f", "🙂👩‍👩‍👧‍👦🇩🇪", "e\u0301 a\u030a ﬁ ①", "日本語のテキスト", "السلام عليكم",
    "It's we'll I'VE don't 'tis", "do n't , he 's here . Is n't it ? Yes !", "3.14159 1,000,000 ½ 2020", "\u200b\ufeff\u2028\u00a0x",
    "  leading and trailing  ", "a<|endoftext|>b <|endoftext|> <|pad|><|im_start|>user\n<|im_end|> <s>x</s> <unk>", "<|endoftext", "▁Ġ Ċ</w>",
]  # fmt: skip
MESSAGES = [{"role": "user", "content": " Hello, world "}, {"role": "assistant", "content": "It's\n2020.  "}]
ROLES = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")


def describe(tokenizer: Any) -> dict[str, Any]:
    """Everything that must be equal in all releases, as JSON has it."""
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    found = {
        "ids": ids,
        "ids without special tokens": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS],
        "ids of a pair": tokenizer(TEXTS[-2], TEXTS[-3])["input_ids"],
        "decoded": [tokenizer.decode(row) for row in ids],
        "decoded without special tokens": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
        "tokens": len(tokenizer),
        "special ids": {role: getattr(tokenizer, role) for role in ROLES} | {"all": sorted(set(tokenizer.all_special_ids))},
        "settings": [tokenizer.model_max_length, tokenizer.padding_side, tokenizer.truncation_side],
        "inputs": list(tokenizer(TEXTS[2])),
        "truncated": tokenizer(TEXTS[11], truncation=True, max_length=3)["input_ids"],
    }
    if tokenizer.pad_token_id is not None:
        batches = [tokenizer([TEXTS[3], TEXTS[11]], padding=True)]
        batches += [tokenizer([TEXTS[3], TEXTS[11]], padding=True, padding_side=side) for side in ("left", "right")]
        found["padded by default, left, right"] = [dict(batch) for batch in batches]
    template = tokenizer.chat_template
    for name in sorted(template) if isinstance(template, dict) else [None] if template is not None else []:
        chosen = {} if name is None else {"chat_template": name}
        found[f"chat {name or ''}".strip()] = [
            tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt, **chosen)
            for prompt in (False, True)
        ]
    return json.loads(json.dumps(found))


def _compare(found: dict[str, Any], expected: dict[str, Any], when: str) -> None:
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            raise AssertionError(f"{name}, {when}: {str(found.get(name))[:300]}, expected {str(expected.get(name))[:300]}")


def check(folder: str | Path, expected: dict[str, Any]) -> None:
    """The tokenizer of `folder` does what `expected` says, which [`describe`] returned, and does so when it was saved and loaded again.

    Raises:
        AssertionError: names what differs.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    _compare(describe(tokenizer), expected, "loaded")
    with tempfile.TemporaryDirectory() as again:
        tokenizer.save_pretrained(again)
        _compare(describe(AutoTokenizer.from_pretrained(again)), expected, "saved and loaded again")


def check_all(folder: Path) -> None:
    """Each tokenizer of `folder` against the JSON beside it. Raises AssertionError: names the tokenizer and what differs."""
    paths = sorted(folder.glob("*.json"))
    assert paths, f"{folder} holds no tokenizers"
    for path in paths:
        try:
            check(path.with_suffix(""), json.loads(path.read_text(encoding="utf-8")))
        except Exception as error:
            raise AssertionError(f"{path.stem}: {type(error).__name__}: {error}") from error


if __name__ == "__main__":
    if sys.argv[1:2] == ["describe"] and len(sys.argv) == 3:
        print(json.dumps(describe(AutoTokenizer.from_pretrained(sys.argv[2], trust_remote_code=False))))
    elif (sys.argv[1:2], len(sys.argv)) in ((["check"], 4), (["check-all"], 3)):
        try:
            if len(sys.argv) == 3:
                check_all(Path(sys.argv[2]))
            else:
                check(sys.argv[2], json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")))
        except Exception as error:
            sys.exit(f"transformers {transformers.__version__}: {type(error).__name__}: {error}")
        print(f"transformers {transformers.__version__}: ok")
    else:
        sys.exit(__doc__)
