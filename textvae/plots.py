"""Pictures of a run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textvae.folders import CURVES, metrics
from textvae.written import whole

Rows = Sequence[Mapping[str, Any]]


def curves(folder: Path) -> Path:
    """Draws a run's metrics into `curves.png` in its folder and returns the picture's path."""
    # The object interface, not pyplot: no window system and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, metrics(folder))
    path = folder / CURVES
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path


def draw(figure: Any, rows: Rows) -> None:
    """Draws the rows of a run's metrics into an empty figure of matplotlib, whose size it sets.

    Left to right: loss and validation -ELBO, KL and mutual information beside the weights, active units.
    """
    train = [row for row in rows if row.get("part") == "train" and "step" in row]
    validation = [row for row in rows if row.get("part") == "validation" and "step" in row]
    latent = any(row.get("kl") for row in validation)
    figure.set_size_inches(15 if latent else 5.5, 4)
    axes = figure.subplots(1, 3 if latent else 1, squeeze=False)[0]

    _line(axes[0], train, "loss", "training loss", alpha=0.6)
    _line(axes[0], validation, "nll_elbo", "validation −ELBO" if latent else "validation NLL", marker="o")
    if latent:  # of a language model it is the same line
        _line(axes[0], validation, "reconstruction", "validation reconstruction", marker="o")
    axes[0].set(xlabel="step", ylabel="nats a sequence", title="Loss")
    axes[0].set_ylim(bottom=min(0.0, axes[0].get_ylim()[0]))
    _legend_below(axes[0])
    if latent:
        _latent_axes(axes[1], axes[2], train, validation)
    for axis in axes:
        axis.grid(alpha=0.3)


def _latent_axes(middle: Any, right: Any, train: Rows, validation: Rows) -> None:
    _line(middle, validation, "kl", "KL", marker="o")
    _line(middle, validation, "mutual_information", "mutual information", marker="o")
    middle.set(xlabel="step", ylabel="nats", title="What z says of the sentence")
    names = [key for key in (train or validation)[-1] if key.endswith("_weight") and key != "reconstruction_weight"]
    if names:
        beside = middle.twinx()
        for name, style in zip(names, itertools.cycle(("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1))))):
            _line(beside, train or validation, name, name.replace("_", " "), linestyle=style, color="gray")
        beside.set_ylabel("weight (right scale)")
        beside.set_ylim(bottom=0)
        _legend_below(middle, beside)
    else:
        _legend_below(middle)
    middle.set_ylim(bottom=min(0.0, middle.get_ylim()[0]))
    _line(right, validation, "active_units", "active units", marker="o")
    right.set(xlabel="step", ylabel="dimensions", title="Active units")
    right.set_ylim(0, max(1.0, right.get_ylim()[1]))  # of none at all matplotlib would show hundredths
    right.yaxis.get_major_locator().set_params(integer=True)
    _legend_below(right)


def _legend_below(*axes: Any) -> None:
    """One legend under the first axis for the lines of all, where it hides none of them."""
    handles = [handle for axis in axes for handle in axis.get_legend_handles_labels()[0]]
    if handles:
        columns = 3 if len(handles) == 3 else 2
        axes[0].legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, frameon=False, fontsize=9
        )


def _line(axis: Any, rows: Rows, key: str, label: str, **style: Any) -> None:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if len(points) == 1:
        style.setdefault("marker", "o")  # a line of one point is not to be seen
    if points:
        axis.plot(*zip(*points), label=label, markersize=3, **style)
