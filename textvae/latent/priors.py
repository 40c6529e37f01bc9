"""Priors: modules whose forward gives p(z), batch () and event (D,)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily

from textvae.errors import UserError
from textvae.latent.flows import FlowPrior
from textvae.latent.posteriors import BatchNormPosterior, PointPosterior, diagonal_gaussian
from textvae.latent.vmf import UniformSphere, check_sphere
from textvae.registry import Registry


class StandardNormal(nn.Module):
    """p(z) = N(0, I).

    Args:
        latent_dim: D.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        # Not parameters and not worth saving, but they must follow the model to its device.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        """Returns p(z), event (D,)."""
        return diagonal_gaussian(self.loc, self.scale)


class GaussianPrior(nn.Module):
    """p(z) = N(m, diag(s^2)) with m and log s learned, starting from N(0, I).

    Args:
        latent_dim: D.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> Distribution:
        """Returns p(z), event (D,)."""
        return diagonal_gaussian(self.loc, self.log_scale.exp())


class MixturePrior(nn.Module):
    """p(z) = sum_k w_k N(m_k, diag(s_k^2)), with weights, means and scales learned.

    The components start with equal weights, s = 1 and means drawn from N(0, spread^2 I). What is learned is the
    distance from that start, so that an initialisation that overwrites all parameters does not make them all one.
    Its KL has no closed form and is sampled; divergences that compare draws of q and p give it no gradient, because
    the choice of a component has none.

    Args:
        latent_dim: D.
        components: K.
        spread: of the means at the start, latent units.

    References:
        Dilokthanakul 2016, arXiv 1611.02648, section 3; Tomczak & Welling 2018, arXiv 1705.07120, section 2 ("MoG").
    """

    start: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        components: Annotated[int, Field(ge=1)] = 10,
        spread: Annotated[float, Field(ge=0)] = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("start", spread * torch.randn(components, latent_dim))
        self.offset = nn.Parameter(torch.zeros(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self) -> Distribution:
        """Returns p(z), event (D,)."""
        components = diagonal_gaussian(self.start + self.offset, self.log_scale.exp())
        weights = Categorical(logits=self.logits, validate_args=False)
        return MixtureSameFamily(weights, components, validate_args=False)


class UniformSpherePrior(nn.Module):
    """p(z) uniform on the unit sphere of R^D: the prior of the posterior von_mises_fisher.

    Args:
        latent_dim: D, 2 or more.

    References:
        Davidson 2018, arXiv 1804.00891, section 3; Xu & Durrett 2018, arXiv 1808.10805, section 2.2.
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_sphere(latent_dim, "uniform_sphere")
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        """Returns p(z), event (D,)."""
        return UniformSphere(self.loc)


class VampPrior(nn.Module):
    """p(z) = (1/K) sum_k q(z | u_k): a mixture of the model's own posteriors at learned pseudo-inputs.

    A pseudo-input of text would be a sentence, which is discrete and cannot be learned by gradient. The u_k are
    therefore what the encoder would say of it, features (K, F), and only the posterior's head is shared. As in
    `MixturePrior` what is learned is the distance from a random start.

    The builder calls `attach` once the posterior is there and before the parameters are collected.

    Args:
        latent_dim: D.
        components: K.
        spread: of the pseudo-features at the start, in the encoder's units.

    References:
        Tomczak & Welling 2018, arXiv 1705.07120, section 2.
    """

    start: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        components: Annotated[int, Field(ge=1)] = 50,
        spread: Annotated[float, Field(ge=0)] = 0.5,
    ) -> None:
        super().__init__()
        self.components = components
        self.spread = spread
        self._posterior: tuple[nn.Module, ...] = ()

    def attach(self, posterior: nn.Module, feature_dim: int) -> None:
        """Gives the prior the posterior whose mixture it is, and makes the pseudo-features.

        Args:
            posterior: features (K, F) -> q(z|x); stays the model's, whose parameters are registered there alone.
            feature_dim: F.

        Raises:
            UserError: a posterior that says nothing of one sentence alone, or has no density.
        """
        if isinstance(posterior, BatchNormPosterior | PointPosterior):
            kind = "batch_norm" if isinstance(posterior, BatchNormPosterior) else "point"
            reason = "depends on the other sentences of the batch" if kind == "batch_norm" else "has no density"
            raise UserError(
                f"model.prior.kind: vamp is a mixture of posteriors, and the posterior {kind} {reason}; "
                "use model.posterior: {kind: gaussian}"
            )
        # In a tuple, where nn.Module does not see it: registered here too, its parameters would be saved twice.
        self._posterior = (posterior,)
        self.register_buffer("start", self.spread * torch.randn(self.components, feature_dim))
        self.offset = nn.Parameter(torch.zeros(self.components, feature_dim))

    def forward(self) -> Distribution:
        """Returns p(z), event (D,).

        Raises:
            RuntimeError: without a posterior.
        """
        if not self._posterior:
            raise RuntimeError("VampPrior has no posterior to mix; call attach(posterior, feature_dim) first")
        (posterior,) = self._posterior
        mixed: Distribution = posterior(self.start + self.offset)
        weights = Categorical(logits=self.start.new_zeros(self.components), validate_args=False)
        return MixtureSameFamily(weights, mixed, validate_args=False)


PRIORS = Registry(
    "prior",
    {
        "standard_normal": StandardNormal,
        "gaussian": GaussianPrior,
        "mixture": MixturePrior,
        "vamp": VampPrior,
        "flow": FlowPrior,
        "uniform_sphere": UniformSpherePrior,
    },
    default="standard_normal",
)
