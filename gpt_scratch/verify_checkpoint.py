"""Verify that a checkpoint still computes the outputs stored when it was written, on this machine and with these versions.

    python -m gpt_scratch.verify_checkpoint runs/quickstart
    python -m gpt_scratch.verify_checkpoint user/name --revision main --trust_remote_code

The result is one line. The exit status is that of `diff`: 0 equal, 1 different, 2 if the checkpoint cannot be loaded or has no reference
outputs. It is loaded as a user loads it, run in float32 on the CPU, and compared with its `reference_outputs.json`, which was computed
by forward passes of single rows, without padding and without a cache (`reference_outputs.py`):

- logits of a forward pass without padding, with padding on the right, and with padding on the left;
- greedy tokens and their logits from `generate`, without the cache, with the cache, and with the cache and left-padded prompts.

Logits are equal if they differ by at most 1e-5 times the largest one, or 1e-5 if all are below one. Two tokens closer than that are a tie,
and either of them is accepted.

With `--trust_remote_code` the code in the checkpoint runs, in a process that cannot import this package; without it, the code of this
package. This file does not import the package, so it also runs alone: `python verify_checkpoint.py user/name --trust_remote_code`.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig, PreTrainedModel
from transformers.utils import cached_file

FILE = "reference_outputs.json"
FORMAT = 1
LOADED = ("*.json", "*.py", "*.safetensors", "*.bin")  # files needed to load a model
TOLERANCE = 1e-5  # relative to the largest logit
AUTO = {"lm": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}
USE_CACHE = {"no cache": False, "cache": True}
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
MAX_BYTES, MAX_ROWS, MAX_LENGTH = 2**20, 64, 1024  # file size, rows of its tables, tokens of a row; ours has 4 KB, 8 and 24
EQUAL, DIFFERENT, UNKNOWN = 0, 1, 2
# Runs this file in a process that cannot import the package, from any working directory.
ALONE = "import runpy, sys; sys.modules['gpt_scratch'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


@dataclass(frozen=True)
class Verdict:
    """An exit status and a line with the reason, without the checkpoint's name."""

    status: int
    line: str


@dataclass(frozen=True)
class Comparison:
    """The result of computing the stored outputs in one way.

    difference: largest difference of any logit, up to and including the first step that differs.
    step: the first step whose logits differ; `None` if all are equal.
    token: the first generated token that differs; `None` if none does.
    failure: the exception that was raised instead, in one line.
    """

    difference: float = 0.0
    step: int | None = None
    token: int | None = None
    failure: str | None = None

    @property
    def equal(self) -> bool:
        return self.step is None and self.failure is None


def verify_checkpoint(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Verdict:
    """Load a checkpoint and compare its outputs with the stored ones.

    Args:
        name: directory or Hub name.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run the checkpoint's own code, in a separate process if this package is imported in this one.
    """
    if revision is not None and Path(name).is_dir():
        return Verdict(UNKNOWN, "--revision is for names on the Hub, but this is a directory")
    if sys.modules.get("gpt_scratch"):  # otherwise this file runs alone
        from gpt_scratch.downloads import bound_downloads

        bound_downloads()
        if trust_remote_code:
            try:
                folder = name if Path(name).is_dir() else snapshot_download(name, revision=revision, allow_patterns=LOADED)
            except Exception as error:  # a wrong name, no network, a download over its declared size
                return Verdict(UNKNOWN, f"cannot be fetched: {one_line(error)}")
            return _verify_alone(folder)
    try:
        reference = read_reference(find_reference(name, revision))
    except ValueError as error:
        return Verdict(UNKNOWN, str(error))
    try:
        model = load(name, reference["head"], revision, trust_remote_code)
    except Exception as error:  # a wrong name, a broken file, code for another version: many exception types
        if not trust_remote_code and "trust_remote_code" in str(error):
            return Verdict(
                UNKNOWN, "needs code that is not installed: pass --trust_remote_code to run the code in the checkpoint"
            )
        written = reference["versions"]["transformers"]
        return Verdict(UNKNOWN, f"cannot be loaded with {_versions()} (written by transformers {written}): {one_line(error)}")
    return verify_model(model, reference)


def verify_model(model: PreTrainedModel, reference: dict[str, Any]) -> Verdict:
    """Compare the outputs of a model in float32 with those from [`read_reference`]. Its generation settings are overwritten."""
    return _judge(reference, {way: _attempt(compute, model) for way, compute in _computations(reference).items()})


def _verify_alone(name: str) -> Verdict:
    """Verify a directory in a separate process. Only directories: downloads are limited in this process, but not in the other one."""
    command = [sys.executable, "-c", ALONE, __file__, name, "--trust_remote_code"]
    with tempfile.TemporaryDirectory() as modules:  # transformers copies the code there
        environment = os.environ | {"HF_MODULES_CACHE": modules}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    line = ["", *(done.stderr if done.returncode else done.stdout).strip().splitlines()][-1]
    start = f"{'error: ' if done.returncode else ''}{name}: "
    if done.returncode in (EQUAL, DIFFERENT, UNKNOWN) and line.startswith(start):
        return Verdict(done.returncode, line.removeprefix(start))
    return Verdict(DIFFERENT, f"its code ended the process with status {done.returncode}" + f": {one_line(line)}" * bool(line))


def find_reference(name: str, revision: str | None = None) -> Path:
    """The path of `reference_outputs.json`, downloaded if `name` is on the Hub.

    Raises:
        ValueError: the file does not exist.
    """
    if Path(name).is_dir():
        if not (Path(name) / FILE).is_file():
            raise ValueError(f"there is no {FILE}: the outputs of the model when it was written are unknown")
        return Path(name) / FILE
    try:
        return Path(cached_file(name, FILE, revision=revision or "main"))
    except Exception as error:  # a wrong name, no such file, no network
        raise ValueError(f"{FILE} cannot be fetched: {one_line(error)}") from error


def load(name: str | Path, head: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a checkpoint as a user does, and convert it to float32 and evaluation mode.

    Raises:
        ValueError: missing or unexpected weights.
    """
    # Without a dtype, since that argument has two names; older versions load float32, newer ones the dtype of the weights.
    model, report = AUTO[head].from_pretrained(
        name, revision=revision or "main", trust_remote_code=trust_remote_code, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys"):
        if report[problem]:
            raise ValueError(f"{problem.replace('_keys', '')} weights: {', '.join(sorted(report[problem])[:3])}")
    return model.float().eval()


def one_line(error: object, length: int = 300) -> str:
    """An untrusted message on one line, without control characters, truncated to `length`."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or type(error).__name__
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())[:length]


# Reading the file, which is untrusted.


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,40}", value) is not None  # it is printed


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_logit(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _is_row(value: Any, of: Callable[[Any], bool], longest: int = MAX_BYTES) -> bool:
    return isinstance(value, list) and 0 < len(value) <= longest and all(map(of, value))


def _is_table(value: Any, of: Callable[[Any], bool], longest: int = MAX_BYTES) -> bool:
    rows = _is_row(value, lambda row: _is_row(row, of, longest), MAX_ROWS)
    return rows and len({len(row) for row in value}) == 1


Fields = dict[str, Callable[[Any], bool]]
FIELDS: Fields = {
    "format": lambda value: value == FORMAT,
    "head": lambda value: isinstance(value, str) and value in AUTO,
    "dtype": _is_text,
    "date": _is_text,
    "versions": lambda value: isinstance(value, dict),
    "largest_logit": lambda value: _is_logit(value) and value >= 0,
    "prompts": lambda value: _is_row(value, lambda prompt: isinstance(prompt, dict), MAX_ROWS),
    "batches": lambda value: isinstance(value, list) and len(value) <= MAX_ROWS,
}
VERSIONS: Fields = dict.fromkeys(("gpt_scratch", "torch", "transformers"), _is_text)
PROMPT: Fields = {
    "input_ids": lambda value: _is_row(value, _is_id, MAX_LENGTH),
    "continuation": lambda value: value == [] or _is_row(value, _is_id, MAX_ROWS),
    "top_ids": lambda value: _is_table(value, _is_id),
    "top_logits": lambda value: _is_table(value, _is_logit),
}
BATCH: Fields = {
    "padding": lambda value: value in ("left", "right"),
    "input_ids": lambda value: _is_table(value, _is_id, MAX_LENGTH),
    "attention_mask": lambda value: _is_table(value, lambda bit: type(bit) is int and bit in (0, 1), MAX_LENGTH),
    "position_ids": lambda value: value is None or _is_table(value, _is_id, MAX_LENGTH),
}


def read_reference(path: Path) -> dict[str, Any]:
    """Read and validate a file written by `reference_outputs.py`.

    Raises:
        ValueError: an invalid file; names the key.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{FILE} has {path.stat().st_size:,} bytes, expected a few thousand")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{FILE} is not JSON: {one_line(error)}") from error
    if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
        raise ValueError(
            f"{FILE} has format {one_line(repr(content['format']), 20)}, but this version reads {FORMAT}: upgrade it"
        )
    _check(content, FIELDS, FILE)
    _check(content["versions"], VERSIONS, f"{FILE}: versions")
    for i, prompt in enumerate(content["prompts"]):
        _check(prompt, PROMPT, f"{FILE}: prompt {i}")
        steps = len(content["prompts"][0]["continuation"]) if content["head"] == "lm" else 1
        if len(prompt["top_ids"]) != max(steps, 1) or len(prompt["continuation"]) != (steps if content["head"] == "lm" else 0):
            raise ValueError(f"{FILE}: prompt {i}: expected one row for each token of the continuation")
        if len(prompt["top_ids"][0]) != len(prompt["top_logits"][0]) or len(prompt["top_ids"]) != len(prompt["top_logits"]):
            raise ValueError(f"{FILE}: prompt {i}: top_ids and top_logits have different shapes")
    for i, batch in enumerate(content["batches"]):
        _check(batch, BATCH, f"{FILE}: batch {i}")
        shapes = {(len(batch[key]), len(batch[key][0])) for key in ("input_ids", "attention_mask", "position_ids") if batch[key]}
        if len(shapes) != 1 or len(batch["input_ids"]) != len(content["prompts"]):
            raise ValueError(f"{FILE}: batch {i}: the tables must have the same shape, with one row for each prompt")
    return content


def _check(value: Any, fields: Fields, where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    for key in sorted(fields.keys() ^ value.keys()):
        raise ValueError(f"{where}: key {key[:40]!r} is {'unknown' if key in value else 'missing'}")
    for key, fits in fields.items():
        if not fits(value[key]):
            raise ValueError(f"{where}: {key} has the wrong form")


# Recomputing the outputs: n steps of a language model, one of a classifier; k logits of each are stored.


def _computations(reference: dict[str, Any]) -> dict[str, Callable[[PreTrainedModel], list[Comparison]]]:
    """The ways of computing the stored outputs, by name (see `WHERE`)."""
    ways: dict[str, Callable[[PreTrainedModel], list[Comparison]]] = {"plain": partial(_compare_rows, reference)}
    for batch in reference["batches"]:
        ways[batch["padding"]] = partial(_compare_batch, reference, batch)
    if reference["head"] == "lm":
        # One row: each token is a forward pass. The other rows are generated in the batch.
        prompt = max(reference["prompts"], key=lambda prompt: len(prompt["input_ids"]))
        row = {"input_ids": [prompt["input_ids"]], "attention_mask": [[1] * len(prompt["input_ids"])]}
        ways |= {way: partial(_compare_generated, reference, [prompt], row, use_cache) for way, use_cache in USE_CACHE.items()}
        for batch in reference["batches"]:
            if batch["padding"] == "left":
                ways["cache, padded"] = partial(_compare_generated, reference, reference["prompts"], batch, True)
    return ways


def _attempt(compute: Callable[[PreTrainedModel], list[Comparison]], model: PreTrainedModel) -> Comparison:
    """The first comparison that differs, or else the one with the largest difference."""
    try:
        with torch.inference_mode():
            comparisons = compute(model)
    except Exception as error:  # whatever the model or transformers raise
        return Comparison(failure=one_line(error))
    different = [comparison for comparison in comparisons if not comparison.equal]
    return different[0] if different else max(comparisons, key=lambda comparison: comparison.difference)


def compare(prompt: dict[str, Any], logits: torch.Tensor, allowed: float, tokens: Sequence[int] | None = None) -> Comparison:
    """Compare logits (n, V) or (n, L) with the stored ones, and generated tokens (n,) up to the first tie."""
    largest = 0.0
    for step in range(len(prompt["top_ids"])):
        expected = torch.tensor(prompt["top_logits"][step])
        highest, chosen = logits[step].topk(len(expected)).values, logits[step][torch.tensor(prompt["top_ids"][step])]
        difference = torch.stack([highest - expected, chosen - expected]).abs().max().item()
        if not difference <= allowed:
            others = [i for i, token in enumerate(tokens or ()) if token != prompt["continuation"][i]]
            return Comparison(difference, step, others[0] if others else None)
        largest = max(largest, difference)
        if tokens is not None and tokens[step] != prompt["continuation"][step]:
            if not logits[step].max() - logits[step][tokens[step]] <= allowed:
                return Comparison(largest, step, step)
            break  # a tie: from here on the two texts differ
    return Comparison(largest)


def row_logits(model: PreTrainedModel, prompt: dict[str, Any]) -> torch.Tensor:
    """Logits from one forward pass without padding: (n, V) after the prompt and each token of its continuation, or (1, L)."""
    ids = torch.tensor([prompt["input_ids"] + prompt["continuation"][:-1]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits[0, len(prompt["input_ids"]) - 1 :] if logits.ndim == 3 else logits


def _allowed(reference: dict[str, Any]) -> float:
    return TOLERANCE * max(1.0, reference["largest_logit"])


def _compare_rows(reference: dict[str, Any], model: PreTrainedModel) -> list[Comparison]:
    return [compare(prompt, row_logits(model, prompt), _allowed(reference)) for prompt in reference["prompts"]]


def _compare_batch(reference: dict[str, Any], batch: dict[str, Any], model: PreTrainedModel) -> list[Comparison]:
    given = {key: torch.tensor(value) for key, value in batch.items() if key != "padding" and value is not None}
    logits, mask = model(**given, use_cache=False).logits, given["attention_mask"]  # (B, T, V) or (B, L)
    if logits.ndim == 3:
        logits = logits[torch.arange(len(mask)), (mask * torch.arange(mask.shape[1])).argmax(-1)]  # (B, V)
    first = [{key: prompt[key][:1] for key in ("top_ids", "top_logits")} for prompt in reference["prompts"]]
    return [compare(prompt, row[None], _allowed(reference)) for prompt, row in zip(first, logits)]


def _compare_generated(
    reference: dict[str, Any], prompts: list[dict[str, Any]], batch: dict[str, Any], use_cache: bool, model: PreTrainedModel
) -> list[Comparison]:
    ids, mask = torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"])
    count = len(prompts[0]["continuation"])
    # Replaces all of the model's own settings: no sampling, no end of text, no penalty.
    model.generation_config = GenerationConfig(
        max_new_tokens=count,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    made = model.generate(ids, attention_mask=mask)
    logits, tokens = torch.stack(made.logits, 1), made.sequences[:, ids.shape[1] :].tolist()  # (B, n, V), (B, n)
    return [compare(*of_row[:2], _allowed(reference), of_row[2]) for of_row in zip(prompts, logits, tokens)]


# The verdict.


def _versions() -> str:
    return f"transformers {transformers.__version__} and torch {torch.__version__}"


def _judge(reference: dict[str, Any], found: dict[str, Comparison]) -> Verdict:
    """Summarize all comparisons in one line."""
    written = f"{reference['date']}, transformers {reference['versions']['transformers']}, torch {reference['versions']['torch']}"
    different = {way: comparison for way, comparison in found.items() if not comparison.equal}
    largest, lm = reference["largest_logit"], reference["head"] == "lm"
    if different:
        why = _explain(different, largest)
        return Verdict(DIFFERENT, f"does not reproduce the outputs stored when it was written ({written}): {why}")
    ways = "greedy tokens equal with and without the cache, " if lm else ""
    padded = "with and without padding" if reference["batches"] else "one row at a time"
    difference = max(comparison.difference for comparison in found.values())
    return Verdict(
        EQUAL,
        f"reproduces the outputs stored when it was written ({written}) with {_versions()}: {ways}{padded}, logits differ by at most "
        f"{difference:.2g} (the largest is {largest:.3g})",
    )


def _explain(different: dict[str, Comparison], largest: float) -> str:
    if "plain" in different:  # then all others differ, too
        what = _describe("plain", different["plain"], largest)
        return f"{what}; the weights or the code have changed, or {_versions()} compute different outputs"
    found = "; ".join(_describe(way, comparison, largest) for way, comparison in different.items())
    if all(way.startswith("cache") for way in different):
        if len(different) > 1:
            found = _describe("cache", different["cache"], largest)
        who = f"the model's code and transformers {transformers.__version__}"
        return f"{found}; without the cache all outputs are equal: {who} disagree about the cache"
    if not {"no cache", "cache"} & different.keys() and all(comparison.failure is None for comparison in different.values()):
        return f"{found}; without padding all outputs are equal: the attention mask is ignored"
    return f"{found}; with {_versions()}"


WHERE = {
    "plain": "without padding",
    "left": "with left padding",
    "right": "with right padding",
    "no cache": "without the cache",
    "cache": "with the cache",
    "cache, padded": "with the cache and left padding",
}


def _describe(way: str, comparison: Comparison, largest: float) -> str:
    if comparison.failure is not None:
        return f"no outputs {WHERE[way]}: {comparison.failure}"
    size = f"{comparison.difference:.2g} (the largest is {largest:.3g})"
    if comparison.token is not None:
        return f"greedy tokens {WHERE[way]} differ from the {_ordinal(comparison.token)} token on, logits by {size}"
    assert comparison.step is not None  # or it would be equal
    where = "" if way in ("plain", "left", "right") else f" from the {_ordinal(comparison.step)} token on"
    return f"logits {WHERE[way]} differ by {size}{where}"


def _ordinal(step: int) -> str:
    return ORDINALS[step] if step < len(ORDINALS) else f"{step + 1}th"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="directory or Hub name")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub; default: main")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code in the checkpoint")
    return parser.parse_args(argv)


def _refused(name: str) -> Verdict | None:
    """Refuse a name on the Hub that cannot be reached, before libraries retry for half a minute."""
    if not sys.modules.get("gpt_scratch"):  # this file runs alone
        return None
    from gpt_scratch.command_line import check_place
    from gpt_scratch.errors import UserError

    try:
        check_place(name, is_model=True)
    except UserError as error:
        return Verdict(UNKNOWN, str(error).removeprefix(f"{name}: "))
    return None


def main(args: argparse.Namespace) -> int:
    """Print the verdict and return the exit status."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    verdict = _refused(args.checkpoint) or verify_checkpoint(args.checkpoint, args.revision, args.trust_remote_code)
    if verdict.status == EQUAL:
        print(f"{args.checkpoint}: {verdict.line}")
    else:
        print(f"error: {args.checkpoint}: {verdict.line}", file=sys.stderr)
    return verdict.status


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
