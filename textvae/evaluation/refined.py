"""A semi-amortised run's posteriors: the encoder's, moved by gradient steps of each sentence's own (Kim 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from textvae.errors import UserError
from textvae.evaluation.bounds import cudnn
from textvae.evaluation.latents import gaussian_parameters
from textvae.latent.divergences import kl, shown
from textvae.latent.posteriors import diagonal_gaussian
from textvae.seeds import generator
from textvae.types import Batch

AT_ONCE = 2_000  # padded tokens whose gradient is taken at once


class Settings(Protocol):
    """How posteriors are refined."""

    @property
    def steps(self) -> int:
        """K, gradient steps on each sentence's lambda."""
        ...

    @property
    def lr(self) -> float:
        """Their rate: of a sentence's own loss, whatever the batch."""
        ...

    @property
    def momentum(self) -> float:
        """Share of the last move that goes on, 0 to 1."""
        ...

    @property
    def clip(self) -> float | None:
        """The norm of a sentence's gradient at most, over mean and log scale together; None for any."""
        ...


def refine(
    gradients: Callable[[Tensor, int], Tensor], at: Tensor, settings: Settings
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Returns each step's lambda and gradient, not clipped, (B, 2D) each, and lambda_K.

    Args:
        gradients: (lambda (B, 2D), k) -> df_k/dlambda, f_k summed over sentences.
        at: lambda_0.
        settings: of the steps.
    """
    path, velocity = [], torch.zeros_like(at)
    for k in range(settings.steps):
        gradient = gradients(at, k)
        path.append((at, gradient))
        velocity = settings.momentum * velocity - clipped(gradient, settings.clip)
        at = at + settings.lr * velocity
    return path, at


def clipped(gradient: Tensor, limit: float | None) -> Tensor:
    """Returns (B, 2D), each row shortened to a norm of `limit` at most."""
    if limit is None:
        return gradient
    norm: Tensor = gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient * (limit / norm).clamp_max(1.0)


def parameters_of(posterior: Any) -> Tensor:
    """Returns lambda (B, 2D): mean beside log scale.

    Raises:
        UserError: a posterior that is no diagonal Gaussian.
    """
    found = gaussian_parameters(posterior)
    if found is None:
        raise UserError(
            "training.semi_amortized refines mean and scale of a diagonal Gaussian; the posterior is "
            f"{shown(posterior)}. Use model.posterior.kind: gaussian"
        )
    return torch.cat([found[0], found[1].log()], dim=-1)


class Refining:
    """A model in evaluation whose `encode` goes on from the encoder's posterior; all else is the model's own.

    The steps descend -ELBO with one draw of z a sentence, another in each step: a function of the sentence and the
    seed, whatever stands beside it, so that the likelihood's several passes meet the same posterior.

    Args:
        model: a SequenceVAE.
        settings: the recipe's `training.semi_amortized`.
        seed: of the draws.
    """

    def __init__(self, model: Any, settings: Settings, seed: int) -> None:
        self.model, self.settings, self.seed = model, settings, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode(self, batch: Batch) -> Distribution:
        """Returns the refined q(z|x), batch (B,), event (D,)."""
        with torch.inference_mode(False), torch.no_grad():
            tokens, lengths = (tensor.clone() for tensor in batch)  # a tensor of inference mode has no gradient
            start = parameters_of(self.model.encode(Batch(tokens, lengths)))
            shape = (self.settings.steps, start.shape[1] // 2)
            sentences = (row[: length + 1] for row, length in zip(tokens.tolist(), lengths.tolist()))
            noise = torch.stack([torch.randn(shape, generator=generator(self.seed, *ids)) for ids in sentences])
            noise = noise.to(start)
            rows = max(1, AT_ONCE // tokens.shape[1])
            with cudnn(enabled=False):  # its cells have no backward pass in evaluation mode, torch's own have
                parts = [
                    self._refined(Batch(*part[:2]), part[2], part[3])
                    for part in zip(*(tensor.split(rows) for tensor in (tokens, lengths, start, noise)))
                ]
        mean, log_scale = torch.cat(parts).chunk(2, dim=-1)
        return diagonal_gaussian(mean, log_scale.exp())

    def _refined(self, batch: Batch, start: Tensor, noise: Tensor) -> Tensor:
        def gradients(at: Tensor, k: int) -> Tensor:
            with torch.enable_grad():
                at = at.detach().requires_grad_()
                mean, log_scale = at.chunk(2, dim=-1)
                z = mean + log_scale.exp() * noise[:, k]
                rate = kl(diagonal_gaussian(mean, log_scale.exp()), self.model.prior(), z[None])
                loss = (rate - self.model.log_likelihood(batch, z[None])[0]).sum()
                (found,) = torch.autograd.grad(loss, at)
            return found

        return refine(gradients, start, self.settings)[1]
