"""Benchmarks of generation: milliseconds per token, share of the memory bandwidth, turns of a chat, and perplexity of narrow weights."""

import copy
import math
import statistics
import time
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_gpt_scratch import GPTScratchConfig
from ..inference.chat import Chat
from ..inference.decoding import generation_settings, prepare_for_decoding
from ..inference.streamed_linear import WEIGHTS
from ..modeling_gpt_scratch import GPTScratchForCausalLM
from ..training.precision import use_fast_fp32_matmul
from .harness import Contender, Sizes, ceilings, device, measure, summarize


@torch.no_grad()
def same_weights(sizes: Sizes) -> tuple[Any, Any]:
    """GPT-2 of transformers and of this package with the same weights."""
    torch.manual_seed(0)
    theirs: Any = GPT2LMHeadModel(GPT2Config(**vars(sizes))).eval()
    ours: Any = GPTScratchForCausalLM(GPTScratchConfig(**vars(sizes), qkv_bias=True)).eval()
    ours.model.embed_tokens.weight.copy_(theirs.transformer.wte.weight)
    ours.model.embed_positions.weight.copy_(theirs.transformer.wpe.weight)
    for block, other in zip(ours.model.layers, theirs.transformer.h):
        projections = (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
        for projection, weight in zip(projections, other.attn.c_attn.weight.T.chunk(3)):
            projection.weight.copy_(weight)
        block.self_attn.o_proj.weight.copy_(other.attn.c_proj.weight.T)
        block.mlp.up_proj.weight.copy_(other.mlp.c_fc.weight.T)
        block.mlp.down_proj.weight.copy_(other.mlp.c_proj.weight.T)
    return theirs.to(device()), ours.to(device())


def generation(sizes: Sizes, batch: int, prompt: int, new_tokens: int, repetitions: int, compiled: bool) -> list[dict[str, Any]]:
    """Milliseconds per token (prompt included) of greedy decoding, against transformers in fp32, and whether the tokens are equal."""
    theirs, ours = same_weights(sizes)
    ids = torch.randint(sizes.vocab_size, (batch, prompt), device=device())
    settings: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    for model in (theirs, ours):
        model.generation_config.eos_token_id = None  # always generate the full length
    tokens: dict[str, torch.Tensor] = {}

    def contender(name: str, model: Any, fast: bool, **more: Any) -> Contender:
        def run() -> None:
            torch.set_float32_matmul_precision("highest")
            if fast:
                use_fast_fp32_matmul()
            with torch.inference_mode():
                tokens[name] = model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **more)

        return Contender(name, run)

    selected = [contender("transformers", theirs, False), contender("transformers, fast fp32", theirs, True)]
    selected.append(contender("gpt_scratch", ours, True))
    if compiled:
        use_fast_fp32_matmul()
        for weights in WEIGHTS:
            model = prepare_for_decoding(copy.deepcopy(ours), weights)
            selected.append(contender(f"gpt_scratch, prepared, {weights}", model, True, **generation_settings(model)))
    speed = next(row["median"] for row in ceilings() if row["ceiling"] == "read") * 1e9
    rows = summarize(measure(selected, repetitions), "transformers")
    weight_bytes = {"bfloat16": 2, "int8": 1, "int4": 0.625}  # int4 with its scales
    for row in rows:
        per_token = row["median_s"] / new_tokens
        size = weight_bytes.get(row["contender"].rsplit(", ", 1)[-1], 4)
        row |= {
            "batch": batch,
            "ms_per_token": 1e3 * per_token,
            "share_of_bandwidth": ours.num_parameters() * size / per_token / speed,
        }
        row["same_tokens"] = bool(torch.equal(tokens[row["contender"]], tokens["transformers"]))
    return rows


@torch.inference_mode()
def perplexity_of_weights(model: GPTScratchForCausalLM, rows: list[torch.Tensor]) -> dict[str, float]:
    """Perplexity of a trained model on rows of ids, (1, T) each, with its weights in each format of `WEIGHTS`."""
    result = {}
    for weights in WEIGHTS:
        small = prepare_for_decoding(copy.deepcopy(model), weights)
        total = sum(small(row, labels=row).loss.item() * (row.shape[1] - 1) for row in rows)
        result[weights] = math.exp(total / sum(row.shape[1] - 1 for row in rows))
    return result


def conversation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, turns: int, new_tokens: int, repetitions: int
) -> list[dict[str, Any]]:
    """Seconds per turn of a chat that keeps keys and values of earlier turns, and of the same turn from the whole history.

    Args:
        model: prepared by `prepare_for_decoding`, with a chat template in `tokenizer`.
        turns: number of questions; all are different, and the reply to each has at most `new_tokens` tokens.
    """
    seconds: dict[tuple[int, str], list[float]] = {}
    prompts: dict[int, int] = {}
    for _ in range(repetitions):
        chat = Chat(model, tokenizer, max_new_tokens=new_tokens, prepared=True)
        for turn in range(1, turns + 1):
            whole = Chat(model, tokenizer, max_new_tokens=new_tokens, prepared=True)
            whole.messages = list(chat.messages)
            question = f"What is {turn} plus {2 * turn}, and which of the three numbers is the largest?"
            for name, each in (("kept", chat), ("whole", whole)) if turn % 2 else (("whole", whole), ("kept", chat)):
                start = time.perf_counter()
                each.reply(question, stream=False)
                seconds.setdefault((turn, name), []).append(time.perf_counter() - start)
            prompts[turn] = len(chat.prefix.ids)
    median = {key: statistics.median(values) for key, values in seconds.items()}
    return [
        {"turn": turn, "tokens": tokens, "seconds": median[turn, "kept"], "seconds_from_whole_history": median[turn, "whole"]}
        for turn, tokens in prompts.items()
    ]
