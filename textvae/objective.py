"""The objective: reconstruction plus weighted terms, each named, in nats a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from textvae.distributed import mean_over_processes
from textvae.errors import UserError
from textvae.registry import Registry
from textvae.types import Divergence, Losses, Reconstruction, Schedule, VAEOutput


class CrossEntropy:
    """-log p(x|z), summed over the tokens of a sequence."""

    unit: ClassVar[str] = "nats"
    figure: ClassVar[str] = "reconstruction"

    def __call__(self, output: VAEOutput) -> Tensor:
        """Returns (B,) nats a sequence, the mean over the draws of z."""
        return -output.log_likelihood.mean(0)


class SquaredError(CrossEntropy):
    """|e - e(x_t)|^2 of predicted and true token embeddings, summed over a sequence, times the output's sharpness.

    The nearest embedding is the decoded token. Brings `model.output: {kind: nearest_embedding, distance:
    squared_error}` with it; a validation part is scored by what that layer says of tokens, in nats.
    """


class Cosine(CrossEntropy):
    """1 - cos(e, e(x_t)) of predicted and true token embeddings, summed over a sequence, times the output's sharpness.

    As `squared_error`, with `distance: cosine`: the direction of an embedding counts, its length does not.
    """


class HeadTerm:
    """What a head of the model makes of a sentence, as a term: the loss that the model's forward pass computed.

    Args:
        name: of the head in the output.
        unit: of its loss.
    """

    def __init__(self, name: str, unit: str) -> None:
        self.name = name
        self.unit = unit

    def of_output(self, output: VAEOutput) -> Tensor:
        """Returns (B,), the mean over the draws of z."""
        assert output.heads is not None
        return output.heads[self.name].mean(0)


class Objective(nn.Module):
    """reconstruction + sum of weight_k(step) * term_k, averaged over sentences.

    A KL with weight 1 makes this the negative ELBO. There are no other factors anywhere.

    Args:
        reconstruction: output -> (B,) nats a sequence.
        terms: name -> (divergence, schedule of its weight).
    """

    def __init__(
        self, reconstruction: Reconstruction, terms: Mapping[str, tuple[Divergence | HeadTerm, Schedule]]
    ) -> None:
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

    @property
    def critics(self) -> dict[str, Any]:
        """Terms that learn against the model: they have a loss, and an optimiser, of their own."""
        return {name: part for name, part in self.divergences.items() if hasattr(part, "critic_loss")}

    @property
    def controllers(self) -> list[nn.Module]:
        """Weights that keep a state, which moves with each step."""
        return [schedule for schedule in self.schedules.values() if isinstance(schedule, nn.Module)]

    def trained_with_the_model(self) -> list[nn.Parameter]:
        """Returns the parameters of terms that the model's optimiser moves: all but the critics'."""
        critics = {id(p) for critic in self.critics.values() for p in critic.parameters()}
        return [p for p in self.parameters() if id(p) not in critics]

    def final(self, numbers: Mapping[str, float], weights: Mapping[str, float]) -> float:
        """Returns the objective of an evaluation's figures; heads, which only help to train, do not enter.

        Args:
            numbers: of the evaluation, those of `measure` among them.
            weights: of the terms, by name.
        """
        held = sum(weight * numbers[f"term_{name}"] for name, weight in weights.items() if f"term_{name}" in numbers)
        return numbers[self.reconstruction.figure] + held

    def weights(self, step: int) -> dict[str, float]:
        """Returns each term's weight at `step`."""
        return {name: schedule(step) for name, schedule in self.schedules.items()}

    def measure(self, posteriors: Sequence[Distribution], prior: Distribution, z: Tensor) -> dict[str, float]:
        """Returns term_NAME, each term's value, unweighted, over batches that were scored already; of a critic that
        is held Lipschitz, NAME_lipschitz, its measured constant, too.

        Args:
            posteriors: q(z|x), batch by batch.
            prior: p(z).
            z: (S, N, D), draws from each posterior in the same order.
        """
        sizes = [posterior.batch_shape[0] for posterior in posteriors]
        draws = z.split(sizes, dim=1)
        some = draws[0][0]
        # A Wasserstein-1 distance is one only while its critic is Lipschitz: how far it is, is said beside it.
        constants = {
            f"{name}_lipschitz": critic.lipschitz(some, prior.sample(torch.Size([len(some)])))
            for name, critic in self.critics.items()
            if hasattr(critic, "lipschitz")
        }
        return constants | {
            f"term_{name}": sum(
                float(divergence(posterior, prior, some).mean()) * size
                for posterior, some, size in zip(posteriors, draws, sizes)
            )
            / sum(sizes)
            for name, divergence in self.divergences.items()
            if not isinstance(divergence, HeadTerm)
        }

    def forward(
        self,
        output: VAEOutput,
        step: int,
        share: float = 1.0,
        *,
        weights: Mapping[str, float | Tensor] | None = None,
    ) -> Losses:
        """Returns the losses of one batch.

        Args:
            output: the model's.
            step: the optimiser step, from 0.
            share: factor of what is averaged over sentences, where this batch is one piece of a step's
                batch: B * pieces / (sentences of the step), so that the mean over pieces is the mean over
                sentences. Terms of the whole batch, (), are not touched.
            weights: the terms' weights where the schedules are not to be asked, () tensors or numbers.
        """
        reconstruction = self.reconstruction(output).mean()
        total = share * reconstruction
        terms, figures = {"reconstruction": reconstruction}, [total]
        used: dict[str, Any] = {"reconstruction": 1.0}
        for name, divergence in self.divergences.items():
            if isinstance(divergence, HeadTerm):
                value = divergence.of_output(output)
            else:
                assert output.posterior is not None
                assert output.prior is not None
                value = divergence(output.posterior, output.prior, output.z)  # (B,) or ()
                if value.shape not in ((), output.z.shape[1:2]):
                    raise UserError(
                        f"objective.{name}: gave a value of shape {tuple(value.shape)}; () is needed, or "
                        f"({output.z.shape[1]},), one for each sentence"
                    )
            schedule = self.schedules[name]
            # Only controllers hold state, and only they read the value: for the others no process waits.
            measured = _mean_of_rows(value.detach(), share) if isinstance(schedule, nn.Module) else None
            used[name] = weight = schedule(step, measured) if weights is None else weights[name]
            terms[name] = value.mean()
            figures.append(share * terms[name] if value.dim() else terms[name])
            if isinstance(weight, Tensor) or weight != 0.0:
                total = total + weight * figures[-1]
        seen = torch.stack([figure.detach().float() for figure in (total, *figures)])
        return Losses(total, {name: term.detach() for name, term in terms.items()}, used, seen)


def _mean_of_rows(value: Tensor, share: float) -> Tensor:
    """The mean over all processes' rows: with an odd batch one process has a row more, and its share says so."""
    both = mean_over_processes(torch.stack([share * value.mean(), value.new_tensor(share)]))
    return both[0] / both[1]


# A name, not a class, where a module of its own holds it.
RECONSTRUCTIONS = Registry(
    "reconstruction",
    {
        "cross_entropy": CrossEntropy,
        "squared_error": SquaredError,
        "cosine": Cosine,
        "importance_weighted": "textvae.importance:ImportanceWeighted",
    },
    default="cross_entropy",
)
