"""CUDA graphs: the kernels of a step's forward and backward pass, recorded once a shape of batch and started together.

For a GPU a recurrent step is small work: a program that starts its kernels one by one takes several times as long as
they do. What they are depends on a batch's shape alone, so each shape is recorded when it comes a second time, and
played from then on. What is computed, and what is drawn, is what would have been had it been launched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textvae.model import SequenceVAE
from textvae.nets.recording import Recorder, are_known
from textvae.objective import Objective
from textvae.recipe import Recipe
from textvae.types import Batch, Losses

SEEN_BEFORE = 1  # batches of a shape, before it is recorded: a recording takes as long as several of them

Key = tuple[tuple[int, ...], tuple[bool, ...]]  # the tokens' shape, and which terms have a weight


class _Recording(NamedTuple):
    play: Callable[[], None]
    batch: Batch
    noise: Tensor  # (S, B, D)
    weights: Tensor  # (terms,)
    figures: Tensor  # (1 + terms,)
    moved: list[nn.Parameter]  # that have a gradient


class Replay:
    """Stands for a step's forward and backward pass.

    Args:
        model: on its GPU, as accelerate wraps it.
        objective: what is minimised.
        parameters: all that have gradients.
        samples: draws of z a sentence.
        recorder: of the GPU.
        off: record nothing: all is launched, and draws what it would draw if it were played.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        parameters: Sequence[nn.Parameter],
        samples: int,
        recorder: Recorder,
        *,
        off: bool = False,
    ) -> None:
        self.model, self.objective, self.parameters, self.samples = model, objective, parameters, samples
        self.recorder = recorder
        self.seen: Counter[Key] = Counter()
        self.recordings: dict[Key, _Recording] = {}
        self.refused: set[Key] = set()
        self.gradients: dict[nn.Parameter, Tensor] = {}  # written by whichever recording is played
        self.off = off

    def __call__(self, batch: Batch, noise: Tensor, step: int) -> Losses | None:
        """Leaves gradients as a backward pass does, and returns the losses; None where nothing is recorded.

        Args:
            batch: B sentences, on the CPU.
            noise: (S, B, D), on the CPU.
            step: the optimiser step, from 0.
        """
        weights = self.objective.weights(step)
        key = tuple(batch.tokens.shape), tuple(weight != 0.0 for weight in weights.values())
        if key not in self.recordings and self._may_record(key):
            try:
                with self.recorder.drawing_nothing():
                    self._record(key, batch, noise, weights)
            except torch.OutOfMemoryError:
                self.give_back()
        if (found := self.recordings.get(key)) is None:
            return None
        for held, new in zip((*found.batch, found.noise), (*batch, noise)):
            held.copy_(self.recorder.at_hand(new), non_blocking=True)
        found.weights.copy_(torch.tensor(list(weights.values())), non_blocking=True)
        found.play()
        for parameter in found.moved:
            parameter.grad = self.gradients[parameter]
        figures = found.figures.clone()  # the next batch of the shape will have its own there
        return Losses(figures[0], {}, {"reconstruction": 1.0, **weights}, figures)

    def give_back(self) -> bool:
        """Gives back the memory of all recordings, and makes no more; returns whether there were any."""
        there = bool(self.recordings)
        self.recordings.clear()
        self.gradients.clear()
        self.off = True
        self._forget()
        self.recorder.clear()
        return there

    def _may_record(self, key: Key) -> bool:
        if self.off or key in self.refused:
            return False
        self.seen[key] += 1
        return self.seen[key] > SEEN_BEFORE and self.recorder.has_room()

    def _record(self, key: Key, batch: Batch, noise: Tensor, weights: Mapping[str, float]) -> None:
        device = self.parameters[0].device
        held = Batch(*(part.to(device, copy=True) for part in batch)), noise.to(device, copy=True)
        values = torch.tensor(list(weights.values()), device=device)
        named: dict[str, Any] = {
            name: values[place] if weight else 0.0 for place, (name, weight) in enumerate(weights.items())
        }
        buffers = [each.clone() for each in self.model.buffers()]
        try:
            waits = self.recorder.waits(lambda: self._work(*held, named))
        finally:
            for buffer, value in zip(self.model.buffers(), buffers):
                buffer.copy_(value)  # running statistics: this was no step
        moved = [parameter for parameter in self.parameters if parameter.grad is not None]
        for parameter in moved:
            assert parameter.grad is not None
            self.gradients.setdefault(parameter, torch.empty_like(parameter.grad))
        self._forget()
        if waits:
            self.refused.add(key)
            return

        def work() -> Tensor:
            figures = self._work(*held, named)
            # One place for the gradients of all shapes: those of the pass itself are its own memory, used again.
            torch._foreach_copy_([self.gradients[p] for p in moved], [p.grad for p in moved if p.grad is not None])
            self._forget()
            return figures

        play, figures = self.recorder.record(work)
        self.recordings[key] = _Recording(play, *held, values, figures, moved)

    def _work(self, batch: Batch, noise: Tensor, weights: Mapping[str, Any]) -> Tensor:
        self._forget()
        losses: Losses = self.objective(self.model(batch, samples=self.samples, noise=noise), 0, weights=weights)
        losses.total.backward()
        return losses.figures

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def replay_of(
    recipe: Recipe, model: nn.Module, unwrapped: SequenceVAE, objective: Objective, processes: int
) -> Replay | None:
    """Returns a training's replay; None where its steps are not of a kind that can be recorded.

    That takes a GPU, one process, a batch in one piece, weights that do not depend on what is measured, and no part of
    the user's own, which may do in Python what a recording would leave out.
    """
    weight = unwrapped.decoder_embedding.weight
    if not (weight.is_cuda and can_be_recorded(recipe, unwrapped, objective, processes)):
        return None
    training = recipe.training
    parameters = [*unwrapped.parameters(), *objective.trained_with_the_model()]
    recorder = Recorder(weight.device)
    return Replay(model, objective, parameters, training.samples, recorder, off=not training.cuda_graphs)


def can_be_recorded(recipe: Recipe, unwrapped: SequenceVAE, objective: Objective, processes: int) -> bool:
    """Returns whether a training's steps are of a kind that can be recorded, on whatever device."""
    training = recipe.training
    parts = [*unwrapped.modules(), *objective.modules(), *objective.divergences.values(), objective.reconstruction]
    return (
        processes == 1
        and training.accumulation == 1
        and training.semi_amortized is None
        and training.precision != "fp16"  # its losses are scaled by what is measured
        and not objective.critics
        and not objective.controllers
        and are_known(parts)
    )
