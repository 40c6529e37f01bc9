"""CUDA graphs: the kernels of a step's forward and backward pass, recorded once a shape of batch and started together.

For a GPU a recurrent step is small work: a program that starts its kernels one by one takes several times as long as
they do. What they are depends on a batch's shape alone, so each shape is recorded when it comes a second time, and
played from then on. What is computed stays the same; only what an objective itself draws (the prior's samples of an
MMD, say) comes from further along the same random stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textvae.model import SequenceVAE
from textvae.objective import Objective
from textvae.recipe import Recipe
from textvae.types import Batch, Losses

SEEN_BEFORE = 1  # batches of a shape, before it is recorded: a recording takes as long as several of them
MEMORY_LEFT = 0.25  # share of the GPU's that stays free of recordings
KNOWN = ("textvae", "torch", "zuko")  # whose modules do nothing in Python that a recording would leave out

Key = tuple[tuple[int, ...], tuple[bool, ...]]  # the tokens' shape, and which terms have a weight


class _Recording(NamedTuple):
    graph: Any
    batch: Batch
    noise: Tensor  # (S, B, D)
    weights: Tensor  # (terms,)
    figures: Tensor  # (1 + terms,)
    gradients: list[tuple[nn.Parameter, Tensor]]


class Replay:
    """Stands for a step's forward and backward pass.

    Args:
        model: on its GPU, as accelerate wraps it.
        objective: what is minimised.
        parameters: all that have gradients.
        samples: draws of z a sentence.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, parameters: Sequence[nn.Parameter], samples: int
    ) -> None:
        self.model, self.objective, self.parameters, self.samples = model, objective, parameters, samples
        self.seen: Counter[Key] = Counter()
        self.recordings: dict[Key, _Recording] = {}
        self.rehearsed: dict[tuple[bool, ...], bool] = {}
        self.pool: Any = None

    def __call__(self, batch: Batch, noise: Tensor, step: int) -> Losses | None:
        """Leaves gradients as a backward pass does, and returns the losses; None where nothing is recorded.

        Args:
            batch: B sentences, on the CPU.
            noise: (S, B, D), on the CPU.
            step: the optimiser step, from 0.
        """
        weights = self.objective.weights(step)
        key = tuple(batch.tokens.shape), tuple(weight != 0.0 for weight in weights.values())
        found = self.recordings.get(key) or self._recorded(key, batch, noise, weights)
        if found is None:
            return None
        for held, new in zip((*found.batch, found.noise), (*batch, noise)):
            held.copy_(new, non_blocking=True)
        found.weights.copy_(torch.tensor(list(weights.values())), non_blocking=True)
        found.graph.replay()
        for parameter, gradient in found.gradients:
            parameter.grad = gradient
        figures = found.figures.clone()  # the next batch of the shape will have its own there
        return Losses(figures[0], {}, {"reconstruction": 1.0, **weights}, figures)

    def _recorded(self, key: Key, batch: Batch, noise: Tensor, weights: Mapping[str, float]) -> _Recording | None:
        """Records the work of a shape that was seen before, if it can be and there is room."""
        device = self.parameters[0].device
        self.seen[key] += 1
        if self.seen[key] <= SEEN_BEFORE or not _has_room(device):
            return None
        held = Batch(*(part.to(device) for part in batch)), noise.to(device)
        values = torch.tensor(list(weights.values()), device=device)
        named: dict[str, Any] = {
            name: values[place] if weight else 0.0 for place, (name, weight) in enumerate(weights.items())
        }
        state = torch.cuda.get_rng_state(device)
        if key[1] not in self.rehearsed:
            self.rehearsed[key[1]] = self._rehearse(*held, named)
        if self.rehearsed[key[1]]:
            if self.pool is None:
                self.pool = torch.cuda.graph_pool_handle()
            graph: Any = torch.cuda.CUDAGraph()
            # All share their memory: a step has done with one before the next begins.
            with torch.cuda.graph(graph, pool=self.pool):
                figures = self._work(*held, named)
            gradients = [(p, p.grad) for p in self.parameters if p.grad is not None]
            self.recordings[key] = _Recording(graph, *held, values, figures, gradients)
        torch.cuda.set_rng_state(state, device)  # the step draws what it would have drawn
        return self.recordings.get(key)

    def _work(self, batch: Batch, noise: Tensor, weights: Mapping[str, Any]) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        losses: Losses = self.objective(self.model(batch, samples=self.samples, noise=noise), 0, weights=weights)
        losses.total.backward()
        return losses.figures

    def _rehearse(self, batch: Batch, noise: Tensor, weights: Mapping[str, Any]) -> bool:
        """Whether no part of the work waits for the device's answer, which no recording can hold.

        It is asked here, because a recording that breaks off leaves the device's random state unusable.
        """
        before, buffers = torch.cuda.get_sync_debug_mode(), [each.clone() for each in self.model.buffers()]
        torch.cuda.set_sync_debug_mode("error")
        try:
            self._work(batch, noise, weights)
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return False
        finally:
            torch.cuda.set_sync_debug_mode(before)
            for buffer, value in zip(self.model.buffers(), buffers):
                buffer.copy_(value)  # running statistics: this was no step
            for parameter in self.parameters:
                parameter.grad = None
        return True


def replay_of(
    recipe: Recipe, model: nn.Module, unwrapped: SequenceVAE, objective: Objective, processes: int
) -> Replay | None:
    """Returns a training's replay; None where its steps are not of a kind that can be recorded.

    That takes a GPU, one process, a batch in one piece, weights that do not depend on what is measured, and no part of
    the user's own, which may do in Python what a recording would leave out.
    """
    training = recipe.training
    parts = [*unwrapped.modules(), *objective.modules(), *objective.divergences.values(), objective.reconstruction]
    if not (
        training.cuda_graphs
        and unwrapped.decoder_embedding.weight.is_cuda
        and processes == 1
        and training.accumulation == 1
        and training.semi_amortized is None
        and training.precision != "fp16"  # its losses are scaled by what is measured
        and not objective.critics
        and not any(isinstance(schedule, nn.Module) for schedule in objective.schedules.values())
        and all(type(part).__module__.partition(".")[0] in KNOWN for part in parts)
    ):
        return None
    parameters = [*unwrapped.parameters(), *objective.trained_with_the_model()]
    return Replay(model, objective, parameters, training.samples)


def _has_room(device: torch.device) -> bool:
    free, total = torch.cuda.mem_get_info(device)
    return free > MEMORY_LEFT * total
