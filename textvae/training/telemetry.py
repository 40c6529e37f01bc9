"""What a training shows: a bar, a line an evaluation, a warning of collapse, rows on disk, trackers, curves."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from textvae import checkpoint
from textvae.errors import TrainingError
from textvae.folders import metrics
from textvae.recipe import Recipe
from textvae.text import tokenizers
from textvae.text.batching import Step
from textvae.training.setup import Experiment

FAR = 10**12  # a step at which every schedule has come to its end
COLLAPSED_KL = 0.1  # nats a sequence


class Telemetry:
    """Everything that is seen of a training; the numbers on the device are read only when they are shown.

    Args:
        folder: the run folder.
        recipe: what is trained.
        accelerator: for its processes and trackers.
        experiment: for its horizon, notes and schedules.
        step: optimiser steps done before (a resumed run).
        evaluated: the step last evaluated before.
        unlogged: what `unlogged` said when the run was saved.
        quiet: print nothing but warnings.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        accelerator: Accelerator,
        experiment: Experiment,
        step: int,
        *,
        evaluated: int = -1,
        unlogged: Mapping[str, float] | None = None,
        quiet: bool = False,
    ) -> None:
        self.folder, self.recipe, self.accelerator, self.experiment = folder, recipe, accelerator, experiment
        self.main = accelerator.is_main_process
        self.quiet = quiet or not self.main
        self.path = folder / checkpoint.METRICS
        self.warned = False
        self.collapsed: str | None = None  # what there is to say of the last evaluation
        self.since = time.monotonic()
        self.tokens = 0
        figures = dict(unlogged or {})
        self.steps = int(figures.pop("steps", 0))  # since the last row
        self.mean: Tensor | None = None  # of their figures and gradient norms
        if figures:
            self.mean = torch.tensor(list(figures.values()), dtype=torch.float64)
        self.bar = tqdm(
            total=experiment.horizon.total_steps,
            initial=step,
            unit="step",
            disable=self.quiet or not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
        )
        if self.main:
            self._forget_rows_after(step, evaluated)
            if recipe.training.trackers:
                accelerator.init_trackers(re.sub(r"[/\\\0]", "_", recipe.name).strip(".") or "run")  # a folder's name
        if not self.quiet:
            for line in experiment.notes:
                self._print(line)
            if step:
                self._print(f"resumed at step {step:,}")

    def step(
        self,
        step: int,
        epoch: int,
        tokens: int,
        figures: Tensor,
        weights: Mapping[str, float],
        norm: Tensor,
        rate: float,
    ) -> None:
        """Counts a step, its tokens and figures of all processes, and every `log_every` of them writes a row."""
        if not self.main:
            return
        self.tokens += tokens
        self.steps += 1
        now = torch.cat([figures, norm.detach().to(figures)[None]])
        mean = None if self.mean is None else self.mean.to(now)
        self.mean = now if mean is None else mean + (now - mean) / self.steps
        self._show(self.bar.update)
        if step % self.recipe.training.log_every == 0:
            self._train_row(step, epoch, weights, rate)

    def unlogged(self) -> dict[str, float]:
        """Returns what the next row's means hold so far, for a resumed run to go on with."""
        if self.mean is None:
            return {}
        return {"steps": self.steps, **{str(place): value for place, value in enumerate(self.mean.tolist())}}

    def _train_row(self, step: int, epoch: int, weights: Mapping[str, float], rate: float) -> None:
        elapsed = time.monotonic() - self.since
        row: dict[str, Any] = {"step": step, "epoch": epoch, "part": "train", "learning_rate": rate}
        assert self.mean is not None
        row["loss"], *terms, norm = self.mean.tolist()
        for (name, weight), term in zip(weights.items(), terms):
            row[name], row[f"{name}_weight"] = term, weight
        row["gradient_norm"] = norm
        row["tokens_per_s"] = self.tokens / max(elapsed, 1e-9)
        speed = f"{row['tokens_per_s']:,.0f} tokens/s, loss {row['loss']:.2f}"
        self._show(lambda: self.bar.set_postfix_str(speed))
        self.mean, self.steps, self.tokens, self.since = None, 0, 0, time.monotonic()
        self._write(row)

    def evaluation(
        self,
        step: int,
        epoch: int,
        numbers: dict[str, float],
        weights: dict[str, float],
        gained: bool,
        elapsed_s: float,
    ) -> None:
        """Prints the line of an evaluation, writes its row, and warns once if the posterior has collapsed."""
        if not self.main:
            return
        terms = {f"{name}_weight": weight for name, weight in weights.items()}
        self._write({"step": step, "epoch": epoch, "part": "validation", **numbers, **terms, "elapsed_s": elapsed_s})
        if not self.quiet:
            self._print(self._line(step, numbers, weights, gained, elapsed_s))
        latent_dim = self.recipe.model.latent_dim
        collapsed = numbers["kl"] < COLLAPSED_KL or numbers["active_units"] == 0
        if not (latent_dim and collapsed and self._at_top(step, weights)):
            self.collapsed = None
        else:
            before, self.collapsed = self.collapsed, collapse_warning(self.recipe, numbers)
            if before is not None:  # the first evaluation may be of a model that has hardly begun
                self._warn()
        # The time of an evaluation is not the training's.
        self.since, self.tokens = time.monotonic(), 0

    def _warn(self) -> None:
        """Says, once, that the posterior has collapsed, if the last evaluation found that."""
        if self.collapsed is not None and not self.warned:
            self.warned = True
            self._print(self.collapsed)

    def _line(
        self, step: int, numbers: dict[str, float], weights: dict[str, float], gained: bool, elapsed_s: float
    ) -> str:
        per_epoch = self.experiment.horizon.steps_per_epoch
        place = f"epoch {step / per_epoch:5.1f}" if per_epoch else "stream"
        parts = [f"{place}  step {step:>7,}  rec {numbers['reconstruction']:6.2f}"]
        if self.recipe.model.latent_dim:
            shown = "  ".join(f"{name} x {weight:.3g}" for name, weight in weights.items())
            information = round(numbers["mutual_information"], 2) + 0.0  # an estimate: -0.00 is 0
            parts.append(
                f"KL {numbers['kl']:6.2f}  {shown}  MI {information:5.2f}  "
                f"AU {numbers['active_units']:.0f}/{self.recipe.model.latent_dim}"
            )
        parts += [f"{key.replace('_', ' ')} {numbers[key]:.3g}" for key in numbers if key.endswith("_lipschitz")]
        parts.append(f"-ELBO {numbers['nll_elbo']:6.2f}  PPL {numbers['ppl_elbo']:7.2f}  {elapsed_s / 60:5.1f} min")
        return "  ".join(parts) + (" *" if gained else "")

    def _at_top(self, step: int, weights: dict[str, float]) -> bool:
        """Whether no term's weight will rise any more above what it is."""
        total = self.experiment.horizon.total_steps or 10 * max(step, 1)
        # A training cut short has not reached the top of a schedule that is longer than itself.
        later = [*range(0, total, max(1, total // 500)), FAR]
        schedules = self.experiment.objective.schedules
        if self.experiment.objective.controllers and step < total:
            return False  # a controller still lowers what it has raised
        return all(weight >= 0.999 * max(schedules[name](s) for s in later) for name, weight in weights.items())

    def note(self, text: str) -> None:
        """Prints a line."""
        if not self.quiet:
            self._print(text)

    def keep_batch(self, step: int, work: Step) -> Path:
        """Writes this process's sentences of a step into the run folder, a JSON object each; returns the file."""
        rank = f"-process-{self.accelerator.process_index}" if self.accelerator.num_processes > 1 else ""
        path = self.folder / f"bad-batch-step-{step}{rank}.jsonl"
        kind = self.recipe.tokenizer.kind
        # Words are a help here, no more: a class of the user's own is not loaded for them.
        decode = None if "." in kind else tokenizers.load(str(self.folder / checkpoint.TOKENIZER), kind=kind).decode
        lines = []
        for piece in work.pieces:
            for tokens, length, row in zip(piece.batch.tokens, piece.batch.lengths, piece.rows):
                ids = tokens[: int(length) + 1].tolist()
                text = {"text": decode([ids[1:]])[0]} if decode else {}
                lines.append(json.dumps({"row": int(row), **text, "tokens": ids}, ensure_ascii=False) + "\n")
        checkpoint.write_text(path, "".join(lines))
        return path

    def finish(self, best: float | None, best_step: int, skipped: int = 0) -> None:
        """Says what came out, and draws the curves."""
        if not self.main:
            return
        from textvae.plots import curves

        self._warn()
        curves(self.folder)
        if skipped:
            self._print(f"warning: {skipped:,} steps were left out, for their gradients were not finite")
        if best is None:
            self._print(f"warning: no evaluation gave a finite loss; no weights were kept in {self.folder}")
            return
        self.note(
            f"done: best {self.recipe.training.monitor} {best:.3f} on validation, at step {best_step:,}; "
            f"run folder {self.folder}"
        )

    def close(self) -> None:
        """Ends the bar and the trackers."""
        self._show(self.bar.close)
        if self.recipe.training.trackers:
            self.accelerator.end_training()

    def _print(self, text: str) -> None:
        self._show(lambda: tqdm.write(text, file=sys.stderr))

    def _show(self, action: Callable[[], object]) -> None:
        """Shows something; where nobody reads any more (a closed pipe, a terminal gone), the training goes on."""
        try:
            action()
        except OSError:
            self.bar.disable = True

    def _write(self, row: dict[str, Any]) -> None:
        # JSON has no nan and no infinity; null says as well that there is no such figure.
        row = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise TrainingError(f"{self.path}: cannot be written ({error.strerror}); go on with --resume") from error
        if self.recipe.training.trackers:
            part = row["part"]
            values = {f"{part}/{k}": v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
            self.accelerator.log(values, step=row["step"])

    def _forget_rows_after(self, step: int, evaluated: int) -> None:
        """A resumed run does again what was done after its checkpoint; so that no row stands twice.

        A run that begins has the file from here on, without a row.
        """
        # Killed after its last evaluation and before it was saved, a run evaluates the same step again.
        kept = [
            row for row in metrics(self.folder) if row["step"] <= (evaluated if row["part"] == "validation" else step)
        ]
        checkpoint.write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))


def collapse_warning(recipe: Recipe, numbers: dict[str, float]) -> str:
    """Returns the warning of a collapsed posterior, with the recipe keys that help and are not yet used."""
    units = f"{numbers['active_units']:.0f} active units"
    if not any(term.weight != 0.0 for term in recipe.objective.terms.values()):
        return (
            f"warning: z says nothing of the sentence yet ({units}), though nothing holds it to a prior: every "
            "reconstruction will be much the same. Train longer, or with a higher training.optimizer.lr"
        )
    term = next((name for name, term in recipe.objective.terms.items() if term.kind == "kl"), "kl")
    options = recipe.objective.terms[term].as_dict() if term in recipe.objective.terms else {}
    advice = []
    if not options.get("free_nats"):
        advice.append(f"objective.{term}.free_nats: 8 (free bits)")
    advice.append(f"objective.{term}.weight: {{kind: cyclical}}, or a smaller weight such as 0.5")
    if recipe.model.word_dropout < 0.25:
        advice.append("model.word_dropout: 0.4")
    advice.append(f"objective.mmd: {{kind: mmd, weight: 10}} instead of objective.{term}")
    rate = f"KL {numbers['kl']:.3f} nats, " if math.isfinite(numbers["kl"]) else ""  # a point has none
    return (
        f"warning: the posterior has collapsed ({rate}{units}): the decoder ignores z, and every sample will be much "
        "the same. What helps: " + "; ".join(advice)
    )
