"""Output layer and loss of a whole batch at once: what a GPU does, where a piece costs more to start than to compute.

Nothing is looked at on the way, and the vocabulary is passed over as seldom as can be: the logits are written once, in
the batch's own type, the probabilities once, and both products of the backward pass read those. In bfloat16, and
beside what the products themselves read and write, these are 6 bytes a logit; cross entropy in float32 takes 36.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def log_probabilities(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Returns (1 - epsilon) log p(target) + epsilon mean_v log p(v) of log softmax(W h + b), (N,), float32 or wider.

    A target whose probability float32 has no number for counts -87.3 nats, its least (of float64: -708); the gradient
    is that of its log-probability all the same.

    Args:
        hidden: (N, H); the logits are made, and kept for the backward pass, in its type.
        weight: (V, H).
        bias: (V,) or None.
        targets: (N,) int64.
        smoothing: epsilon.
    """
    result: Tensor = _LogProbabilities.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, smoothing
    )
    return result


class _LogProbabilities(torch.autograd.Function):
    """d log p(y) / d logits = onehot(y) - p. A row's own gradient is left to the products' small sides."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # it would make the probabilities float32
            wide = torch.promote_types(hidden.dtype, torch.float32)
            of_batch = weight.to(hidden.dtype)
            logits = F.linear(hidden, of_batch, None if bias is None else bias.to(hidden.dtype))  # (N, V)
            chosen = targets[:, None]
            # float16 has no numbers for the probabilities of unlikely words; the other types have float32's exponents.
            p = torch.softmax(logits, dim=1, dtype=wide if logits.dtype == torch.float16 else None)
            own = p.gather(1, chosen).to(wide)
            p = p.to(logits.dtype).scatter_(1, chosen, 0)
            # Of a likely word p - 1 is a small difference, which p as it was rounded does not hold; the sum of the
            # others does, and what was rounded in it is a small part of it.
            others = p.sum(1, keepdim=True, dtype=wide)
            total = others + own
            log_p = (own / total).clamp_min(torch.finfo(wide).tiny).log()  # (N, 1), -87 nats at least, and a number
            asked = log_p
            if smoothing:
                far = logits.mean(1, keepdim=True, dtype=wide) - logits.gather(1, chosen).to(wide)
                asked = log_p + smoothing * far
                p.sub_(smoothing / len(weight))
            p.scatter_(1, chosen, (smoothing - smoothing / len(weight) - others / total).to(p.dtype))
            ctx.types = weight.dtype, None if bias is None else bias.dtype
            ctx.save_for_backward(hidden, of_batch, p)
            return asked.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, less = ctx.saved_tensors  # p - onehot(target), (N, V)
        share = -gradient[:, None]
        of_hidden = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_hidden = (less @ weight).mul_(share)
        if ctx.needs_input_grad[1]:
            scaled = torch.mul(hidden, share, out=torch.empty_like(hidden))  # in float32, and no further pass to round
            of_weight = (less.T @ scaled).to(ctx.types[0])
        if ctx.needs_input_grad[2]:
            of_bias = (share.T.to(less.dtype) @ less).squeeze(0).to(ctx.types[1])
        return of_hidden, of_weight, of_bias, None, None
