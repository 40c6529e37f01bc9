"""Weights and learning rates as pure functions of the optimiser step: nothing to reset, nothing to resume.

Weights that also read what they weigh, and therefore keep state, are in control.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field
from torch import Tensor

from textvae.durations import parse_duration
from textvae.errors import UserError
from textvae.registry import Registry


class Horizon(NamedTuple):
    """What turns epochs and "the whole training" into steps; None where a stream does not tell."""

    steps_per_epoch: int | None
    total_steps: int | None

    def steps(self, duration: str | int | None) -> float:
        """Returns a duration in steps; None is the whole training.

        Raises:
            UserError: the duration needs a length that a stream does not have.
        """
        if duration is None:
            if self.total_steps is None:
                raise UserError("lasts the whole training, whose steps are not known; give training.max_steps")
            return float(self.total_steps)
        amount, unit = parse_duration(duration)
        if unit == "steps":
            return amount
        if self.steps_per_epoch is None:
            raise UserError(f"got {duration!r}, but a stream has no known number of steps an epoch; use steps")
        return amount * self.steps_per_epoch


def _checked(value: str | int) -> str | int:
    parse_duration(value)
    return value


Duration = Annotated[str | int, AfterValidator(_checked)]
Weight = Annotated[float, Field(ge=0)]


class Constant:
    """The same weight at every step."""

    def __init__(self, horizon: Horizon, *, value: Weight = 1.0) -> None:
        self.value = value

    def __call__(self, step: int, value: Tensor | None = None) -> float:
        """Returns the weight at `step`."""
        return self.value


class Ramp:
    """From `start` to `end` over a number of steps or epochs, then constant.

    Shapes: linear t; cosine (1 - cos(pi t)) / 2; with t the share of the ramp done, 0 to 1.

    Args:
        horizon: the training's length.
        start: weight at step 0.
        end: weight from the end of the ramp on.
        over: how long the ramp takes: steps, or "10 epochs"; the whole training where absent.
        after: how long `start` is kept before it begins.
    """

    shape: Callable[[float], float] = staticmethod(lambda t: t)

    def __init__(
        self,
        horizon: Horizon,
        *,
        start: Weight = 0.0,
        end: Weight = 1.0,
        over: Duration | None = None,
        after: Duration | None = None,
    ) -> None:
        self.start, self.end = start, end
        self.after = 0.0 if after is None else horizon.steps(after)
        self.over = horizon.steps(over)

    def __call__(self, step: int, value: Tensor | None = None) -> float:
        """Returns the weight at `step`."""
        share = min(max((step - self.after) / self.over, 0.0), 1.0)
        return self.start + (self.end - self.start) * self.shape(share)


def _cosine(t: float) -> float:
    return 0.5 * (1.0 - math.cos(math.pi * t))


class Linear(Ramp):
    """A straight ramp (Bowman 2016; He 2019 takes 0.1 to 1 over 10 epochs). Options: see `Ramp`."""


class Cosine(Ramp):
    """A ramp in the shape of half a cosine wave. Options: see `Ramp`."""

    shape = staticmethod(_cosine)


class Logistic:
    """end / (1 + exp(-steepness (step - midpoint))): Bowman 2016's annealing (arXiv 1511.06349, section 3.1).

    Args:
        horizon: the training's length.
        midpoint: when half the weight is reached: steps, or "5 epochs".
        steepness: a step.
        end: the weight approached.
    """

    def __init__(
        self,
        horizon: Horizon,
        *,
        midpoint: Duration = 2500,
        steepness: Annotated[float, Field(gt=0)] = 0.0025,
        end: Weight = 1.0,
    ) -> None:
        self.midpoint = horizon.steps(midpoint)
        self.steepness, self.end = steepness, end

    def __call__(self, step: int, value: Tensor | None = None) -> float:
        """Returns the weight at `step`."""
        # tanh does not overflow far from the midpoint.
        return self.end * 0.5 * (1.0 + math.tanh(0.5 * self.steepness * (step - self.midpoint)))


class Cyclical:
    """Ramps from `start` to `end` again and again (Fu 2019, arXiv 1903.10145, equation 6).

    Args:
        horizon: the training's length.
        cycles: M, how many ramps.
        ramp: R, the share of a cycle that rises; the rest stays at `end`.
        start: weight at the beginning of each cycle.
        end: weight at its top, kept after the last cycle.
        over: how long all cycles take together; the whole training where absent.
        shape: linear or cosine.
    """

    def __init__(
        self,
        horizon: Horizon,
        *,
        cycles: Annotated[int, Field(gt=0)] = 4,
        ramp: Annotated[float, Field(gt=0, le=1)] = 0.5,
        start: Weight = 0.0,
        end: Weight = 1.0,
        over: Duration | None = None,
        shape: Literal["linear", "cosine"] = "linear",
    ) -> None:
        self.cycles, self.ramp, self.start, self.end, self.shape = cycles, ramp, start, end, shape
        self.over = horizon.steps(over)

    def __call__(self, step: int, value: Tensor | None = None) -> float:
        """Returns the weight at `step`."""
        if step >= self.over:
            return self.end
        done = math.fmod(step * self.cycles / self.over, 1.0)
        share = min(done / self.ramp, 1.0)
        return self.start + (self.end - self.start) * (_cosine(share) if self.shape == "cosine" else share)


SCHEDULES = Registry(
    "schedule",
    {
        "constant": Constant,
        "linear": Linear,
        "cosine": Cosine,
        "logistic": Logistic,
        "cyclical": Cyclical,
        "pid": "textvae.control:PID",
        "geco": "textvae.control:GECO",
    },
    default="constant",
)


class LearningRate:
    """The factor on the learning rate: a linear warm-up to 1, then by shape down to `end`.

    Args:
        horizon: the training's length.
        warmup: how long it rises from 0 to 1.
        end: the factor at the end of the training.
        cycles: how many times the fall starts anew from 1 (Loshchilov & Hutter 2017, arXiv 1608.03983).
    """

    shape: Callable[[float], float] = staticmethod(lambda t: t)

    def __init__(
        self,
        horizon: Horizon,
        *,
        warmup: Duration | None = None,
        end: Weight = 0.0,
        cycles: Annotated[int, Field(gt=0)] = 1,
    ) -> None:
        self.warmup = 0.0 if warmup is None else horizon.steps(warmup)
        self.over = max(horizon.steps(None) - self.warmup, 1.0)
        self.end, self.cycles = end, cycles

    def __call__(self, step: int, value: Tensor | None = None) -> float:
        """Returns the factor at `step`; never 0 while warming up."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / self.over
        share = math.fmod(done * self.cycles, 1.0) if done < 1.0 else 1.0
        return 1.0 + (self.end - 1.0) * self.shape(share)


class LinearRate(LearningRate):
    """Falls in a straight line. Options: see `LearningRate`."""


class CosineRate(LearningRate):
    """Falls in half a cosine wave. Options: see `LearningRate`."""

    shape = staticmethod(_cosine)


class ConstantRate:
    """A linear warm-up to 1 and no fall.

    Args:
        horizon: the training's length.
        warmup: how long it rises.
    """

    def __init__(self, horizon: Horizon, *, warmup: Duration | None = None) -> None:
        self.warmup = 0.0 if warmup is None else horizon.steps(warmup)

    def __call__(self, step: int, value: Tensor | None = None) -> float:
        """Returns the factor at `step`."""
        return min(1.0, (step + 1) / (self.warmup + 1))


class Plateau:
    """Lowers the learning rate when validation stalls, and ends the training after some decays.

    He 2019 (published code): from epoch 15 on, after 2 epochs without gain, halve the rate and go on from the
    best parameters; stop after 5 decays. The optimiser's own state starts anew.

    Args:
        horizon: the training's length.
        factor: the rate is multiplied by it.
        patience: evaluations without gain before a decay.
        after: no decay before this: steps, or "15 epochs". Evaluations without gain just before it count.
        decays: the training ends at the next stall after so many.
        reload: go back to the best parameters at each decay.
    """

    def __init__(
        self,
        horizon: Horizon,
        *,
        factor: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        patience: Annotated[int, Field(gt=0)] = 2,
        after: Duration | None = None,
        decays: Annotated[int, Field(gt=0)] = 5,
        reload: bool = True,
    ) -> None:
        self.factor, self.patience, self.decays, self.reload = factor, patience, decays, reload
        self.after = 0.0 if after is None else horizon.steps(after)

    def __call__(self, step: int, stalled: int, done: int) -> Literal["keep", "decay", "stop"]:
        """Returns what an evaluation without gain means.

        Args:
            step: optimiser steps done.
            stalled: evaluations without gain in a row, this one counted.
            done: decays so far.
        """
        if step < self.after or stalled < self.patience:
            return "keep"
        return "decay" if done < self.decays else "stop"


RATES = Registry(
    "learning rate schedule", {"constant": ConstantRate, "linear": LinearRate, "cosine": CosineRate}, default="constant"
)
DECAYS = Registry("decay", {"plateau": Plateau}, default="plateau")
