"""Runs side by side on the same sentences, with the differences that are beyond chance marked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from textvae.errors import UserError, suggest
from textvae.evaluation import bounds, estimators, intervals

BOUNDS = ("elbo", "iw")
LIKELIHOODS = ("reconstruction", "nll_elbo", "nll_iw")
PERPLEXITIES = {"ppl_elbo": "nll_elbo", "ppl_iw": "nll_iw"}  # of the same tokens, functions of the mean
# Functions of the mean whatever the tokens: words and characters are the corpus's own.
OF_THE_TEXT = {f"{name}_{bound}": f"nll_{bound}" for name in ("ppl_word", "bits_per_character") for bound in BOUNDS}
NO_FIGURES = ("settings", "per_sentence", "dropped", "count", "reference_sentences", "train_sentences")
BESIDE = ("_ceiling", "_expected", "_reference", "_standard_error", "_spread")  # what a figure is read by, not one
COUNTS = ("sentences", "target_tokens", "iw_samples", "unknown_tokens", "mutual_information_ceiling", "iw_ess_low")


class Row(NamedTuple):
    """One run beside the baseline; differences are of means over sentences, run less baseline."""

    name: str
    sentences: int
    mean: float  # of the figure; an NLL in nats a sequence
    perplexity: float | None  # of an NLL; None without token counts
    difference: float | None  # of the means, of an NLL below 0 where the run is better; None for the baseline
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
    means = intervals.bootstrap_means(differences, resamples, generator)
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


def same_measure(saved: Mapping[str, Mapping[str, Any]], figure: str) -> None:
    """Raises UserError where saved evaluations give a likelihood by different measures, which no test would tell.

    Args:
        saved: run -> its figures.
        figure: what is compared.
    """
    if figure not in LIKELIHOODS:
        return
    shares = {run: result.get("unknown_tokens") for run, result in saved.items()}
    unknown = {run: float(share) for run, share in shares.items() if isinstance(share, (int, float))}
    if len({round(share, 9) for share in unknown.values()}) > 1:
        listed = ", ".join(f"{run} {share:.4f}" for run, share in unknown.items())
        raise UserError(
            f"the runs know different words, and a word that is unknown costs little: unknown_tokens {listed}"
        )
    # A language model's is exact: it has no samples.
    samples = {run: result.get("iw_samples") for run, result in saved.items()}
    samples = {run: count for run, count in samples.items() if count and isinstance(count, int)}
    if figure == "nll_iw" and len(set(samples.values())) > 1:
        listed = ", ".join(f"{run} {count}" for run, count in samples.items())
        raise UserError(
            f"nll_iw falls with its samples, and the runs have different ones: {listed}; evaluate them with the same "
            "evaluation.iw_samples"
        )


def fingerprint(texts: Iterable[str]) -> str:
    """Returns 16 hexadecimal digits that stand for these texts in this order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def side_by_side(
    saved: Mapping[str, Mapping[str, Any]], *, level: float = 0.95, generator: torch.Generator | None = None
) -> list[dict[str, Any]]:
    """Returns the figures of saved evaluations, a row a figure: its key path, and each run's value.

    Args:
        saved: run -> the figures of `TextVAE.evaluate(whole=True)`, of the same sentences.
        level: of the intervals by which a difference from the first run is marked.
        generator: of the bootstrap, on the CPU.

    Returns:
        {"figure": name, "values": run -> number or None, "beyond_noise": the runs whose difference from the first is
        beyond noise}; the last is known of means over sentences and of the perplexities they give, and None of others.
    """
    flat = {run: dict(_figures(result)) for run, result in saved.items()}
    names = dict.fromkeys(name for figures in flat.values() for name in figures)
    rows: list[dict[str, Any]] = []
    for name in names:
        values = {run: figures.get(name) for run, figures in flat.items()}
        by = (PERPLEXITIES | OF_THE_TEXT).get(name, name)
        told = None not in values.values() and not (name in PERPLEXITIES and _tokens_differ(saved))
        beyond = _beyond_noise(saved, by, level, generator) if told else None
        rows.append({"figure": name, "values": values, "beyond_noise": beyond})
    return rows


def _figures(result: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, int | float]]:
    """The figures of an evaluation by key path; what it was made by, counts, ceilings and errors are left out."""
    for name, value in result.items():
        if name in (*NO_FIGURES, *COUNTS) or name.endswith(BESIDE):
            continue
        if isinstance(value, Mapping):
            yield from _figures(value, f"{path}{name}.")
        elif type(value) in (int, float) and name not in estimators.PLAIN:
            yield f"{path}{name}", value


def _tokens_differ(saved: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a token means another thing in one of the runs, so that perplexities a token do not compare."""
    first, *others = (list(result["per_sentence"].get("tokens") or []) for result in saved.values())
    return any(tokens != first for tokens in others)


def _beyond_noise(
    saved: Mapping[str, Mapping[str, Any]], figure: str, level: float, generator: torch.Generator | None
) -> list[str] | None:
    """The runs whose mean differs from the first's beyond noise; None where nothing says so of this figure."""
    columns = {run: result["per_sentence"].get(figure) for run, result in saved.items()}
    if not all(columns.values()) or len(saved) < 2:
        return None
    try:
        same_measure(saved, figure)
    except UserError:  # by other words or samples: no noise explains the difference, and no run is the better for it
        return None
    return [row.name for row in compare(columns, level=level, generator=generator) if row.beyond_noise]


def side_by_side_table(rows: Sequence[Mapping[str, Any]], *, markdown: bool = False) -> str:
    """Returns the rows of `side_by_side` as text in columns or as a Markdown table.

    A star marks a difference from the first run that is beyond noise; "?" a figure whose noise is not known.
    """
    cells = [["figure", *rows[0]["values"]]] if rows else [["figure"]]
    for row in rows:
        line = [str(row["figure"])]
        for place, (run, value) in enumerate(row["values"].items()):
            known = row["beyond_noise"]
            mark = "" if not place else " ?" if known is None else " *" if run in known else "" if markdown else "  "
            shown = "-" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
            line.append(shown + mark)
        cells.append(line)
    legend = "* beyond noise of the first run's; ? a figure whose noise is not known\n"
    return (
        _aligned(cells, markdown=markdown) + ("\n" if markdown else "") + legend.replace("*", "\\*" * markdown or "*")
    )


def table(rows: Sequence[Row], *, figure: str = "nll_iw", markdown: bool = False, level: float = 0.95) -> str:
    """Returns the rows as text in columns or as a Markdown table; a star marks a difference beyond noise.

    Args:
        rows: from `compare`.
        figure: what was compared.
        markdown: a Markdown table.
        level: that the rows were made with, for the heading.
    """
    name = f"{figure} (nats)"
    head = ["run", "sentences", name, "perplexity", "difference", f"{100 * level:g} % interval", ""]
    cells = [head, *(_cells(row) for row in rows)]
    if not any(row.perplexity is not None for row in rows):
        cells = [[*line[:3], *line[4:]] for line in cells]
    return _aligned(cells, markdown=markdown)


def _aligned(cells: Sequence[Sequence[str]], *, markdown: bool) -> str:
    if markdown:
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
        last = "---|" if not cells[0][-1] else "---:|"
        lines.insert(1, "|---|" + "---:|" * (len(cells[0]) - 2) + last)
        return "\n".join(lines) + "\n"
    widths = [max(map(len, column)) for column in zip(*cells)]
    aligned = (
        [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1])),
            line[-1].rjust(widths[-1]) if cells[0][-1] else line[-1],
        ]
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
        raise UserError(
            f"the runs were evaluated on different sentences (fingerprints: {listed}): other files, another "
            "data.limit, or a data.max_length that cuts, which each tokenizer counts in its own tokens"
        )
    return torch.stack(list(columns.values()), 1)
