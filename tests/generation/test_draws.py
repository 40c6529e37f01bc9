"""Draws and maxima over a vocabulary, against sorting, exact probabilities and published numbers."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from textvae.generation.draws import NUMBERS, ONCE, WORDS, Streams, draw, draw_from_nucleus, largest, seeds_of, uniform

ROWS = 20_000


def seeds(rows: int = ROWS) -> Tensor:
    return seeds_of(rows, torch.Generator().manual_seed(0), torch.device("cpu"))


def numbers(rows: int = ROWS) -> Tensor:
    return Streams(seeds(rows), NUMBERS).of_word(0, torch.arange(rows))


def random_weights(count: int, *, sharpness: float = 1.5) -> Tensor:
    return torch.softmax(sharpness * torch.randn(count, generator=torch.Generator().manual_seed(count)), dim=-1)


def assert_frequencies(drawn: Tensor, probabilities: Tensor) -> None:
    """Chi-square, the rare words in one bin; none of probability 0."""
    counts = torch.bincount(drawn, minlength=len(probabilities)).double()
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities.double() / probabilities.double().sum() * len(drawn)
    common = expected >= 10
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    wanted = [*expected[common].tolist(), expected[~common].sum().item()]
    pairs = [(o, w) for o, w in zip(observed, wanted) if w > 0]
    assert chisquare(*zip(*pairs)).pvalue > 1e-3


@pytest.mark.parametrize("count", [1, 5, 128, 129, 640, 1_000])
def test_words_are_drawn_in_proportion_to_their_weights(count):
    weights = random_weights(count)
    weights[1 : count // 2] = 0
    drawn = draw(weights.expand(ROWS, -1), numbers())
    assert_frequencies(drawn, weights) if count > 1 else None
    assert drawn.min() >= 0
    assert drawn.max() < count


def test_a_word_of_one_ten_millionth_is_drawn_as_often_as_it_should():
    weights = torch.full((1, 1_000), 1e-7)
    weights[0, 999] = 1.0
    rows = 2_000_000
    rare = 0
    for part in seeds(rows).split(50_000):
        drawn = draw(weights.expand(50_000, -1), Streams(part, ONCE).of_word(0, torch.arange(len(part))))
        rare += int((drawn != 999).sum())
    expected = rows * 999e-7
    assert abs(rare - expected) < 4 * expected**0.5


# A peaked vocabulary where a draw is in the nucleus at once, and flat ones where most rows end in the sorting.
@pytest.mark.parametrize(("count", "top_p"), [(5, 0.6), (200, 0.9), (300, 0.5), (300, 0.05), (300, 1e-60)])
def test_the_nucleus_is_what_sorting_says(count, top_p):
    weights = random_weights(count)
    ordered, columns = weights.double().sort(descending=True)
    inside = columns[ordered.cumsum(0) - ordered < top_p]
    exact = torch.zeros(count).index_copy(0, inside, weights[inside])
    drawn = draw_from_nucleus(weights.expand(ROWS, -1), top_p, numbers())
    assert_frequencies(drawn, exact) if len(inside) > 1 else None
    assert set(drawn.tolist()) <= set(inside.tolist())


def test_words_tied_at_the_edge_of_the_nucleus_are_all_kept():
    weights = torch.tensor([0.1, 0.3, 0.3, 0.3]).expand(1_000, -1)
    assert set(draw_from_nucleus(weights, 0.5, numbers(1_000)).tolist()) == {1, 2, 3}


@pytest.mark.parametrize("count", [3, 64, 1_000, 4_096, 5_003])
@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_the_k_largest_are_those_of_topk(count, k):
    values = torch.randn(50, count, generator=torch.Generator().manual_seed(count))
    k = min(k, count)
    found, columns = largest(values, k)
    expected = values.topk(k)
    assert torch.equal(found, expected.values)
    assert torch.equal(columns, expected.indices)


@pytest.mark.parametrize("count", [7, 1_000])
def test_of_equal_maxima_the_first_is_taken(count):
    values = torch.zeros(1, count)
    values[0, [3, 5, count - 1]] = 2.0
    assert largest(values, 1)[1].item() == 3


def test_the_streams_are_splitmix64():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # seed 0
    zero = torch.zeros(1, dtype=torch.int64)
    assert [uniform(zero, i).item() for i in range(3)] == [(bits >> 11) * 2.0**-53 for bits in published]


def test_a_words_numbers_are_its_own_part_of_the_stream_whichever_rows_ask():
    whole = Streams(seeds(9), ONCE)
    for step in (0, 1, WORDS - 1, WORDS, 3 * WORDS + 5, 2):
        rows = torch.tensor([8, 0, 3])
        found = whole.of_word(step, rows)
        for i in range(ONCE):
            assert torch.equal(found[i], uniform(seeds(9)[rows], step * NUMBERS + i))
        assert torch.equal(found, Streams(seeds(9)[rows], NUMBERS).of_word(step, torch.arange(3))[:ONCE])


def test_seeds_drawn_in_parts_are_those_drawn_at_once():
    generator = torch.Generator().manual_seed(3)
    parts = [seeds_of(rows, generator, torch.device("cpu")) for rows in (1, 20, 3)]
    assert torch.equal(torch.cat(parts), seeds_of(24, torch.Generator().manual_seed(3), torch.device("cpu")))
