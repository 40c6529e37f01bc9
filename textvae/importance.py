"""The importance-weighted reconstruction: a tighter bound on log p(x) from several draws of z, in place of the ELBO."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from textvae.types import VAEOutput


class ImportanceWeighted:
    """The negative importance-weighted bound, or Renyi bound, on log p(x); it holds the KL already.

    With w_s = p(x|z_s) p(z_s) / q(z_s|x), z_1 .. z_S drawn from q(z|x) and b = 1 - alpha:

        L = (1 / b) log (1/S) sum_s w_s^b.

    alpha = 0 is the importance-weighted bound, which rises to log p(x) with S (Burda 2016); alpha -> 1 is the ELBO,
    and so is S = 1 with any alpha (Li & Turner 2016).

    The gradient. Let v_s = w_s^b / sum_r w_r^b, so that dL / d log w_s = v_s. By the encoder's parameters,

        dL = sum_s v_s (d log w_s / dz_s  dz_s - d log q(z_s|x) at fixed z_s).

    At alpha = 0 the noise of the second part drowns the first as S grows (Rainforth 2018). In expectation over q it is
    also -sum_s dv_s/dz_s dz_s, where dv_s/dz_s = b (v_s - v_s^2) d log w_s / dz_s, and what is left of both is

        sum_s (alpha v_s + b v_s^2) d log w_s / dz_s  dz_s,

    unbiased, 0 for every single draw once q is the exact posterior, and with a signal that outgrows its noise with S
    (Tucker 2018), unless q is narrower than the posterior somewhere: the weights then have heavy tails. The decoder's
    and the prior's parameters get v_s.

    Args:
        alpha: the order; larger ones lean more on the mean draw than on the best.
        gradient: "dreg": the above; needs q to be a diagonal Gaussian. "reparameterized": L differentiated as it
            stands, for any q with a density.

    References:
        Burda 2016, arXiv 1509.00519; Li & Turner 2016, arXiv 1602.02311; Rainforth 2018, arXiv 1802.04537;
        Tucker 2018, arXiv 1810.04152.
    """

    unit: ClassVar[str] = "nats"
    figure: ClassVar[str] = "nll_elbo"

    def __init__(
        self,
        *,
        alpha: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        gradient: Literal["dreg", "reparameterized"] = "dreg",
    ) -> None:
        self.alpha = alpha
        self.gradient = gradient

    def __call__(self, output: VAEOutput) -> Tensor:
        """Returns (B,) nats a sequence.

        With gradient "dreg" hooks stay on the output's graph and scale what flows back through it: once an output.

        Raises:
            ValueError: a language model; a posterior without a density, or for "dreg" one that is no diagonal
                Gaussian; for "dreg" an output whose likelihood does not come from a `decoded` of its own.
        """
        if output.posterior is None or output.prior is None:
            raise ValueError("importance_weighted needs latents; a language model (latent_dim 0) has none to weigh")
        z = output.z.view_as(output.z)  # Its own step of the graph: other terms keep their gradient by output.z.
        posterior = output.posterior if self.gradient == "reparameterized" else _held(output.posterior, output.z)
        log_weights = output.log_likelihood + output.prior.log_prob(z) - _log_density(posterior, z)  # (S, B)
        tempered = (1 - self.alpha) * log_weights
        if self.gradient == "dreg" and torch.is_grad_enabled():
            # The graph brings v_s already: a factor of alpha + (1 - alpha) v_s is missing.
            factor = self.alpha + (1 - self.alpha) * tempered.detach().softmax(0)  # (S, B)
            _scale_gradient(z, factor)
            if output.log_likelihood.requires_grad and output.z.requires_grad:
                if output.decoded is None or output.decoded is output.z:
                    raise ValueError(
                        "gradient: dreg scales what flows back from the likelihood to z; the output must hold, as "
                        "`decoded`, a view of z that nothing but the decoder reads"
                    )
                _scale_gradient(output.decoded, factor)
        return (math.log(len(tempered)) - tempered.logsumexp(0)) / (1 - self.alpha)


def _held(posterior: Distribution, z: Tensor) -> Distribution:
    """The posterior with its parameters held fixed: its density then depends on the encoder through z alone."""
    base = posterior.base_dist if isinstance(posterior, Independent) else posterior
    if isinstance(base, Normal) and base is not posterior and len(posterior.event_shape) == 1:
        held = Normal(base.loc.detach(), base.scale.detach(), validate_args=False)
        return Independent(held, 1, validate_args=False)
    with torch.no_grad():
        _log_density(posterior, z)  # A posterior without one says so itself: no kind of gradient helps it.
    raise ValueError(
        "gradient: dreg holds the posterior's parameters fixed in log q(z|x), which is done for diagonal Gaussians "
        f"alone; the posterior is {type(base).__name__}. Use gradient: reparameterized"
    )


def _log_density(posterior: Distribution, z: Tensor) -> Tensor:
    """log q(z|x), (S, B) nats."""
    try:
        return posterior.log_prob(z)
    except NotImplementedError:
        raise ValueError(
            f"importance_weighted needs the density of the posterior, and {type(posterior).__name__} has none"
        ) from None


def _scale_gradient(tensor: Tensor, factor: Tensor) -> None:
    """Multiplies what flows back through a tensor (S, B, D) by a factor (S, B)."""
    if tensor.requires_grad:
        tensor.register_hook(lambda gradient: gradient * factor[..., None].to(gradient.dtype))
