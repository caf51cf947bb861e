"""The readers of untrusted files, each as a function of bytes: for the fuzzer, and for the replay of its corpus.

A target writes the bytes to a file as its reader expects it, with the checksums or the archive around them that a fuzzer would not find, and
reads it. It returns where the file is read or refused by the error that the reader documents, and lets every other exception out.
"""

import io
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tensorflow_bytes import masked, varint

from gpt_scratch import GPTScratchConfig, verify_checkpoint
from gpt_scratch.analysis import runs
from gpt_scratch.conversion.checkpoint import Options
from gpt_scratch.conversion.gguf_files import open_gguf
from gpt_scratch.conversion.gguf_header import check_gguf
from gpt_scratch.conversion.hub_directories import open_hub_directory
from gpt_scratch.conversion.karpathy import open_nanogpt
from gpt_scratch.conversion.sources import SafetensorsSource, shards_of
from gpt_scratch.conversion.state_dicts import open_book, read_state_dict
from gpt_scratch.conversion.tensorflow_bundle import TABLE_MAGIC, TensorFlowCheckpoint
from gpt_scratch.data.classification import label_ids, read_labelled_texts
from gpt_scratch.data.instruction import read_conversations
from gpt_scratch.data.opening import check_files
from gpt_scratch.data.preference import read_preferences
from gpt_scratch.data.readers import read_pieces
from gpt_scratch.errors import UserError
from gpt_scratch.evaluation.judge import read_verdicts
from gpt_scratch.inference import chat_template
from gpt_scratch.inference.loading import load_config, load_tokenizer
from gpt_scratch.tokenization.byte_pair_files import read_book_bpe, read_minbpe
from gpt_scratch.tokenization.gpt2 import load_gpt2_tokenizer
from gpt_scratch.tokenization.word_level import word_level_from_list
from gpt_scratch.training import made_with
from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments, parse_config_overrides
from gpt_scratch.training.pretraining import PretrainingArguments
from gpt_scratch.training.resume import read_trainer_state

LONGEST_MESSAGE = 5_000
# What a run was made with, to which the file of a checkpoint is compared.
RUN = {key: {"a": 1} for key in made_with.REFUSED} | {
    "rows a step": 8,
    "length": {"max_steps": 3},
    "dropout": {},
    "flags": {"a": 1},
}


@dataclass(frozen=True)
class Target:
    """A reader to be fuzzed.

    read: takes an empty folder and the bytes.
    refusals: the errors by which it says that a file is bad.
    words: what its files are made of, for the fuzzer's dictionary.
    """

    read: Callable[[Path, bytes], None]
    refusals: tuple[type[Exception], ...] = (UserError,)
    words: tuple[str, ...] = ()


def run(target: Target, data: bytes) -> str | None:
    """Read `data`, and return the message of a refusal, or `None`.

    Raises:
        BaseException: whatever is no refusal by one line of words.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        try:
            target.read(Path(folder), data)
        except target.refusals as error:
            message = str(error)
            assert message.strip() and len(message) < LONGEST_MESSAGE and "\n" not in message, f"not one line: {message[:200]!r}"
            return message
    return None


def each(*calls: Callable[[], object]) -> None:
    """All of them: a refusal by one must not hide the next one from the fuzzer. The last refusal is raised."""
    refusal = None
    for call in calls:
        try:
            call()
        except UserError as error:
            refusal = error
    if refusal is not None:
        raise refusal


def split(data: bytes, kinds: int) -> tuple[int, bytes]:
    """The first byte chooses among kinds of files."""
    return (data[0] % kinds if data else 0), data[1:]


# Checkpoints


def tensorflow_index(folder: Path, data: bytes) -> None:
    """The whole file; or the one block of a table, as it stands or packed; or the block that names the others."""
    kind, data = split(data, 4)
    if kind:
        block = data + bytes([kind == 2])
        block += masked(block)
        handles = varint(0) + varint(len(data))
        index = varint(0) + varint(1) + varint(len(handles)) + b"k" + handles + struct.pack("<II", 0, 1) + b"\0"
        index += masked(index)
        table = block if kind == 3 else block + index
        place, size = (0, len(data)) if kind == 3 else (len(block), len(index) - 5)
        data = table + (varint(0) + varint(0) + varint(place) + varint(size)).ljust(40, b"\0") + struct.pack("<Q", TABLE_MAGIC)
    (folder / "model.ckpt.index").write_bytes(data)
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(bytes(64))
    checkpoint = TensorFlowCheckpoint(folder)
    each(*(lambda name=name: checkpoint.read(name) for name in list(checkpoint.tensors)[:4]))


def gguf(folder: Path, data: bytes) -> None:
    file = folder / "model.gguf"
    file.write_bytes(data)
    check_gguf(file)
    open_gguf(file, Options())


def safetensors(folder: Path, data: bytes) -> None:
    """A whole file; or a header, whose length and values are put around it; or an index of shards."""
    kind, data = split(data, 3)
    file = folder / "model.safetensors"
    if kind == 2:
        (folder / "model.safetensors.index.json").write_bytes(data)
        file.write_bytes(struct.pack("<Q", 2) + b"{}")
        shards_of(folder / "model.safetensors.index.json")
        SafetensorsSource(folder / "model.safetensors.index.json")
        return
    file.write_bytes(struct.pack("<Q", len(data)) + data + bytes(64) if kind else data)
    source = SafetensorsSource(file)
    for name in list(source.describe())[:4]:
        source.get(name)
    read_state_dict(file)
    each(lambda: open_book(file, Options(lora_alpha=1.0, lora_scaling="alpha")), lambda: open_book(file, Options()))


def state_dict(folder: Path, data: bytes) -> None:
    """A whole file; or the pickle of an archive, with one storage beside it."""
    kind, data = split(data, 2)
    if kind:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for name, part in {"data.pkl": data, "byteorder": b"little", "data/0": bytes(256), "version": b"3\n"}.items():
                archive.writestr(f"archive/{name}", part)
        data = packed.getvalue()
    file = folder / "weights.pth"
    file.write_bytes(data)
    read_state_dict(file)
    each(lambda: open_nanogpt(file, Options()), lambda: open_book(file, Options(lora_alpha=1.0, lora_scaling="alpha")))


def config_json(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    each(lambda: load_config(str(folder)), lambda: open_hub_directory(folder, Options()))


# Tokenizers


def tokenizer_json(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    load_tokenizer(str(folder))


def tokenizer_files(folder: Path, data: bytes) -> None:
    """minbpe's file, a list of words, or OpenAI's or the book's two files, parted by a zero byte."""
    kind, data = split(data, 4)
    if kind == 0:
        (folder / "a.model").write_bytes(b"minbpe v1\n" + data)
        read_minbpe(folder / "a.model").to_fast(64)
    elif kind == 1:
        (folder / "words.txt").write_bytes(data)
        word_level_from_list(folder / "words.txt")
    else:
        vocabulary, _, merges = data.partition(b"\0")
        (folder / "encoder.json").write_bytes(vocabulary)
        (folder / "vocab.bpe").write_bytes(merges)
        if kind == 2:
            load_gpt2_tokenizer(folder)
        else:
            read_book_bpe(folder / "encoder.json", folder / "vocab.bpe").to_fast(64)


def template(folder: Path, data: bytes) -> None:
    messages = [[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]]
    arguments = {"conversations": messages, "chat_template": data.decode("utf-8", "replace"), "add_generation_prompt": True}
    chat_template.RENDERER.call("render_jinja_template", (), arguments)


# Data


def rows(folder: Path, data: bytes) -> None:
    suffixes = (".csv", ".jsonl", ".json", ".tsv", ".txt", ".parquet", ".zip")
    kind, data = split(data, len(suffixes))
    file = folder / f"data{suffixes[kind]}"
    file.write_bytes(data)
    name = str(file)

    def text() -> None:
        check_files([name])
        characters = sum(len(piece.text) for piece in read_pieces([name]))
        assert kind > 4 or characters <= len(data)

    each(
        text,
        lambda: label_ids(read_labelled_texts(name).labels),
        lambda: read_conversations(name),
        lambda: read_preferences(name),
    )


# Settings and records of runs


def recipe(folder: Path, data: bytes) -> None:
    """A recipe, or --config_overrides."""
    kind, data = split(data, 2)
    if kind:
        text = data.decode("utf-8", "replace")
        try:
            GPTScratchConfig(**parse_config_overrides(text, GPTScratchConfig)).to_json_string()
        except ValueError as error:  # of the configuration, which may stand without the package
            raise UserError(str(error)) from error
        return
    file = folder / "recipe.yaml"
    file.write_bytes(data)
    flags = ["--output_dir", str(folder / "run"), "--report_to", "none", "--use_cpu", "true"]
    parse_arguments((PretrainingArguments, ScratchTrainingArguments), [str(file), *flags])


def records(folder: Path, data: bytes) -> None:
    """trainer_state.json, metrics.json, reference_outputs.json, the judge's verdicts, made_with.json."""
    kind, data = split(data, 4)
    if kind == 0:
        (folder / "trainer_state.json").write_bytes(data)
        (folder / "metrics.json").write_bytes(data)
        each(lambda: plot(folder), lambda: refused(lambda: read_trainer_state(folder)))
    elif kind == 1:
        (folder / verify_checkpoint.FILE).write_bytes(data)
        refused(lambda: verify_checkpoint.read_reference(folder / verify_checkpoint.FILE))
    elif kind == 2:
        (folder / "judge.jsonl").write_bytes(data)
        read_verdicts(folder / "judge.jsonl")
    else:
        (folder / made_with.FILE).write_bytes(data)
        made_with.compare(RUN, str(folder))


def refused(call: Callable[[], object]) -> None:
    """ValueError and OSError are what these readers document; their callers make a line of them."""
    try:
        call()
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def plot(folder: Path) -> None:
    """All of it but the files of the picture, which take a second."""
    save, runs.save_figure = runs.save_figure, lambda figure, path: []
    try:
        runs.plot_histories({"run": runs.read_history(str(folder))}, folder / "curves")
    finally:
        runs.save_figure = save


JSON = ("null", "true", "NaN", "Infinity", "-1", "1e999", "[]", "{}", '"a"', "\\ud800", "18446744073709551616", ",", ":")
TARGETS = {
    "tensorflow_index": Target(tensorflow_index),
    "gguf": Target(gguf, words=("general.architecture", "llama", ".block_count", "general.alignment", "tokenizer.ggml.tokens", ".embedding_length")),
    "safetensors": Target(safetensors, words=(*JSON, '"dtype":"F32"', '"shape":[', '"data_offsets":[', "__metadata__", '"weight_map"', "tok_emb.weight", "pos_emb.weight", "out_head.weight", ".lora.A")),
    "state_dict": Target(state_dict, words=("ctorch._utils\\x0a_rebuild_tensor_v2\\x0a", "ctorch\\x0aFloatStorage\\x0a", "ccollections\\x0aOrderedDict\\x0a", "tok_emb.weight", "model_args")),
    "config_json": Target(config_json, words=(*JSON, *(f'"{name}"' for name in (*GPTScratchConfig().to_dict(), "gpt2", "llama", "rope_scaling", "architectures", "auto_map")))),
    "tokenizer_json": Target(tokenizer_json, words=(*JSON, *(f'"{name}"' for name in ("type", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "vocab", "merges", "added_tokens", "truncation", "padding", "strategy", "Fixed", "Replace", "Regex", "String", "pattern", "content", "Sequence", "Split", "BPE", "WordPiece", "WordLevel", "Unigram", "Precompiled", "TemplateProcessing", "Metaspace", "Strip", "Prepend", "unk_id")))),
    "tokenizer_files": Target(tokenizer_files, words=(*JSON, "minbpe v1", "#version: 0.2", "<|endoftext|>", '"pair"', '"new_id"')),
    "chat_template": Target(template, words=("{{", "}}", "{%", "%}", "for", "in", "endfor", "if", "messages", "range(", "raise_exception(", "strftime_now(", "|tojson", "|join", "**", "namespace(", "macro", "import")),
    "rows": Target(rows, words=(*JSON, *(f'"{name}"' for name in ("text", "label", "messages", "role", "content", "instruction", "input", "output", "prompt", "completion", "chosen", "rejected", "input_ids", "labels")), "text,label")),
    "recipe": Target(recipe, words=("- ", ": ", "!!", "&a ", "*a", "<<", "1e-3", ".nan", ".inf", "learning_rate", "num_train_epochs", "fsdp", "deepspeed", "accelerator_config", "lr_scheduler_kwargs", "optim_args", "config_overrides", "train_file", "n_embd=", "n_layer=", "rope_parameters=")),
    "records": Target(records, words=(*JSON, *(f'"{name}"' for name in ("log_history", "metrics", "curve", "step", "epoch", "loss", "eval_loss", "train_eval_loss", "learning_rate", "grad_norm", "num_input_tokens_seen", "global_step", "max_steps", "stateful_callbacks", "key", "answer", "score", "format", "head", "prompts", "batches")))),
}  # fmt: skip


@cache
def quiet() -> None:
    """Warnings and progress of libraries off, one thread: they are the same for every input."""
    import logging
    import warnings

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
