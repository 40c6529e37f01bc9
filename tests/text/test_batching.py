"""Batches: every sentence once, order from seed and epoch alone, the same work however it is shared out."""

import datasets
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from textvae.errors import CorpusError
from textvae.text.batching import Batches, ListStore, TokenStore, collate, evaluation_batches, plan
from textvae.text.streams import StreamBatches

CORPUS = [[1, *range(4, 4 + n % 13), 2] for n in range(101)]


def seen(steps) -> list[list[int]]:
    return [
        row[: length + 1].tolist()
        for step in steps
        for piece in step.pieces
        for row, length in zip(piece.batch.tokens, piece.batch.lengths)
    ]


@settings(max_examples=60, deadline=None)
@example([5] * 6, 4, None, 1, 4, 0)  # two buckets of three would give no batch of four
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=200),
    batch_size=st.integers(1, 50),
    batch_tokens=st.none() | st.integers(1, 300),
    bucket_batches=st.integers(1, 4),
    smallest=st.integers(1, 4),
    seed=st.none() | st.integers(0, 5),
)
def test_every_sentence_stands_in_exactly_one_batch_within_the_limits(
    lengths, batch_size, batch_tokens, bucket_batches, smallest, seed
):
    batch_size, count = max(batch_size, smallest), np.asarray(lengths, dtype=np.int64)
    generator = None if seed is None else np.random.default_rng(seed)
    batches = plan(
        count,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        bucket_batches=bucket_batches,
        smallest=smallest,
        generator=generator,
    )
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        if len(lengths) >= smallest:
            assert len(rows) >= smallest
        assert len(rows) < batch_size + smallest
        if batch_tokens is not None and len(rows) >= 2 * smallest:
            assert len(rows) * count[rows].max() <= max(batch_tokens, 2 * smallest * count[rows].max())


def test_batches_are_of_nearly_equal_length_and_size():
    lengths = np.random.default_rng(0).integers(1, 80, 3000)
    batches = plan(lengths, batch_size=32, bucket_batches=100, generator=np.random.default_rng(1))
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert padded / lengths.sum() < 1.03
    assert {len(rows) for rows in batches} <= {31, 32}


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return seen(Batches(ListStore(CORPUS), 0, batch_size=8, seed=seed).epoch(epoch))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert sorted(order(3, 2)) == sorted(CORPUS)


@pytest.mark.parametrize("skip", [0, 1, 5, 13, 50])
@pytest.mark.parametrize("kind", ["map", "stream"])
def test_an_epoch_goes_on_where_it_stopped(kind, skip):
    if kind == "map":
        batches = Batches(ListStore(CORPUS), 0, batch_size=8)
    else:
        batches = StreamBatches(lambda: iter(CORPUS), 0, buffer=30, batch_size=8)
    whole = list(batches.epoch(1))
    assert seen(batches.epoch(1, skip=skip)) == seen(whole[skip:])


def test_a_stream_gives_every_sentence_once_and_holds_no_more_than_its_buffer():
    taken = 0

    def stream():
        nonlocal taken
        for sentence in CORPUS:
            taken += 1
            yield sentence

    steps = StreamBatches(stream, 0, buffer=20, batch_size=4).epoch(0)
    first = next(steps)
    assert taken == 20
    assert sorted(seen([first, *steps])) == sorted(CORPUS)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 3), (2, 1), (2, 2), (4, 1)])
def test_pieces_of_all_processes_are_the_whole_batch_and_shares_average_over_sentences(world, accumulation):
    def steps(rank, world, accumulation):
        batches = Batches(ListStore(CORPUS), 0, batch_size=10, process=(rank, world), accumulation=accumulation)
        return list(batches.epoch(0))

    whole = steps(0, 1, 1)
    parts = [steps(rank, world, accumulation) for rank in range(world)]
    for i, step in enumerate(whole):
        pieces = [piece for part in parts for piece in part[i].pieces]
        rows = torch.cat([piece.rows for piece in pieces])
        assert sorted(rows.tolist()) == list(range(step.sentences))
        lengths = step.pieces[0].batch.lengths
        assert all((piece.batch.lengths == lengths[piece.rows]).all() for piece in pieces)
        # The mean over pieces of share x (mean over a piece) is the mean over the batch.
        mean = sum(piece.share * float(piece.batch.lengths.double().mean()) for piece in pieces) / len(pieces)
        assert mean == pytest.approx(float(lengths.double().mean()))


def test_too_few_sentences_for_the_pieces_is_said():
    with pytest.raises(CorpusError, match=r"training.batch_size.*4 pieces"):
        Batches(ListStore(CORPUS[:3]), 0, batch_size=8, process=(0, 2), accumulation=2)


def test_token_store_reads_arrow_in_chunks_slices_and_after_selection():
    parts = [datasets.Dataset.from_dict({"tokens": CORPUS[i : i + 17]}) for i in range(0, len(CORPUS), 17)]
    dataset = datasets.concatenate_datasets(parts)
    assert [TokenStore(dataset)[i].tolist() for i in range(len(CORPUS))] == CORPUS
    chosen = dataset.select([50, 3, 99, 3])
    store = TokenStore(chosen)
    assert [store[i].tolist() for i in range(4)] == [CORPUS[i] for i in (50, 3, 99, 3)]
    assert store.lengths.tolist() == [len(CORPUS[i]) - 1 for i in (50, 3, 99, 3)]
    middle = TokenStore(dataset.select(range(20, 60)))
    assert [middle[i].tolist() for i in range(40)] == CORPUS[20:60]


def test_collate_pads_to_the_right_and_counts_targets():
    batch = collate([[1, 5, 2], [1, 2], [1, 5, 6, 7, 2]], 0)
    assert batch.tokens.tolist() == [[1, 5, 2, 0, 0], [1, 2, 0, 0, 0], [1, 5, 6, 7, 2]]
    assert batch.lengths.tolist() == [2, 1, 4]
    assert batch.mask.tolist() == [[True, True, False, False], [True, False, False, False], [True] * 4]


def test_evaluation_reads_every_sentence_once_with_its_row():
    store = ListStore(CORPUS)
    read = {}
    for rows, batch in evaluation_batches(store, 0, batch_tokens=40):
        for row, tokens, length in zip(rows, batch.tokens, batch.lengths):
            read[int(row)] = tokens[: length + 1].tolist()
    assert [read[i] for i in range(len(CORPUS))] == CORPUS
