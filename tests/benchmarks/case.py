"""What a case is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tests.benchmarks import limit


class Options(NamedTuple):
    device: torch.device = torch.device("cpu")
    optimizer: str = "sgd"
    quick: bool = False
    precision: str = "fp32"  # of training and of the limit's products: fp32, tf32 or bf16

    @property
    def dtype(self) -> torch.dtype:
        """What products are of."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


class Done(NamedTuple):
    """One run's work."""

    units: float  # what per_second counts
    rows: float  # what the limit's operations are counted by


Run = Callable[[], Done]


def after(work: Callable[[], object], done: Done) -> Run:
    """Returns a run that does `work` and reports what that was."""

    def run() -> Done:
        work()
        return done

    return run


@dataclass(frozen=True)
class Case:
    """A comparison; either side is made only where it is wanted."""

    unit: str
    ours: Callable[[], Run]
    textbook: Callable[[], Run] | None
    check: Callable[[], str] | None = None  # says what agreed; raises where it does not
    operations: limit.Operations | None = None
    machine: Callable[[], limit.Machine] | None = None
    memory_only: bool = False
    peak: Callable[[str], float] | None = None  # side -> MiB, where the work is done in a process of its own
