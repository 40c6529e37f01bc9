"""Divergences between the posterior and the prior; each sees distributions and samples, nothing else.

Here are those of each sentence's own posterior, with a closed form between Gaussians; `wasserstein`,
`information` and `critics` hold the others. The registry of all of them is at the foot of this file.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from textvae.distributed import gather_rows
from textvae.errors import InfiniteError
from textvae.registry import Registry

JUDGED_BY = 32  # draws a sentence, of a KL without a closed form that is held against a floor


def diagonal_gaussian(distribution: Distribution) -> Normal | None:
    """Returns the Normal of each dimension, batch (.., D), where the distribution is a diagonal Gaussian; else None."""
    base = distribution.base_dist if isinstance(distribution, Independent) else None
    return base if isinstance(base, Normal) and len(distribution.event_shape) == 1 else None


def draw(prior: Distribution, *shape: int) -> Tensor:
    """Returns draws from the prior, (*shape, D), through which a learned prior gets gradients where it can."""
    size = torch.Size(shape)
    return prior.rsample(size) if prior.has_rsample else prior.sample(size)


def shown(distribution: Distribution) -> str:
    """Returns what a message calls a distribution."""
    return type(distribution.base_dist if isinstance(distribution, Independent) else distribution).__name__


def kl_by_dimension(posterior: Distribution, prior: Distribution) -> Tensor | None:
    """Returns KL(q_d || p_d), (B, D) nats, where both are diagonal Gaussians; else None.

    KL(N(m, s^2) || N(n, t^2)) = log t/s + (s^2 + (m - n)^2) / 2 t^2 - 1/2.
    """
    q, p = diagonal_gaussian(posterior), diagonal_gaussian(prior)
    if q is None or p is None:
        return None
    ratio = (q.scale / p.scale).square()
    return 0.5 * (ratio + ((q.loc - p.loc) / p.scale).square() - 1 - ratio.log())


def kl(posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
    """Returns KL(q(z|x) || p(z)), (B,) nats: in closed form where torch knows it, else from the samples.

    Args:
        posterior: q(z|x), batch (B,).
        prior: p(z).
        z: (S, B, D) draws from q; their mean of log q - log p stands in where there is no closed form.
    """
    exact = _closed_kl(posterior, prior)
    return (posterior.log_prob(z) - prior.log_prob(z)).mean(0) if exact is None else exact


def _closed_kl(posterior: Distribution, prior: Distribution) -> Tensor | None:
    diagonal = kl_by_dimension(posterior, prior)
    if diagonal is not None:
        return diagonal.sum(-1)
    try:
        return kl_divergence(posterior, prior)
    except NotImplementedError:
        return None


def reverse_kl(posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
    """Returns KL(p(z) || q(z|x)), (B,) nats: in closed form where torch knows it, else from draws of the prior.

    Args:
        posterior: q(z|x), batch (B,).
        prior: p(z); where it cannot be drawn from with gradients, it learns by the score function (Williams 1992),
            the mean of the other draws its baseline.
        z: (S, B, D); tells how many draws a sentence stand in where there is no closed form.
    """
    diagonal = kl_by_dimension(prior, posterior)
    if diagonal is not None:
        return diagonal.sum(-1)
    try:
        return kl_divergence(prior, posterior)
    except NotImplementedError:
        p = draw(prior, *z.shape[:2])  # (S, B, D)
        log_p = prior.log_prob(p)
        nats = log_p - posterior.log_prob(p)
        if not prior.has_rsample:
            others = (nats.detach().sum() - nats.detach()) / max(nats.numel() - 1, 1)  # of one draw none: 0
            nats = nats + (nats.detach() - others) * (log_p - log_p.detach())
        return nats.mean(0)


class KL:
    """KL(q(z|x) || p(z)), with free bits.

    Args:
        free_nats: nats that cost nothing: where the KL is below, its gradient stops.
        free_per: "sentence": each sentence's KL counts as max(KL, free_nats).
            "batch": max(mean KL over the batch, free_nats), over all processes' sentences.
            "dimension": sum_d max(mean over the batch of KL_d, free_nats / D), so that a dimension under its
            share drops out, over all processes' sentences (free bits; Kingma 2016, arXiv 1606.04934;
            Li 2019, arXiv 1909.00868, takes 8 nats on 32 dimensions). Needs diagonal Gaussians.

    Where the KL has no closed form, `JUDGED_BY` draws of their own say whether it is below, and in doubt (two standard
    errors) it is: of one draw's KL a floor would now and then be no hindrance, and nothing pushes back up to it.
    """

    unit: ClassVar[str] = "nats"

    def __init__(
        self,
        *,
        free_nats: Annotated[float, Field(ge=0)] = 0.0,
        free_per: Literal["dimension", "sentence", "batch"] = "dimension",
    ) -> None:
        self.free_nats = free_nats
        self.free_per = free_per

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (B,) nats, or () nats where free bits are taken by dimension or batch."""
        if self.free_nats == 0:
            return kl(posterior, prior, z)
        if self.free_per != "dimension":
            nats = kl(posterior, prior, z)  # (B,)
            level, error = _level(posterior, prior, nats)
            if self.free_per == "batch":
                errors = gather_rows(error)
                error = errors.square().mean().sqrt() / math.sqrt(len(errors))
                nats, level = gather_rows(nats).mean(), gather_rows(level).mean()
            return torch.where(level - 2 * error > self.free_nats, level + nats - nats.detach(), self.free_nats)
        by_dimension = kl_by_dimension(posterior, prior)
        if by_dimension is None:
            raise ValueError(
                "free_per: dimension needs the KL of each dimension, which only diagonal Gaussians have; "
                "use free_per: sentence"
            )
        mean = gather_rows(by_dimension).mean(0)  # (D,)
        return mean.clamp_min(self.free_nats / mean.shape[0]).sum()


@torch.no_grad()
def _level(posterior: Distribution, prior: Distribution, nats: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q(z|x) || p(z)) and its standard error, (B,) nats each, from more draws than the step's own `nats` has."""
    if _closed_kl(posterior, prior) is not None:
        return nats.detach(), torch.zeros_like(nats)
    own = copy.copy(posterior)  # a flow knows the density of what it has drawn last
    z = own.sample(torch.Size([JUDGED_BY]))
    each = own.log_prob(z) - prior.log_prob(z)  # (JUDGED_BY, B)
    return each.mean(0), each.std(0) / math.sqrt(JUDGED_BY)


class ReverseKL:
    """KL(p(z) || q(z|x)): large where the prior has mass that the posterior lacks.

    Exact between Gaussians; elsewhere unbiased, from as many draws of the prior as z has.
    """

    unit: ClassVar[str] = "nats"

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (B,) nats."""
        return reverse_kl(posterior, prior, z)


class Jeffreys:
    """KL(q || p) + KL(p || q), the symmetric sum of both directions (Jeffreys 1946), not halved.

    Exact between Gaussians; elsewhere unbiased, from the draws of q and as many of p.
    """

    unit: ClassVar[str] = "nats"

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (B,) nats."""
        return kl(posterior, prior, z) + reverse_kl(posterior, prior, z)


class Renyi:
    """The Renyi divergence of order alpha between diagonal Gaussians, in closed form.

    D_alpha(q || p) = log E_p (q / p)^alpha / (alpha - 1). With r = s^2 / t^2 and v = 1 + (1 - alpha)(r - 1):
    sum over dimensions of -log(r) / 2 + log(v) / (2 (1 - alpha)) + alpha (m - n)^2 / (2 t^2 v).

    Args:
        alpha: the order; 1 is the KL, and the divergence grows with it. Above 1 it is infinite where
            s^2 >= t^2 alpha / (alpha - 1), which is an error (and asks the device at every step).

    References:
        van Erven & Harremoes 2014, arXiv 1206.2459; Li & Turner 2016, arXiv 1602.02311.
    """

    unit: ClassVar[str] = "nats"

    def __init__(self, *, alpha: Annotated[float, Field(gt=0)] = 0.5) -> None:
        self.alpha = alpha

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (B,) nats.

        Raises:
            ValueError: a distribution that is no diagonal Gaussian.
            InfiniteError: an infinite divergence.
        """
        q, p = diagonal_gaussian(posterior), diagonal_gaussian(prior)
        if q is None or p is None:
            name, other = ("posterior", posterior) if q is None else ("prior", prior)
            raise ValueError(
                f"renyi has a closed form only between diagonal Gaussians; the {name} is {shown(other)}. Use kind: kl"
            )
        if self.alpha == 1:
            return kl(posterior, prior, z)
        ratio = (q.scale / p.scale).square()
        excess = (1 - self.alpha) * (ratio - 1)  # v - 1
        if self.alpha > 1 and bool((excess <= -1).any()):
            raise InfiniteError(
                f"renyi with alpha {self.alpha:g} is infinite: a posterior variance reached alpha / (alpha - 1) = "
                f"{self.alpha / (self.alpha - 1):g} times the prior's. Use an alpha of at most 1"
            )
        shift = self.alpha * ((q.loc - p.loc) / p.scale).square() / (1 + excess)
        return 0.5 * (shift - ratio.log() + excess.log1p() / (1 - self.alpha)).sum(-1)


class RateFloor:
    """|KL - C|: holds the rate KL(q(z|x) || p(z)) at C nats, from below and from above.

    Args:
        nats: C. At q = p the term is C, not 0.
        per: "batch": the mean rate over all processes' sentences is held, and a long sentence may use more of it
            than a short one. "sentence": each sentence's own.

    References:
        Burgess 2018, arXiv 1804.03599, equation 8.
    """

    unit: ClassVar[str] = "nats"

    def __init__(
        self, *, nats: Annotated[float, Field(ge=0)] = 5.0, per: Literal["batch", "sentence"] = "batch"
    ) -> None:
        self.nats = nats
        self.per = per

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns () nats, or (B,) where each sentence's rate is held."""
        rate = kl(posterior, prior, z)  # (B,)
        if self.per == "batch":
            rate = gather_rows(rate).mean()
        return (rate - self.nats).abs()


# Names, not classes, where a module imports this one.
DIVERGENCES = Registry(
    "divergence",
    {
        "kl": KL,
        "reverse_kl": ReverseKL,
        "jeffreys": Jeffreys,
        "renyi": Renyi,
        "rate_floor": RateFloor,
        "mmd": "textvae.latent.wasserstein:MMD",
        "w2": "textvae.latent.wasserstein:GaussianW2",
        "sliced_wasserstein": "textvae.latent.wasserstein:SlicedWasserstein",
        "max_sliced_wasserstein": "textvae.latent.wasserstein:MaxSlicedWasserstein",
        "sinkhorn": "textvae.latent.wasserstein:Sinkhorn",
        "total_correlation": "textvae.latent.information:TotalCorrelation",
        "mutual_information": "textvae.latent.information:MutualInformationReward",
        "log_variance": "textvae.latent.information:LogVariancePenalty",
        "dispersion": "textvae.latent.information:Dispersion",
        "wasserstein_critic": "textvae.latent.critics:WassersteinCritic",
        "adversarial": "textvae.latent.critics:Adversarial",
    },
    default="kl",
)
