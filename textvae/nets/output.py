"""Output layers: hidden states to log p(token), the logits of a training batch never kept whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from textvae.nets import kept
from textvae.nets.devices import runs_ahead, traced
from textvae.nets.products import Product
from textvae.registry import Registry

# Logits made at once; 2**23 floats are 32 MiB. Larger pieces gain nothing, smaller ones pay for each
# accumulation into the weight's gradient, and a product of few rows is slow, however large the vocabulary.
PIECE_ELEMENTS = 2**23
PIECE_ROWS = 256
DEVICE_ELEMENTS = 2**27  # on a GPU, without gradients: there a small piece costs more to start than to compute
# Without gradients no piece needs all of the vocabulary at once, and smaller blocks stay nearer to the cores.
BLOCK_ROWS, BLOCK_WORDS = 2048, 1280
SUMMED_ROWS = 64  # of half precision
LINE = 16  # float32 numbers in a cache line

LOG2_E = 1 / math.log(2)
# Sums of powers of two between 2**-80 and 2**80 need no shift by the largest logit: nothing overflows, and what is
# lost below is less than rounding takes.
LARGEST_POWER = 80


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
        if hidden.dim() == 2 and _by_powers(hidden) and not torch.is_grad_enabled():
            return _product(hidden, self.weight, self.bias, _room(hidden, len(hidden), len(self.weight))).float()
        return F.linear(hidden, self.weight, self.bias).float()

    def steps(self, rows: int) -> Callable[[Tensor], Tensor]:
        """Returns what `logits` computes for hidden states (R, H), without gradients.

        It is for many steps, of `rows` rows at most, or so: the weights are made ready once, and must not change while
        it is in use.
        """
        product = Product(self.weight, self.bias, rows=rows)
        return lambda hidden: product(hidden).float()

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Returns log p(target) in nats, (N,) float32, for hidden states (N, H) and targets (N,)."""
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        piece = max(PIECE_ROWS, PIECE_ELEMENTS // self.weight.shape[0])
        smoothing = self.label_smoothing if self.training else 0.0
        asked = any(tensor is not None and tensor.requires_grad for tensor in (hidden, self.weight, self.bias))
        if runs_ahead(hidden):
            # The form below asks for a value in its backward pass, which would stop the device.
            if asked and torch.is_grad_enabled():
                return kept.log_probabilities(hidden, self.weight, self.bias, targets, smoothing)
            at_once = max(1, DEVICE_ELEMENTS // len(self.weight))
            parts = zip(hidden.split(at_once), targets.split(at_once))
            return torch.cat([self._log_p(part, chosen, smoothing) for part, chosen in parts])
        if asked and torch.is_grad_enabled():
            result: Tensor = _LogProbability.apply(  # type: ignore[no-untyped-call]
                hidden, self.weight, self.bias, targets, piece, smoothing
            )
            return result
        if not smoothing and _by_powers(hidden):
            log_p = _in_blocks(hidden, self.weight, self.bias, targets)
            if log_p is not None:
                return log_p
        layer = _Layer(hidden, self.weight, self.bias, smoothing, piece)
        return torch.cat([layer.read(h, t).log_p for h, t in zip(hidden.split(piece), targets.split(piece))])

    def _log_p(self, hidden: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """log p(target), (N,), the logits kept whole."""
        logits = F.linear(hidden, self.weight, self.bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return -F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


def _by_powers(hidden: Tensor) -> bool:
    """Whether sums of unshifted powers will do: half precision would round them, a look at them would stop a GPU."""
    device = hidden.device.type
    if device != "cpu" or hidden.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(device):
        return False
    return not traced()


def _by_rounded_powers(hidden: Tensor) -> bool:
    """Whether training may do the same in bfloat16: its powers are rounded as its logits are, and never overflow.

    Their sums are taken in float32, so that the error of log p is that of the logits. A pass of softmax to float32 took
    as long as the product itself.
    """
    return hidden.device.type == "cpu" and hidden.dtype == torch.bfloat16 and not traced()


def _room(like: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns), empty, each row at the start of a cache line.

    A product written to rows that straddle lines took 1.65 times as long (9,999 words, MKL on AVX-512).
    """
    return like.new_empty(rows, -(-columns // LINE) * LINE)[:, :columns]


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """W h + b, written to `out`."""
    return torch.mm(hidden, weight.T, out=out) if bias is None else torch.addmm(bias, hidden, weight.T, out=out)


def _moderate(log_sums: Tensor) -> bool:
    """Whether sums of powers of two, given as their logarithms, are exact; not so where one is not a number."""
    return bool((log_sums.abs() < LARGEST_POWER).all())


def _in_blocks(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor | None:
    """log p(target), (N,), summed up block after block of the vocabulary; None where logits are too large for that."""
    room = _room(hidden, min(BLOCK_ROWS, len(hidden)), min(BLOCK_WORDS, len(weight)))
    weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    words = weight.split(BLOCK_WORDS)
    biases = [None] * len(words) if bias is None else (bias * LOG2_E).split(BLOCK_WORDS)
    result = []
    for part, chosen in zip(hidden.split(BLOCK_ROWS), targets.split(BLOCK_ROWS)):
        scaled, sums = part * LOG2_E, part.new_zeros(len(part))
        for of_words, of_bias in zip(words, biases):
            sums += _product(scaled, of_words, of_bias, room[: len(part), : len(of_words)]).exp2_().sum(1)
        log_sums = sums.log2_()
        if not _moderate(log_sums):
            return None
        logits = torch.linalg.vecdot(part, weight[chosen])
        result.append((logits if bias is None else logits + bias[chosen]) - log_sums / LOG2_E)
    return torch.cat(result)


class _Read(NamedTuple):
    """What one piece of a batch gives."""

    log_p: Tensor  # (n,) of the targets, smoothed, float32 or float64
    powers: Tensor  # (n, V), in a buffer that the next piece overwrites
    sums: Tensor  # (n, 1); powers / sums are the probabilities of all tokens, but 0 of the target
    rest: Tensor  # (n, 1), 1 - p(target)


class _Layer:
    """The layer as one batch sees it: in the batch's type, with room for the logits of a piece of it.

    Args:
        hidden: (N, H), the batch.
        weight: (V, H).
        bias: (V,) or None.
        smoothing: epsilon.
        piece: rows read at once, at most.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, smoothing: float, piece: int) -> None:
        self.weight = weight.to(hidden.dtype)
        self.bias = None if bias is None else bias.to(hidden.dtype)
        self.smoothing = smoothing
        self.room: Tensor | None = None
        if _by_powers(hidden) or _by_rounded_powers(hidden):
            self.room = _room(hidden, min(piece, len(hidden)), len(weight))
            self.bias_2 = hidden.new_zeros(1) if self.bias is None else self.bias * LOG2_E

    def read(self, hidden: Tensor, targets: Tensor) -> _Read:
        """Reads hidden states (n, H) and targets (n,)."""
        if self.room is not None:
            # Logits to base 2: a power of two costs a third of one of e, and no pass looks for the largest logit.
            out, beta = self.room[: len(hidden)], int(self.bias is not None)
            powers = torch.addmm(self.bias_2, hidden, self.weight.T, beta=beta, alpha=LOG2_E, out=out)
            own, asked = self._chosen(powers, targets)
            sums, others = _apart(powers.exp2_(), targets, own.exp2())
            log_sums = sums.log2()
            if _moderate(log_sums):
                return _Read((asked - log_sums).squeeze(1) / LOG2_E, powers, sums, others / sums)
        logits = F.linear(hidden, self.weight, self.bias)
        own, asked = self._chosen(logits, targets)
        top = logits.amax(1, keepdim=True).to(own.dtype)
        probabilities = torch.softmax(logits, dim=-1, dtype=own.dtype)
        # log sum exp(logits) = max logit - log max p: exact to rounding, since max p is at least 1 / V, and
        # cheaper than a pass of its own over the vocabulary.
        log_p = asked - top + probabilities.amax(1, keepdim=True).log()
        sums, others = _apart(probabilities, targets, probabilities.gather(1, targets[:, None]))
        return _Read(log_p.squeeze(1), probabilities, sums, others / sums)

    def _chosen(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 1) the targets' logits, and the same smoothed, float32 or float64."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        own = logits.gather(1, targets[:, None]).to(wide)
        if not self.smoothing:
            return own, own
        return own, (1 - self.smoothing) * own + self.smoothing * logits.mean(1, keepdim=True, dtype=wide)


def _apart(powers: Tensor, targets: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sums of powers (n, V) with and without the targets' own (n, 1), both (n, 1); the targets' become 0.

    Of a likely word 1 - p is a small difference, which p as half precision rounds it does not hold: it is the share of
    the others. So the targets' part of the gradients is no part of the products.
    """
    powers.scatter_(1, targets[:, None], 0)
    # torch sums half precision in float32 by a copy of all of it, which a few rows at a time keep in the cache.
    parts = [powers] if powers.dtype == own.dtype else powers.split(SUMMED_ROWS)
    others = torch.cat([part.sum(1, keepdim=True, dtype=own.dtype) for part in parts])
    return others + own, others


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
        log_p, *ctx.gradients = _with_gradients(hidden, weight, bias, targets, None, piece, smoothing)
        ctx.save_for_backward(hidden, weight, bias, targets)
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        # Scaled where they are and given away: a copy of (V, H) costs a training step 3 %. Whoever walks the same graph
        # a second time has them made again.
        ready, ctx.gradients = ctx.gradients, None
        first = gradient[:1]
        if ready is not None and bool((gradient == first).all()):
            scaled = [None if g is None else g.mul_(first.to(g.dtype)) for g in ready]
        else:
            _, *scaled = _with_gradients(hidden, weight, bias, targets, gradient, ctx.piece, ctx.smoothing)
        return scaled[0], scaled[1], scaled[2], None, None, None


def _with_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: Tensor | None,
    piece: int,
    smoothing: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """log p (N,) and the gradients of sum_i scale_i log p_i (scale 1 where None) by hidden, weight and bias.

    d log p(y) / d logits = onehot(y) - p. The division by the sums and the targets' part are left to the products'
    small sides and results, so that no pass over the vocabulary is needed for them.
    """
    layer = _Layer(hidden, weight, bias, smoothing, piece)
    log_p, rest = [], []
    hidden_grad = torch.empty_like(hidden)
    weight_grad = torch.empty_like(weight)
    bias_grad = None if bias is None else torch.zeros_like(bias)
    for begin in range(0, len(targets), piece):
        rows = slice(begin, begin + piece)
        part = layer.read(hidden[rows], targets[rows])
        log_p.append(part.log_p)
        rest.append(part.rest)
        share = -1 / part.sums  # (n, 1)
        if scale is not None:
            share *= scale[rows, None]
        if bias_grad is not None:
            bias_grad += torch.mm(share.T.to(part.powers.dtype), part.powers).squeeze(0)
        # Of float16 the powers are probabilities, in float32.
        powers = part.powers.to(hidden.dtype)
        torch.mm(powers, layer.weight, out=hidden_grad[rows]).mul_(share)
        into = (hidden[rows] * share).to(hidden.dtype)
        if weight_grad.dtype == powers.dtype:
            weight_grad.addmm_(powers.T, into, beta=float(begin > 0))
        elif begin:
            weight_grad += powers.T @ into
        else:
            weight_grad.copy_(powers.T @ into)
    of_targets = torch.cat(rest) - smoothing
    if scale is not None:
        of_targets = of_targets * scale[:, None]
    _add_targets(hidden, layer.weight, targets, of_targets, (hidden_grad, weight_grad, bias_grad))
    if smoothing:
        _add_smoothing(hidden, layer.weight, scale, smoothing, (hidden_grad, weight_grad, bias_grad))
    return torch.cat(log_p), hidden_grad, weight_grad, bias_grad


def _add_targets(
    hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, gradients: tuple[Tensor, Tensor, Tensor | None]
) -> None:
    """Adds shares (N, 1) times onehot(y) to the logits' gradients, as the three see it."""
    hidden_grad, weight_grad, bias_grad = gradients
    hidden_grad += weight[targets] * shares.to(hidden.dtype)
    weight_grad.index_add_(0, targets, hidden.to(weight_grad.dtype) * shares.to(weight_grad.dtype))
    if bias_grad is not None:
        bias_grad.index_add_(0, targets, shares.squeeze(1).to(bias_grad.dtype))


def _add_smoothing(
    hidden: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    smoothing: float,
    gradients: tuple[Tensor, Tensor, Tensor | None],
) -> None:
    """Adds scale_i times smoothing / V to the logits' gradients, as the three see it."""
    hidden_grad, weight_grad, bias_grad = gradients
    ones = torch.ones_like(hidden[:, :1]) if scale is None else scale[:, None].to(hidden.dtype)
    even = smoothing / len(weight)
    hidden_grad += even * ones * weight.sum(0)
    weight_grad += even * (hidden * ones).sum(0)
    if bias_grad is not None:
        bias_grad += even * ones.sum()


# A name, not a class, where a module of its own holds it.
OUTPUTS = Registry(
    "output",
    {
        "softmax": SoftmaxOutput,
        "adaptive_softmax": "textvae.nets.approximate:AdaptiveSoftmaxOutput",
        "sampled_softmax": "textvae.nets.approximate:SampledSoftmaxOutput",
        "nearest_embedding": "textvae.nets.nearest:NearestEmbedding",
    },
    default="softmax",
)
