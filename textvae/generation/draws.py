"""Draws and maxima over a vocabulary: what generation does with a step's probabilities, a row at a time in one call.

Both look at blocks of the vocabulary first and then into few of them. Words are drawn by inverse CDF: on a CPU
torch.multinomial costs more than three times as much as the output layer before it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 64  # words summed, or compared, as one; measured at 10,000 words
TRIES = 8  # draws before the nucleus is sorted out; at most (1 - top_p)^8 of the rows get that far
ONCE = 2  # numbers of a row's stream that a draw uses up
NUMBERS = ONCE * (TRIES + 1)  # that one word may use up
WORDS = 16  # whose numbers are made at once


def draw(weights: Tensor, numbers: Tensor) -> Tensor:
    """Returns (R,) columns drawn in proportion to weights (R, V), never one of weight 0.

    Args:
        weights: (R, V).
        numbers: (2, R) in [0, 1), or more of which the first two are taken.
    """
    count = weights.shape[1]
    if count <= 2 * BLOCK:
        return _invert(weights, numbers[0])
    block = _invert(_over_blocks(weights, torch.sum), numbers[0])
    columns = block[:, None] * BLOCK + torch.arange(BLOCK, device=weights.device)  # (R, BLOCK)
    inside = weights.gather(1, columns.clamp(max=count - 1)).masked_fill_(columns >= count, 0)
    return block * BLOCK + _invert(inside, numbers[1])


def draw_from_nucleus(weights: Tensor, top_p: float, numbers: Tensor) -> Tensor:
    """Returns (R,) columns drawn from the nucleus of weights (R, V).

    A word is in the nucleus if the words more probable than it hold less than `top_p`. Drawing from all words until
    one is in the nucleus is exact, and a draw with its test takes a fortieth of the time of sorting the vocabulary.

    Args:
        weights: (R, V).
        top_p: the probability that the nucleus holds.
        numbers: (NUMBERS, R) in [0, 1).
    """
    limit = top_p * weights.sum(-1)  # (R,)
    choice = torch.zeros(len(weights), dtype=torch.int64, device=weights.device)
    rows = torch.arange(len(weights), device=weights.device)  # those without a word yet
    for attempt in range(TRIES):
        drawn = draw(weights, numbers[ONCE * attempt :])
        least = weights.gather(1, drawn[:, None])
        above = torch.where(weights > least, weights, 0).sum(-1)
        choice[rows] = drawn
        outside = (above >= limit).nonzero().squeeze(1)
        if not len(outside):
            return choice
        rows, weights, numbers, limit = rows[outside], weights[outside], numbers[:, outside], limit[outside]
    ordered = weights.sort(dim=-1, descending=True).values
    before = ordered.double().cumsum(-1) - ordered
    last = ((before < limit[:, None]).sum(-1, keepdim=True) - 1).clamp_(min=0)
    nucleus = torch.where(weights >= ordered.gather(1, last), weights, 0)
    choice[rows] = draw(nucleus, numbers[-ONCE:])
    return choice


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest of values (R, V), largest first, (R, k), and their columns; of one, the first of equals.

    The k largest lie in the k blocks with the largest maxima; looking only there is two to five times as fast as
    topk over a large vocabulary while k is small.
    """
    count = values.shape[1]
    if 4 * k * BLOCK > count:
        return _top(values, k)
    blocks = _top(_over_blocks(values, torch.amax), k)[1]
    columns = (blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=values.device)).flatten(1)  # (R, k * BLOCK)
    inside = values.gather(1, columns.clamp(max=count - 1)).masked_fill_(columns >= count, -torch.inf)
    values, index = _top(inside, k)
    return values, columns.gather(1, index)


def seeds_of(rows: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Returns the seed of each row's stream, (rows,) int64."""
    source = device if generator is None else generator.device
    return torch.randint(2**63 - 1, (rows,), generator=generator, device=source).to(device)


class Streams:
    """The random streams of R rows, the numbers of several words made at once: each is a dozen small operations.

    Args:
        seeds: (R,), of each row's stream.
        numbers: how many of a stream one word asks for.
    """

    def __init__(self, seeds: Tensor, numbers: int) -> None:
        self.seeds = seeds
        first = NUMBERS * torch.arange(WORDS, device=seeds.device)
        self.counters = (first[:, None] + torch.arange(numbers, device=seeds.device))[:, :, None]
        self.begin, self.made = 0, seeds.new_zeros(0)  # the word that the table begins with, (WORDS, numbers, R)

    def of_word(self, step: int, rows: Tensor) -> Tensor:
        """Returns the numbers (numbers, len(rows)) that rows use for word `step`."""
        if not len(self.made) or not 0 <= step - self.begin < WORDS:
            self.begin, self.made = step, self.from_word(step)
        return self.made[step - self.begin].index_select(1, rows)

    def from_word(self, step: int) -> Tensor:
        """Returns the numbers of all rows for word `step` and those after it, (WORDS, numbers, R)."""
        return uniform(self.seeds, self.counters + NUMBERS * step)


def uniform(seeds: Tensor, counter: int | Tensor) -> Tensor:
    """Returns number `counter` of each row's stream, (R,) float64 in [0, 1), by SplitMix64; of several, (..., R).

    A stream that is a function of its seed and a counter needs no state: rows may leave, and a row may draw again,
    without a change to the others. It is the same on every device.

    References:
        Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators, OOPSLA.
    """
    bits = seeds + (torch.as_tensor(counter) + 1) * _signed(0x9E3779B97F4A7C15)
    bits = (bits ^ _shift(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift(bits, 27)) * _signed(0x94D049BB133111EB)
    bits = bits ^ _shift(bits, 31)
    return _shift(bits, 11).double() * 2.0**-53


def _top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # max promises the first of equals, topk does not.
    highest, index = values.max(dim=1, keepdim=True) if k == 1 else values.topk(k, dim=1)
    return highest, index


def _over_blocks(values: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """(R, blocks) of values (R, V), BLOCK columns each; the last block may be shorter."""
    rows, count = values.shape
    whole = count // BLOCK * BLOCK
    result = reduce(values[:, :whole].view(rows, -1, BLOCK), dim=-1)
    if whole == count:
        return result
    return torch.cat([result, reduce(values[:, whole:], dim=-1, keepdim=True)], dim=1)


def _invert(weights: Tensor, share: Tensor) -> Tensor:
    """(R,) the columns where the running sums of weights (R, n) pass a share (R,) of their total."""
    sums = weights.double().cumsum(-1)
    # right=True: the first sum above, so that a column of weight 0 is never met.
    place = torch.searchsorted(sums, share[:, None] * sums[:, -1:], right=True)
    return place.squeeze(1).clamp_(max=weights.shape[1] - 1)


def _shift(bits: Tensor, by: int) -> Tensor:
    # int64 shifts its sign in; the mask makes it the shift of an unsigned number.
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
