"""Averages of the parameters over optimiser steps: a recipe's `training.average`.

A step at a high learning rate leaves the parameters scattered around where they are going; their mean over many steps
is nearer to it than any of them (Polyak & Juditsky 1992, SIAM J. Control Optim. 30(4); for language models Merity 2018,
arXiv 1708.02182). The training itself goes on from the parameters, never from their average.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Annotated, Any, Protocol, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from textvae.registry import Registry
from textvae.schedules import Duration, Horizon

Every = Annotated[int, Field(gt=0)]
Model = TypeVar("Model", bound=nn.Module)


class Average(Protocol):
    """Which steps' parameters count, and how much."""

    after: float  # steps before the first that counts
    every: int  # one step in so many counts

    def share(self, number: int) -> float:
        """Returns the weight of the newest parameters, `number` others (0, 1, ...) having been averaged before."""
        ...


class Uniform:
    """The mean of all parameters since `after`, each the same weight (Polyak & Juditsky 1992).

    Args:
        horizon: the training's length.
        after: when it begins: steps, or "15 epochs".
        every: the parameters of one step in so many are taken: near ones are near to each other, and each costs time.
    """

    def __init__(self, horizon: Horizon, *, after: Duration | None = None, every: Every = 10) -> None:
        self.after = 0.0 if after is None else horizon.steps(after)
        self.every = every

    def share(self, number: int) -> float:
        """Returns 1, 1/2, 1/3, ..."""
        return 1.0 / (number + 1)


class Exponential:
    """A mean that forgets: a step's weight falls to 1/e `over` steps later.

    Until that many have been seen it is the plain mean, so that no weight is left on the first parameters.

    Args:
        horizon: the training's length.
        over: how far back it reaches: steps, or "1 epoch".
        after: when it begins.
        every: the parameters of one step in so many are taken.
    """

    def __init__(
        self, horizon: Horizon, *, over: Duration = "1 epoch", after: Duration | None = None, every: Every = 10
    ) -> None:
        self.after = 0.0 if after is None else horizon.steps(after)
        self.every = every
        self.least = -math.expm1(-every / horizon.steps(over))

    def share(self, number: int) -> float:
        """Returns 1 / (number + 1), and not less than 1 - exp(-every / over)."""
        return max(1.0 / (number + 1), self.least)


class Averaged:
    """A model whose parameters are the average of another's.

    Args:
        average: which steps count, and how much.
    """

    def __init__(self, average: Average) -> None:
        self.average = average
        self.model: nn.Module | None = None
        self.taken = 0

    def standing_for(self, model: Model) -> Model:
        """Returns the averaged model; `model` itself as long as nothing has been averaged."""
        if self.model is None or not self.taken:
            return model
        return cast(Model, self.model)

    @torch.no_grad()
    def after_step(self, step: int, model: nn.Module) -> None:
        """Takes in parameters and buffers of `model` after optimiser step `step` (0, 1, ...), if that one counts."""
        if step < self.average.after or (step + 1) % self.average.every:
            return
        share = self.average.share(self.taken)
        own, new = list(_tensors(self._copy_of(model))), list(_tensors(model))
        numbers = [i for i, tensor in enumerate(own) if tensor.is_floating_point()]
        torch._foreach_lerp_([own[i] for i in numbers], [new[i] for i in numbers], share)
        for mine, theirs in zip(own, new, strict=True):
            if not mine.is_floating_point():
                mine.copy_(theirs)
        self.taken += 1

    def begin_anew(self) -> None:
        """Forgets what was averaged."""
        self.taken = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns how many parameters were averaged, and their average."""
        return {"taken": self.taken, "model": self.model.state_dict() if self.model is not None and self.taken else {}}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Reads what `state_dict` gave, for a model built as the averaged one was.

        Raises:
            KeyError, RuntimeError, TypeError: it is of another model.
        """
        self.taken = int(state["taken"])
        if self.taken:
            self._copy_of(model).load_state_dict(state["model"])

    def _copy_of(self, model: nn.Module) -> nn.Module:
        if self.model is None:
            self.model = copy.deepcopy(model).requires_grad_(False)
        return self.model


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


AVERAGES = Registry("average", {"exponential": Exponential, "uniform": Uniform}, default="exponential")
