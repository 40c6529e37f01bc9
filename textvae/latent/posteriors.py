"""Posteriors: encoder features (B, F) to a distribution q(z|x) with batch (B,) and event (D,)."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, constraints, register_kl

from textvae.distributed import gather_rows
from textvae.errors import UserError
from textvae.latent.flows import FlowDistribution, FlowPosterior
from textvae.latent.vmf import UniformSphere, VonMisesFisher, VonMisesFisherPosterior
from textvae.registry import Registry

# Added to the batch's variance of a mean: far below any real one, or the scale would not be the given one.
SMALLEST_VARIANCE = 1e-10


def diagonal_gaussian(mean: Tensor, scale: Tensor) -> Independent[Normal]:
    """Returns N(mean, diag(scale^2)) of (..., D) each: batch (...), event (D,)."""
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


def at_least_float32(outputs: Tensor) -> Tensor:
    """Returns the tensor in float32, or as it is in float64: half precision has too few digits for a variance."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


class Point(Distribution):
    """All probability at one point; it has no density.

    Args:
        loc: (..., D), the point.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"loc": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """(..., D) the point."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """(..., D) the point."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """(..., D) zeros."""
        return torch.zeros_like(self.loc)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns the point sample_shape times, sample_shape + (..., D)."""
        return self.loc.expand(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Raises UserError: there is no density."""
        raise UserError(_NO_DENSITY)


_NO_DENSITY = (
    "the posterior point (a plain autoencoder) has no density: its KL to any prior, its importance weights and its "
    "mutual information are infinite. Leave the KL out, or use a term that only compares samples, as kind: mmd"
)


@register_kl(Point, Distribution)  # type: ignore[untyped-decorator]
@register_kl(Point, UniformSphere)  # type: ignore[untyped-decorator]
def _kl_point(q: Point, p: Distribution) -> Tensor:
    raise UserError(_NO_DENSITY)


class PointPosterior(nn.Module):
    """z = mu(x), linear in the features: the plain autoencoder.

    Args:
        feature_dim: F.
        latent_dim: D.
    """

    def __init__(self, feature_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(feature_dim, latent_dim)

    def forward(self, features: Tensor) -> Distribution:
        """Returns all probability at mu, batch (B,), event (D,), of features (B, F)."""
        return Point(at_least_float32(self.head(features)))


class GaussianPosterior(nn.Module):
    """q(z|x) = N(mu, diag(sigma^2)), with mu and log sigma^2 linear in the features (Kingma & Welling 2014).

    Args:
        feature_dim: F.
        latent_dim: D.
    """

    def __init__(self, feature_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(feature_dim, 2 * latent_dim)

    def forward(self, features: Tensor) -> Distribution:
        """Returns q(z|x), batch (B,), event (D,), of features (B, F)."""
        mean, log_variance = at_least_float32(self.head(features)).chunk(2, dim=-1)
        return diagonal_gaussian(mean, torch.exp(0.5 * log_variance))


class BatchNormPosterior(nn.Module):
    """A Gaussian posterior whose mean is batch-normalised: mu = shift + scale * (m - E m) / sqrt(Var m).

    Over the batch mu_d then has variance scale^2 and mean shift_d, and as sigma^2 - 1 - log sigma^2 >= 0 the
    batch's mean KL to N(0, I) is

        E KL >= 1/2 sum_d E mu_d^2 = 1/2 sum_d (scale^2 + shift_d^2) >= D scale^2 / 2 nats.

    That holds in training, over the sentences of all processes, as long as `scale` is fixed, and not for a batch of
    one, whose variance is 0. In evaluation running statistics stand in, and the bound holds as far as they are true.

    Args:
        feature_dim: F.
        latent_dim: D.
        scale: the paper's gamma.
        learned: learn the scale, one a dimension, starting from `scale`; the bound is then no longer given.
        momentum: the newest batch's share in the running statistics.

    References:
        Zhu 2020, arXiv 2004.12585, section 3 and algorithm 1.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(
        self,
        feature_dim: int,
        latent_dim: int,
        *,
        scale: Annotated[float, Field(gt=0)] = 0.6,
        learned: bool = False,
        momentum: Annotated[float, Field(gt=0, le=1)] = 0.1,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.momentum = momentum
        self.head = nn.Linear(feature_dim, 2 * latent_dim)
        self.shift = nn.Parameter(torch.zeros(latent_dim))
        # As a logarithm: positive, and at `scale` whatever initialisation puts near 0.
        self.log_factor = nn.Parameter(torch.zeros(latent_dim)) if learned else None
        self.register_buffer("running_mean", torch.zeros(latent_dim))
        self.register_buffer("running_variance", torch.ones(latent_dim))

    def forward(self, features: Tensor) -> Distribution:
        """Returns q(z|x), batch (B,), event (D,), of features (B, F)."""
        mean, log_variance = at_least_float32(self.head(features)).chunk(2, dim=-1)
        if self.training:
            rows = gather_rows(mean)  # (B of all processes, D)
            centre, variance = rows.mean(0), rows.var(0, correction=0)
            # A step that is left out must leave both be: without a wait, for it may be recorded.
            finite = torch.isfinite(variance)  # and then the mean is, too
            for running, now in ((self.running_mean, centre), (self.running_variance, variance)):
                running.lerp_(torch.where(finite, now, running).detach(), self.momentum)
        else:
            centre, variance = self.running_mean, self.running_variance
        scale = self.scale if self.log_factor is None else self.scale * self.log_factor.exp()
        mean = self.shift + scale * (mean - centre) * torch.rsqrt(variance + SMALLEST_VARIANCE)
        return diagonal_gaussian(mean, torch.exp(0.5 * log_variance))


class DeltaPosterior(nn.Module):
    """A Gaussian posterior whose KL to N(0, I) is at least `delta` nats for every sentence.

    The KL of N(m, s^2) to N(0, 1) is (m^2 + s^2 - 1 - log s^2) / 2 >= f(s) = (s^2 - 1 - log s^2) / 2, with equality
    at m = 0. f falls from infinity at s = 0 to 0 at s = 1. So f(s) >= delta / D for all s <= sigma_u, where sigma_u
    is the root below 1 of f(s) = delta / D; D independent dimensions with

        s_d = sigma_l + (sigma_u - sigma_l) * sigmoid(a_d),   0 < sigma_l < sigma_u

    then have a KL of at least delta, whatever the means, which stay free. (The root above 1 bounds another such
    interval, of posteriors wider than the prior, which say nothing of the sentence.) sigma_l only keeps the KL finite.
    The floor is rate that is spent whether or not it carries information; it holds for the prior standard_normal alone.

    Args:
        feature_dim: F.
        latent_dim: D.
        delta: the floor, nats a sentence.
        lowest: sigma_l / sigma_u.

    Raises:
        UserError: a floor that needs a variance below what float32 can hold, some 40 nats a dimension.

    References:
        Razavi 2019, arXiv 1901.03416, section 2, for independent dimensions.
    """

    def __init__(
        self,
        feature_dim: int,
        latent_dim: int,
        *,
        delta: Annotated[float, Field(gt=0, le=1e4)] = 4.0,
        lowest: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    ) -> None:
        super().__init__()
        self.highest_scale = largest_scale(delta / latent_dim)
        self.lowest_scale = lowest * self.highest_scale
        if self.lowest_scale**2 < torch.finfo(torch.float32).tiny:
            raise UserError(
                f"model.posterior.delta: {delta} nats over {latent_dim} dimensions need a variance below what float32 "
                "can hold; use a smaller delta or more dimensions"
            )
        self.head = nn.Linear(feature_dim, 2 * latent_dim)

    @property
    def scale_bounds(self) -> tuple[float, float]:
        """The least and the largest standard deviation that a posterior of the family has."""
        return self.lowest_scale, self.highest_scale

    def forward(self, features: Tensor) -> Distribution:
        """Returns q(z|x), batch (B,), event (D,), of features (B, F)."""
        mean, raw = at_least_float32(self.head(features)).chunk(2, dim=-1)
        return diagonal_gaussian(mean, self.lowest_scale + (self.highest_scale - self.lowest_scale) * raw.sigmoid())


def largest_scale(nats: float) -> float:
    """Returns the s < 1 with KL(N(0, s^2) || N(0, 1)) = (s^2 - 1 - log s^2) / 2 = nats, by bisection in log s^2."""
    low, high = -(1.0 + 2.0 * nats), 0.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if math.expm1(middle) - middle >= 2.0 * nats else (low, middle)
    return math.exp(0.5 * low)


def sample(posterior: Distribution, samples: int, noise: Tensor | None = None) -> Tensor:
    """Returns z (S, B, D), reparameterised.

    Args:
        posterior: q(z|x).
        samples: S.
        noise: (S, B, D) standard normal draws to use in place of new ones, where q is Gaussian or a flow from a
            Gaussian, or, without gradients, a von Mises-Fisher; then a sentence's z does not depend on which process or
            batch the sentence is in.
    """
    if noise is not None and isinstance(posterior, Independent) and isinstance(posterior.base_dist, Normal):
        base = posterior.base_dist
        return base.loc + base.scale * noise.to(base.loc)
    if noise is not None and isinstance(posterior, FlowDistribution):
        return posterior.from_noise(noise)
    if noise is not None and isinstance(posterior, VonMisesFisher) and not torch.is_grad_enabled():
        return posterior.from_noise(noise)
    return posterior.rsample(torch.Size([samples]))


POSTERIORS = Registry(
    "posterior",
    {
        "gaussian": GaussianPosterior,
        "point": PointPosterior,
        "batch_norm": BatchNormPosterior,
        "delta": DeltaPosterior,
        "von_mises_fisher": VonMisesFisherPosterior,
        "flow": FlowPosterior,
    },
    default="gaussian",
)
