"""Batches: which sentences stand together, in which order, on which process; a function of seed and epoch alone.

A step's batch is the same whatever the number of processes or of pieces it is worked through in; they take
turns at its rows. So a recipe's result does not depend on the machine that ran it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from textvae.errors import CorpusError
from textvae.types import Batch

Rows = NDArray[np.int64]


HASHED = 10**8  # ids of a corpus that a resumed training knows it by


class Piece(NamedTuple):
    """One process's part of a step's batch (or of one accumulation's share of it)."""

    batch: Batch
    rows: torch.Tensor  # (B,) int64: which rows of the step's batch these are
    share: float  # B * pieces / sentences of the step: what makes a mean over pieces a mean over sentences


class Step(NamedTuple):
    """One optimiser step's work for one process."""

    pieces: list[Piece]
    sentences: int  # over all processes
    tokens: int  # target tokens over all processes


class TokenStore:
    """Random access to an encoded corpus through its Arrow memory map: nothing is copied into memory.

    Args:
        dataset: columns `tokens` and `length`.
    """

    def __init__(self, dataset: Any) -> None:
        if getattr(dataset, "_indices", None) is not None:
            dataset = dataset.flatten_indices()
        table = dataset.data.table if hasattr(dataset.data, "table") else dataset.data
        self.chunks: list[tuple[NDArray[Any], NDArray[Any]]] = []
        starts = [0]
        for chunk in table.column("tokens").chunks:
            offsets = chunk.offsets.to_numpy()
            # `values` ignores the slice's offset, and the offsets count from it.
            self.chunks.append((chunk.values.to_numpy(zero_copy_only=False), offsets))
            starts.append(starts[-1] + len(chunk))
        self.starts = np.asarray(starts)
        parts = [np.diff(offsets) - 1 for _, offsets in self.chunks]
        self.lengths = np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def add_to(self, digest: Any) -> None:
        """Adds the ids of all sentences to a hash; of a corpus that it would take seconds to read, of the first."""
        left = HASHED
        for values, offsets in self.chunks:
            ids = values[offsets[0] : min(int(offsets[-1]), int(offsets[0]) + left)]
            digest.update(np.ascontiguousarray(ids))
            left -= len(ids)

    def __getitem__(self, row: int) -> NDArray[Any]:
        """Returns the ids of a sentence, <s> .. </s>."""
        chunk = int(np.searchsorted(self.starts, row, side="right")) - 1
        values, offsets = self.chunks[chunk]
        local = row - self.starts[chunk]
        return values[offsets[local] : offsets[local + 1]]


def collate(sentences: Sequence[Sequence[int] | NDArray[Any]], pad_id: int) -> Batch:
    """Returns the batch of ids <s> .. </s>, padded to the right."""
    lengths = [len(sentence) for sentence in sentences]
    tokens = np.full((len(sentences), max(lengths, default=1)), pad_id, dtype=np.int64)
    for row, sentence in zip(tokens, sentences):
        row[: len(sentence)] = sentence
    return Batch(torch.from_numpy(tokens), torch.tensor([length - 1 for length in lengths], dtype=torch.int64))


def plan(
    lengths: NDArray[np.int64],
    *,
    batch_size: int,
    batch_tokens: int | None = None,
    bucket_batches: int = 100,
    smallest: int = 1,
    generator: np.random.Generator | None = None,
) -> list[Rows]:
    """Returns the batches of one epoch as rows of the corpus; every row stands in exactly one.

    Sentences are shuffled, sorted by length within buckets of `bucket_batches` batches, cut into batches of
    nearly equal size (never one small rest), and the batches of all buckets are shuffled.

    Args:
        lengths: (N,) target tokens.
        batch_size: sentences a batch at most.
        batch_tokens: padded tokens a batch at most, besides; a batch keeps `smallest` sentences even so.
        bucket_batches: batches sorted together.
        smallest: sentences a batch needs, one for each piece.
        generator: source of the order; without it everything stays in order of length.
    """
    count = len(lengths)
    order = generator.permutation(count) if generator is not None else np.arange(count)
    bucket = batch_size * bucket_batches if generator is not None else max(count, 1)
    # Buckets of nearly equal size, so that the last is not a small one with batches of uneven length.
    batches: list[Rows] = []
    for rows in np.array_split(order, max(1, min(round(count / bucket), count // smallest))):
        by_length = rows[np.argsort(lengths[rows], kind="stable")]
        batches.extend(_cut(by_length, lengths, batch_size, batch_tokens, smallest))
    if generator is not None:
        batches = [batches[i] for i in generator.permutation(len(batches))]
    return batches


def _cut(
    rows: Rows, lengths: NDArray[np.int64], batch_size: int, batch_tokens: int | None, smallest: int
) -> Iterator[Rows]:
    pieces = max(1, min(-(-len(rows) // batch_size), len(rows) // smallest))
    for chunk in np.array_split(rows, pieces):
        # Sorted by length, so that the last row is the longest.
        while (
            batch_tokens is not None and len(chunk) >= 2 * smallest and len(chunk) * lengths[chunk[-1]] > batch_tokens
        ):
            fits = batch_tokens // max(int(lengths[chunk[-1]]), 1)
            fits = max(smallest, min(fits, len(chunk) - smallest))
            yield chunk[-fits:]
            chunk = chunk[:-fits]
        if len(chunk):
            yield chunk


class Batches:
    """The batches of an encoded corpus in memory-mapped form.

    Args:
        store: the sentences.
        pad_id: the padding's id.
        batch_size: sentences a step, over all processes.
        batch_tokens: padded tokens a step at most, besides.
        bucket_batches: batches sorted by length together.
        seed: with the epoch, decides the order.
        process: this process's number, and how many there are.
        accumulation: pieces each process works its part through in.

    Raises:
        CorpusError: fewer sentences than pieces.
    """

    def __init__(
        self,
        store: TokenStore,
        pad_id: int,
        *,
        batch_size: int,
        batch_tokens: int | None = None,
        bucket_batches: int = 100,
        seed: int = 0,
        process: tuple[int, int] = (0, 1),
        accumulation: int = 1,
    ) -> None:
        self.store, self.pad_id = store, pad_id
        self.batch_size, self.batch_tokens, self.bucket_batches = batch_size, batch_tokens, bucket_batches
        self.seed = seed
        self.rank, self.world = process
        self.accumulation = accumulation
        self._order: list[Rows] | None = None  # the first epoch's batches, where some are drawn one by one
        check_pieces(min(batch_size, len(store)), self.world * accumulation)

    @property
    def steps_per_epoch(self) -> int:
        """How many steps the first epoch has; others may differ by a few under `batch_tokens`."""
        return len(self._plan(0))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Step]:
        """Yields the steps of an epoch, the first `skip` left out."""
        pieces = self.world * self.accumulation
        for rows in self._plan(epoch)[skip:]:
            yield make_step([self.store[int(row)] for row in rows], self.pad_id, self.rank, self.world, pieces)

    def some(self, *key: int) -> Step:
        """Returns one step's batch of the corpus, drawn by `key` alone."""
        generator = np.random.default_rng([self.seed, *key])
        if self._order is None:
            self._order = self._plan(0)
        rows = self._order[int(generator.integers(len(self._order)))]
        pieces = self.world * self.accumulation
        return make_step([self.store[int(row)] for row in rows], self.pad_id, self.rank, self.world, pieces)

    def has_order_of(self, world: int, epoch: int) -> bool:
        """Returns whether so many processes have an epoch of the same batches in the same order."""
        one, other = self._plan(epoch), self._plan(epoch, world)
        return len(one) == len(other) and all(map(np.array_equal, one, other))

    def _plan(self, epoch: int, world: int | None = None) -> list[Rows]:
        return plan(
            self.store.lengths,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            bucket_batches=self.bucket_batches,
            smallest=(world or self.world) * self.accumulation,
            generator=np.random.default_rng([self.seed, epoch]),
        )


def make_step(
    sentences: Sequence[Sequence[int] | NDArray[Any]], pad_id: int, rank: int, world: int, pieces: int
) -> Step:
    """Returns one process's work on a step's batch: every `pieces`-th row, so that lengths stay even."""
    count = len(sentences)
    mine = []
    for piece in range(rank, pieces, world):
        rows = range(piece, count, pieces)
        batch = collate([sentences[row] for row in rows], pad_id)
        mine.append(Piece(batch, torch.tensor(list(rows)), len(rows) * pieces / count))
    return Step(mine, count, sum(len(sentence) - 1 for sentence in sentences))


def evaluation_batches(
    store: TokenStore | ListStore, pad_id: int, *, batch_tokens: int = 20_000, at_most: int | None = None
) -> Iterator[tuple[Rows, Batch]]:
    """Yields every sentence once, longest first, with its row in the corpus, in batches of equal cost.

    Args:
        store: the sentences.
        pad_id: the padding's id.
        batch_tokens: padded tokens a batch at most (one sentence at least).
        at_most: sentences a batch at most.
    """
    rows = np.argsort(-store.lengths, kind="stable")
    begin = 0
    while begin < len(rows):
        size = max(1, batch_tokens // max(int(store.lengths[rows[begin]]), 1))
        size = size if at_most is None else min(size, at_most)
        chosen = rows[begin : begin + size]
        yield chosen, collate([store[int(row)] for row in chosen], pad_id)
        begin += size


def check_pieces(sentences: int, pieces: int) -> None:
    """Raises CorpusError where a step's batch has fewer sentences than pieces."""
    if sentences < pieces:
        raise CorpusError(
            f"training.batch_size: a step's batch has {sentences} sentence(s), too few for {pieces} pieces "
            "(processes x training.accumulation); enlarge the batch or take fewer pieces"
        )


class ListStore:
    """Sentences held in a list, with the interface of `TokenStore`.

    Args:
        sentences: ids <s> .. </s> of each.
    """

    def __init__(self, sentences: Sequence[Sequence[int]]) -> None:
        self.sentences = sentences
        self.lengths = np.asarray([len(s) - 1 for s in sentences], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, row: int) -> Sequence[int]:
        """Returns the ids of a sentence, <s> .. </s>."""
        return self.sentences[row]
