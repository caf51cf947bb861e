"""What each of two processes does in test_distributed.py, started by torchrun; the first prints a JSON line for each check."""

import json
import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig

from gpt_scratch.data.language_modeling import BlockSettings, Source, stream_blocks

FAMILIES = ("gpt2", "llama")


def told(name: str, **values) -> None:
    if dist.get_rank() == 0:
        print(json.dumps({"check": name, **values}), flush=True)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def two_steps(model, rows: torch.Tensor, sharded: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights after two steps; sharded, each process takes its half of the rows and gradients are averaged."""
    # Adam would blow up rounding where a gradient is zero, as that of a key's bias is.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mine = rows.chunk(2)[dist.get_rank()] if sharded else rows
    losses = []
    for _ in range(2):
        loss = model(input_ids=mine, labels=mine).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if sharded:
            dist.all_reduce(mean)
            mean /= 2
        losses.append(float(mean))
    return losses, {name: whole(parameter).detach() for name, parameter in model.named_parameters()}


def check_fsdp(folder: str) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for family in FAMILIES:
        rows = torch.randint(0, 250, (4, 16), generator=torch.Generator().manual_seed(0))
        plain = AutoModelForCausalLM.from_pretrained(f"{folder}/{family}").eval()  # without dropout
        model = AutoModelForCausalLM.from_pretrained(f"{folder}/{family}").eval()
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        shards = sum(parameter.to_local().numel() for parameter in model.parameters())
        losses, weights = two_steps(model, rows, sharded=True)
        expected_losses, expected = two_steps(plain, rows, sharded=False)
        told(
            "fsdp",
            family=family,
            share=shards / plain.num_parameters(),
            losses=[abs(a - b) for a, b in zip(losses, expected_losses)],
            weights=max(float((weights[name] - expected[name]).abs().max()) for name in expected),
        )


def check_tensor_parallel(folder: str) -> None:
    for family in FAMILIES:
        ids = torch.randint(0, 250, (2, 16), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = AutoModelForCausalLM.from_pretrained(f"{folder}/{family}").eval()(ids).logits
            model = AutoModelForCausalLM.from_pretrained(
                f"{folder}/{family}", distributed_config=DistributedConfig(tp_plan="auto")
            ).eval()
            logits = whole(model(ids).logits)
        q_proj = model.model.layers[0].self_attn.q_proj.weight
        local = (q_proj.to_local() if isinstance(q_proj, DTensor) else q_proj).numel()
        told(
            "tensor_parallel",
            family=family,
            share=local / model.config.hidden_size**2,
            logits=float((logits - expected).abs().max()),
        )


def check_stream(folder: str) -> None:
    """The rows of both processes are those of the stream, each once and in order."""
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/gpt2")
    stream = stream_blocks(Source((f"{folder}/rows.jsonl",)), tokenizer, BlockSettings(16), skip_documents=2)
    expected = [row["input_ids"].tolist() for row in stream]
    loader = Accelerator(cpu=True).prepare(torch.utils.data.DataLoader(stream, batch_size=3))
    steps: list[list] = [None, None]
    dist.all_gather_object(steps, [batch["input_ids"].tolist() for batch in loader])
    rows = [row for first, second in zip(*steps) for row in first + second]
    told("stream", rows=len(expected), equal=rows[: len(expected)] == expected, repeated=len(rows) - len(expected))


if __name__ == "__main__":
    Accelerator(cpu=True)  # as Trainer sets the processes up
    for check in (check_fsdp, check_tensor_parallel, check_stream):
        check(sys.argv[1])
    dist.destroy_process_group()
