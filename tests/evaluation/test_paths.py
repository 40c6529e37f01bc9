"""Paths: smoothness, monotonicity and distinct sentences by hand, Kendall's tau by scipy."""

from __future__ import annotations

import random

import pytest
import scipy.stats

from textvae.errors import UserError
from textvae.evaluation import paths
from textvae.evaluation.correlation import kendall

STRAIGHT = ["a b c d", "x b c d", "x y c d", "x y z d", "x y z w"]


def test_a_path_that_changes_a_word_a_step_is_smooth_monotone_and_distinct():
    assert paths.figures([STRAIGHT]) == (pytest.approx(1 / 4), pytest.approx(1 / 4), 1, 1)


def test_a_path_that_jumps_once_by_hand():
    jump = ["a b", "a b", "x y", "x y"]
    assert paths.smoothness([jump]) == (pytest.approx(1 / 3), 1)
    assert paths.distinct([jump]) == pytest.approx(2 / 4)
    # 4 of 6 pairs differ, all the right way: tau-b = 4 / sqrt(6 * 4).
    assert paths.monotonicity([jump]) == pytest.approx(4 / 24**0.5)


def test_a_path_that_comes_back_gains_nothing_and_one_that_stands_still_is_at_0():
    assert paths.monotonicity([["a b", "a x", "y x", "a x", "a b"]]) == pytest.approx(0)
    still = [["a b"] * 5]
    assert paths.figures(still) == (0, 0, 0, pytest.approx(1 / 5))
    assert paths.figures([["", ""]]) == (0, 0, 0, pytest.approx(1 / 2))


def test_figures_are_means_over_paths_and_count_the_tokens_they_are_told():
    both = paths.figures([STRAIGHT, ["q"] * 3])
    assert both == (pytest.approx(1 / 8), pytest.approx(1 / 8), pytest.approx(1 / 2), pytest.approx(2 / 3))
    assert paths.smoothness([["CCO", "CCN"]], tokens=list).step == pytest.approx(1 / 3)


def test_tau_is_scipys_with_ties_and_without():
    draw = random.Random(0)
    for _ in range(30):
        n = draw.randrange(2, 12)
        a, b = ([draw.randrange(5) for _ in range(n)] for _ in range(2))
        if len(set(a)) > 1 and len(set(b)) > 1:
            assert kendall(a, b) == pytest.approx(scipy.stats.kendalltau(a, b).statistic)
    assert kendall([1, 2, 3], [5, 5, 5]) == 0


@pytest.mark.parametrize("bad", [[["a"]], [["a", "b"], []], ["ab"]])
def test_what_is_no_path_is_refused(bad):
    for figure in (paths.smoothness, paths.monotonicity, paths.distinct, paths.figures):
        with pytest.raises(UserError, match="2 texts or more"):
            figure(bad)
        with pytest.raises(UserError, match="no paths"):
            figure([])
    with pytest.raises(UserError, match="shapes"):
        kendall([1], [2])
