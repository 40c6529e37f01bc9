"""What a training needs before its first step: corpus, tokenizer, model, optimiser, a position to start from."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from textvae import build, checkpoint
from textvae.averages import AVERAGES, Averaged
from textvae.errors import CheckpointError, TrainingError
from textvae.folders import metrics
from textvae.model import SequenceVAE
from textvae.nets.devices import runs_ahead
from textvae.objective import Objective
from textvae.optimizers import OPTIMIZERS
from textvae.recipe import Recipe, StartFrom
from textvae.recipe_file import dump
from textvae.recipe_file import load as load_recipe
from textvae.registry import Registry
from textvae.schedules import DECAYS, RATES, Horizon, Plateau
from textvae.text import corpora, encoding, tokenizers
from textvae.text.batching import Batches, TokenStore
from textvae.text.sources import is_stream
from textvae.text.streams import Reader, SharedStreamBatches, StreamBatches
from textvae.training.critics import optimizers
from textvae.training.notes import notes
from textvae.training.outcomes import Outcomes
from textvae.training.position import Position, check_corpus, check_order, read_position
from textvae.training.replay import Replay, replay_of
from textvae.types import Schedule, Tokenizer

# What may differ between a run's recipe and the one it is resumed with: how far, and what is shown.
FREE_TO_CHANGE = {
    "name": None,
    "training": (
        *("max_epochs", "max_steps", "threads", "trackers", "log_every", "save_every", "early_stopping"),
        "cuda_graphs",
    ),
    "evaluation": None,
    "generation": None,
}

ENCODER = ("encoder_embedding", "encoder", "posterior")
READ_AT_ONCE = 1_000  # sentences


@dataclass
class Experiment:
    """Everything a recipe describes, ready to step."""

    model: torch.nn.Module  # as accelerate wraps it
    unwrapped: SequenceVAE
    objective: Objective
    optimizer: Any
    batches: Batches | StreamBatches | SharedStreamBatches
    validation: TokenStore
    horizon: Horizon
    rate: Schedule
    decay: Plateau | None
    average: Averaged | None
    outcomes: Outcomes
    pad_id: int
    base_rates: list[float]
    critics: list[tuple[Any, torch.optim.Optimizer]]
    encoder_parameters: list[torch.nn.Parameter]  # of q(z|x)
    term_parameters: list[torch.nn.Parameter]  # of the objective's terms, moved by the model's optimiser
    corpus: str = ""  # a hash of the sentences to train and validate on, where they are held
    replay: Replay | None = None
    notes: list[str] = field(default_factory=list)
    position: Position = field(default_factory=Position)
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> sentences of a stream; grows while it is read

    @property
    def measured(self) -> SequenceVAE:
        """The model that is evaluated and kept: the average over steps, where the recipe asks for one."""
        return self.unwrapped if self.average is None else self.average.standing_for(self.unwrapped)

    def decay_factor(self, decays: int) -> float:
        """Returns the factor on the learning rate after so many decays."""
        return self.decay.factor**decays if self.decay is not None else 1.0


def prepare(recipe: Recipe, folder: Path, accelerator: Accelerator, *, resume: bool, trust_code: bool) -> Experiment:
    """Returns the experiment, and writes recipe and tokenizer into the run folder.

    Raises:
        UserError: what the recipe names cannot be read or built.
        CheckpointError: the folder holds another run, or a damaged checkpoint.
    """
    build.check(recipe, trust_code=trust_code)
    latest = checkpoint.latest_checkpoint(folder) if resume else None
    _check_folder(folder, recipe, resume)
    anew = resume and latest is None and (folder / checkpoint.RECIPE).exists()
    with accelerator.main_process_first():
        corpus = corpora.load(recipe.data)
        tokenizer = _tokenizer(recipe, corpus, folder if latest else None, trust_code)
        if corpus.streaming:
            corpus.dropped["train"].clear()  # what the tokenizer has read is read again
        encoded = encoding.encode(corpus, tokenizer, recipe.data)
    torch.manual_seed(recipe.seed)
    model = build.build_model(recipe, tokenizer, trust_code=trust_code)
    if recipe.training.start_from is not None and latest is None:
        _start_from(recipe.training.start_from, model, tokenizer, trust_code)
    batches = _batches(recipe, encoded, tokenizer, accelerator)
    horizon = _horizon(recipe, batches.steps_per_epoch)
    lengths = _compared(horizon, batches.steps_per_epoch, folder, latest)
    objective = build.build_objective(recipe, horizon, trust_code=trust_code)
    training = recipe.training

    def timed(family: Registry, key: str) -> Any:
        section = getattr(training, key)
        if section is None:
            return None
        return build.build_timed(family, section, horizon, f"training.{key}", trust_code=trust_code)

    rate, decay, averaged = timed(RATES, "lr_schedule"), timed(DECAYS, "decay"), timed(AVERAGES, "average")
    average = Averaged(averaged) if averaged is not None else None
    moved = [p for p in [*model.parameters(), *objective.trained_with_the_model()] if p.requires_grad]
    chosen = training.optimizer.as_dict()
    optimizer = OPTIMIZERS.build(chosen, moved, path="training.optimizer", trust_code=trust_code)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    state, saved = checkpoint.load_checkpoint(latest, model) if latest is not None else ({}, {})
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    objective.to(accelerator.device)
    critics = optimizers(list(objective.critics.values()))
    if state:
        with _reading_state(latest):
            optimizer.load_state_dict(state["optimizer"])
            objective.load_state_dict(state["objective"])
            for (_, critic_optimizer), before in zip(critics, state["critics"], strict=True):
                critic_optimizer.load_state_dict(before)
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            if average is not None:
                average.load_state_dict(state["average"], model)
    unwrapped: SequenceVAE = accelerator.unwrap_model(wrapped)
    held = {part: TokenStore(rows) for part, rows in encoded.parts.items() if not is_stream(rows)}
    lengths_of = hashlib.sha256(b"".join(held[part].lengths.tobytes() for part in sorted(held) if part != "test"))
    by_lengths, whole = lengths_of.hexdigest()[:16], lengths_of.copy()
    for part in sorted(held):
        if part != "test":
            held[part].add_to(whole)
    identity = whole.hexdigest()[:16]
    start = {"aggressive": training.aggressive is not None}
    position = read_position(saved or start, folder)
    check_corpus(position, (identity, by_lengths), recipe, accelerator.num_processes, folder)
    check_order(position, batches, recipe, accelerator.num_processes, folder)
    # Last: where anything is refused, the folder is as it was.
    if accelerator.is_main_process:
        tokenizer.save(str(folder / checkpoint.TOKENIZER))
        checkpoint.write_text(folder / checkpoint.RECIPE, dump(recipe))
    return Experiment(
        model=wrapped,
        unwrapped=unwrapped,
        objective=objective,
        optimizer=optimizer,
        batches=batches,
        validation=held["validation"],
        corpus=identity,
        horizon=horizon,
        rate=rate,
        decay=decay,
        average=average,
        # An average takes in what was taken, and a controller takes back what was not: both must know of it.
        outcomes=Outcomes(
            optimizer,
            accelerator,
            ahead=runs_ahead(unwrapped.decoder_embedding.weight) and average is None and not objective.controllers,
        ),
        pad_id=tokenizer.pad_id,
        base_rates=base_rates,
        critics=critics,
        encoder_parameters=_encoder_parameters(model),
        term_parameters=objective.trained_with_the_model(),
        replay=replay_of(recipe, wrapped, unwrapped, objective, accelerator.num_processes),
        notes=[
            *notes(recipe, corpus, encoded, tokenizer, model),
            *(["no checkpoint to go on from: it starts from the beginning"] if anew else []),
            *([f"nothing to go on from in {folder}: a new run"] if resume and latest is None and not anew else []),
            *lengths,
        ],
        position=position,
        left_out=encoded.dropped["train"] if encoded.streaming else {},
    )


@contextlib.contextmanager
def _reading_state(latest: Path | None) -> Iterator[None]:
    """A context in which what a checkpoint's state does not fit is the checkpoint's fault."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{latest}/{checkpoint.STATE}: is not of this training ({error!r}); "
            f"take {latest} away to go on from the checkpoint before"
        ) from error


def _encoder_parameters(model: SequenceVAE) -> list[torch.nn.Parameter]:
    modules = [getattr(model, name) for name in ENCODER]
    shared = {id(model.decoder_embedding.weight)}
    return [p for module in modules if module is not None for p in module.parameters() if id(p) not in shared]


def _start_from(start: StartFrom, model: SequenceVAE, tokenizer: Tokenizer, trust_code: bool) -> None:
    folder = Path(start.run)
    if not (folder / checkpoint.RECIPE).is_file():
        raise CheckpointError(f"training.start_from.run: {folder} holds no run ({checkpoint.RECIPE} is missing)")
    kind = load_recipe(folder / checkpoint.RECIPE).tokenizer.kind
    before = tokenizers.load(str(folder / checkpoint.TOKENIZER), kind=kind, trust_code=trust_code)
    if encoding.tokenizer_digest(before, named=False) != encoding.tokenizer_digest(tokenizer, named=False):
        raise CheckpointError(
            f"training.start_from.run: {folder} has another tokenizer than this training; its parameters would mean "
            "other words. Train on the same corpus, or name the tokenizer's file in that run's folder: tokenizer: "
            f"{{kind: file, path: {folder / checkpoint.TOKENIZER}/...}}"
        )
    weights = folder / checkpoint.WEIGHTS
    if start.part == "all":
        checkpoint.load_weights(model, weights)
    else:
        checkpoint.load_part(model, weights, ENCODER)


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    saved, latest = folder / checkpoint.RECIPE, checkpoint.latest_checkpoint(folder)
    weights = (folder / checkpoint.WEIGHTS).exists()
    if latest is None and not weights:
        return  # an earlier attempt that never came to save anything, if there was one
    if not resume:
        raise CheckpointError(f"{folder}: holds a run already; add --resume to go on, or take another --out")
    if not saved.exists():
        raise CheckpointError(f"{saved}: is missing, and nothing else says what the run was; take another --out")
    # Killed between its first evaluation and its first checkpoint, a run has weights that it will find again.
    killed = (folder / checkpoint.METRICS).exists() and sum(row["part"] == "validation" for row in metrics(folder)) <= 1
    if latest is None and not killed:
        raise CheckpointError(
            f"{folder}: holds weights, and no checkpoint to go on from; a training from the beginning would replace "
            f"them. Take another --out, and training.start_from: {{run: {folder}, part: all}} to begin with them"
        )
    before, now = _fixed(load_recipe(saved)), _fixed(recipe)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        listed = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed[:5])
        raise CheckpointError(
            f"{saved}: the run was started with another recipe ({listed}); resume it with its own: "
            f"textvae train {saved} --out {folder} --resume"
        )


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """The key paths and values that must not differ when a run is resumed."""

    def walk(value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, dict) and value:
            return {k: v for name, item in value.items() for k, v in walk(item, f"{path}.{name}").items()}
        return {path: value}

    plain = recipe.resolved()
    for name, keys in FREE_TO_CHANGE.items():
        if keys is None:
            plain.pop(name)
        else:
            for key in keys:
                plain[name].pop(key)
    return {key.lstrip("."): value for key, value in walk(plain, "").items()}


def _tokenizer(recipe: Recipe, corpus: corpora.Corpus, folder: Path | None, trust_code: bool) -> Tokenizer:
    if folder is not None:
        saved = str(folder / checkpoint.TOKENIZER)
        return tokenizers.load(saved, kind=recipe.tokenizer.kind, trust_code=trust_code)
    texts = learned_from(corpus, recipe.data.tokenizer_sentences)
    return tokenizers.train(recipe.tokenizer.as_dict(), texts, trust_code=trust_code)


def learned_from(corpus: corpora.Corpus, at_most: int | None) -> Iterator[str]:
    """The texts that the tokenizer is trained on: evenly over a part that is held, the first of a stream."""
    rows: Any = corpus.parts["train"]
    if at_most is not None and not corpus.streaming and at_most < len(rows):
        # Evenly: a corpus may be sorted by source.
        rows = rows.select([place * len(rows) // at_most for place in range(at_most)])
    # Row by row, datasets makes a dictionary of each: 30 times as long.
    texts = (text for batch in rows.iter(READ_AT_ONCE) for text in batch["text"])
    return itertools.islice(texts, at_most)


def _batches(
    recipe: Recipe, encoded: encoding.EncodedCorpus, tokenizer: Tokenizer, accelerator: Accelerator
) -> Batches | StreamBatches | SharedStreamBatches:
    training = recipe.training
    shared: dict[str, Any] = {
        "batch_size": training.batch_size,
        "batch_tokens": training.batch_tokens,
        "bucket_batches": training.bucket_batches,
        "seed": recipe.seed,
        "process": (accelerator.process_index, accelerator.num_processes),
        "accumulation": training.accumulation,
    }
    part, data = encoded.parts["train"], recipe.data
    if data.streaming:
        counts, process = encoded.dropped["train"], shared["process"]
        if not data.stream_shares:
            read = Reader(part, counts, workers=data.stream_workers)
            return StreamBatches(read, tokenizer.pad_id, buffer=data.shuffle_buffer, **shared)
        read = Reader(part, counts, workers=data.stream_workers, share=process)
        return SharedStreamBatches(read, tokenizer.pad_id, buffer=data.shuffle_buffer, **shared)
    return Batches(TokenStore(part), tokenizer.pad_id, **shared)


def _horizon(recipe: Recipe, steps_per_epoch: int | None) -> Horizon:
    training = recipe.training
    ends = [training.max_steps] if training.max_steps is not None else []
    if training.max_epochs is not None and steps_per_epoch is not None:
        ends.append(training.max_epochs * steps_per_epoch)
    if not ends and training.max_epochs is None:
        raise TrainingError("training: max_epochs or max_steps is needed, or the training has no end")
    return Horizon(steps_per_epoch, min(ends) if ends else None)


def _compared(horizon: Horizon, steps_per_epoch: int | None, folder: Path, latest: Path | None) -> list[str]:
    """What there is to say of a resumed training whose length has changed.

    Raises:
        TrainingError: it would end before the step that it has reached.
    """
    if latest is None:
        return []
    reached, total = int(latest.name.removeprefix("step-")), horizon.total_steps
    before = _horizon(load_recipe(folder / checkpoint.RECIPE), steps_per_epoch).total_steps
    if total == before:
        return []
    if total is not None and total < reached:
        raise TrainingError(
            f"training.max_steps, training.max_epochs: the training would end at step {total:,}, and {folder} stands "
            f"at step {reached:,}; a resumed training can be longer, not shorter"
        )
    ends = [f"{steps:,} steps" if steps is not None else "no known number of steps" for steps in (before, total)]
    return [f"the training had {ends[0]} and has {ends[1]} now: schedules over the whole of it go by that"]
