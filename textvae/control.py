"""Controllers: weights that read what they weigh. They keep state, which `.state_dict()` holds to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from textvae.errors import UserError
from textvae.schedules import Duration, Horizon, Weight

Target = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Controller(nn.Module):
    """A schedule that moves its weight once a step, by the first value measured at that step.

    A call without a value (for display), a later call at the same step (the next piece of an accumulated
    batch), a call for an earlier step and a call under `.eval()` return the weight as it stands. A value
    that is not finite leaves the state alone. The caller averages the value over all processes first;
    else each would go its own way.

    Args:
        weight: the weight before the first value.
    """

    moved_at: Tensor  # (), int64: the step that last moved the weight
    weight: Tensor  # (), float64

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.register_buffer("moved_at", torch.tensor(-1))
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # The state is read as plain numbers at each step: on the device each would stop it, and as bf16 drift.
        return self

    def forward(self, step: int, value: Tensor | None = None) -> float:
        """Returns the weight at `step`.

        Args:
            step: the optimiser step, from 0.
            value: what is weighed, () or (B,), detached; its mean is taken.
        """
        if value is not None and self.training and step > int(self.moved_at):
            self.moved_at.fill_(step)
            measured = float(value.detach().mean())
            if math.isfinite(measured):
                self.weight.fill_(self.move(step, measured))
        return float(self.weight)

    def move(self, step: int, measured: float) -> float:
        """Returns the weight that follows from the value measured at `step`."""
        raise NotImplementedError


class PID(Controller):
    """Drives the term to `target` by feedback, as ControlVAE does with the KL.

    With e(t) = target - value:
    weight(t) = kp / (1 + exp(e(t))) + I(t) + min, clipped to [min, max], and I(t) = I(t-1) - ki e(t).
    The weight rises while the value is above its target and falls while it is below. I is kept in
    [-kp, max - min], all that any weight between the bounds needs, so that it does not wind up while the
    weight is clipped. (Algorithm 1 freezes I instead while the last weight is out of bounds, which a clipped
    weight never is and an unclipped one may stay for good.) There is no derivative term, as in the paper.

    Args:
        horizon: the training's length.
        target: the value to hold, in the term's own unit (nats for a KL).
        kp: the weight's quick part, at most.
        ki: the weight's change a step for each unit of error.
        min: the smallest weight.
        max: the largest weight.
        start: the target at step 0, where `over` is given.
        over: how long the target goes from `start` to `target` in a straight line: steps, or "10 epochs".

    References:
        Shao 2020, ControlVAE: Controllable Variational Autoencoder, arXiv 2004.05988, section 3 and algorithm 1.
    """

    integral: Tensor  # (), float64

    def __init__(
        self,
        horizon: Horizon,
        *,
        target: Target = 8.0,
        kp: Weight = 0.01,
        ki: Positive = 0.0001,
        min: Weight = 0.0,
        max: Weight = 1.0,
        start: Target = 0.0,
        over: Duration | None = None,
    ) -> None:
        _check_bounds(min, max)
        super().__init__(min)
        self.target, self.start, self.kp, self.ki, self.min, self.max = target, start, kp, ki, min, max
        self.over = None if over is None else horizon.steps(over)
        self.register_buffer("integral", torch.tensor(0.0, dtype=torch.float64))

    def target_at(self, step: int) -> float:
        """Returns the value to hold at `step`."""
        if self.over is None:
            return self.target
        return self.start + (self.target - self.start) * _clip(step / self.over, 0.0, 1.0)

    def move(self, step: int, measured: float) -> float:
        """Returns the weight that follows from the value measured at `step`."""
        error = self.target_at(step) - measured
        # kp / (1 + exp(e)), which tanh gives without overflow.
        proportional = self.kp * 0.5 * (1.0 - math.tanh(0.5 * error))
        integral = _clip(float(self.integral) - self.ki * error, -self.kp, self.max - self.min)
        self.integral.fill_(integral)
        return _clip(proportional + integral + self.min, self.min, self.max)


class GECO(Controller):
    """Holds the term at or below `target`: its weight is the Lagrange multiplier of value <= target.

    The weight grows while the averaged value is above the target and shrinks, to `min` at last, while it is
    below; so a term that stays below by itself costs nothing, and nothing lifts it up to the target.
    With the excess C(t) = value - target and its moving average M(t) = decay M(t-1) + (1 - decay) C(t),
    M(0) = C(0): weight(t) = weight(t-1) exp(rate M(t)), clipped to [min, max]. (Rezende & Viola constrain
    the reconstruction and leave the KL free; here the constraint stands on the term that has this weight.)

    Args:
        horizon: the training's length.
        target: the largest value allowed, in the term's own unit (nats for a KL).
        rate: the weight's relative change a step for each unit of excess.
        decay: of the moving average; 0 takes each value as it is.
        start: the weight before the first value.
        min: the smallest weight; above 0, which no factor could leave again.
        max: the largest weight.

    References:
        Rezende & Viola 2018, Taming VAEs, arXiv 1810.00597, algorithm 1.
    """

    excess: Tensor  # (), float64: M; NaN before the first value

    def __init__(
        self,
        horizon: Horizon,
        *,
        target: Target = 8.0,
        rate: Positive = 0.001,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
        start: Positive = 1.0,
        min: Positive = 1e-6,
        max: Positive = 1e6,
    ) -> None:
        _check_bounds(min, max)
        super().__init__(_clip(start, min, max))
        self.target, self.rate, self.decay, self.start, self.min, self.max = target, rate, decay, start, min, max
        self.register_buffer("excess", torch.tensor(math.nan, dtype=torch.float64))

    def move(self, step: int, measured: float) -> float:
        """Returns the weight that follows from the value measured at `step`."""
        excess, average = measured - self.target, float(self.excess)
        average = excess if math.isnan(average) else self.decay * average + (1.0 - self.decay) * excess
        self.excess.fill_(average)
        # Clipped as a logarithm: exp of a large excess would overflow before its clip.
        logarithm = math.log(float(self.weight)) + self.rate * average
        if logarithm <= math.log(self.min):
            return self.min
        return self.max if logarithm >= math.log(self.max) else math.exp(logarithm)


def _clip(value: float, lowest: float, highest: float) -> float:
    return min(max(value, lowest), highest)


def _check_bounds(lowest: float, highest: float) -> None:
    if lowest > highest:
        raise UserError(f"min ({lowest:g}) is above max ({highest:g})")
