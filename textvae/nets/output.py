"""Output layers: hidden states to log p(token), the logits of a training batch never kept whole."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from textvae.registry import Registry

# Logits made at once; 2**23 floats are 32 MiB. Larger pieces gain nothing, smaller ones pay for each
# accumulation into the weight's gradient.
PIECE_ELEMENTS = 2**23


class SoftmaxOutput(nn.Module):
    """log p(token) = log softmax(W h + b).

    Args:
        hidden_dim: H.
        vocabulary: V.
        bias: whether there is a b.
        label_smoothing: epsilon; in training (1 - epsilon) log p(token) + epsilon mean_v log p(v) stands for
            log p(token) (Szegedy 2016, arXiv 1512.00567, section 7). In evaluation nothing is smoothed.
    """

    def __init__(
        self,
        hidden_dim: int,
        vocabulary: int,
        *,
        bias: bool = True,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.weight = nn.Parameter(torch.empty(vocabulary, hidden_dim))
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if bias else None
        nn.init.uniform_(self.weight, -(hidden_dim**-0.5), hidden_dim**-0.5)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns (..., V) float32 unnormalised log-probabilities of hidden states (..., H)."""
        return F.linear(hidden, self.weight, self.bias).float()

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Returns log p(target) in nats, (N,) float32, for hidden states (N, H) and targets (N,)."""
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        piece = max(1, PIECE_ELEMENTS // self.weight.shape[0])
        smoothing = self.label_smoothing if self.training else 0.0
        if torch.is_grad_enabled() and (hidden.requires_grad or self.weight.requires_grad):
            if hidden.is_cuda:
                # The fused form asks for a value in its backward pass, which would stop the device.
                logits = F.linear(hidden, self.weight, self.bias).float()
                return -F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
            result: Tensor = _LogProbability.apply(  # type: ignore[no-untyped-call]
                hidden, self.weight, self.bias, targets, piece, smoothing
            )
            return result
        weight, bias = self.weight.to(hidden.dtype), None if self.bias is None else self.bias.to(hidden.dtype)
        return torch.cat(
            [
                _log_probability(h, weight, bias, t, smoothing)[0]
                for h, t in zip(hidden.split(piece), targets.split(piece))
            ]
        )


def _log_probability(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """(n,) log p(target), smoothed, in float32 or float64, and the (n, V) probabilities of all tokens."""
    logits = F.linear(hidden, weight, bias)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    chosen = logits.gather(1, targets[:, None]).squeeze(1).to(wide)
    if smoothing:
        chosen = (1 - smoothing) * chosen + smoothing * logits.mean(1, dtype=wide)
    top = logits.amax(1).to(wide)
    probabilities = torch.softmax(logits, dim=-1, dtype=wide)
    # log sum exp(logits) = max logit - log max p: exact to rounding, since max p is at least 1 / V, and
    # cheaper than a pass of its own over the vocabulary.
    return chosen - top + probabilities.amax(1).log(), probabilities


class _LogProbability(torch.autograd.Function):
    """Output layer and loss in one, in pieces.

    The gradient of sum_i g_i log p(y_i | h_i) needs the softmax of each row. It is used up while it is in
    the cache, which needs g in advance. Nearly always all g_i are equal (a mean over sentences), so the
    forward pass makes the gradients for g = 1 and backward scales them; where g differs between rows
    (importance weights) backward makes the logits once more.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, piece: int, smoothing: float
    ) -> Tensor:
        ctx.piece, ctx.smoothing = piece, smoothing
        log_p, *gradients = _with_gradients(hidden, weight, bias, targets, None, piece, smoothing)
        ctx.save_for_backward(hidden, weight, bias, targets, *gradients)
        return log_p

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, hidden_grad, weight_grad, bias_grad = ctx.saved_tensors
        first = gradient[:1]
        if bool((gradient == first).all()):
            scaled = [None if g is None else g * first.to(g.dtype) for g in (hidden_grad, weight_grad, bias_grad)]
            return scaled[0], scaled[1], scaled[2], None, None, None
        _, *gradients = _with_gradients(hidden, weight, bias, targets, gradient, ctx.piece, ctx.smoothing)
        return gradients[0], gradients[1], gradients[2], None, None, None


def _with_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: Tensor | None,
    piece: int,
    smoothing: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """log p (N,) and the gradients of sum_i scale_i log p_i (scale 1 where None) by hidden, weight and bias."""
    narrow = weight.to(hidden.dtype)
    narrow_bias = None if bias is None else bias.to(hidden.dtype)
    log_p = []
    hidden_grad = torch.empty_like(hidden)
    weight_grad = torch.zeros_like(weight)
    bias_grad = None if bias is None else torch.zeros_like(bias)
    for begin in range(0, len(targets), piece):
        rows = slice(begin, begin + piece)
        part, residual = _log_probability(hidden[rows], narrow, narrow_bias, targets[rows], smoothing)
        log_p.append(part)
        # -d log p(y) / d logits = softmax - onehot(y); the sign is turned on the small results.
        if smoothing:
            residual -= smoothing / residual.shape[1]
        residual[torch.arange(len(part), device=part.device), targets[rows]] -= 1 - smoothing
        if scale is not None:
            residual.mul_(scale[rows, None])
        if bias_grad is not None:
            bias_grad -= residual.sum(0)
        residual = residual.to(hidden.dtype)
        torch.mm(residual, narrow, out=hidden_grad[rows])
        if weight_grad.dtype == residual.dtype:
            weight_grad.addmm_(residual.T, hidden[rows], alpha=-1)
        else:
            weight_grad -= residual.T @ hidden[rows]
    return torch.cat(log_p), hidden_grad.neg_(), weight_grad, bias_grad


# A name, not a class, where a module of its own holds it.
OUTPUTS = Registry(
    "output",
    {"softmax": SoftmaxOutput, "nearest_embedding": "textvae.nets.nearest:NearestEmbedding"},
    default="softmax",
)
