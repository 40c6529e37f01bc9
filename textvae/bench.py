"""What each form of a run gives on this machine: sentences a second, and for int8 what it costs in quality."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textvae.api import TextVAE
from textvae.errors import MissingExtraError, UserError
from textvae.evaluation import bounds
from textvae.evaluation.part import BY_CHARACTER, spaced
from textvae.evaluation.text import bleu
from textvae.export import export, load, onnx_format
from textvae.generation import given
from textvae.latent.posteriors import BatchNormPosterior, DeltaPosterior, GaussianPosterior

PLAIN = "pytorch"
NAMES = {"torch": "torch.export", "onnx": "onnx", "int8": "onnx int8"}
GAUSSIAN = (GaussianPosterior, BatchNormPosterior, DeltaPosterior)  # posteriors that an export has whole


def bench(
    vae: TextVAE, texts: Sequence[str], *, rounds: int = 5, batch: int | None = None, folder: Path | None = None
) -> list[dict[str, Any]]:
    """Returns what plain PyTorch, torch.export, ONNX and ONNX int8 give on this machine, one row each.

    Encoding is from texts to posterior means, decoding from those means to texts, greedily, each as a user calls it:
    tokenizing counts. The sides take turns, after one round that is not counted; all have as many threads as torch.

    Args:
        vae: a run on the CPU.
        texts: sentences, all of them worked through in a round.
        rounds: counted ones.
        batch: sentences handed over at once; all where absent.
        folder: where the exports are written; one that is removed again where absent.

    Returns:
        Rows: side; sentences, rounds, threads; encode and decode, the median of sentences a second, with _lowest and
        _highest over the rounds, _ratio (the median over rounds of this side's rate over plain PyTorch's in the same
        round); bleu of reconstructions against the texts, and ppl_elbo (one draw of z a sentence, the same for all
        sides; None for torch.export, whose numbers are PyTorch's, and where a likelihood is not to be had).

    Raises:
        UserError: no text, or a model that cannot be exported.
    """
    texts, rounds = given.texts(texts), given.count(rounds, "rounds", 1)
    batch = None if batch is None else given.count(batch, "batch", 1)
    if not texts:
        raise UserError("texts: got none to measure with; 1 or more are needed")
    if vae.device.type != "cpu":
        raise UserError("bench: exports run on the CPU, and the run is elsewhere; leave --device out")
    with tempfile.TemporaryDirectory() as temporary:
        sides = _sides(vae, folder or Path(temporary))
        z = vae.encode(texts)
        rates = _rates(sides, texts, z, rounds, batch or len(texts))
    common = {"sentences": len(texts), "rounds": rounds, "threads": torch.get_num_threads()}
    rows = []
    for name, side in sides.items():
        row: dict[str, Any] = {"side": name, **common}
        for what in ("encode", "decode"):
            own, plain = rates[name, what], rates[PLAIN, what]
            row[what] = statistics.median(own)
            row[f"{what}_lowest"], row[f"{what}_highest"] = min(own), max(own)
            row[f"{what}_ratio"] = statistics.median(a / b for a, b in zip(own, plain))
        rows.append({**row, **quality(vae, side, texts)})
    return rows


def quality(vae: TextVAE, side: TextVAE, texts: Sequence[str], *, seed: int = 0) -> dict[str, float | None]:
    """Returns bleu (0 to 100) of a side's reconstructions and its ppl_elbo, a token, </s> counted.

    Args:
        vae: the run; gives the prior, for an export holds none.
        side: the run itself or an export of it.
        texts: the references.
        seed: of the one draw of z a sentence; the same noise for all sides.
    """
    kind = str(vae.recipe.tokenizer.kind)
    by = "none" if kind in ("word", *BY_CHARACTER) else "13a"
    found: dict[str, float | None] = {
        "bleu": bleu(spaced(side.reconstruct(texts), kind), spaced(list(texts), kind), tokenize=by),
        "ppl_elbo": None,
    }
    if isinstance(vae.model.posterior, GAUSSIAN):
        before, side.model.prior = side.model.prior, vae.model.prior
        try:
            rows = side.score(texts, seed=seed)
        finally:
            side.model.prior = before
        found["ppl_elbo"] = bounds.perplexity(sum(row["nll_elbo"] for row in rows), sum(row["tokens"] for row in rows))
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns rows of `bench` as text for a terminal."""
    first = rows[0]
    lines = [
        f"{first['sentences']:,} sentences, {first['rounds']} rounds by turns, {first['threads']} thread(s); "
        "sentences a second: median (lowest to highest), ratio to plain PyTorch",
        "",
        f"{'':<14}{'encode':<38}{'decode, greedy':<38}{'BLEU':>7}{'PPL':>10}",
    ]
    for row in rows:
        cells = [
            f"{row[what]:>8,.0f} ({row[f'{what}_lowest']:,.0f} to {row[f'{what}_highest']:,.0f})".ljust(30)
            + f"{row[f'{what}_ratio']:.2f}x".ljust(8)
            for what in ("encode", "decode")
        ]
        perplexity = "-" if row["ppl_elbo"] is None else f"{row['ppl_elbo']:.4f}"
        lines.append(f"{row['side']:<14}{cells[0]}{cells[1]}{row['bleu']:>7.2f}{perplexity:>10}")
    return "\n".join(lines) + "\n"


def _sides(vae: TextVAE, folder: Path) -> dict[str, TextVAE]:
    """Plain PyTorch, and every form that this machine can make; what cannot be made is said on standard error."""
    sides: dict[str, TextVAE] = {PLAIN: vae}
    traced = None
    for form, name in NAMES.items():
        try:
            if form != "torch" and traced is None:
                traced = onnx_format.traced(vae.model, vae.tokenizer)
            export(vae, folder / form, format=form, traced=traced)
            sides[name] = load(folder / form, trust_code=True)
        except MissingExtraError as error:
            print(f"textvae: {name} is left out: {error}", file=sys.stderr)
        except UserError as error:
            if form != "torch":
                raise
            print(f"textvae: {name} is left out: {error}", file=sys.stderr)
    return sides


def _rates(
    sides: dict[str, TextVAE], texts: Sequence[str], z: Tensor, rounds: int, batch: int
) -> dict[tuple[str, str], list[float]]:
    """Sentences a second of each side and direction, round by round."""
    parts, latents = [texts[i : i + batch] for i in range(0, len(texts), batch)], z.split(batch)

    def encode(side: TextVAE) -> None:
        for part in parts:
            side.encode(part)

    def decode(side: TextVAE) -> None:
        for part in latents:
            side.decode(part, method="greedy")

    work: dict[str, Callable[[TextVAE], None]] = {"encode": encode, "decode": decode}
    rates: dict[tuple[str, str], list[float]] = {(name, what): [] for name in sides for what in work}
    names = list(sides)
    for number in range(rounds + 1):
        # Another side goes first each time: what the machine does besides hits each alike.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            for what, act in work.items():
                begin = time.perf_counter()
                act(sides[name])
                if number:
                    rates[name, what].append(len(texts) / (time.perf_counter() - begin))
    return rates
