"""The objective: reconstruction plus weighted terms, each named, in nats a sequence."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from textvae.registry import Registry
from textvae.types import Divergence, Losses, Schedule, VAEOutput


class CrossEntropy:
    """-log p(x|z), summed over the tokens of a sequence."""

    unit: ClassVar[str] = "nats"

    def __call__(self, output: VAEOutput) -> Tensor:
        """Returns (B,) nats a sequence, the mean over the draws of z."""
        return -output.log_likelihood.mean(0)


class Objective(nn.Module):
    """reconstruction + sum of weight_k(step) * term_k, averaged over sentences.

    A KL with weight 1 makes this the negative ELBO. There are no other factors anywhere.

    Args:
        reconstruction: output -> (B,) nats a sequence.
        terms: name -> (divergence, schedule of its weight).
    """

    def __init__(self, reconstruction: CrossEntropy, terms: dict[str, tuple[Divergence, Schedule]]) -> None:
        super().__init__()
        self.reconstruction = reconstruction
        self.divergences = {name: divergence for name, (divergence, _) in terms.items()}
        self.schedules = {name: schedule for name, (_, schedule) in terms.items()}
        # Divergences and controllers that hold parameters or state are found by .parameters() and .state_dict().
        modules = {
            f"{kind}_{name}": part
            for name, pair in terms.items()
            for kind, part in zip(("divergence", "schedule"), pair)
            if isinstance(part, nn.Module)
        }
        self.stateful = nn.ModuleDict(modules)

    def weights(self, step: int) -> dict[str, float]:
        """Returns each term's weight at `step`."""
        return {name: schedule(step) for name, schedule in self.schedules.items()}

    def forward(self, output: VAEOutput, step: int, share: float = 1.0) -> Losses:
        """Returns the losses of one batch.

        Args:
            output: the model's.
            step: the optimiser step, from 0.
            share: factor of what is averaged over sentences, where this batch is one piece of a step's
                batch: B * pieces / (sentences of the step), so that the mean over pieces is the mean over
                sentences. Terms of the whole batch, (), are not touched.
        """
        reconstruction = self.reconstruction(output).mean()
        total = share * reconstruction
        terms, weights = {"reconstruction": reconstruction}, {"reconstruction": 1.0}
        for name, divergence in self.divergences.items():
            assert output.posterior is not None and output.prior is not None
            value = divergence(output.posterior, output.prior, output.z)  # (B,) or ()
            weights[name] = self.schedules[name](step, value.detach())
            terms[name] = value.mean()
            if weights[name] != 0.0:
                total = total + weights[name] * (share * terms[name] if value.dim() else terms[name])
        return Losses(total, {name: term.detach() for name, term in terms.items()}, weights)


RECONSTRUCTIONS = Registry("reconstruction", {"cross_entropy": CrossEntropy}, default="cross_entropy")
