"""Priors: modules whose forward gives p(z), batch () and event (D,)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

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
        return Independent(Normal(self.loc, self.scale, validate_args=False), 1, validate_args=False)


PRIORS = Registry("prior", {"standard_normal": StandardNormal}, default="standard_normal")
