"""One step: gradients of its batch, clipped, taken; and the encoder's own steps before it, where they are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from textvae.distributed import average_gradients, mean_over_processes, reached, with_all
from textvae.recipe import Recipe
from textvae.seeds import generator, mix, seed_all
from textvae.text.batching import Batches, Step
from textvae.training import semi_amortized
from textvae.training.critics import update_critics
from textvae.training.position import Position
from textvae.training.setup import Experiment
from textvae.training.telemetry import Telemetry
from textvae.types import Batch, Losses


def take_step(
    experiment: Experiment,
    recipe: Recipe,
    accelerator: Accelerator,
    step: Step,
    position: Position,
    telemetry: Telemetry,
    stopping: Callable[[], bool],
) -> bool:
    """One optimiser step; what it came to goes to `experiment.outcomes`.

    `stopping` says whether this process was asked to stop; all learn of it together, by what is returned.
    """
    optimizer = experiment.optimizer
    rate = experiment.rate(position.step) * experiment.decay_factor(position.decays)
    for group, base in zip(optimizer.param_groups, experiment.base_rates):
        group["lr"] = base * rate
    if position.aggressive:
        _refine_encoder(experiment, recipe, accelerator, position)

    held = _held(experiment)
    losses, found = _backward_with_room(experiment, recipe, accelerator, step, position.step)
    if position.aggressive:
        _forget(experiment.encoder_parameters)
    norm = _clip(experiment, accelerator, recipe.training.gradient_clip)
    # Every process sees the same averaged gradient, so all take or leave the step together. A signal reaches them at
    # different steps; those who stopped alone would leave the others in a collective that nobody answers.
    figures, stop = losses.figures, stopping()
    finite: Tensor | bool
    if accelerator.num_processes == 1:
        finite = torch.isfinite(norm + figures[0])
    else:
        said = torch.tensor([float(stop)]).to(figures, non_blocking=True)
        used = torch.tensor(found, dtype=said.dtype).to(said, non_blocking=True)
        everyones = mean_over_processes(torch.cat([figures, said, used]))
        figures, (asked,), used = everyones.split([len(figures), len(said), len(found)])
        all_finite = torch.isfinite(norm + figures[0]).float()
        answers = torch.cat([torch.stack([all_finite, asked]), used]).tolist()
        finite, stop = bool(answers[0]), answers[1] > 0
        # What no process has a gradient for is left alone, as one process leaves it.
        _forget(p for p, share in zip(experiment.unwrapped.parameters(), answers[2:]) if not share)
    taken = experiment.outcomes.attempt(finite)
    optimizer.zero_grad()
    if experiment.average is not None and taken:
        experiment.average.after_step(position.step, experiment.unwrapped)
    if held and not taken:
        _put_back(experiment, held)

    position.step += 1
    position.step_in_epoch += 1
    position.tokens += step.tokens
    experiment.outcomes.record(taken, position.step, step)
    rate = optimizer.param_groups[0]["lr"]
    telemetry.step(position.step, position.epoch, step.tokens, figures, losses.weights, norm, rate)
    return stop


def _backward_with_room(
    experiment: Experiment, recipe: Recipe, accelerator: Accelerator, step: Step, *key: int
) -> tuple[Losses, list[bool]]:
    """As `_backward`; what recordings hold is given back where the step has no memory besides."""
    try:
        return _backward(experiment, recipe, accelerator, step, *key)
    except torch.OutOfMemoryError:
        if experiment.replay is None or not experiment.replay.recordings:
            raise
    # Here, where the exception no longer holds what the pass had made.
    experiment.replay.give_back()
    return _backward(experiment, recipe, accelerator, step, *key)


def _backward(
    experiment: Experiment, recipe: Recipe, accelerator: Accelerator, step: Step, *key: int
) -> tuple[Losses, list[bool]]:
    """Gradients of a step's batch, and its losses: figures of all pieces, the rest of the last one.

    With several processes also, of each of the model's parameters, whether this one has a gradient for it.

    `key`, the step's number first, decides all of its randomness.
    """
    model, objective = experiment.model, experiment.objective
    # Randomness is a function of seed, step and process: nothing to save, and a resumed run draws the same.
    samples = recipe.training.samples
    refining = recipe.training.semi_amortized.steps if recipe.training.semi_amortized is not None else 0
    shape = (samples * (1 + refining), step.sentences, recipe.model.latent_dim)
    noise = torch.randn(shape, generator=generator(recipe.seed, *key))
    seed_all(mix(recipe.seed, *key, accelerator.process_index))
    parameters, found = list(experiment.unwrapped.parameters()), list[bool]()
    losses: Losses
    figures: list[Tensor] = []
    for i, piece in enumerate(step.pieces):
        if experiment.replay is not None:
            replayed = experiment.replay(piece.batch, noise[:, piece.rows], key[0])
            if replayed is not None:
                return replayed, found
        batch = Batch(*(tensor.to(accelerator.device, non_blocking=True) for tensor in piece.batch))
        drawn = noise[:, piece.rows].to(accelerator.device, non_blocking=True)
        if recipe.training.semi_amortized is not None:
            losses = semi_amortized.backward(
                experiment.unwrapped,
                objective,
                batch,
                drawn[:samples],
                key[0],
                piece.share,
                recipe.training.semi_amortized,
                scale=1 / len(step.pieces),
                seed=mix(recipe.seed, *key, accelerator.process_index, i),
                term_seed=mix(recipe.seed, *key, i, 7),
                autocast=accelerator.autocast,
                step_noise=drawn[samples:].split(samples),
            )
            figures.append(losses.figures)
            continue
        last = i == len(step.pieces) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            if i:  # the objective's seed is all processes', what is dropped from a sentence is not
                seed_all(mix(recipe.seed, *key, accelerator.process_index, i))
            output = model(batch, samples=samples, noise=drawn)
            if experiment.replay is None:  # a recording cannot begin its random stream anew, so no step does then
                # The same on every process: a statistic of the whole batch draws the same from the prior.
                seed_all(mix(recipe.seed, *key, i, 7))
            if not i:  # as many steps as without pieces
                update_critics(experiment.critics, output)
            losses = objective(output, key[0], piece.share)
            total = losses.total
            if accelerator.num_processes > 1:
                here = reached(total, parameters)
                total = with_all(total, parameters, here)
                found = [a or b for a, b in zip(found, here)] or here
            accelerator.backward(total / len(step.pieces))
        figures.append(losses.figures)
    by_hand = list(experiment.term_parameters)
    if recipe.training.semi_amortized is not None:
        by_hand += experiment.unwrapped.parameters()
    average_gradients(by_hand)
    return losses._replace(figures=torch.stack(figures).mean(0), total=losses.total.detach()), found


def _refine_encoder(experiment: Experiment, recipe: Recipe, accelerator: Accelerator, position: Position) -> None:
    """Steps of the encoder alone, on batches of its own, until their mean loss no longer falls (He 2019)."""
    settings = recipe.training.aggressive
    assert settings is not None
    assert isinstance(experiment.batches, Batches)
    kept = {id(parameter) for parameter in experiment.encoder_parameters}
    others = [p for p in [*experiment.unwrapped.parameters(), *experiment.term_parameters] if id(p) not in kept]
    before = float("inf")
    losses: list[Tensor] = []
    for number in range(settings.steps):
        held = _held(experiment)
        step = experiment.batches.some(position.step, number)
        losses.append(
            _backward_with_room(experiment, recipe, accelerator, step, position.step, number + 1)[0].figures[0]
        )
        _forget(others)
        norm = _clip(experiment, accelerator, recipe.training.gradient_clip)
        taken = experiment.outcomes.attempt(torch.isfinite(norm))
        experiment.optimizer.zero_grad()
        if held and not taken:
            _put_back(experiment, held)
        if len(losses) == settings.window:
            now = float(mean_over_processes(torch.stack(losses).mean()))
            if now >= before:
                return
            before = now
            losses.clear()


def _held(experiment: Experiment) -> list[dict[str, Tensor]]:
    """What controllers hold, for a step that may be left out: they move when a loss is measured."""
    return [
        {name: value.clone() for name, value in one.state_dict().items()} for one in experiment.objective.controllers
    ]


def _put_back(experiment: Experiment, held: list[dict[str, Tensor]]) -> None:
    """Takes back what controllers were moved by, in a step that was left out: values that may be finite, and 10^30."""
    for controller, state in zip(experiment.objective.controllers, held):
        controller.load_state_dict(state)


def _forget(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Leaves parameters out of the next step: an optimiser passes over those without a gradient."""
    for parameter in parameters:
        parameter.grad = None


def _clip(experiment: Experiment, accelerator: Accelerator, limit: float | None) -> Tensor:
    """Shortens the gradients of all that the step moves, and returns their norm before."""
    moved = [*experiment.model.parameters(), *experiment.term_parameters]
    norm: Tensor = accelerator.clip_grad_norm_(moved, limit if limit is not None else float("inf"))
    return norm
