"""Attention maps of a text for every layer and head, their entropy, and attention rollout over the layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError, printable
from ..plots import new_figure, save_figure

SUFFIXES = (".png", ".svg")


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Context manager that switches to eager attention, the only implementation that returns the attention weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def attention_maps(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """Attention weights of one text, (layers, H, T, T): rows are attending tokens, columns the attended ones.

    Args:
        input_ids: (1, T).
    """
    with eager_attention(model):
        attentions = model(input_ids=input_ids, output_attentions=True, use_cache=False).attentions
    return torch.cat(attentions)


def attention_entropy(maps: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the rows in nats, (layers, H): 0 if each token attends to a single one, log(position) if to all equally."""
    return -torch.xlogy(maps, maps).sum(-1).mean(-1)


def attention_rollout(maps: torch.Tensor) -> torch.Tensor:
    """Attention rollout: contribution of each token (column) to each position (row) after every layer, (layers, T, T); rows sum to 1.

    Heads are averaged, and the residual connection counts as half (Abnar & Zuidema 2020, arXiv:2005.00928, section 3).
    """
    flow = torch.eye(maps.shape[-1])
    result = []
    for layer in maps.mean(1).cpu():
        flow = (0.5 * layer + 0.5 * torch.eye(len(layer))) @ flow
        result.append(flow)
    return torch.stack(result)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Each token in readable form: a leading or trailing space as `·`, a line break as `⏎`."""
    return [printable(tokenizer.decode([token])).replace(" ", "·").replace("\n", "⏎") for token in ids]


def attention_figure(weights: torch.Tensor, tokens: Sequence[str], title: str = ""):
    """Figure of one map (T, T) with its tokens on both axes and a colour bar."""
    side = 1.6 + 0.28 * len(tokens)
    figure, axes = new_figure(size=(side + 1, side))
    image = axes.imshow(weights.float().cpu(), cmap="viridis", vmin=0)
    axes.set_xticks(range(len(tokens)), tokens, rotation=90, parse_math=False)
    axes.set_yticks(range(len(tokens)), tokens, parse_math=False)
    axes.set_xlabel("attended token")
    axes.set_ylabel("attending token")
    axes.set_title(title, parse_math=False)
    figure.colorbar(image, ax=axes, shrink=0.8, label="attention weight")
    return figure


def plot_attention(weights: torch.Tensor, tokens: Sequence[str], path: str | Path, title: str = "") -> list[Path]:
    """Save [`attention_figure`] as PNG and SVG."""
    return save_figure(attention_figure(weights, tokens, title), path, SUFFIXES)


def plot_attention_grid(
    maps: torch.Tensor, tokens: Sequence[str], path: str | Path, layers: Sequence[int] | None = None, title: str = ""
) -> list[Path]:
    """Plot every head of the given layers (default: all), one row per layer, each with its entropy; PNG and SVG.

    All maps share one colour scale. The axes at the left and the bottom show the tokens, or positions if there are more than 24.

    Raises:
        UserError: a layer that the model does not have.
    """
    chosen = list(range(len(maps))) if layers is None else list(layers)
    check_indices("layer", chosen, len(maps))
    heads, entropy = maps.shape[1], attention_entropy(maps)
    labels = list(tokens) if len(tokens) <= 24 else []
    side = max(1.1, 0.09 * len(labels))
    figure, axes = new_figure(size=(side * heads + 2.2, (side + 0.2) * len(chosen) + 1.4), grid=(len(chosen), heads))
    for row, layer in enumerate(chosen):
        for head in range(heads):
            cell = axes[row][head]
            image = cell.imshow(maps[layer, head].float().cpu(), cmap="viridis", vmin=0, vmax=1)
            if labels:
                cell.set_xticks(range(len(labels)), labels, rotation=90, parse_math=False)
                cell.set_yticks(range(len(labels)), labels, parse_math=False)
            at_left, at_bottom = head == 0, row == len(chosen) - 1
            cell.tick_params(length=1, pad=1, labelsize=5, labelleft=at_left, labelbottom=at_bottom)
            cell.set_title(f"{entropy[layer, head]:.1f} nats", fontsize=6)
            if at_left:
                cell.set_ylabel(f"layer {layer}", fontsize=8)
            if at_bottom:
                cell.set_xlabel(f"head {head}", fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.6, label="attention weight")
    title = title or "attention of each head: attending tokens in rows, attended ones in columns"
    figure.suptitle(f"{title}; above each map its mean entropy", fontsize=8, parse_math=False)
    return save_figure(figure, path, SUFFIXES)


def check_indices(what: str, indices: Sequence[int], count: int) -> None:
    """Check that layer or head indices are in range.

    Raises:
        UserError: names the first index that is not.
    """
    for index in indices:
        if not 0 <= index < count:
            raise UserError(f"{what} {index}: this model has {what}s 0 to {count - 1}")
