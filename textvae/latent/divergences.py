"""Divergences between the posterior and the prior; each sees distributions and samples, nothing else."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from textvae.distributed import gather_rows
from textvae.registry import Registry


def kl_by_dimension(posterior: Distribution, prior: Distribution) -> Tensor | None:
    """Returns KL(q_d || p_d), (B, D) nats, where both are diagonal Gaussians; else None.

    KL(N(m, s^2) || N(n, t^2)) = log t/s + (s^2 + (m - n)^2) / 2 t^2 - 1/2.
    """
    q, p = (d.base_dist if isinstance(d, Independent) else None for d in (posterior, prior))
    if not isinstance(q, Normal) or not isinstance(p, Normal):
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
    diagonal = kl_by_dimension(posterior, prior)
    if diagonal is not None:
        return diagonal.sum(-1)
    try:
        return kl_divergence(posterior, prior)
    except NotImplementedError:
        return (posterior.log_prob(z) - prior.log_prob(z)).mean(0)


class KL:
    """KL(q(z|x) || p(z)), with free bits.

    Args:
        free_nats: nats that cost nothing: where the KL is below, its gradient stops.
        free_per: "sentence": each sentence's KL counts as max(KL, free_nats).
            "dimension": sum_d max(mean over the batch of KL_d, free_nats / D), so that a dimension under its
            share drops out, over all processes' sentences (Kingma 2016, arXiv 1606.04934, equation 16;
            Li 2019, arXiv 1909.00868, takes 8 nats on 32 dimensions). Needs diagonal Gaussians.
    """

    unit: ClassVar[str] = "nats"

    def __init__(
        self,
        *,
        free_nats: Annotated[float, Field(ge=0)] = 0.0,
        free_per: Literal["dimension", "sentence"] = "dimension",
    ) -> None:
        self.free_nats = free_nats
        self.free_per = free_per

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (B,) nats, or () nats where free bits are taken by dimension."""
        if self.free_nats == 0:
            return kl(posterior, prior, z)
        if self.free_per == "sentence":
            return kl(posterior, prior, z).clamp_min(self.free_nats)
        by_dimension = kl_by_dimension(posterior, prior)
        if by_dimension is None:
            raise ValueError(
                "free_per: dimension needs the KL of each dimension, which only diagonal Gaussians have; "
                "use free_per: sentence"
            )
        mean = gather_rows(by_dimension).mean(0)  # (D,)
        return mean.clamp_min(self.free_nats / mean.shape[0]).sum()


class MMD:
    """Squared maximum mean discrepancy between the aggregate posterior and the prior.

    MMD^2 = E k(z, z') + E k(p, p') - 2 E k(z, p) over pairs z != z', p != p', with z from q(z) and as many
    p from the prior: unbiased, so that it can fall below 0 (Gretton 2012, equation 3; Tolstikhin 2018,
    arXiv 1711.01558, algorithm 2). The rows of all processes enter.

    Args:
        kernel: "imq": sum over c of C / (C + |x - y|^2), "gaussian": sum over c of exp(-|x - y|^2 / C), with
            C = c * 2 D (the mean squared distance of two draws from N(0, I)).
        scales: the c; several make the test sensitive near and far.
    """

    unit: ClassVar[str] = "kernel units"

    def __init__(
        self,
        *,
        kernel: Literal["imq", "gaussian"] = "imq",
        scales: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [  # noqa: B006
            0.1,
            0.2,
            0.5,
            1.0,
            2.0,
            5.0,
            10.0,
        ],
    ) -> None:
        self.kernel = kernel
        self.scales = tuple(scales)

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (), in kernel units; 0 for a batch of one sentence, which has no pairs."""
        z = gather_rows(z[0])  # (B, D), one draw a sentence
        if len(z) < 2:
            return z.sum() * 0.0
        p = prior.sample(torch.Size([len(z)]))  # (B, D)
        return mmd(z, p, self._kernel)

    def _kernel(self, squared: Tensor, dimensions: int) -> Tensor:
        result = torch.zeros_like(squared)
        for scale in self.scales:
            constant = 2.0 * dimensions * scale
            if self.kernel == "imq":
                result = result + constant / (constant + squared)
            else:
                result = result + torch.exp(-squared / constant)
        return result


def mmd(z: Tensor, p: Tensor, kernel: object) -> Tensor:
    """Returns the unbiased squared MMD, (), between rows z (B, D) and p (B, D).

    Args:
        z: draws from one distribution.
        p: as many draws from the other.
        kernel: (squared distances, D) -> kernel values.
    """
    assert callable(kernel)
    count, dimensions = z.shape
    off_diagonal = 1.0 - torch.eye(count, dtype=z.dtype, device=z.device)
    within = kernel(_squared_distances(z, z), dimensions) + kernel(_squared_distances(p, p), dimensions)
    between = kernel(_squared_distances(z, p), dimensions)
    return (within * off_diagonal).sum() / (count * (count - 1)) - 2.0 * between.mean()


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # By differences: |x|^2 + |y|^2 - 2xy loses the small distances that a kernel cares about most.
    return (x[:, None] - y[None]).square().sum(-1)


DIVERGENCES = Registry("divergence", {"kl": KL, "mmd": MMD}, default="kl")
