"""Pictures of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from textvae.checkpoint import METRICS


def curves(folder: Path) -> Path:
    """Draws a run's metrics into `curves.png` in its folder and returns the picture's path.

    Left to right: loss and validation -ELBO, KL and mutual information beside the weights, active units.
    """
    # The object interface, not pyplot: no window system and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    train = [row for row in rows if row["part"] == "train"]
    validation = [row for row in rows if row["part"] == "validation"]
    latent = any("kl" in row and row["kl"] for row in validation)
    figure = Figure(figsize=(15 if latent else 5.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3 if latent else 1, squeeze=False)[0]

    _line(axes[0], train, "loss", "training loss", alpha=0.6)
    _line(axes[0], validation, "nll_elbo", "validation −ELBO", marker="o")
    _line(axes[0], validation, "reconstruction", "validation reconstruction", marker="o")
    axes[0].set(xlabel="step", ylabel="nats a sequence", title="Loss")
    axes[0].legend()
    if latent:
        _latent_axes(axes[1], axes[2], train, validation)
    for axis in axes:
        axis.grid(alpha=0.3)
    path = folder / "curves.png"
    figure.savefig(path, dpi=110)
    return path


def _latent_axes(middle: Any, right: Any, train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> None:
    _line(middle, validation, "kl", "KL", marker="o")
    _line(middle, validation, "mutual_information", "mutual information", marker="o")
    middle.set(xlabel="step", ylabel="nats", title="What z says of the sentence")
    names = [key for key in (train or validation)[-1] if key.endswith("_weight") and key != "reconstruction_weight"]
    if names:
        beside = middle.twinx()
        for name in names:
            _line(beside, train or validation, name, name.replace("_", " "), linestyle="--", color="gray")
        beside.set_ylabel("weight")
        beside.set_ylim(bottom=0)
        handles = [h for axis in (middle, beside) for h in axis.get_legend_handles_labels()[0]]
        middle.legend(handles=handles)
    else:
        middle.legend()
    _line(right, validation, "active_units", "active units", marker="o")
    right.set(xlabel="step", ylabel="dimensions", title="Active units")
    right.set_ylim(bottom=0)


def _line(axis: Any, rows: list[dict[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        axis.plot(*zip(*points), label=label, markersize=3, **style)
