"""THE loop: one function that trains every recipe."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers

from textvae import checkpoint
from textvae.distributed import agreed
from textvae.durations import parse_duration
from textvae.errors import CorpusError, Interrupted, TrainingError, UserError
from textvae.evaluation.refined import Refining
from textvae.evaluation.report import quick
from textvae.folders import locked
from textvae.recipe import Recipe
from textvae.recipe_file import with_absolute_paths
from textvae.schedules import Plateau
from textvae.seeds import generator
from textvae.text.batching import evaluation_batches
from textvae.training.notes import everyones, left_out
from textvae.training.position import Position
from textvae.training.setup import Experiment, prepare
from textvae.training.steps import take_step
from textvae.training.telemetry import FAR, Telemetry
from textvae.types import Batch

EVALUATED_TOGETHER = 512  # sentences a batch: terms that compare each with each take their square in memory
ECHO_S = 0.5  # in which a signal is the one before, once more
SKIPS_ALLOWED = 10  # steps without finite gradients in a row, before the training is given up


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
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe: got {recipe!r:.60}; textvae.load_recipe(path) reads one")
    recipe = with_absolute_paths(recipe)  # for the folder's own recipe is read from anywhere
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    _check_machine(recipe)
    # accelerate keeps the first training's precision for the whole process; a second may want another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(recipe.training.precision, recipe.training.precision),
        log_with=recipe.training.trackers or None,
        project_dir=str(folder),
    )
    lock = locked(folder) if accelerator.is_main_process else contextlib.nullcontext()
    with lock:
        experiment = prepare(recipe, folder, accelerator, resume=resume, trust_code=trust_code)
        position = experiment.position
        position.corpus, position.processes = experiment.corpus, accelerator.num_processes
        telemetry = Telemetry(
            folder,
            recipe,
            accelerator,
            experiment,
            position.step,
            evaluated=position.evaluated,
            unlogged=position.unlogged,
            quiet=quiet,
        )
        try:
            if position.stopped:
                telemetry.note("its training has stopped early, or decayed as often as it may: nothing is left to do")
            else:
                _run(experiment, recipe, accelerator, position, folder, telemetry)
        finally:
            telemetry.close()
    return folder


def _check_machine(recipe: Recipe) -> None:
    """What the recipe asks of this machine, said before anything is read or written."""
    training = recipe.training
    if training.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision: got fp16, which needs a GPU, and there is none; take bf16 or fp32")
    installed = [str(kind) for kind in get_available_trackers()]
    for name in training.trackers:
        if name not in installed:
            raise UserError(f"training.trackers: {name} is not installed; pip install {name}, or leave it out")


def _run(
    experiment: Experiment,
    recipe: Recipe,
    accelerator: Accelerator,
    position: Position,
    folder: Path,
    telemetry: Telemetry,
) -> None:
    training = recipe.training
    due, after_epoch = _evaluation_due(recipe, experiment.horizon.steps_per_epoch)
    total_steps = experiment.horizon.total_steps
    max_epochs = training.max_epochs
    began = time.monotonic() - position.elapsed_s
    in_a_row, said = 0, False

    def say_left_out(when: str) -> bool:
        counts = everyones(experiment.left_out, shared=recipe.data.stream_shares)
        if any(counts.values()):
            telemetry.note(left_out(f"train, {when}", counts))
        return any(counts.values())

    def evaluate(*, last: bool = False) -> str:
        position.elapsed_s = time.monotonic() - began
        nonlocal said
        if position.step_in_epoch and not said:
            said = say_left_out("so far")
        verdict = _evaluate(experiment, recipe, accelerator, position, folder, telemetry, counts=not last)
        position.stopped = verdict == "stop"  # before anything is saved: a resumed run knows it, too
        return verdict

    def save() -> None:
        position.elapsed_s = time.monotonic() - began
        position.unlogged = telemetry.unlogged()
        _save(experiment, accelerator, position, folder)

    def settle(*, everything: bool) -> None:
        """Counts the steps that were left out, as far as that is known."""
        nonlocal in_a_row
        for outcome in experiment.outcomes.known(everything=everything):
            in_a_row = 0 if outcome.taken else in_a_row + 1
            position.skipped += not outcome.taken
            if in_a_row == SKIPS_ALLOWED:
                batch = telemetry.keep_batch(outcome.number, outcome.step)
                raise TrainingError(_given_up(outcome.number, in_a_row, folder, batch))

    verdict = "keep"
    with _stop_signals() as stopped:
        while verdict != "stop" and (max_epochs is None or position.epoch < max_epochs):
            for step in experiment.batches.epoch(position.epoch, skip=position.step_in_epoch):
                if total_steps is not None and position.step >= total_steps:
                    break
                stop = take_step(experiment, recipe, accelerator, step, position, telemetry, stopped)
                wanted = due(position.step) or (training.save_every and position.step % training.save_every == 0)
                settle(everything=bool(wanted or stop))
                if due(position.step):
                    verdict = evaluate()
                if wanted and not in_a_row:  # what cannot go on is no place to go on from
                    save()
                if stop:
                    save()
                    raise Interrupted(f"stopped at step {position.step}; {folder} can be resumed with --resume")
                if verdict == "stop":
                    break
            else:
                if not position.step_in_epoch:
                    raise CorpusError(
                        "the stream's training part gives no step: it has too few sentences that data keeps, for "
                        f"batches of {training.accumulation * accelerator.num_processes} pieces"
                    )
                settle(everything=True)
                if not position.epoch:  # the next ones leave out the same
                    say_left_out("in an epoch")
                said = True
                position.epoch += 1
                position.step_in_epoch = 0
                if after_epoch(position.epoch):
                    verdict = evaluate()
                    save()
                experiment.left_out.clear()
                continue
            break
        settle(everything=True)
        if position.evaluated != position.step:
            evaluate(last=True)
        save()
    telemetry.finish(position.best, position.best_step, position.skipped)


def _given_up(number: int, steps: int, folder: Path, batch: Path) -> str:
    last = checkpoint.latest_checkpoint(folder)
    return (
        f"step {number}: {steps} steps in a row without a finite gradient; the last one's batch is in {batch}. "
        "Lower training.optimizer.lr or training.gradient_clip, or take training.precision: fp32. "
        + (f"The last checkpoint, {last}, is from before" if last else "There is no checkpoint from before")
    )


def _evaluate(
    experiment: Experiment,
    recipe: Recipe,
    accelerator: Accelerator,
    position: Position,
    folder: Path,
    telemetry: Telemetry,
    *,
    counts: bool,
) -> str:
    """Measures on the validation part, keeps the best parameters; returns "keep", "decay" or "stop".

    The last one, where none was due, tries nobody's patience (`counts`): a run made longer would not have had it.
    """
    training = recipe.training
    model = experiment.measured
    refining = recipe.training.semi_amortized
    numbers = quick(
        model if refining is None else Refining(model, refining, recipe.seed),
        (
            Batch(*(t.to(accelerator.device) for t in batch))
            for _, batch in evaluation_batches(experiment.validation, experiment.pad_id, at_most=EVALUATED_TOGETHER)
        ),
        generator=generator(recipe.seed, 0, device=accelerator.device),
        measure=experiment.objective.measure,
        together=True,
    )
    final = experiment.objective.weights(FAR)
    numbers["loss"] = experiment.objective.final(numbers, final)
    numbers = agreed(numbers)  # what follows is decided by them, and rounding may differ from device to device
    if position.aggressive and numbers["mutual_information"] < position.numbers.get("mutual_information", 0.0):
        position.aggressive = False
        telemetry.note("mutual information has fallen: the encoder's own steps end here")
    position.evaluated, position.numbers = position.step, numbers
    value = numbers[training.monitor]
    # More is better only for these; every other figure is a cost.
    sign = -1.0 if training.monitor in ("mutual_information", "active_units") else 1.0
    if training.monitor == "loss" and position.best_numbers:
        # A controller's weight at the end is not known before: both are weighed by what it is now.
        position.best = experiment.objective.final(position.best_numbers, final)
    # A first figure that is not finite would never be beaten.
    gained = position.best is None or not math.isfinite(position.best) or sign * value < sign * position.best
    # Parameters that give no finite likelihood are worth nothing, even as the first.
    gained = gained and math.isfinite(numbers["reconstruction"])
    if gained:
        position.best, position.best_step, position.stalled = value, position.step, 0
        position.best_numbers = numbers
        if accelerator.is_main_process:
            checkpoint.save_weights(model, folder / checkpoint.WEIGHTS)
            if (folder / checkpoint.FITTED_PRIOR).exists():  # of a training that was resumed
                (folder / checkpoint.FITTED_PRIOR).unlink()
                telemetry.note("the fitted prior was of other weights, and is taken away; fit-prior makes it anew")
            stale = [entry for entry in folder.glob("evaluation-*") if entry.suffix in (".json", ".html", ".md")]
            for entry in stale:
                entry.unlink()
            if stale:
                telemetry.note(
                    "saved evaluations were of other weights, and are taken away; evaluate --save makes them"
                )
    elif counts:
        position.stalled += 1
    weights = experiment.objective.weights(max(position.step - 1, 0))
    telemetry.evaluation(position.step, position.epoch, numbers, weights, gained, position.elapsed_s)
    verdict = "keep"
    if not counts:
        return verdict
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
    if reload and position.best is not None:
        accelerator.wait_for_everyone()
        checkpoint.load_weights(experiment.unwrapped, folder / checkpoint.WEIGHTS)
        # Momenta belong to the parameters that were left.
        experiment.optimizer.state.clear()
        if experiment.average is not None:
            experiment.average.begin_anew()


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
    if experiment.average is not None:
        state["average"] = experiment.average.state_dict()
    checkpoint.save_checkpoint(folder, position.step, experiment.unwrapped, state, asdict(position))


def _evaluation_due(recipe: Recipe, steps_per_epoch: int | None) -> tuple[Callable[[int], bool], Callable[[int], bool]]:
    """Whether an evaluation is due after a step, and whether one is after a pass over a stream of unknown length."""
    amount, unit = parse_duration(recipe.training.evaluate_every)
    if unit == "epochs":
        if steps_per_epoch is None:
            return (lambda step: False), (lambda epoch: epoch % round(amount) == 0)
        amount *= steps_per_epoch
    every = max(1, round(amount))
    return (lambda step: step % every == 0), (lambda epoch: False)


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a question asked after each step; a second signal acts as usual.

    Not one that comes at once: as a launcher dies, the system tells its processes so for each of its threads.
    """
    received: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before: dict[int, Any] = {}

    def remember(number: int, frame: object) -> None:
        now = time.monotonic()
        if received and now - received[0] > ECHO_S:
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)
        received.append(now)

    for caught in (signal.SIGINT, signal.SIGTERM):
        before[caught] = signal.signal(caught, remember)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
