"""The losses: next-token cross-entropy, full or chunked, and those of the classifier.

The logits of GPT-2 small are the largest tensor of a training step: 1,024 tokens x a vocabulary of 50,257 are 206 MB in fp32, and the usual
computation (logits, float32 copy, log-softmax, gradient) needs up to four of them. The chunked loss computes head and loss in one function
over chunks of rows: the logits of a chunk are replaced in place by their gradient, which is multiplied into the gradients of hidden states
and weight; the next chunk reuses the memory. The gradients are computed in the forward pass, while the logits exist, so nothing is computed
twice. The idea is from Wijmans et al. 2024 (arXiv:2411.09009) and Liger Kernel (Hsu et al. 2024, arXiv:2410.10989), here in plain torch.

Rows labelled -100 are dropped before the head. Sums and statistics are fp32, whatever the dtype of the products.

This file is copied into every saved checkpoint, so it imports only torch.
"""

import torch
from torch import nn

# Per vocabulary entry: 256 rows of logits in fp32, 512 in bf16. Fewer rows make the products inefficient, more only use memory.
CHUNK_BYTES_PER_ENTRY = 1024
# On a CPU, chunks that fit in its cache, so that memory is read and written once:
SOFTMAX_ROWS = 16  # x 50,257 x 4 bytes = 3.2 MB
VOCABULARY_CHUNK = 4096  # x 768 x 4 bytes = 12.6 MB


def chunked_language_modeling_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor | None,
    label_smoothing: float = 0.0,
    num_items_in_batch: int | torch.Tensor | None = None,
    shift_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of `hidden_states @ weight.T` for the next token, a scalar in fp32.

    Args:
        hidden_states: (B, T, C), after the final norm.
        weight: of the output head, (V, C).
        labels: (B, T); position t predicts label t + 1; labels of -100 are ignored.
        label_smoothing: share of the target that is spread evenly over the vocabulary (Szegedy et al. 2016, section 7).
        num_items_in_batch: divisor of the summed loss; by default the number of targets other than -100.
        shift_labels: (B, T), labels that are shifted already, instead of `labels`.

    It supports a single backward pass: `retain_graph=True` and second derivatives need `loss_implementation="full"`.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain formula better than the chunks below
        logits = nn.functional.linear(hidden_states, weight)
        return language_modeling_loss(logits, labels, label_smoothing, num_items_in_batch, shift_labels)
    targets = _targets(labels, shift_labels, hidden_states.device)
    scored = (targets != -100).nonzero().squeeze(-1)
    loss = LinearCrossEntropy.apply(hidden_states.flatten(0, -2)[scored], weight, targets[scored], label_smoothing)
    return _mean(loss, targets, num_items_in_batch)


def language_modeling_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    label_smoothing: float = 0.0,
    num_items_in_batch: int | torch.Tensor | None = None,
    shift_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean next-token cross-entropy from logits (B, T, V); arguments as in [`chunked_language_modeling_loss`]."""
    logits, targets = logits.flatten(0, -2).float(), _targets(labels, shift_labels, logits.device)
    loss = nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    return _mean(loss, targets, num_items_in_batch)


def _targets(labels: torch.Tensor | None, shift_labels: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """The target of each position, (B * T,): the label of the next position, and -100 for the last one of a row."""
    if shift_labels is None:
        assert labels is not None
        shift_labels = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    return shift_labels.flatten().to(device)


def _mean(loss: torch.Tensor, targets: torch.Tensor, num_items_in_batch: int | torch.Tensor | None) -> torch.Tensor:
    if num_items_in_batch is None:
        return loss / (targets != -100).sum()
    return loss / (num_items_in_batch.to(loss.device) if torch.is_tensor(num_items_in_batch) else num_items_in_batch)


def problem_type_of(labels: torch.Tensor, num_labels: int) -> str:
    """The problem type implied by the labels if `config.problem_type` is `None`, as in transformers."""
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str) -> torch.Tensor:
    """Mean squared error, cross-entropy or binary cross-entropy over the rows, a scalar.

    logits (B, L); labels (B,) or (B, L) floats for "regression", class ids (B,) for "single_label_classification", 0/1 floats (B, L)
    for "multi_label_classification".
    """
    labels = labels.to(logits.device)
    if problem_type == "regression":
        return nn.functional.mse_loss(logits.squeeze(), labels.squeeze().to(logits.dtype))
    if problem_type == "single_label_classification":
        return nn.functional.cross_entropy(logits, labels.view(-1))
    return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class LinearCrossEntropy(torch.autograd.Function):
    """Sum over rows of cross-entropy(hidden @ weight.T, target): hidden (N, C), weight (V, C), targets (N,) -> scalar, fp32."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, label_smoothing=0.0, pad_multiple=None):
        # Tensor cores work best with a vocabulary that is a multiple of 128; only this copy is padded, never the checkpoint.
        pad_multiple = pad_multiple or (128 if hidden.is_cuda else 1)
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        N, V = hidden.shape[0], weight.shape[0]
        rows = hidden.to(dtype)
        matrix = _padded(weight.to(dtype), pad_multiple)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = weight.new_zeros(matrix.shape, dtype=torch.float32) if needs_weight else None
        total = hidden.new_zeros((), dtype=torch.float32)
        size = CHUNK_BYTES_PER_ENTRY // dtype.itemsize
        workspace = rows.new_empty(min(size, N), matrix.shape[0])
        with torch.autocast(device, enabled=False):
            for start in range(0, N, size):
                chunk = slice(start, min(start + size, N))
                logits = torch.mm(rows[chunk], matrix.T, out=workspace[: chunk.stop - start])
                logits[:, V:] = -torch.inf
                total += _loss_and_gradient_(logits, targets[chunk], V, label_smoothing)
                if grad_hidden is not None:
                    grad_hidden[chunk] = logits @ matrix
                if grad_weight is not None:
                    _add_product_(grad_weight, logits, rows[chunk])
        if grad_weight is not None:  # not a view if possible: autograd adds the gradient of a tied embedding to it in place
            grad_weight = (grad_weight if len(grad_weight) == V else grad_weight[:V]).to(weight.dtype)
        ctx.gradients = [grad_hidden, grad_weight]
        return total

    @staticmethod
    def backward(ctx, grad_output):
        if ctx.gradients is None:
            raise RuntimeError('the chunked loss keeps its gradients for one backward only: set loss_implementation="full"')
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: a second gradient of the head would double the memory
        hidden, weight = (None if gradient is None else gradient.mul_(grad_output) for gradient in gradients)
        return hidden, weight, None, None, None


def _padded(matrix: torch.Tensor, multiple: int) -> torch.Tensor:
    missing = -matrix.shape[0] % multiple
    return nn.functional.pad(matrix, (0, 0, 0, missing)) if missing else matrix


def _loss_and_gradient_(logits: torch.Tensor, targets: torch.Tensor, vocabulary: int, label_smoothing: float) -> torch.Tensor:
    """The summed loss of a chunk; its logits (n, V) are overwritten with the gradient, softmax minus the (smoothed) target."""
    total = logits.new_zeros((), dtype=torch.float32)
    step = len(logits) if logits.is_cuda else SOFTMAX_ROWS
    for start in range(0, len(logits), step):
        part, target = logits[start : start + step], targets[start : start + step].unsqueeze(-1)
        x = part.float()  # no copy if it is fp32
        highest = x.amax(-1, keepdim=True)
        wanted = (1 - label_smoothing) * x.gather(-1, target)
        if label_smoothing:
            wanted += label_smoothing * x[:, :vocabulary].mean(-1, keepdim=True)
        x.sub_(highest).exp_()
        normalizer = x.sum(-1, keepdim=True)
        total += (normalizer.log() + highest - wanted).sum()
        x.mul_(1 / normalizer)
        if label_smoothing:
            x[:, :vocabulary] -= label_smoothing / vocabulary
        x.scatter_add_(-1, target, torch.full_like(normalizer, label_smoothing - 1))
        if x is not part:
            part.copy_(x)
    return total


def _add_product_(total: torch.Tensor, logits: torch.Tensor, rows: torch.Tensor) -> None:
    """total (V, C) += logits.T @ rows, summed in fp32."""
    if logits.dtype == total.dtype:
        total.addmm_(logits.T, rows)
        return
    step = total.shape[0] if total.is_cuda else VOCABULARY_CHUNK
    for start in range(0, total.shape[0], step):
        chunk = slice(start, start + step)
        total[chunk] += logits[:, chunk].T @ rows


__all__ = [
    "LinearCrossEntropy",
    "chunked_language_modeling_loss",
    "classification_loss",
    "language_modeling_loss",
    "problem_type_of",
]
