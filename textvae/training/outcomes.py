"""Which steps were taken, and which were left out because their gradients were not finite.

A GPU works behind the program that starts its work. Asked after each step whether that one's gradients are finite, it
has nothing to do while the program makes the next step ready. Fused optimisers can be given the answer where it is, on
the device, and leave a step out by themselves; the program learns of it a step later.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from textvae.text.batching import Step

AHEAD = 1  # steps that may be under way before the program waits for the oldest one's answer


class Outcome(NamedTuple):
    """What a step came to, the same on every process."""

    taken: bool  # false where its gradients were not finite
    number: int  # optimiser steps done with it
    step: Step


class _Asked(NamedTuple):
    answer: Tensor  # (), on the CPU, to be read when the event has come
    event: Any
    number: int
    step: Step


class Outcomes:
    """Takes an optimiser's steps whose gradients are finite.

    Args:
        optimizer: as accelerate prepared it.
        accelerator: a scaler of its own leaves steps out by itself.
        ahead: whether the program may go on before it knows; an optimiser that is not fused is waited for all the same.
    """

    def __init__(self, optimizer: Any, accelerator: Accelerator, *, ahead: bool) -> None:
        self.optimizer, self.scaled = optimizer, accelerator.scaler is not None
        self.inner: Any = getattr(optimizer, "optimizer", optimizer)
        self.ahead = ahead and not self.scaled and bool(self.inner.defaults.get("fused"))
        self.asked: deque[_Asked] = deque()
        self.answered: deque[Outcome] = deque()

    def attempt(self, finite: Tensor | bool) -> Tensor | bool:
        """Takes a step if its gradients are finite, and returns whether it was taken: a tensor, where that is ahead.

        Args:
            finite: (), on the device.
        """
        self._begin_momenta()
        if isinstance(finite, Tensor) and self.ahead:
            self.inner.found_inf = (~finite).float()
            self.optimizer.step()
            return finite
        self.inner.found_inf = None
        taken = bool(finite)
        if taken or self.scaled:  # a scaler lowers its scale then
            self.optimizer.step()
        return taken

    def record(self, taken: Tensor | bool, number: int, step: Step) -> None:
        """Keeps what an attempt returned, for `known`."""
        if isinstance(taken, Tensor):
            event = torch.cuda.Event() if taken.is_cuda else None
            answer = taken.to("cpu", non_blocking=True)
            if event is not None:
                event.record()
            self.asked.append(_Asked(answer, event, number, step))
        else:
            self._wait_for(0)  # in their order
            self.answered.append(Outcome(taken, number, step))

    def known(self, *, everything: bool = False) -> list[Outcome]:
        """Returns the outcomes that were not returned before, in order, waiting for all but the newest.

        Args:
            everything: wait for that one too.
        """
        self._wait_for(0 if everything else AHEAD)
        found = list(self.answered)
        self.answered.clear()
        return found

    def _wait_for(self, left: int) -> None:
        while len(self.asked) > left:
            asked = self.asked.popleft()
            if asked.event is not None:
                asked.event.synchronize()
            self.answered.append(Outcome(bool(asked.answer), asked.number, asked.step))

    def _begin_momenta(self) -> None:
        """Gives zero momenta to parameters whose first gradient this is, which makes the step that it would be anyway.

        Fused SGD makes them of what memory holds, and so leaves them where the device leaves the step out; and it
        breaks off where other parameters have theirs already, as the encoder's do after steps of its own.
        """
        for group in self.inner.param_groups:
            if group.get("momentum") and not group.get("dampening"):
                for parameter in group["params"]:
                    if parameter.grad is not None and self.inner.state[parameter].get("momentum_buffer") is None:
                        self.inner.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
