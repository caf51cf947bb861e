"""A model's predictions at each position of a text, the surprisal of each token, and how sampling settings reshape a distribution."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError, printable
from ..files import atomic_path
from ..modeling_gpt_scratch import GPTScratchForCausalLM
from ..plots import new_figure, save_figure
from .attention import token_texts

MAX_SURPRISE = 16.0  # bits; the colour scale ends here


@dataclass(frozen=True)
class ScoredToken:
    """A token of the text and the model's predictions at its position; rank starts at 1, surprise is -log2 of the probability."""

    token: str
    token_id: int
    rank: int | None  # None for the first token, which has no prediction
    probability: float | None
    surprise: float | None
    expected: tuple[tuple[str, float], ...]


@torch.no_grad()
def score_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor, top: int = 5
) -> tuple[list[ScoredToken], tuple[tuple[str, float], ...]]:
    """Rank, surprise and the `top` most likely alternatives of each token of a text, (1, T); and the `top` predictions after the last."""
    logits = model(input_ids=input_ids, use_cache=False).logits[0].float()  # (T, V)
    probabilities = logits.softmax(-1)
    likely = probabilities.topk(min(top, probabilities.shape[-1]))
    expected = [
        tuple(zip(token_texts(tokenizer, ids), values)) for ids, values in zip(likely.indices.tolist(), likely.values.tolist())
    ]
    ids = input_ids[0].tolist()
    texts = token_texts(tokenizer, ids)
    places = [ScoredToken(texts[0], ids[0], None, None, None, ())]
    surprises = -logits.log_softmax(-1) / torch.log(torch.tensor(2.0))
    for t in range(1, len(ids)):
        row = probabilities[t - 1]
        rank = int((row > row[ids[t]]).sum()) + 1
        places.append(ScoredToken(texts[t], ids[t], rank, row[ids[t]].item(), surprises[t - 1, ids[t]].item(), expected[t - 1]))
    return places, expected[-1]


def sampling_distribution(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> torch.Tensor:
    """The distribution that `generate` samples from, (..., V): temperature, then top-k, then top-p (nucleus).

    The nucleus (Holtzman et al. 2020, arXiv:1904.09751, section 3.1) is the smallest set of most likely tokens that reaches p.

    Raises:
        UserError: a setting out of range.
    """
    if temperature <= 0:
        raise UserError(f"temperature is {temperature}: it must be above 0 (0 would be greedy, not a distribution)")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k}: it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}: it must be in (0, 1]")
    scores = logits.float() / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[..., -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        ordered = scores.sort(dim=-1, descending=True)
        mass_before = ordered.values.softmax(-1).cumsum(-1) - ordered.values.softmax(-1)
        outside = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, ordered.indices, mass_before >= top_p)
        scores = scores.masked_fill(outside, -torch.inf)
    return scores.softmax(-1)


@torch.no_grad()
def logit_lens(model: GPTScratchForCausalLM, input_ids: torch.Tensor) -> torch.Tensor:
    """The head's logits after the embedding and after each layer, (layers + 1, T, V); the last is the model's own logits.

    nostalgebraist 2020, "interpreting GPT: the logit lens": the hidden states of each layer through the final norm and the head.

    Raises:
        UserError: not a language model of this package.
    """
    if not isinstance(model, GPTScratchForCausalLM):
        raise UserError(f"the logit lens reads this package's language models, not {type(model).__name__}: convert it first")
    states = model(input_ids=input_ids, output_hidden_states=True, use_cache=False).hidden_states
    normed = [*(model.model.norm(state) for state in states[:-1]), states[-1]]  # the last one is already normed
    return torch.cat([model.lm_head(state) for state in normed])


def write_surprise_html(places: Sequence[ScoredToken], path: str | Path, title: str = "") -> Path:
    """Write the text as HTML: the background of a token is redder the higher its surprise; a tooltip shows the numbers."""
    spans = []
    heading = html.escape(printable(title))
    for place in places:
        text = html.escape(place.token.replace("·", " "))
        shown = text.replace("⏎", "⏎<br>")
        if place.surprise is None:
            spans.append(f"<span>{shown}</span>")
            continue
        share = min(place.surprise / MAX_SURPRISE, 1.0)
        expected = ", ".join(f"{token} {probability:.1%}" for token, probability in place.expected)
        tooltip = html.escape(f"rank {place.rank}, {place.surprise:.1f} bits; expected: {expected}", quote=True)
        spans.append(f'<span style="background: rgba(220, 60, 30, {share:.2f})" title="{tooltip}">{shown}</span>')
    scored = [place.surprise for place in places if place.surprise is not None]
    mean = sum(scored) / max(len(scored), 1)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{heading}</title>'
        '<body style="font: 16px/1.7 Georgia, serif; max-width: 48em; margin: 2em auto">'
        f"<h1>{heading}</h1><p>{len(scored)} tokens, {mean:.2f} bits each on average. Surprise: 0 bits "
        '<span style="background: linear-gradient(90deg, rgba(220, 60, 30, 0), rgba(220, 60, 30, 1)); padding: 0 4em"></span> '
        f"{MAX_SURPRISE:g} bits or more.</p>"
        f'<p style="white-space: pre-wrap">{"".join(spans)}</p></body></html>\n'
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def plot_surprise(places: Sequence[ScoredToken], path: str | Path, line_width: int = 90, title: str = "") -> list[Path]:
    """Plot the same as PNG and SVG."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    lines: list[list[ScoredToken]] = [[]]
    for place in places:
        if sum(len(other.token) for other in lines[-1]) + len(place.token) > line_width:
            lines.append([])
        lines[-1].append(place)
    width = max(60, *(sum(len(place.token) for place in line) for line in lines))
    figure, axes = new_figure(size=(0.078 * width + 0.3, 0.26 * len(lines) + 1.2))  # a character of this font has 0.075 inches
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(len(lines), 0)
    colors = LinearSegmentedColormap.from_list("surprise", ["white", "#dc3d1e"])
    scale = Normalize(0, MAX_SURPRISE)
    for row, line in enumerate(lines):
        column = 0
        for place in line:
            box = (column, column + len(place.token), 1 - (row + 0.95) / len(lines), 1 - (row + 0.05) / len(lines))
            axes.axvspan(*box, color=colors(scale(place.surprise or 0.0)), linewidth=0)
            axes.text(column, row + 0.5, place.token, family="monospace", fontsize=9, va="center", parse_math=False)
            column += len(place.token)
    bar = figure.colorbar(ScalarMappable(scale, colors), ax=axes, orientation="horizontal", aspect=40, shrink=0.8)
    bar.set_label(f"surprise of each token in bits, {MAX_SURPRISE:g} or more in full colour", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    axes.set_title(title, fontsize=9, parse_math=False)
    return save_figure(figure, path, (".png", ".svg"))


def plot_temperatures(
    logits: torch.Tensor,
    tokens: Sequence[str],
    path: str | Path,
    temperatures: Sequence[float] = (1.0, 0.1, 5.0),
    top: int = 10,
    title: str = "",
    top_k: int | None = None,
    top_p: float | None = None,
) -> list[Path]:
    """Bar plot of the most likely tokens of one distribution, (V,), at several temperatures, with top-k and top-p as in
    [`sampling_distribution`]; PNG and SVG.

    With the nine logits of *Build a Large Language Model (From Scratch)*, section 5.3.1, it reproduces that section's figure, sorted.
    """
    chosen = logits.topk(min(top, len(logits))).indices
    figure, axes = new_figure()
    width = 0.8 / len(temperatures)
    for number, temperature in enumerate(temperatures):
        heights = sampling_distribution(logits, temperature, top_k, top_p)[chosen].tolist()
        axes.bar([i + number * width for i in range(len(chosen))], heights, width, label=f"temperature {temperature:g}")
    names = [tokens[i] for i in chosen.tolist()]
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(chosen))], names, rotation=60, ha="right", parse_math=False)
    axes.set_xlim(-width / 2 - 0.2, len(chosen) - width / 2)
    axes.set_ylabel("probability of the next token")
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.legend()
    return save_figure(figure, path, (".png", ".svg"))


def lens_table(lens: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[list[tuple[str, float]]]:
    """The most likely token and its probability after each layer and at each position: (layers + 1) x T pairs."""
    probabilities, ids = nn.functional.softmax(lens.float(), dim=-1).max(-1)
    return [list(zip(token_texts(tokenizer, row_ids), row)) for row_ids, row in zip(ids.tolist(), probabilities.tolist())]


def plot_lens(
    lens: torch.Tensor, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], path: str | Path, title: str = ""
) -> list[Path]:
    """Plot the most likely next token at every position after every layer, coloured by its probability; PNG and SVG."""
    cells = lens_table(lens, tokenizer)
    figure, axes = new_figure(size=(2.7 + 0.8 * len(tokens), 1.7 + 0.32 * len(cells)))
    image = axes.imshow([[probability for _, probability in row] for row in cells], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(cells):
        for column, (token, probability) in enumerate(line):
            color = "white" if probability > 0.6 else "black"
            axes.text(column, row, token, ha="center", va="center", fontsize=7, color=color, parse_math=False)
    axes.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right", parse_math=False)
    axes.set_yticks(range(len(cells)), ["embedding", *(f"layer {i}" for i in range(len(cells) - 1))])
    axes.set_xlabel("text up to and including this token")
    axes.set_title(title or "most likely next token after each layer (logit lens)", fontsize=9, parse_math=False)
    figure.colorbar(image, ax=axes, label="its probability")
    return save_figure(figure, path, (".png", ".svg"))
