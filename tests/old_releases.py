"""What a directory's tokenizer files must hold for transformers 4.46 and tokenizers 0.20 to open them, checked without these."""

import json
from pathlib import Path

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REQUIRED = {"tokenizer_class", "model_input_names", "model_max_length", "padding_side", "truncation_side",
            "clean_up_tokenization_spaces"}  # fmt: skip
# Every part of a pipeline that tokenizers 0.20 can read from tokenizer.json.
KINDS = {
    "model": {"BPE", "WordPiece", "WordLevel", "Unigram"},
    "normalizer": {"BertNormalizer", "Strip", "StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Sequence", "Lowercase", "Nmt", "Precompiled",
                   "Replace", "Prepend", "ByteLevel"},
    "pre_tokenizer": {"BertPreTokenizer", "ByteLevel", "Delimiter", "Metaspace", "Whitespace", "Sequence", "Split", "Punctuation",
                      "WhitespaceSplit", "Digits", "UnicodeScripts"},
    "post_processor": {"RobertaProcessing", "BertProcessing", "ByteLevel", "TemplateProcessing", "Sequence"},
    "decoder": {"BPEDecoder", "ByteLevel", "WordPiece", "Metaspace", "CTC", "Sequence", "Replace", "Fuse", "Strip", "ByteFallback"},
}  # fmt: skip
PARTS = ("normalizers", "pretokenizers", "processors", "decoders")  # of a Sequence


def kinds(part: dict | None) -> set[str]:
    """The types of a part of the pipeline and of what it is made of."""
    if part is None:
        return set()
    return {part["type"]}.union(*(kinds(inner) for name in PARTS for inner in part.get(name, [])))


def assert_old_releases_open(folder: str | Path) -> dict:
    """Compare the files with what the old releases read; returns `tokenizer_config.json`."""
    folder = Path(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    pipeline = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    # The one class that all releases have, and that adds nothing to the file.
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast", config["tokenizer_class"]
    assert config.keys() >= REQUIRED, f"not written: {REQUIRED - config.keys()}"  # else each release takes its own default
    assert config["model_input_names"] == ["input_ids", "attention_mask"]  # 4.x adds token_type_ids
    assert "extra_special_tokens" not in config  # 4.x asks the list for its keys()
    assert not config.keys() & {"backend", "is_local", "local_files_only"}  # nothing about the machine or the library
    named = {config[name] for name in NAMED if config.get(name) is not None}
    special = {token["content"] for token in pipeline["added_tokens"] if token["special"]}
    assert named | set(config.get("additional_special_tokens", [])) <= special | {None}
    template = folder / "chat_template.jinja"
    if template.is_file():  # 4.46 reads the configuration only
        inline = config.get("chat_template")
        if isinstance(inline, list):
            inline = {entry["name"]: entry["template"] for entry in inline}["default"]
        assert inline == template.read_text(encoding="utf-8")
    for name, known in KINDS.items():
        assert kinds(pipeline[name]) <= known, f"{name}: {kinds(pipeline[name]) - known}"
    if isinstance(pipeline["pre_tokenizer"], dict) and pipeline["pre_tokenizer"]["type"] == "ByteLevel":
        assert config["add_prefix_space"] == pipeline["pre_tokenizer"]["add_prefix_space"]  # 4.57 sets it to what is here
    return config
