"""One process of `benchmark.py generation --llama_cpp`: loads a model as its user does, generates, and reports times and memory.

    python generation_worker.py '{"engine": "gpt_scratch", "model": DIRECTORY, ...}'

`llama_cpp.py` starts it. It is run as a file, and each engine imports only its own libraries, because the time from the start of the
process to the first token counts. Every result is a line of JSON on standard output, with the memory so far: the first token; then, for
each shape, the seconds of the prompts and of a step, and the new tokens.
"""

import json
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARMUP_TOKENS = 3  # generated before a shape is measured
Generate = Callable[[list[list[int]], int], tuple[list[float], list[list[int]]]]


def gpt_scratch(settings: dict[str, Any]) -> Generate:
    """Prompts and a number of new tokens -> the time of the start and of every token, and the new tokens of each row."""
    import torch

    from gpt_scratch.inference.decoding import generation_settings, prepare_for_decoding
    from gpt_scratch.inference.loading import load_language_model

    torch.set_num_threads(settings["threads"])
    model, _ = load_language_model(settings["model"])
    model = prepare_for_decoding(model, settings["weights"])
    model.generation_config.eos_token_id = None  # always generate the full length

    def generate(prompts: list[list[int]], new_tokens: int) -> tuple[list[float], list[list[int]]]:
        times: list[float] = []

        def record(input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

        ids = torch.tensor(prompts)
        more: dict[str, Any] = {
            "max_new_tokens": new_tokens,
            "do_sample": False,
            "pad_token_id": 0,
            "stopping_criteria": [record],
        }
        start = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), **more, **generation_settings(model))  # type: ignore[operator]
        return [start, *times], output[:, ids.shape[1] :].tolist()

    return generate


def llama_cpp(settings: dict[str, Any]) -> Generate:
    """As [`gpt_scratch`], through the low-level functions of the binding, which cost no time of Python per token."""
    import llama_cpp as llama
    import numpy as np

    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(settings["model"].encode(), llama.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {settings['model']}")
    vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def generate(prompts: list[list[int]], new_tokens: int) -> tuple[list[float], list[list[int]]]:
        params = llama.llama_context_default_params()
        params.n_threads = params.n_threads_batch = settings["threads"]
        params.n_seq_max = len(prompts)
        params.n_ctx = len(prompts) * (-(-(len(prompts[0]) + new_tokens) // 256) * 256)
        context = llama.llama_init_from_model(model, params)
        largest = llama.llama_n_batch(context)
        batch = llama.llama_batch_init(largest, 0, 1)
        keep = quiet  # the callback must live as long as it can be called
        assert keep is not None

        def decode(tokens: list[tuple[int, int, int, bool]]) -> None:
            for i, (token, position, sequence, wanted) in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.n_tokens = len(tokens)
            if llama.llama_decode(context, batch):
                raise RuntimeError("llama_decode fails")

        def most_likely(place: int) -> int:
            return int(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, place), (vocab_size,)).argmax())

        times, rows = [time.perf_counter()], [[] for _ in prompts]  # type: ignore[var-annotated]
        waiting: list[tuple[int, int, int, bool]] = []
        for sequence, prompt in enumerate(prompts):
            if waiting and len(waiting) + len(prompt) > largest:
                _first_tokens(decode, most_likely, waiting, rows)
                waiting = []
            waiting += [(token, i, sequence, i == len(prompt) - 1) for i, token in enumerate(prompt)]
        _first_tokens(decode, most_likely, waiting, rows)
        times.append(time.perf_counter())
        for step in range(new_tokens - 1):
            decode([(row[-1], len(prompt) + step, sequence, True) for sequence, (prompt, row) in enumerate(zip(prompts, rows))])
            for place, row in enumerate(rows):
                row.append(most_likely(place))
            times.append(time.perf_counter())
        llama.llama_batch_free(batch)
        llama.llama_free(context)
        return times, rows

    return generate


def _first_tokens(
    decode: Callable, most_likely: Callable, tokens: list[tuple[int, int, int, bool]], rows: list[list[int]]
) -> None:
    """Decode whole prompts, and add the next token of each to its row."""
    decode(tokens)
    for place, (_, _, sequence, wanted) in enumerate(tokens):
        if wanted:
            rows[sequence].append(most_likely(place))


def quantize(settings: dict[str, Any]) -> None:
    """Write a GGUF file in another format, as `llama-quantize` does; `format` is a suffix of llama.cpp's LLAMA_FTYPE constants."""
    import llama_cpp as llama

    params = llama.llama_model_quantize_default_params()
    params.ftype = getattr(llama, f"LLAMA_FTYPE_{settings['format']}")
    params.allow_requantize, params.nthread = True, settings["threads"]
    if llama.llama_model_quantize(settings["model"].encode(), settings["output"].encode(), params):
        raise RuntimeError(f"llama.cpp cannot quantize {settings['model']}")


def prompts_of(batch: int, length: int, vocab_size: int) -> list[list[int]]:
    """Random token ids, the same in every process."""
    generator = random.Random(batch * length)
    return [[generator.randrange(vocab_size) for _ in range(length)] for _ in range(batch)]


def memory() -> dict[str, int | None]:
    """Resident memory of this process in MiB, now and at its peak; `None` where /proc does not exist."""
    status = Path("/proc/self/status")
    text = status.read_text(encoding="utf-8") if status.is_file() else ""
    found = {name: re.search(rf"{field}:\s+(\d+) kB", text) for name, field in (("resident", "VmRSS"), ("peak", "VmHWM"))}
    return {f"{name}_mib": int(match[1]) // 1024 if match else None for name, match in found.items()}


def main(settings: dict[str, Any]) -> None:
    if settings["engine"] == "quantize":
        return quantize(settings)
    generate = {"gpt_scratch": gpt_scratch, "llama.cpp": llama_cpp}[settings["engine"]](settings)
    _, rows = generate(prompts_of(1, min(length for _, length in settings["shapes"]), settings["vocab_size"]), 1)
    print(json.dumps({"first": rows[0][0]} | memory()), flush=True)
    for batch, length in settings["shapes"] if settings["new_tokens"] else []:
        prompts = prompts_of(batch, length, settings["vocab_size"])
        generate(prompts, WARMUP_TOKENS)
        times, rows = generate(prompts, settings["new_tokens"])
        step = (times[-1] - times[1]) / (settings["new_tokens"] - 1)
        result = {"batch": batch, "prompt": length, "prompt_s": times[1] - times[0], "step_s": step, "tokens": rows}
        print(json.dumps(result | memory()), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[-1]))
