"""Runs side by side on the same sentences, with the differences that are beyond chance marked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from textvae.errors import UserError, suggest
from textvae.evaluation import bounds


class Row(NamedTuple):
    """One run beside the baseline; differences are of means over sentences, run less baseline."""

    name: str
    sentences: int
    mean: float  # nats a sequence
    perplexity: float | None  # None without token counts
    difference: float | None  # nats a sequence, below 0 where the run is better; None for the baseline
    low: float | None  # of the interval
    high: float | None
    beyond_noise: bool | None  # whether the interval leaves out 0


def compare(
    results: Mapping[str, Sequence[float] | Tensor],
    *,
    tokens: Mapping[str, Sequence[int] | Tensor] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    baseline: str | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    generator: torch.Generator | None = None,
) -> list[Row]:
    """Compares runs by a paired bootstrap over sentences.

    Sentences are drawn with replacement, the same for all runs; the interval is the percentiles of the difference
    of means. It speaks of the chance by which the test sentences were drawn: not of the spread between trainings
    (seeds), and not of the bias of a bound. Each run is held against the baseline alone, with no correction for
    several comparisons: of 20 equal runs one is marked by chance.

    Args:
        results: run -> (N,) NLL in nats a sequence, row i of the same sentence in each. All by the same estimator.
        tokens: run -> (N,) target tokens, for the perplexity; runs of different tokenizers differ there.
        fingerprints: run -> `fingerprint` of its sentences, to make sure that they are the same.
        baseline: the run that the others are held against; the first where absent.
        level: of the interval.
        resamples: of the bootstrap.
        generator: of the bootstrap, on the CPU.

    Returns:
        A row a run, in the given order.

    Raises:
        UserError: no run, an unknown baseline, other numbers of sentences, fewer than 2, values that are not
            finite, or other sentences.

    References:
        Koehn 2004 (EMNLP, "Statistical significance tests for machine translation evaluation").
    """
    values = _checked(results, fingerprints)
    names = list(results)
    baseline = names[0] if baseline is None else baseline
    if baseline not in results:
        raise UserError(f"baseline: got {baseline!r}{suggest(baseline, names)}")
    if not 0 < level < 1:
        raise UserError(f"level: got {level}; it must lie between 0 and 1")
    differences = values - values[:, names.index(baseline), None]  # (N, K)
    # Of the differences, not of two means: what sentences have in common cancels exactly.
    means = bounds.bootstrap_means(differences, resamples, generator)
    ends = torch.quantile(means, torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=means.dtype), dim=0)
    rows = []
    for column, name in enumerate(names):
        nats, perplexity = values[:, column], None
        if tokens is not None and name in tokens:
            counts = torch.as_tensor(tokens[name])
            if counts.shape != nats.shape:
                raise UserError(f"{name}: has token counts of {len(counts)} sentences and NLLs of {len(nats)}")
            perplexity = bounds.perplexity(float(nats.sum()), int(counts.sum()))
        row = Row(name, len(nats), float(nats.mean()), perplexity, None, None, None, None)
        if name != baseline:
            low, high = float(ends[0, column]), float(ends[1, column])
            beyond = low > 0 or high < 0
            row = row._replace(difference=float(differences[:, column].mean()), low=low, high=high, beyond_noise=beyond)
        rows.append(row)
    return rows


def fingerprint(texts: Iterable[str]) -> str:
    """Returns 16 hexadecimal digits that stand for these texts in this order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def table(rows: Sequence[Row], *, markdown: bool = False, level: float = 0.95) -> str:
    """Returns the rows as text in columns or as a Markdown table; a star marks a difference beyond noise.

    Args:
        rows: from `compare`.
        markdown: a Markdown table.
        level: that the rows were made with, for the heading.
    """
    head = ["run", "sentences", "NLL (nats)", "perplexity", "difference", f"{100 * level:g} % interval", ""]
    cells = [head, *(_cells(row) for row in rows)]
    if markdown:
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
        lines.insert(1, "|---|" + "---:|" * 5 + "---|")
        return "\n".join(lines) + "\n"
    widths = [max(map(len, column)) for column in zip(*cells)]
    aligned = (
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1])), line[-1]]
        for line in cells
    )
    return "".join("  ".join(line).rstrip() + "\n" for line in aligned)


def _cells(row: Row) -> list[str]:
    perplexity = "" if row.perplexity is None else f"{row.perplexity:,.2f}"
    start = [row.name, f"{row.sentences:,}", f"{row.mean:.3f}", perplexity]
    if row.difference is None:
        return [*start, "", "", "baseline"]
    mark = "*" if row.beyond_noise else "within noise"
    return [*start, f"{row.difference:+.3f}", f"{row.low:+.3f} .. {row.high:+.3f}", mark]


def _checked(results: Mapping[str, Sequence[float] | Tensor], fingerprints: Mapping[str, str] | None) -> Tensor:
    """(N, K) float64 on the CPU."""
    if not results:
        raise UserError("there is no run to compare")
    columns = {name: torch.as_tensor(values, dtype=torch.float64).cpu() for name, values in results.items()}
    first, reference = next(iter(columns.items()))
    for name, column in columns.items():
        if column.dim() != 1 or len(column) < 2:
            raise UserError(f"{name}: got NLLs of shape {tuple(column.shape)}; (N,) with N at least 2 is needed")
        if len(column) != len(reference):
            raise UserError(
                f"{name}: has {len(column)} sentences and {first} {len(reference)}; runs are compared on the same ones"
            )
        finite = column.isfinite()
        if not bool(finite.all()):
            place = int((~finite).nonzero()[0])
            raise UserError(f"{name}: the NLL of sentence {place} is {float(column[place])}, not a finite number")
    marks = {name: fingerprints[name] for name in results if name in fingerprints} if fingerprints else {}
    if len(set(marks.values())) > 1:
        listed = ", ".join(f"{name} {mark}" for name, mark in marks.items())
        raise UserError(f"the runs were evaluated on different sentences (fingerprints: {listed})")
    return torch.stack(list(columns.values()), 1)
