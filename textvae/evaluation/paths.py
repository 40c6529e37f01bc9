"""What a walk through the latent space reads like: smoothness, distance to the ends, distinct sentences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from textvae.errors import UserError
from textvae.evaluation.correlation import kendall
from textvae.evaluation.text import Tokens, normalized_distance

Paths = Sequence[Sequence[str]]


class Smoothness(NamedTuple):
    """Normalised edit distances between neighbours on a path, 0 to 1; means over paths."""

    step: float  # mean over a path's neighbours
    jump: float  # largest of a path's neighbours


class Interpolation(NamedTuple):
    """Every figure of a set of paths."""

    step: float
    jump: float
    monotonicity: float
    distinct: float


def smoothness(paths: Paths, *, tokens: Tokens = str.split) -> Smoothness:
    """Returns how far neighbours on a path are apart, and the largest such jump.

    d(i) = levenshtein(x_i, x_i+1) / max(|x_i|, |x_i+1|); its mean and its maximum over a path, averaged over paths. A
    path of one sentence over and over is at 0: read it beside `distinct`. Falls as paths get more steps: compare
    paths of equal numbers of steps alone.

    Args:
        paths: P paths, each of 2 texts or more, ends included.
        tokens: text -> its tokens: str.split for words, list for characters.

    Raises:
        UserError: no paths, or one of fewer than 2 texts.
    """
    steps = []
    for path in _split(paths, tokens):
        steps.append([normalized_distance(a, b) for a, b in itertools.pairwise(path)])
    return Smoothness(_mean([sum(path) / len(path) for path in steps]), _mean([max(path) for path in steps]))


def monotonicity(paths: Paths, *, tokens: Tokens = str.split) -> float:
    """Returns whether a path leaves its first text and nears its last one step by step, -1 to 1; 1 is always.

    (tau(i, d(x_i, x_first)) - tau(i, d(x_i, x_last))) / 2 with Kendall's tau-b and the normalised edit distance d,
    averaged over paths. An end at which the distance never changes counts as 0.

    Args:
        paths: P paths, each of 2 texts or more, ends included.
        tokens: text -> its tokens.

    Raises:
        UserError: no paths, or one of fewer than 2 texts.

    References:
        Kendall 1945, "The treatment of ties in ranking problems" (tau-b).
    """
    found = []
    for path in _split(paths, tokens):
        leaving = [normalized_distance(words, path[0]) for words in path]
        nearing = [-normalized_distance(words, path[-1]) for words in path]
        position = range(len(path))
        found.append((kendall(position, leaving) + kendall(position, nearing)) / 2)
    return _mean(found)


def distinct(paths: Paths) -> float:
    """Returns the share of different sentences on a path, averaged over paths: from 1 / texts a path to 1.

    Raises:
        UserError: no paths, or one of fewer than 2 texts.
    """
    _checked(paths)
    return _mean([len(set(path)) / len(path) for path in paths])


def figures(paths: Paths, *, tokens: Tokens = str.split) -> Interpolation:
    """Returns smoothness, monotonicity and share of distinct sentences of the paths.

    Raises:
        UserError: no paths, or one of fewer than 2 texts.
    """
    return Interpolation(*smoothness(paths, tokens=tokens), monotonicity(paths, tokens=tokens), distinct(paths))


def _split(paths: Paths, tokens: Tokens) -> list[list[Sequence[str]]]:
    _checked(paths)
    return [[tokens(text) for text in path] for path in paths]


def _checked(paths: Paths) -> None:
    if not len(paths):
        raise UserError("there are no paths; at least one is needed")
    for number, path in enumerate(paths):
        if isinstance(path, str) or len(path) < 2:
            raise UserError(f"paths[{number}]: got {path!r}; a path is a list of 2 texts or more, its ends included")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
