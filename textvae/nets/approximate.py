"""Output layers that do not pay for the whole vocabulary; each changes the model or its gradient, so only by choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from textvae.errors import UserError
from textvae.nets.output import SoftmaxOutput

CUTOFFS = (2_000, 10_000)  # of a large vocabulary
FIFTH = 5  # and of a small one: its most frequent fifth


class AdaptiveSoftmaxOutput(nn.Module):
    """A softmax in two steps: over the frequent tokens and the clusters of the others, then within a cluster.

    log p(token) = log p(token) in the head, or log p(cluster) + log p(token | cluster); a cluster sees the hidden state
    through a projection to H / factor^i dimensions. An exact distribution, of another model than one softmax: rare
    tokens get fewer parameters. Tokens count as frequent by their number, by which word vocabularies here are sorted.

    Args:
        hidden_dim: H.
        vocabulary: V.
        cutoffs: where clusters begin, rising, each below V; absent, 2,000 and 10,000, or, in a vocabulary up to twice
            the first, its most frequent fifth.
        factor: by which each cluster's projection is narrower than the one before.
        bias: whether the head has one.

    References:
        Grave 2017, arXiv 1609.04309.
    """

    def __init__(
        self,
        hidden_dim: int,
        vocabulary: int,
        *,
        cutoffs: Sequence[Annotated[int, Field(gt=0)]] | None = None,
        factor: Annotated[float, Field(ge=1)] = 4.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        chosen = list(cutoffs) if cutoffs is not None else [cut for cut in CUTOFFS if 2 * cut < vocabulary]
        if cutoffs is None and not chosen:
            chosen = [max(1, vocabulary // FIFTH)]
        if not chosen or chosen != sorted(set(chosen)) or chosen[-1] >= vocabulary:
            raise UserError(
                f"model.output.cutoffs: got {chosen}; they must rise and lie below the vocabulary's {vocabulary:,}"
            )
        if hidden_dim // factor ** len(chosen) < 1:
            raise UserError(
                f"model.output.factor: got {factor:g}; {len(chosen)} clusters leave the last none of {hidden_dim}"
            )
        self.layer = nn.AdaptiveLogSoftmaxWithLoss(hidden_dim, vocabulary, chosen, div_value=factor, head_bias=bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns log p of all tokens, (..., V) float32, for hidden states (..., H)."""
        log_p: Tensor = self.layer.log_prob(hidden.flatten(0, -2))
        return log_p.float().view(*hidden.shape[:-1], self.layer.n_classes)

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Returns log p(target) in nats, (N,), for hidden states (N, H) and targets (N,)."""
        # Half precision would round the sum of the two steps, and torch's layer wants one type throughout.
        with torch.autocast(hidden.device.type, enabled=False):
            log_p: Tensor = self.layer(hidden.to(self.layer.head.weight.dtype), targets).output
        return log_p


class SampledSoftmaxOutput(SoftmaxOutput):
    """A softmax that training normalises over its target and a sample of the other tokens; evaluation over all.

    With k_1 .. k_S drawn from q(k) ~ log((k + 2) / (k + 1)), which is near to how often token number k comes where
    tokens are numbered by frequency, and logits s:

        log p(y) ~ s_y - log(exp s_y + 1/S sum_{i: k_i != y} exp(s_{k_i}) / q(k_i)).

    The sum is the normaliser's unbiased estimate; its logarithm is low by about half its relative variance, so that
    the likelihood seen while training is too good. Evaluation, sampling and scores use the exact softmax. All rows of a
    batch share one draw. A byte-level vocabulary of pieces begins with its 256 bytes, most of them rare: a part of the
    draws goes to them, so take more samples there.

    Args:
        hidden_dim: H.
        vocabulary: V.
        samples: S.
        bias: whether there is a b.

    References:
        Bengio & Senecal 2008 (IEEE Transactions on Neural Networks 19); Jean 2015, arXiv 1412.2007.
    """

    def __init__(
        self,
        hidden_dim: int,
        vocabulary: int,
        *,
        samples: Annotated[int, Field(ge=1)] = 1_000,
        bias: bool = True,
    ) -> None:
        super().__init__(hidden_dim, vocabulary, bias=bias)
        self.samples = samples

    def log_q(self, tokens: Tensor) -> Tensor:
        """Returns log q(k), float64, of tokens of any shape."""
        return torch.log1p(1 / (tokens.double() + 1)).log() - math.log(math.log(len(self.weight) + 1))

    def draw(self) -> Tensor:
        """Returns S tokens drawn from q, (S,) int64, by the inverse of its cumulative: log(k + 1) / log(V + 1)."""
        vocabulary = len(self.weight)
        uniform = torch.rand(self.samples, device=self.weight.device, dtype=torch.float64)
        return (torch.exp(uniform * math.log(vocabulary + 1)).long() - 1).clamp_(0, vocabulary - 1)

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Returns log p(target) in nats, (N,); in training its estimate.

        Args:
            hidden: (N, H).
            targets: (N,) int64.
        """
        if not self.training or self.samples >= len(self.weight):
            return super().forward(hidden, targets)
        drawn = self.draw()
        bias: Any = self.bias
        chosen = torch.linalg.vecdot(hidden.to(self.weight.dtype), self.weight[targets])  # (N,)
        sampled = F.linear(hidden, self.weight[drawn], None if bias is None else bias[drawn])
        if bias is not None:
            chosen = chosen + bias[targets]
        wide = torch.promote_types(self.weight.dtype, torch.float32)  # under autocast a product is in half precision
        sampled = sampled.to(wide) - (self.log_q(drawn) + math.log(self.samples)).to(wide)  # (N, S)
        sampled = sampled.masked_fill(drawn == targets[:, None], -math.inf)
        normaliser = torch.logaddexp(chosen, sampled.logsumexp(1))
        return torch.sub(chosen, normaliser)
