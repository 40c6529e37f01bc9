"""The explorer's pictures, and where a click on one lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from textvae.errors import UserError

SIZE, DPI = (7.0, 5.0), 100  # inches, pixels an inch
COLOURS = 10  # labels that get a colour of their own


class Chart(NamedTuple):
    """A picture of points, and how its pixels lie to the data."""

    image: NDArray[np.uint8]  # (H, W, 3)
    to_data: NDArray[np.float64]  # (3, 3): pixel (column, row from the top, 1) to (x, y, 1)
    limits: tuple[float, float, float, float]  # least x, most x, least y, most y

    def place(self, column: float, row: float) -> tuple[float, float]:
        """Returns the data's (x, y) under a pixel.

        Raises:
            UserError: the pixel lies outside the axes.
        """
        x, y, _ = self.to_data @ np.array([column, row, 1.0])
        left, right, low, high = self.limits
        if not (left <= x <= right and low <= y <= high):
            raise UserError("map: click within the axes")
        return float(x), float(y)


def chart(points: Tensor, labels: Sequence[str] | None, title: str, mark: tuple[float, float] | None = None) -> Chart:
    """Draws a map.

    Args:
        points: (N, 2).
        labels: colours; the rarest share one.
        title: over it.
        mark: a place that was clicked.
    """
    figure, axes = _figure()
    places = points.numpy()
    if labels is None:
        axes.scatter(places[:, 0], places[:, 1], s=9, alpha=0.6, linewidths=0)
    else:
        counted = {label: labels.count(label) for label in dict.fromkeys(labels)}
        named = sorted((label for label in counted if label), key=lambda label: -counted[label])[:COLOURS]
        for label in (*named, None):
            rows = [i for i, found in enumerate(labels) if found == label or (label is None and found not in named)]
            if rows:
                colour = {"color": "#bbbbbb"} if label is None else {}
                shown = "other" if label is None else label[:24].replace("$", r"\$")
                axes.scatter(places[rows, 0], places[rows, 1], s=9, alpha=0.7, linewidths=0, label=shown, **colour)
        axes.legend(fontsize=8, markerscale=2, framealpha=0.9)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # a mark moves nothing
    if mark is not None:
        axes.plot(*mark, marker="+", markersize=16, markeredgewidth=2.5, color="black")
    axes.set_title(title, fontsize=10)
    return _drawn(figure, axes)


def bars(heights: Tensor, active: Sequence[bool], label: str) -> NDArray[np.uint8]:
    """Draws a number of each dimension, the largest first.

    Args:
        heights: (D,).
        active: D; the others stay pale.
        label: what the heights are, with their unit.
    """
    figure, axes = _figure()
    order = heights.argsort(descending=True).tolist()
    axes.bar(range(len(order)), heights[order].numpy(), color=["#1f77b4" if active[i] else "#cccccc" for i in order])
    axes.set_xticks(range(len(order)), [str(i) for i in order], fontsize=8 if len(order) <= 40 else 5)
    axes.set_xlabel("dimension")
    axes.set_ylabel(label)
    return _drawn(figure, axes).image


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot, which keeps every figure and is not for threads

    figure = Figure(figsize=SIZE, dpi=DPI, layout="tight")
    return figure, figure.add_subplot()


def _drawn(figure: Any, axes: Any) -> Chart:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    # matplotlib counts rows from below, a browser from above.
    flip = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, float(len(image))], [0.0, 0.0, 1.0]])
    to_data = np.asarray(axes.transData.inverted().get_matrix()) @ flip
    return Chart(image, to_data, (*axes.get_xlim(), *axes.get_ylim()))
