"""Normalizing flows over z, from zuko (the extra `flows`): a distribution, a posterior and a prior."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, constraints

from textvae.errors import MissingExtraError

Kind = Literal["autoregressive", "coupling"]


class FlowDistribution(Distribution):
    """z = T(e) with e from a diagonal Gaussian: log q(z) = log N(e) - log |det dT/de|.

    The draw made last is remembered with its e, so that its own log_prob costs no inverse. Runs in the base's
    type under autocast too.

    Args:
        base: the Gaussian, batch (...), event (D,).
        transform: T, an invertible map of zuko, already given its context.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: Independent[Normal], transform: Any) -> None:
        self.base = base
        self.transform = transform
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """(..., D) T(E e): an approximation of E z, exact where T is affine with constant factors."""
        with self._full_precision():
            mean: Tensor = self.transform(self.base.mean)
        return mean

    @property
    def variance(self) -> Tensor:
        """(..., D) of the base: an approximation, exact where T only shifts."""
        return self.base.variance

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns draws, sample_shape + (..., D)."""
        return self._push(self.base.rsample(torch.Size(sample_shape)))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Returns the draws that standard normal noise (S, ..., D) makes."""
        gaussian = self.base.base_dist
        return self._push(gaussian.loc + gaussian.scale * noise.to(gaussian.loc))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density at value (..., D), nats."""
        # The last draw's own density is asked for at every step of training. One computed without gradients must
        # not stand in where they are wanted.
        if self._drawn is not None and value is self._drawn[0]:
            known = self._drawn[1]
            if known.requires_grad or not torch.is_grad_enabled():
                return known
        shape = torch.broadcast_shapes(value.shape, (*self.batch_shape, *self.event_shape))
        with self._full_precision():
            e, log_determinant = self.transform.inv.call_and_ladj(value.to(self.base.mean.dtype).expand(shape))
            density: Tensor = self.base.log_prob(e) + log_determinant
        return density

    def _push(self, e: Tensor) -> Tensor:
        with self._full_precision():
            z, log_determinant = self.transform.call_and_ladj(e)
            density: Tensor = self.base.log_prob(e) - log_determinant
        self._drawn = (z, density)
        return self._drawn[0]

    def _full_precision(self) -> torch.autocast:
        return torch.autocast(self.base.mean.device.type, enabled=False)


def transforms_of(kind: str, dimensions: int, *, context: int = 0, count: int, hidden_dim: int) -> Any:
    """Returns `count` affine maps of R^D in a row, a module: context (..., C) or None -> the map.

    Args:
        kind: "autoregressive": z_i = a(z_<i) z_i + b(z_<i), the order reversed at every other map; the inverse
            takes D passes. "coupling": half of the dimensions given the other half, in turn; one pass both ways.
        dimensions: D.
        context: C.
        count: how many maps.
        hidden_dim: units in each of the two hidden layers of a map's network.

    Raises:
        MissingExtraError: without zuko.
    """
    before = Distribution._validate_args
    try:
        flows = importlib.import_module("zuko.flows")
        lazy = importlib.import_module("zuko.lazy")
    except ImportError as error:
        raise MissingExtraError("zuko", "flows", "for a flow over the latents") from error
    finally:
        # Importing zuko turns off the checks of all distributions in the process.
        Distribution._validate_args = before
    numbers = torch.arange(dimensions)
    layers = []
    for layer in range(count):
        options = {"features": dimensions, "context": context, "hidden_features": (hidden_dim, hidden_dim)}
        if dimensions == 1 and not context:
            del options["hidden_features"]  # one number depends on nothing: there is no network
        if kind == "coupling":
            layers.append(flows.GeneralCouplingTransform(**options, mask=numbers % 2 == layer % 2))
        else:
            order = numbers.flip(0) if layer % 2 else numbers
            layers.append(flows.MaskedAutoregressiveTransform(**options, order=order))
    transform = lazy.LazyComposedTransform(*layers)
    if dimensions == 1 and not context:
        # Plain numbers then, which zuko draws from N(0, 1): a stack of them would begin anywhere.
        for parameter in transform.parameters():
            torch.nn.init.zeros_(parameter)
    return transform


def least_numbers(latent_dim: int, *, transforms: int = 1, hidden_dim: int = 1, **_: Any) -> int:
    """Returns how many numbers a flow of these options has at the very least; what is not given counts as one.

    Zuko works with values while it makes a flow, so that its sizes cannot be had without the memory that they ask for.
    """
    return transforms * hidden_dim * (hidden_dim + latent_dim) if latent_dim > 1 else transforms


class FlowPosterior(nn.Module):
    """q(z|x): a Gaussian N(mu, diag(sigma^2)) of the features, pushed through maps that read the features too.

    The maps run from the Gaussian to z, so that drawing and the density of a draw are cheap: with
    `transform: autoregressive` this is the inverse autoregressive flow. There the density at any other z takes D
    passes, which importance-weighted bounds and mutual information need; `coupling` takes one.

    `mean` is the image of mu and `stddev` is sigma: approximations, documented at `FlowDistribution`.

    Args:
        feature_dim: F.
        latent_dim: D.
        transform: the kind of maps.
        transforms: how many.
        hidden_dim: units in each of the two hidden layers of a map's network.

    References:
        Kingma 2016, arXiv 1606.04934, section 3; Dinh 2017, arXiv 1605.08803 (coupling).
    """

    def __init__(
        self,
        feature_dim: int,
        latent_dim: int,
        *,
        transform: Kind = "autoregressive",
        transforms: Annotated[int, Field(ge=1)] = 2,
        hidden_dim: Annotated[int, Field(ge=1)] = 64,
    ) -> None:
        super().__init__()
        self.head = nn.Linear(feature_dim, 2 * latent_dim)
        self.flow = transforms_of(transform, latent_dim, context=feature_dim, count=transforms, hidden_dim=hidden_dim)

    def forward(self, features: Tensor) -> Distribution:
        """Returns q(z|x), batch (B,), event (D,), of features (B, F)."""
        outputs = self.head(features)
        precise = torch.promote_types(outputs.dtype, torch.float32)
        mean, log_variance = outputs.to(precise).chunk(2, dim=-1)
        base = Independent(Normal(mean, torch.exp(0.5 * log_variance), validate_args=False), 1, validate_args=False)
        return FlowDistribution(base, self.flow(features.to(precise)))


class FlowPrior(nn.Module):
    """p(z): a standard normal pushed through learned maps, then shifted and stretched by constants.

    The maps are learned from z to the normal, so that log p(z), which training needs, takes one pass; with
    `transform: autoregressive` a draw takes D.

    Args:
        latent_dim: D.
        transform: the kind of maps; "autoregressive" is the masked autoregressive flow.
        transforms: how many.
        hidden_dim: units in each of the two hidden layers of a map's network.

    References:
        Papamakarios 2017, arXiv 1705.07057, section 3; Chen 2017, arXiv 1611.02731 (as the prior of a VAE).
    """

    loc: Tensor
    scale: Tensor
    shift: Tensor
    stretch: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        transform: Kind = "autoregressive",
        transforms: Annotated[int, Field(ge=1)] = 3,
        hidden_dim: Annotated[int, Field(ge=1)] = 64,
    ) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)
        # Where and how wide the latents are: 0 and 1 but for a prior fitted after training.
        self.register_buffer("shift", torch.zeros(latent_dim))
        self.register_buffer("stretch", torch.ones(latent_dim))
        self.flow = transforms_of(transform, latent_dim, count=transforms, hidden_dim=hidden_dim)

    def forward(self) -> Distribution:
        """Returns p(z), batch (), event (D,)."""
        base = Independent(Normal(self.loc, self.scale, validate_args=False), 1, validate_args=False)
        return FlowDistribution(base, _Stretched(self.flow(None).inv, self.shift, self.stretch))


class _Stretched:
    """z = shift + stretch * T(e)."""

    def __init__(self, transform: Any, shift: Tensor, stretch: Tensor) -> None:
        self.transform, self.shift, self.stretch = transform, shift, stretch

    def __call__(self, e: Tensor) -> Tensor:
        z: Tensor = self.shift + self.stretch * self.transform(e)
        return z

    def call_and_ladj(self, e: Tensor) -> tuple[Tensor, Tensor]:
        z, log_determinant = self.transform.call_and_ladj(e)
        return self.shift + self.stretch * z, log_determinant + self.stretch.log().sum()

    @property
    def inv(self) -> _Unstretched:
        return _Unstretched(self)


class _Unstretched:
    def __init__(self, forward: _Stretched) -> None:
        self.forward = forward

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        stretch = self.forward.stretch
        e, log_determinant = self.forward.transform.inv.call_and_ladj((z - self.forward.shift) / stretch)
        return e, log_determinant - stretch.log().sum()
