"""Sizes of the measured models, and the corpus they are measured on."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

from textvae.text.batching import ListStore, plan

PAD, BOS, EOS, UNK, SPECIALS = 0, 1, 2, 3, 4
PTB = Path(__file__).resolve().parents[3] / "shared" / "data" / "ptb" / "train.txt.gz"
SENTENCES, MEAN_LENGTH, LONGEST = 42_068, 22.1, 82  # of Penn Treebank's training part; </s> counted


class Sizes(NamedTuple):
    """Of an LSTM-VAE with one layer each."""

    vocabulary: int
    embedding: int
    hidden: int
    latent: int


SMALL, LARGE = Sizes(10_000, 256, 256, 32), Sizes(10_000, 512, 1024, 32)


def lengths() -> np.ndarray:
    """Returns the target tokens of each sentence: Penn Treebank's, else a fixed draw with its mean and spread."""
    if PTB.is_file():
        with gzip.open(PTB, "rt", encoding="utf-8") as file:
            return np.asarray([len(line.split()) + 1 for line in file])
    # Shape 4.6: the standard deviation, 10.3, is Penn Treebank's.
    drawn = np.random.default_rng(0).gamma(4.6, MEAN_LENGTH / 4.6, SENTENCES)
    return np.clip(np.rint(drawn), 2, LONGEST).astype(np.int64)


def sentences(vocabulary: int, count: int | None = None) -> ListStore:
    """Returns sentences of those lengths; words follow Zipf's law, so that few embeddings are hot, as in text."""
    drawn = np.random.default_rng(1)
    rows = lengths()
    rows = rows if count is None else drawn.choice(rows, count, replace=False)
    ranks = np.arange(vocabulary - SPECIALS)
    sums = np.cumsum(1.0 / (ranks + 2.7))
    words = SPECIALS + np.searchsorted(sums, drawn.random(int(rows.sum() - len(rows))) * sums[-1])
    parts = np.split(words, np.cumsum(rows - 1)[:-1])
    return ListStore([[BOS, *part.tolist(), EOS] for part in parts])


def training_batches(store: ListStore, batch_size: int, count: int) -> list[list[list[int]]]:
    """Returns `count` of an epoch's batches, evenly from the shortest to the longest sentences."""
    batches = plan(store.lengths, batch_size=batch_size, generator=np.random.default_rng(2))
    full = sorted((rows for rows in batches), key=lambda rows: int(store.lengths[rows].sum()))
    chosen = [full[int((i + 0.5) * len(full) / count)] for i in range(count)]
    return [[list(store[int(row)]) for row in rows] for rows in chosen]


def lines() -> list[str]:
    """Returns the corpus as text: Penn Treebank's training part, or made-up words of the same lengths."""
    if PTB.is_file():
        with gzip.open(PTB, "rt", encoding="utf-8") as file:
            return [line.strip() for line in file]
    return [" ".join(f"w{word}" for word in row[1:-1]) for row in sentences(SMALL.vocabulary).sentences]
