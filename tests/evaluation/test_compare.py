"""The paired bootstrap against the normal interval of paired differences, and what it marks by chance."""

from __future__ import annotations

import math

import pytest
import torch

from textvae.errors import UserError
from textvae.evaluation.compare import compare, fingerprint, table


def normal(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_interval_is_that_of_the_paired_differences():
    a = 100 + 40 * normal(500, 0)
    b = a - 0.5 + 2 * normal(500, 1)
    first, second = compare({"a": a, "b": b}, resamples=4000, generator=torch.Generator().manual_seed(0))
    difference = b - a
    reach = 1.96 * float(difference.std()) / math.sqrt(500)
    assert first.difference is None
    assert first.beyond_noise is None
    assert second.difference == pytest.approx(float(difference.mean()))
    assert second.low == pytest.approx(second.difference - reach, abs=0.1 * reach)
    assert second.high == pytest.approx(second.difference + reach, abs=0.1 * reach)
    # Unpaired, 40 nats of spread between sentences would hide it.
    assert second.beyond_noise


def test_equal_runs_are_marked_as_often_as_chance_has_it():
    marked = 0
    for seed in range(300):
        a, b = normal(80, 2 * seed), normal(80, 2 * seed + 1)
        _, row = compare({"a": a, "b": b}, resamples=200, level=0.9, generator=torch.Generator().manual_seed(seed))
        marked += row.beyond_noise
    assert marked / 300 == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 300))


def test_a_run_against_itself_is_within_noise_and_every_row_is_its_runs_own():
    a = normal(50, 0) + 10
    tokens = torch.full((50,), 5)
    runs = {"worse": a + 1, "same": a, "base": a}
    rows = compare(runs, baseline="base", tokens={"base": tokens, "worse": tokens})
    assert [row.name for row in rows] == ["worse", "same", "base"]
    assert (rows[1].difference, rows[1].low, rows[1].high, rows[1].beyond_noise) == (0, 0, 0, False)
    assert rows[0].difference == pytest.approx(1)
    assert rows[0].beyond_noise
    assert rows[2].perplexity == pytest.approx(math.exp(float(a.mean()) / 5))
    assert rows[1].perplexity is None


def test_tables_mark_what_is_beyond_noise():
    a = normal(50, 0) + 10
    rows = compare({"base|line": a, "worse": a + 1, "same": a})
    text = table(rows).splitlines()
    assert len(text) == 4
    assert text[1].endswith("baseline")
    assert text[2].endswith("*")
    assert text[3].endswith("within noise")
    lines = table(rows, markdown=True).splitlines()
    assert lines[2].startswith("| base\\|line |")
    assert {line.replace("\\|", "").count("|") for line in lines} == {7}  # no perplexity


def test_bad_input_is_named():
    a = normal(5, 0)
    for runs, options, message in [
        ({}, {}, "no run"),
        ({"a": a, "b": a[:4]}, {}, "b: has 4 sentences and a 5"),
        ({"a": a[:1]}, {}, "N at least 2"),
        ({"a": a, "b": a.clone().index_fill_(0, torch.tensor([3]), math.nan)}, {}, "b: the NLL of sentence 3 is nan"),
        ({"run1": a}, {"baseline": "rum1"}, "Did you mean 'run1'"),
        ({"a": a}, {"level": 95}, "level: got 95"),
        ({"a": a}, {"tokens": {"a": torch.ones(4)}}, "token counts of 4"),
        ({"a": a, "b": a}, {"fingerprints": {"a": "1", "b": "2"}}, "different sentences"),
    ]:
        with pytest.raises(UserError, match=message):
            compare(runs, **options)


def test_a_fingerprint_knows_order_and_borders():
    assert fingerprint(["a", "b"]) == fingerprint(iter(["a", "b"]))
    assert len({fingerprint(t) for t in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], [])}) == 5
