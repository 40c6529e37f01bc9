"""How far a figure may be off by the chance that drew the sentences: bootstrap and normal intervals."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from textvae.errors import UserError
from textvae.evaluation import bounds
from textvae.evaluation.latents import float64


class Interval(NamedTuple):
    """A confidence interval of a mean over sentences, in the unit of the values."""

    low: float
    high: float
    level: float  # 0.95
    method: str  # bootstrap or normal


def confidence_interval(
    nll: Tensor,
    *,
    level: float = 0.95,
    method: Literal["bootstrap", "normal"] = "bootstrap",
    resamples: int = 2000,
    generator: torch.Generator | None = None,
) -> Interval:
    """Returns the interval of the mean NLL over sentences, for the chance by which these sentences were drawn.

    bootstrap: the percentiles of the means of N sentences drawn with replacement; normal: mean +- z std / root(N).
    Both take in the noise of an importance-weighted estimate, for it is in the values, but not its bias (an upper
    bound in expectation), nor the spread between trainings. The bootstrap is a little narrow for few sentences, by
    about root((N - 1) / N).

    Args:
        nll: (N,) nats a sequence, N at least 2.
        level: share of such intervals that hold the mean of all sentences, between 0 and 1.
        method: "bootstrap" or "normal".
        resamples: of the bootstrap.
        generator: of the bootstrap, on the CPU.

    Raises:
        UserError: fewer than 2 sentences, values that are not finite, or an argument out of range.

    References:
        Efron 1979 (Annals of Statistics 7).
    """
    values = float64(nll).cpu()
    if values.dim() != 1 or len(values) < 2:
        raise UserError(f"a confidence interval needs at least 2 sentences; got values of shape {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise UserError("a confidence interval needs finite values; a sentence's is not")
    if not 0 < level < 1:
        raise UserError(f"level: got {level}; it must lie between 0 and 1")
    if method == "normal":
        reach = NormalDist().inv_cdf(0.5 + level / 2) * float(values.std()) / math.sqrt(len(values))
        return Interval(float(values.mean()) - reach, float(values.mean()) + reach, level, method)
    if method != "bootstrap":
        raise UserError(f"method: got {method!r}; known: bootstrap, normal")
    means = bootstrap_means(values[:, None], resamples, generator)[:, 0]
    low, high = torch.quantile(means, torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=means.dtype)).tolist()
    return Interval(low, high, level, method)


def perplexity_interval(
    nll: Tensor, tokens: Tensor, *, level: float = 0.95, resamples: int = 2000, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """Returns the bootstrap's interval of the corpus-level perplexity: exp(nats / tokens) of the sentences drawn.

    Args:
        nll: (N,) nats a sequence.
        tokens: (N,) target tokens.
        level: as `confidence_interval`.
        resamples: of the bootstrap.
        generator: of the bootstrap, on the CPU.
    """
    means = bootstrap_means(torch.stack([float64(nll).cpu(), float64(tokens).cpu()], 1), resamples, generator)
    ends = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=means.dtype)
    low, high = torch.quantile(means[:, 0] / means[:, 1], ends).tolist()
    return bounds.perplexity(low, 1), bounds.perplexity(high, 1)


def bootstrap_means(values: Tensor, resamples: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns the means of rows drawn with replacement, (resamples, K), for values (N, K); the same rows for all K.

    Raises:
        UserError: fewer than 1 resample.
    """
    if resamples < 1:
        raise UserError(f"resamples: got {resamples}; at least 1 is needed")
    count = len(values)
    means = values.new_empty(resamples, values.shape[1])
    for row in range(resamples):
        chosen = torch.randint(count, (count,), generator=generator)
        means[row] = values[chosen].mean(0)
    return means
