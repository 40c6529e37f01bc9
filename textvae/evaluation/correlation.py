"""How two rows of numbers go together: Pearson, Spearman, Kendall."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textvae.errors import UserError

Row = NDArray[np.float64]


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the linear correlation cov(a, b) / (sd(a) sd(b)), -1 to 1.

    Raises:
        UserError: other lengths, fewer than 2 numbers, one that is not finite, or a constant row.
    """
    x, y = _rows(a, b)
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip(x @ y / math.sqrt(float(x @ x) * float(y @ y)), -1, 1))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the correlation of the ranks, -1 to 1; equal numbers share their mean rank.

    Raises:
        UserError: as `pearson`.
    """
    return pearson(*(_ranks(row) for row in _rows(a, b)))


def kendall(a: ArrayLike, b: ArrayLike) -> float:
    """Returns Kendall's tau-b of two rows of numbers, -1 to 1; 0 where one of them is constant.

    (concordant - discordant pairs) / sqrt(pairs that differ in a x pairs that differ in b). Every pair is looked at.

    Raises:
        UserError: other lengths, or fewer than 2 numbers.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise UserError(f"tau compares two rows of 2 numbers or more; got shapes {x.shape} and {y.shape}")
    upper = np.triu_indices(len(x), 1)
    signs_x, signs_y = (np.sign(row[upper[1]] - row[upper[0]]) for row in (x, y))
    pairs = float(np.abs(signs_x).sum()) * float(np.abs(signs_y).sum())
    return float((signs_x * signs_y).sum()) / math.sqrt(pairs) if pairs else 0.0


def _rows(a: ArrayLike, b: ArrayLike) -> tuple[Row, Row]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise UserError(f"a correlation is of two rows of 2 numbers or more; got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("a correlation needs finite numbers, and there are others")
    for name, row in (("first", x), ("second", y)):
        if row.min() == row.max():
            raise UserError(f"a correlation needs numbers that differ; the {name} row is {row[0]:g} throughout")
    return x, y


def _ranks(row: Row) -> Row:
    _, places, counts = np.unique(row, return_inverse=True, return_counts=True)
    ranks: Row = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks
