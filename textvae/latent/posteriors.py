"""Posteriors: encoder features (B, F) to a distribution q(z|x) with batch (B,) and event (D,)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from textvae.registry import Registry


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
        # Half precision has too few digits for a log-variance: float32 before the distribution is built.
        outputs = self.head(features)
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        mean, log_variance = outputs.chunk(2, dim=-1)
        scale = torch.exp(0.5 * log_variance)
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


def sample(posterior: Distribution, samples: int, noise: Tensor | None = None) -> Tensor:
    """Returns z (S, B, D), reparameterised.

    Args:
        posterior: q(z|x).
        samples: S.
        noise: (S, B, D) standard normal draws to use in place of new ones, where q is Gaussian; then a
            sentence's z does not depend on which process or batch the sentence is in.
    """
    if noise is not None and isinstance(posterior, Independent) and isinstance(posterior.base_dist, Normal):
        base = posterior.base_dist
        return base.loc + base.scale * noise.to(base.loc)
    return posterior.rsample(torch.Size([samples]))


POSTERIORS = Registry("posterior", {"gaussian": GaussianPosterior}, default="gaussian")
