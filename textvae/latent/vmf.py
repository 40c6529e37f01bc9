"""The von Mises-Fisher distribution and the uniform one, on the unit sphere of R^D; the posterior built on them."""

from __future__ import annotations

import functools
import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution, MixtureSameFamily, constraints, register_kl

from textvae.errors import UserError
from textvae.latent.divergences import shown

# Wood's proposal is accepted with probability 0.65 at the least: all of so many fail once in 10^14 draws.
PROPOSALS = 32
ANGLES = 8192  # of a table of the distribution function


@functools.lru_cache(maxsize=256)
def log_bessel(order: float, x: float) -> float:
    """Returns log I_order(x), the modified Bessel function of the first kind, by its power series.

    I_v(x) = sum_k (x/2)^(2k+v) / (k! Gamma(k+v+1)): all terms are positive, so that nothing cancels, and the
    log-sum-exp of their logarithms neither over- nor underflows. Absolute error below 1e-9 for x up to 1e5.

    Args:
        order: v >= 0.
        x: > 0.
    """
    # The terms' logarithm is concave with its peak below x/2 and a width below sqrt(x/2).
    count = math.ceil(0.5 * x + 16.0 * math.sqrt(0.5 * x) + 64)
    k = torch.arange(count, dtype=torch.float64)
    terms = (2 * k + order) * math.log(0.5 * x) - torch.lgamma(k + 1) - torch.lgamma(k + order + 1)
    return float(torch.logsumexp(terms, 0))


def mean_resultant_length(dimensions: int, kappa: float) -> float:
    """Returns A_D(kappa) = I_{D/2}(kappa) / I_{D/2-1}(kappa), the length of a von Mises-Fisher's mean."""
    return math.exp(log_bessel(0.5 * dimensions, kappa) - log_bessel(0.5 * dimensions - 1, kappa))


def log_sphere_area(dimensions: int) -> float:
    """Returns log(2 pi^(D/2) / Gamma(D/2)), the area of the unit sphere of R^D."""
    return math.log(2.0) + 0.5 * dimensions * math.log(math.pi) - math.lgamma(0.5 * dimensions)


@functools.lru_cache(maxsize=16)
def angle_table(dimensions: int, kappa: float) -> tuple[Tensor, Tensor]:
    """Returns angles between z and mu and the distribution function at each, (ANGLES,) float64, of von Mises-Fisher.

    The angle t has the density exp(kappa cos t) sin(t)^(D-2), summed by the trapezoid rule between the angles beyond
    which less than 10^-15 of it lies.
    """
    wide = torch.linspace(0, math.pi, ANGLES, dtype=torch.float64)
    log_density = kappa * (wide.cos() - 1) + (dimensions - 2) * wide.sin().clamp_min(1e-300).log()
    inside = wide[log_density > log_density.max() - 50]
    step = math.pi / (ANGLES - 1)
    ends = max(float(inside[0]) - step, 0.0), min(float(inside[-1]) + step, math.pi)
    angles = torch.linspace(*ends, ANGLES, dtype=torch.float64)
    log_density = kappa * (angles.cos() - 1) + (dimensions - 2) * angles.sin().clamp_min(1e-300).log()
    summed = torch.cumulative_trapezoid((log_density - log_density.max()).exp(), angles)
    return angles, torch.cat([summed.new_zeros(1), summed / summed[-1]])


class UniformSphere(Distribution):
    """The uniform distribution on the unit sphere of R^D; its density is with respect to the sphere's area.

    Args:
        loc: (D,) zeros: the mean, and what tells dimension, type and device.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"loc": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(event_shape=loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """(D,) zeros."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """(D,) 1/D each."""
        return torch.full_like(self.loc, 1.0 / self.loc.shape[-1])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns draws, sample_shape + (D,), of unit length."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return nn.functional.normalize(noise, dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns -log area, one value a row of value (..., D), nats."""
        return value.new_full(value.shape[:-1], -log_sphere_area(self.loc.shape[-1]))

    def entropy(self) -> Tensor:
        """Returns log area, (), nats."""
        return self.loc.new_full((), log_sphere_area(self.loc.shape[-1]))


class VonMisesFisher(Distribution):
    """The von Mises-Fisher distribution on the unit sphere of R^D, with one fixed concentration.

    log f(z) = kappa mu.z + (D/2 - 1) log kappa - (D/2) log 2 pi - log I_{D/2-1}(kappa), with respect to area.

    Args:
        loc: mu (..., D), of unit length.
        concentration: kappa.

    References:
        Davidson 2018, arXiv 1804.00891, section 2; Mardia & Jupp 2000, section 9.3.2.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"loc": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: float) -> None:
        self.loc = loc
        self.concentration = concentration
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def _dimensions(self) -> int:
        return self.loc.shape[-1]

    @property
    def mode(self) -> Tensor:
        """(..., D) mu, on the sphere."""
        return self.loc

    @property
    def mean(self) -> Tensor:
        """(..., D) A_D(kappa) mu, inside the sphere; `mode` is on it."""
        return self.loc * mean_resultant_length(self._dimensions, self.concentration)

    @property
    def variance(self) -> Tensor:
        """(..., D): Var z_i = A/kappa + (1 - D A/kappa - A^2) mu_i^2."""
        length = mean_resultant_length(self._dimensions, self.concentration)
        ratio = length / self.concentration
        along = 1.0 - self._dimensions * ratio - length**2
        return (ratio + along * self.loc.square()).clamp_min(0.0)

    @property
    def log_normalizer(self) -> float:
        """The density's constant, log C_D(kappa), nats."""
        half = 0.5 * self._dimensions
        constant = (half - 1) * math.log(self.concentration) - half * math.log(2 * math.pi)
        return constant - log_bessel(half - 1, self.concentration)

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisher:
        """Returns the distribution with its batch repeated to `batch_shape`."""
        return VonMisesFisher(self.loc.expand(*batch_shape, self._dimensions), self.concentration)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns draws, sample_shape + (..., D), with gradients into mu.

        z = w mu + sqrt(1 - w^2) v, with w = mu.z by rejection and v uniform among the unit vectors orthogonal to
        mu: noise without its part along mu, normalised. Neither the law of w nor the noise depends on mu, so that
        the gradient needs no correction for the rejection; and unlike a Householder reflection the map is smooth
        at every mu.

        References:
            Wood 1994 ("Simulation of the von Mises Fisher distribution", algorithm VM*); Xu & Durrett 2018,
            arXiv 1808.10805, section 2.2.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        along, across = self._cosines(shape[:-1])
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return along[..., None] * self.loc + across[..., None] * self._tangent(noise)

    @torch.no_grad()
    def from_noise(self, noise: Tensor) -> Tensor:
        """Returns the draws, without gradients, that standard normal noise (S, ..., D) makes, row for row.

        The direction of the noise's part orthogonal to mu is v; the square of its length, of which v knows nothing, is
        a chi-square of D - 1 degrees of freedom, and its distribution function the uniform number whose quantile the
        angle between z and mu is.
        """
        noise = noise.to(self.loc)
        length = (noise - (noise * self.loc).sum(-1, keepdim=True) * self.loc).norm(dim=-1)
        share = torch.special.gammainc(torch.full_like(length, 0.5 * (self._dimensions - 1)), 0.5 * length.square())
        angles, known = (table.to(share.device) for table in angle_table(self._dimensions, self.concentration))
        share = share.double()
        right = torch.searchsorted(known, share).clamp(1, len(known) - 1)
        low, high = known[right - 1], known[right]
        within = ((share - low) / (high - low)).clamp(0, 1)
        angle = (angles[right - 1] + within * (angles[right] - angles[right - 1])).to(self.loc)[..., None]
        z: Tensor = angle.cos() * self.loc + angle.sin() * self._tangent(noise)
        return z

    def _tangent(self, noise: Tensor) -> Tensor:
        """Unit vectors orthogonal to mu, along what the noise has that way."""
        tangent = noise
        for _ in range(2):  # of noise nearly along mu the first leaves digits that cancelled
            tangent = nn.functional.normalize(tangent - (tangent * self.loc).sum(-1, keepdim=True) * self.loc, dim=-1)
        return tangent

    @torch.no_grad()
    def _cosines(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """w = mu.z and sqrt(1 - w^2), `shape` each: the first of PROPOSALS that is accepted, without a host sync."""
        free, kappa = self._dimensions - 1, self.concentration
        b = free / (2 * kappa + math.sqrt(4 * kappa**2 + free**2))
        x0 = (1 - b) / (1 + b)
        half = torch.full((*shape, PROPOSALS), 0.5 * free, dtype=self.loc.dtype, device=self.loc.device)
        e = torch.distributions.Beta(half, half, validate_args=False).sample()
        denominator = 1 - (1 - b) * e
        w = (1 - (1 + b) * e) / denominator
        # 1 - x0^2 = 4b / (1 + b)^2; written so that nothing cancels at a large kappa, nor does 1 - w^2 below.
        ratio = torch.log1p(-x0 * w) - math.log(4 * b / (1 + b) ** 2)
        accepted = kappa * (w - x0) + free * ratio >= torch.rand_like(w).log()
        first = accepted.to(torch.uint8).argmax(-1, keepdim=True)
        across = 2 * (b * e * (1 - e)).sqrt() / denominator
        return w.gather(-1, first)[..., 0], across.gather(-1, first)[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density at value (..., D) of unit length, nats, with respect to the sphere's area."""
        return self.concentration * (self.loc * value).sum(-1) + self.log_normalizer


@register_kl(VonMisesFisher, UniformSphere)  # type: ignore[untyped-decorator]
def _kl_vmf_uniform(q: VonMisesFisher, p: UniformSphere) -> Tensor:
    """KL = kappa A_D(kappa) + log C_D(kappa) + log area: the same for every sentence (Davidson 2018, section 3.3)."""
    dimensions, kappa = q.event_shape[0], q.concentration
    nats = kappa * mean_resultant_length(dimensions, kappa) + q.log_normalizer + log_sphere_area(dimensions)
    return q.loc.new_full(q.batch_shape, nats)


@register_kl(VonMisesFisher, VonMisesFisher)  # type: ignore[untyped-decorator]
def _kl_vmf_vmf(q: VonMisesFisher, p: VonMisesFisher) -> Tensor:
    """KL = log C(k) - log C(l) + A(k) (k - l mu.nu)."""
    length = mean_resultant_length(q.event_shape[0], q.concentration)
    cosine = (q.loc * p.loc).sum(-1)
    return q.log_normalizer - p.log_normalizer + length * (q.concentration - p.concentration * cosine)


@register_kl(VonMisesFisher, Distribution)  # type: ignore[untyped-decorator]
def _kl_vmf_other(q: VonMisesFisher, p: Distribution) -> Tensor:
    if isinstance(p, MixtureSameFamily) and isinstance(p.component_distribution, VonMisesFisher):
        raise NotImplementedError  # both have a density on the sphere: samples stand in
    raise UserError(
        f"the posterior von_mises_fisher lies on the unit sphere, where the prior {shown(p)} has no density: "
        "their KL is infinite. Use model.prior: {kind: uniform_sphere}"
    )


@register_kl(Distribution, UniformSphere)  # type: ignore[untyped-decorator]
def _kl_other_uniform(q: Distribution, p: UniformSphere) -> Tensor:
    raise UserError(
        f"the prior uniform_sphere lies on the unit sphere, where the posterior {shown(q)} has no density: "
        "their KL is infinite. Use model.posterior: {kind: von_mises_fisher}, or another prior"
    )


@register_kl(UniformSphere, VonMisesFisher)  # type: ignore[untyped-decorator]
def _kl_uniform_vmf(q: UniformSphere, p: VonMisesFisher) -> Tensor:
    """KL = -log area - log C_D(kappa): the mean of mu.x over the sphere is 0."""
    nats = -log_sphere_area(p.event_shape[0]) - p.log_normalizer
    return p.loc.new_full(p.batch_shape, nats)


@register_kl(UniformSphere, Distribution)  # type: ignore[untyped-decorator]
@register_kl(Distribution, VonMisesFisher)  # type: ignore[untyped-decorator]
def _kl_sphere_and_other(q: Distribution, p: Distribution) -> Tensor:
    if isinstance(q, MixtureSameFamily) and isinstance(q.component_distribution, VonMisesFisher):
        raise NotImplementedError  # as above
    raise UserError(
        f"{shown(q)} and {shown(p)} do not lie on the same set (one is on the unit sphere): the KL "
        "of one from the other is infinite"
    )


def check_sphere(latent_dim: int, kind: str) -> None:
    """Raises UserError where a sphere of R^latent_dim has no directions to go in."""
    if latent_dim < 2:
        raise UserError(f"model.latent_dim: got {latent_dim}; {kind} lies on a sphere and needs 2 or more")


class VonMisesFisherPosterior(nn.Module):
    """q(z|x) = vMF(mu, kappa) on the unit sphere of R^D, mu the normalised linear head of the features.

    With the prior uniform_sphere the KL is a constant that kappa alone sets: it cannot collapse, and training
    cannot lower it. `mode` is mu; `mean` is shorter than 1.

    Args:
        feature_dim: F.
        latent_dim: D, 2 or more.
        kappa: concentration, the same for all sentences.

    References:
        Xu & Durrett 2018, arXiv 1808.10805, section 2.2; Davidson 2018, arXiv 1804.00891, section 3.
    """

    def __init__(
        self, feature_dim: int, latent_dim: int, *, kappa: Annotated[float, Field(gt=0, le=1e5)] = 80.0
    ) -> None:
        super().__init__()
        check_sphere(latent_dim, "von_mises_fisher")
        self.kappa = kappa
        self.head = nn.Linear(feature_dim, latent_dim)

    def forward(self, features: Tensor) -> Distribution:
        """Returns q(z|x), batch (B,), event (D,), of features (B, F)."""
        outputs = self.head(features)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return VonMisesFisher(nn.functional.normalize(outputs, dim=-1), self.kappa)
