"""THE loop: one function that trains every recipe."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from textvae import checkpoint
from textvae.distributed import average_gradients
from textvae.errors import TrainingError
from textvae.evaluation.report import quick
from textvae.recipe import Recipe, parse_duration
from textvae.schedules import Plateau
from textvae.text.batching import Step, evaluation_batches
from textvae.training.critics import update_critics
from textvae.training.setup import Experiment, prepare
from textvae.training.telemetry import FAR, Telemetry
from textvae.types import Batch

SKIPS_ALLOWED = 10  # steps without finite gradients in a row, before the training is given up


@dataclass
class Position:
    """Where a training stands: all that a resumed one must know besides tensors."""

    step: int = 0  # optimiser steps done
    epoch: int = 0
    step_in_epoch: int = 0
    best: float | None = None
    best_step: int = 0
    stalled: int = 0  # evaluations without gain in a row
    decays: int = 0
    skipped: int = 0  # steps without finite gradients, in all
    evaluated: int = -1  # the step last evaluated
    stopped: bool = False  # by early stopping or the last decay: a later end changes nothing then
    elapsed_s: float = 0.0
    tokens: int = 0
    numbers: dict[str, float] = field(default_factory=dict)  # of the last evaluation


class Interrupted(TrainingError):
    """The training was told to stop, and has saved itself."""


def train(
    recipe: Recipe, out: str | Path, *, resume: bool = False, trust_code: bool = True, quiet: bool = False
) -> Path:
    """Trains a recipe into a run folder.

    Args:
        recipe: the experiment, already checked (`textvae.build.check`).
        out: the run folder.
        resume: go on from the folder's last checkpoint, if it has one.
        trust_code: whether dotted paths in the recipe may be imported.
        quiet: print nothing but warnings.

    Returns:
        The run folder.

    Raises:
        UserError: a corpus, tokenizer, folder or recipe that cannot be used.
        TrainingError: gradients that stay infinite, or an interruption (the run can be resumed).
    """
    folder = Path(out)
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    # accelerate keeps the first training's precision for the whole process; a second may want another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(recipe.training.precision, recipe.training.precision),
        log_with=recipe.training.trackers or None,
        project_dir=str(folder),
    )
    lock = checkpoint.locked(folder) if accelerator.is_main_process else contextlib.nullcontext()
    with lock:
        experiment = prepare(recipe, folder, accelerator, resume=resume, trust_code=trust_code)
        position = Position(**experiment.position)
        telemetry = Telemetry(folder, recipe, accelerator, experiment, position.step, quiet=quiet)
        try:
            if not position.stopped:
                _run(experiment, recipe, accelerator, position, folder, telemetry)
        finally:
            telemetry.close()
    return folder


def _run(
    experiment: Experiment,
    recipe: Recipe,
    accelerator: Accelerator,
    position: Position,
    folder: Path,
    telemetry: Telemetry,
) -> None:
    training = recipe.training
    due = _evaluation_due(recipe, experiment.horizon.steps_per_epoch)
    total_steps = experiment.horizon.total_steps
    max_epochs = training.max_epochs
    began = time.monotonic() - position.elapsed_s
    in_a_row = 0

    def evaluate() -> str:
        position.elapsed_s = time.monotonic() - began
        return _evaluate(experiment, recipe, accelerator, position, folder, telemetry)

    def save() -> None:
        position.elapsed_s = time.monotonic() - began
        _save(experiment, accelerator, position, folder)

    verdict = "keep"
    with _stop_signals() as stopped:
        while verdict != "stop" and (max_epochs is None or position.epoch < max_epochs):
            for step in experiment.batches.epoch(position.epoch, skip=position.step_in_epoch):
                if total_steps is not None and position.step >= total_steps:
                    break
                taken = _step(experiment, recipe, accelerator, step, position, telemetry)
                in_a_row = 0 if taken else in_a_row + 1
                if in_a_row == SKIPS_ALLOWED:
                    raise TrainingError(
                        f"step {position.step}: {in_a_row} steps in a row without a finite gradient; lower "
                        "training.optimizer.lr or training.gradient_clip, or take training.precision: fp32. "
                        f"The last checkpoint in {folder} is from before"
                    )
                if due(position.step):
                    verdict = evaluate()
                if due(position.step) or (training.save_every and position.step % training.save_every == 0):
                    save()
                if stopped():
                    save()
                    raise Interrupted(f"stopped at step {position.step}; {folder} can be resumed with --resume")
                if verdict == "stop":
                    break
            else:
                position.epoch += 1
                position.step_in_epoch = 0
                if (
                    experiment.horizon.steps_per_epoch is None
                    and parse_duration(training.evaluate_every)[1] == "epochs"
                ):
                    verdict = evaluate()
                    save()
                continue
            break
        if position.evaluated != position.step:
            evaluate()
        position.stopped = verdict == "stop"
        save()
    telemetry.finish(position.best, position.best_step)


def _step(
    experiment: Experiment,
    recipe: Recipe,
    accelerator: Accelerator,
    step: Step,
    position: Position,
    telemetry: Telemetry,
) -> bool:
    """One optimiser step; false where its gradients were not finite and it was left out."""
    model, objective, optimizer = experiment.model, experiment.objective, experiment.optimizer
    latent_dim = recipe.model.latent_dim
    # Randomness is a function of seed, step and process: nothing to save, and a resumed run draws the same.
    noise = torch.randn(1, step.sentences, latent_dim, generator=_generator(recipe.seed, position.step))
    torch.manual_seed(_mix(recipe.seed, position.step, accelerator.process_index))
    rate = experiment.rate(position.step) * experiment.decay_factor(position.decays)
    for group, base in zip(optimizer.param_groups, experiment.base_rates):
        group["lr"] = base * rate

    for i, piece in enumerate(step.pieces):
        batch = Batch(*(tensor.to(accelerator.device, non_blocking=True) for tensor in piece.batch))
        drawn = noise[:, piece.rows].to(accelerator.device, non_blocking=True)
        last = i == len(step.pieces) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            output = model(batch, noise=drawn)
            # The same on every process: a statistic of the whole batch draws the same from the prior.
            torch.manual_seed(_mix(recipe.seed, position.step, i, 7))
            update_critics(experiment.critics, output)
            losses = objective(output, position.step, piece.share)
            accelerator.backward(losses.total / len(step.pieces))
    average_gradients(experiment.term_parameters)
    norm = _clip(accelerator, model, recipe.training.gradient_clip)
    # Every process sees the same averaged gradient, so all take or leave the step together.
    taken = bool(torch.isfinite(norm))
    if taken:
        optimizer.step()
    optimizer.zero_grad()

    position.step += 1
    position.step_in_epoch += 1
    position.tokens += step.tokens
    position.skipped += not taken
    telemetry.step(position.step, position.epoch, step, losses, norm, optimizer.param_groups[0]["lr"])
    return taken


def _clip(accelerator: Accelerator, model: torch.nn.Module, limit: float | None) -> Tensor:
    norm: Tensor = accelerator.clip_grad_norm_(model.parameters(), limit if limit is not None else float("inf"))
    return norm


def _evaluate(
    experiment: Experiment,
    recipe: Recipe,
    accelerator: Accelerator,
    position: Position,
    folder: Path,
    telemetry: Telemetry,
) -> str:
    """Measures on the validation part, keeps the best parameters; returns "keep", "decay" or "stop"."""
    training = recipe.training
    model = experiment.unwrapped
    numbers = quick(
        model,
        (
            Batch(*(t.to(accelerator.device) for t in batch))
            for _, batch in evaluation_batches(experiment.validation, experiment.pad_id)
        ),
        generator=_generator(recipe.seed, 0, device=accelerator.device),
        measure=experiment.objective.measure,
    )
    final = experiment.objective.weights(FAR)
    held = sum(weight * numbers[f"term_{name}"] for name, weight in final.items())
    numbers["loss"] = numbers["reconstruction"] + held
    position.evaluated, position.numbers = position.step, numbers
    if training.monitor not in numbers:
        raise TrainingError(f"training.monitor: got {training.monitor!r}; known: {', '.join(sorted(numbers))}")
    value = numbers[training.monitor]
    # More is better only for these; every other figure is a cost.
    sign = -1.0 if training.monitor in ("mutual_information", "active_units") else 1.0
    gained = position.best is None or sign * value < sign * position.best
    if gained:
        position.best, position.best_step, position.stalled = value, position.step, 0
        if accelerator.is_main_process:
            checkpoint.save_weights(model, folder / checkpoint.WEIGHTS)
    else:
        position.stalled += 1
    weights = experiment.objective.weights(max(position.step - 1, 0))
    telemetry.evaluation(position.step, position.epoch, numbers, weights, gained, position.elapsed_s)
    verdict = "keep"
    decay: Plateau | None = experiment.decay
    if not gained and decay is not None:
        verdict = decay(position.step, position.stalled, position.decays)
        if verdict == "decay":
            _decay(experiment, accelerator, position, folder, reload=decay.reload)
            telemetry.note(f"no gain: learning rate x {experiment.decay_factor(position.decays):g}")
    if training.early_stopping is not None and position.stalled >= training.early_stopping:
        verdict = "stop"
    return verdict


def _decay(experiment: Experiment, accelerator: Accelerator, position: Position, folder: Path, *, reload: bool) -> None:
    position.decays += 1
    position.stalled = 0
    if reload:
        accelerator.wait_for_everyone()
        checkpoint.load_weights(experiment.unwrapped, folder / checkpoint.WEIGHTS)
        # Momenta belong to the parameters that were left.
        experiment.optimizer.state.clear()


def _save(experiment: Experiment, accelerator: Accelerator, position: Position, folder: Path) -> None:
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    state = {
        "optimizer": experiment.optimizer.state_dict(),
        "objective": experiment.objective.state_dict(),
        "critics": [optimizer.state_dict() for _, optimizer in experiment.critics],
    }
    if accelerator.scaler is not None:
        state["scaler"] = accelerator.scaler.state_dict()
    checkpoint.save_checkpoint(folder, position.step, experiment.unwrapped, state, asdict(position))


def _evaluation_due(recipe: Recipe, steps_per_epoch: int | None) -> Callable[[int], bool]:
    amount, unit = parse_duration(recipe.training.evaluate_every)
    if unit == "epochs":
        if steps_per_epoch is None:
            return lambda step: False  # at the end of each pass over the stream instead
        amount *= steps_per_epoch
    every = max(1, round(amount))
    return lambda step: step % every == 0


def _mix(*numbers: int) -> int:
    """One seed from several numbers; Knuth's multiplicative hash, so that neighbours do not look alike."""
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return seed


def _generator(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device=device).manual_seed(_mix(*numbers))


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a question asked after each step; a second signal acts as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before: dict[int, Any] = {}

    def remember(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for caught in (signal.SIGINT, signal.SIGTERM):
        before[caught] = signal.signal(caught, remember)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
