"""A result as a Markdown table and as one HTML page with its pictures: no network, no script."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from textvae import plots
from textvae.checkpoint import write_text
from textvae.evaluation.estimators import ESTIMATORS, OF_A_LANGUAGE_MODEL
from textvae.folders import metrics

SHOWN_TEXTS = 50
HEAD = ["figure", "value", "error or interval", "ceiling or reference", "estimator"]
LISTS = ("kl_by_dimension", "marginal_kl_by_dimension", "perplexity_along")
# Endings of keys that say something of the figure before them.
NOTES = ("standard_error", "spread", "interval", "ceiling", "expected", "floor", "reference", "estimator")
STYLE = """
:root{color-scheme:light}body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;
color:#1c1e21;background:#fff}h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;
border-bottom:1px solid #ddd}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.e{color:#555}.scroll{overflow-x:auto}img{max-width:100%;height:auto;display:block;margin:.5rem 0}
.text{white-space:pre-wrap;overflow-wrap:anywhere;min-width:20rem}.empty{color:#777;font-style:italic}
"""


class Figure(NamedTuple):
    """One number with what has to be known of it."""

    name: str  # dotted path
    value: Any
    interval: str  # error or interval
    reference: str  # ceiling, expected value or floor
    estimator: str


def figures(result: Mapping[str, Any]) -> list[Figure]:
    """Returns the numbers of a result, nested or flat, in its order.

    A key's companions NAME_standard_error, NAME_spread, NAME_interval, NAME_ceiling, NAME_expected, NAME_floor,
    NAME_reference and NAME_estimator (or, where NAME is a dict with "value", its entries of these names) stand beside
    the figure.

    Args:
        result: names -> numbers, None, strings, or dicts of these; lists are pictures and texts, not numbers.
    """
    found: list[Figure] = []
    language_model = result.get("iw_samples") == 0 and result.get("iw_ess") == 0
    _collect(result, "", found, {**ESTIMATORS, **OF_A_LANGUAGE_MODEL} if language_model else ESTIMATORS)
    return found


def markdown(result: Mapping[str, Any], *, title: str = "Evaluation") -> str:
    """Returns the numbers of a result as Markdown tables: the figures with their estimators, then tables and lists."""
    lines = [[f.name, _number(f.value), f.interval, f.reference, f.estimator] for f in figures(result)]
    text = f"# {_cell(title)}\n\n" + _lines(HEAD, lines, "|---|---:|---|---|---|")
    for name, records in _records(result, ""):
        keys = list(dict.fromkeys(key for record in records for key in record))
        lines = [[_number(record.get(key)) for key in keys] for record in records]
        text += f"\n## {_cell(name)}\n\n" + _lines(keys, lines, "|" + "---:|" * len(keys))
    lists = {name: _finite(_of(result, name)) for name in LISTS}
    lines = [[name, " ".join(map(_number, values))] for name, values in lists.items() if values]
    if lines:
        text += "\n## Lists\n\n" + _lines(["figure", "values"], lines, "|---|---|")
    return text


def _lines(head: Sequence[str], lines: Sequence[Sequence[str]], rule: str) -> str:
    rows = ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in [head, *lines]]
    return "\n".join([rows[0], rule, *rows[1:]]) + "\n"


def html(
    result: Mapping[str, Any],
    *,
    title: str = "Evaluation",
    metrics: Sequence[Mapping[str, Any]] = (),
    samples: Sequence[str] = (),
    reconstructions: Sequence[tuple[str, str]] = (),
) -> str:
    """Returns one HTML page: the numbers, pictures (SVG in the page), and texts.

    Args:
        result: nested or flat, see `figures`. `kl_by_dimension` and `marginal_kl_by_dimension` become bars,
            `per_sentence` (kl, nll_elbo, nll_iw, ..: lists) histograms, lists of dicts tables.
        title: of the page.
        metrics: the rows of a run's metrics file, for the curves.
        samples: texts drawn from the prior; the result's own list of that name where absent.
        reconstructions: (text, its reconstruction) pairs; the result's own where absent.
    """
    samples = samples or [text for text in _of(result, "samples") if isinstance(text, str)]
    reconstructions = reconstructions or [
        (pair[0], pair[1])
        for pair in _of(result, "reconstructions")
        if isinstance(pair, (list, tuple)) and len(pair) == 2
    ]
    rows = [
        f'<tr><th scope="row">{escape(f.name)}</th><td class="n">{escape(_number(f.value))}</td>'
        f"<td>{escape(f.interval)}</td><td>{escape(f.reference)}</td><td class='e'>{escape(f.estimator)}</td></tr>"
        for f in figures(result)
    ]
    parts = [f"<h1>{escape(title)}</h1>", "<h2>Numbers</h2>", _table(HEAD, rows)]
    for heading, alt, draw in _pictures(result, metrics):
        parts += [f"<h2>{escape(heading)}</h2>", _image(draw, alt)]
    for name, records in _records(result, ""):
        keys = list(dict.fromkeys(key for record in records for key in record))
        lines = [
            "<tr>" + "".join(f'<td class="n">{escape(_number(record.get(key)))}</td>' for key in keys) + "</tr>"
            for record in records
        ]
        parts += [f"<h2>{escape(name.replace('_', ' '))}</h2>", _table(keys, lines)]
    if samples:
        lines = [f"<tr>{_text(text)}</tr>" for text in samples[:SHOWN_TEXTS]]
        parts += ["<h2>Samples from the prior</h2>", _table(["text"], lines)]
    if reconstructions:
        lines = [f"<tr>{_text(text)}{_text(back)}</tr>" for text, back in reconstructions[:SHOWN_TEXTS]]
        parts += ["<h2>Reconstructions</h2>", _table(["text", "reconstruction"], lines)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def write(
    result: Mapping[str, Any],
    folder: Path,
    *,
    title: str | None = None,
    samples: Sequence[str] = (),
    reconstructions: Sequence[tuple[str, str]] = (),
) -> tuple[Path, Path]:
    """Writes evaluation-SPLIT.html and .md into a run folder and returns their paths; arguments: see `html`.

    The curves are drawn where the folder holds a metrics file; a line that was cut short is left out.
    """
    split = result.get("split", "test")
    title = title or f"Evaluation of {folder.resolve().name} on its {split} part"
    page = html(result, title=title, metrics=metrics(folder), samples=samples, reconstructions=reconstructions)
    paths = folder / f"evaluation-{split}.html", folder / f"evaluation-{split}.md"
    for path, text in zip(paths, (page, markdown(result, title=title))):
        write_text(path, text)
    return paths


def _collect(result: Mapping[str, Any], above: str, found: list[Figure], estimators: Mapping[str, str]) -> None:
    for key, value in result.items():
        name = f"{above}{key}"
        owner = next((key.removesuffix(f"_{note}") for note in NOTES if key.endswith(f"_{note}")), None)
        if (owner in result and owner != key) or key == "per_sentence":
            continue
        if isinstance(value, Mapping) and "value" not in value:
            _collect(value, f"{name}.", found, estimators)
        elif isinstance(value, Mapping):
            found.append(_figure(name, value["value"], value, estimators.get(name, estimators.get(key, ""))))
        elif value is None or isinstance(value, (bool, int, float, str)):
            notes = {note: result.get(f"{key}_{note}") for note in NOTES}
            found.append(_figure(name, value, notes, estimators.get(name, estimators.get(key, ""))))


def _figure(name: str, value: Any, notes: Mapping[str, Any], estimator: str) -> Figure:
    interval = notes.get("interval")
    error = notes.get("standard_error")
    spread = "" if error is None else f"± {_number(error)} (standard error)"
    if notes.get("spread") is not None:
        spread = f"± {_number(notes['spread'])} (standard deviation over draws)"
    if isinstance(interval, (list, tuple)) and len(interval) == 2:
        spread = f"{_number(interval[0])} to {_number(interval[1])}"
    known = [(note, notes.get(note)) for note in ("ceiling", "expected", "floor", "reference")]
    labels = {"ceiling": "at most", "expected": "expected at q = p", "floor": "floor", "reference": "real text"}
    reference = "; ".join(f"{labels[note]} {_number(found)}" for note, found in known if found is not None)
    return Figure(name, value, spread, reference, str(notes.get("estimator") or estimator))


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "—"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isinf(value):
        return "infinite" if value > 0 else "−infinite"
    size = abs(value)
    return f"{value:,.2f}" if size >= 10 else f"{value:.3f}" if size >= 1 else f"{value:.4g}"


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _text(text: str) -> str:
    return f'<td class="text">{escape(text)}</td>' if text.strip() else '<td class="empty">(empty)</td>'


def _of(result: Mapping[str, Any], key: str) -> list[Any]:
    """The list of that name, wherever in the result."""
    for name, value in result.items():
        if name == key and isinstance(value, (list, tuple)):
            return list(value)
        if isinstance(value, Mapping) and (found := _of(value, key)):
            return found
    return []


def _records(result: Mapping[str, Any], above: str) -> list[tuple[str, list[Mapping[str, Any]]]]:
    found: list[tuple[str, list[Mapping[str, Any]]]] = []
    for key, value in result.items():
        if isinstance(value, Mapping):
            found += _records(value, f"{above}{key}.")
        elif isinstance(value, (list, tuple)) and value and all(isinstance(row, Mapping) for row in value):
            found.append((f"{above}{key}", list(value)))
    return found


def _pictures(
    result: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, Callable[[Any], None]]]:
    """(heading, text instead, figure -> None) of what the result has."""
    found: list[tuple[str, str, Callable[[Any], None]]] = []
    for key, heading in (
        ("kl_by_dimension", "KL by dimension, E KL(q(z_d|x) ‖ p(z_d))"),
        ("marginal_kl_by_dimension", "KL of the aggregate by dimension, KL(q(z_d) ‖ p(z_d))"),
    ):
        if values := _finite(_of(result, key)):
            alt = f"Bars of {len(values)} dimensions; {sum(v > 0.01 for v in values)} above 0.01 nats"
            found.append((heading, alt, lambda figure, values=values: _bars(figure, values)))  # type: ignore[misc]
    histograms = {name: _finite(values) for name, values in _per_sentence(result).items()}
    histograms = {name: values for name, values in histograms.items() if values and name != "tokens"}
    if histograms:
        alt = "Histograms over sentences: " + ", ".join(histograms)
        found.append(
            ("Sentence by sentence (the line is the mean)", alt, lambda figure: _histograms(figure, histograms))
        )
    if len(along := _finite(_of(result, "perplexity_along"))) > 1:
        alt = f"Perplexity at {len(along)} places of the paths: {', '.join(map(_number, along))}"
        found.append(("Perplexity along the paths", alt, lambda figure: _along(figure, along)))
    if any("step" in row and "part" in row for row in metrics):
        found.append(("The run", "Curves of the training", lambda figure: plots.draw(figure, metrics)))
    return found


def _per_sentence(result: Mapping[str, Any]) -> dict[str, list[Any]]:
    for name, value in result.items():
        if isinstance(value, Mapping):
            lists = {key: list(v) for key, v in value.items() if isinstance(v, (list, tuple))}
            found = lists if name == "per_sentence" else _per_sentence(value)
            if found:
                return found
    return {}


def _finite(values: Sequence[Any]) -> list[float]:
    return [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]


def _image(draw: Callable[[Any], None], alt: str) -> str:
    # The object interface, not pyplot: no window system and no global state.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(9, 3.4), layout="constrained")
    FigureCanvasSVG(figure)
    draw(figure)
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _bars(figure: Any, values: list[float]) -> None:
    order = sorted(range(len(values)), key=lambda d: -values[d])
    axis = figure.subplots()
    axis.bar(range(len(values)), [values[d] for d in order], color="#3b6ea5")
    if len(values) <= 64:
        axis.set_xticks(range(len(values)), [str(d) for d in order], fontsize=8, rotation=90 if len(values) > 40 else 0)
    axis.set(xlabel="dimension, the largest first", ylabel="nats")
    axis.grid(axis="y", alpha=0.3)


def _along(figure: Any, values: list[float]) -> None:
    axis = figure.subplots()
    axis.plot(range(len(values)), values, marker="o", color="#3b6ea5")
    axis.set(xlabel="place on the path, its ends first and last", ylabel="perplexity a token")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)


def _histograms(figure: Any, columns: Mapping[str, list[float]]) -> None:
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, (name, values) in zip(axes, columns.items()):
        axis.hist(values, bins=min(40, max(5, round(math.sqrt(len(values))))), color="#3b6ea5")
        axis.axvline(sum(values) / len(values), color="#c0392b", linewidth=1)
        axis.set(title=name, xlabel="nats a sequence", ylabel="sentences")
