"""Write tokenizers of each kind, and beside each what it does here, for `check_tokenizer.py check-all`.

python tests/versions/write_tokenizers.py FOLDER
"""

import json
import sys
from pathlib import Path

from check_tokenizer import describe
from transformers import AutoTokenizer

from gpt_scratch.data.instruction import CHAT_TEMPLATES
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.tokenization.portable import save_tokenizer
from gpt_scratch.tokenization.word_level import RULES, train_word_level

TEXT = ["One day, Anna lost her key. It's 2020, isn't it? She looked by the river, and there it was.\n" * 20]


def with_template():
    tokenizer = train_byte_level_bpe(TEXT, 320)
    tokenizer.chat_template, tokenizer.padding_side = CHAT_TEMPLATES["chatml"], "left"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return tokenizer


def main(folder: Path) -> None:
    tokenizers = {"byte_level": train_byte_level_bpe(TEXT, 320), "chat": with_template()}
    tokenizers |= {f"words_{rule}": train_word_level(TEXT, rule, None, 1, 64) for rule in RULES}
    for name, tokenizer in tokenizers.items():
        save_tokenizer(tokenizer, folder / name)
        described = describe(AutoTokenizer.from_pretrained(folder / name))
        (folder / f"{name}.json").write_text(json.dumps(described), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
