"""Where a training stands in its corpus, kept with each checkpoint, and whether that still means what it did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from textvae import checkpoint
from textvae.errors import CheckpointError
from textvae.folders import LARGEST_STEP
from textvae.recipe import Recipe
from textvae.text.batching import Batches


@dataclass
class Position:
    """Where a training stands: all that a resumed one must know besides tensors."""

    step: int = 0  # optimiser steps done
    epoch: int = 0
    step_in_epoch: int = 0
    best: float | None = None
    best_step: int = 0
    best_numbers: dict[str, float] = field(default_factory=dict)  # of the evaluation at that step
    stalled: int = 0  # evaluations without gain in a row
    decays: int = 0
    skipped: int = 0  # steps without finite gradients, in all
    evaluated: int = -1  # the step last evaluated
    stopped: bool = False  # by early stopping or the last decay: a later end changes nothing then
    elapsed_s: float = 0.0
    tokens: int = 0
    aggressive: bool = False
    numbers: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    corpus: str = ""  # `Experiment.corpus` of what was trained on
    processes: int = 0
    unlogged: dict[str, float] = field(default_factory=dict)  # `Telemetry.unlogged` when it was saved


def read_position(saved: Any, folder: Path) -> Position:
    """Returns the position that a folder's last checkpoint holds.

    Raises:
        CheckpointError: it holds none, or one that no training can have written.
    """
    last = checkpoint.latest_checkpoint(folder)
    try:
        position = Position(**saved)
    except TypeError as error:
        raise CheckpointError(f"{last}/state.json: holds no position of a training ({error})") from error
    for name, default in asdict(Position()).items():
        if not _is_like(value := getattr(position, name), default):
            raise CheckpointError(f"{last}/state.json: position.{name} is {value!r:.40}, which no training wrote")
    if max(position.epoch, position.step_in_epoch, position.decays, position.skipped) > position.step:
        raise CheckpointError(f"{last}/state.json: has more epochs, decays or left out steps than steps")
    if last is not None and position.step != int(last.name.removeprefix("step-")):
        raise CheckpointError(f"{last}/state.json: is of step {position.step:,}, which its folder's name is not")
    return position


def check_corpus(position: Position, corpus: tuple[str, ...], recipe: Recipe, processes: int, folder: Path) -> None:
    """Sees that a position in the corpus means now what it meant when it was saved; `corpus` is any of its hashes.

    Raises:
        CheckpointError: the corpus is another, or under `data.stream_shares` the number of processes.
    """
    if position.corpus and position.corpus not in corpus:
        raise CheckpointError(
            f"{folder}: its corpus is not the one that it was trained on so far: sentences were added, taken away or "
            "changed, and a position in it means nothing. Put data back as it was, or take another --out and begin "
            f"with its parameters: {' '.join(_begin_with(folder))}"
        )
    before = position.processes
    if recipe.data.stream_shares and position.step_in_epoch and before not in (0, processes):
        raise CheckpointError(
            f"{folder}: stands in the middle of an epoch, which under data.stream_shares is another one for each "
            f"number of processes; resume it with --processes {before}"
        )


def check_order(position: Position, batches: Any, recipe: Recipe, processes: int, folder: Path) -> None:
    """Sees that what is left of an epoch is what was left of it when it was saved.

    Raises:
        CheckpointError: another number of processes, each of which needs a sentence of a batch, cuts others.
    """
    before = position.processes
    if not position.step_in_epoch or before in (0, processes):
        return
    if isinstance(batches, Batches):
        same = batches.has_order_of(before, position.epoch)
    else:
        same = recipe.training.batch_tokens is None
    if not same:
        raise CheckpointError(
            f"{folder}: stands in the middle of an epoch, whose batches are others for another number of processes "
            "(each needs a sentence, and training.batch_tokens lets batches be small); resume it with --processes "
            f"{before}"
        )


def _begin_with(folder: Path) -> Iterable[str]:
    """What to write after a recipe for a training that begins with a run's parameters, its words the same."""
    yield f"'training.start_from={{run: {folder}, part: all}}'"
    for name in ("tokenizer.json", "tokenizer.model"):  # learned anew, it would have other words
        if (folder / checkpoint.TOKENIZER / name).is_file():
            yield f"'tokenizer={{kind: file, path: {folder / checkpoint.TOKENIZER / name}}}'"


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value that was read can stand where the position has `default` at first."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return type(value) is int and min(default, 0) <= value <= LARGEST_STEP
    if isinstance(default, dict):
        return isinstance(value, dict) and all(isinstance(v, int | float) for v in value.values())
    if isinstance(default, str):
        return isinstance(value, str)
    return isinstance(value, int | float) or value is default
