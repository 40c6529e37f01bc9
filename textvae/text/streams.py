"""Batches of a corpus that never stands in memory: read in order, by this process or by workers, whole or a share."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from textvae.distributed import all_results
from textvae.errors import CorpusError, TrainingError, UserError
from textvae.text.batching import Piece, Rows, Step, check_pieces, collate, make_step, plan

READ_AT_ONCE = 500  # sentences a worker hands over
AHEAD = 4  # such parts that each worker keeps ready

Ids = Sequence[int]


class Reader:
    """The ids of a stream, each time it is gone through from its beginning.

    Workers are processes that read and tokenise ahead of the training, each its share of the files, or of the
    sentences where the files are not a multiple of the shares; their parts are taken in turn, so that the order is a
    function of the number of workers.

    Args:
        rows: a stream of datasets, with the column `tokens`.
        counts: reason -> sentences left out; grows while the stream is read.
        workers: how many; 0 reads in this process.
        share: this process's number, and how many share the stream; (0, 1) reads all of it.
    """

    def __init__(self, rows: Any, counts: dict[str, int], *, workers: int = 0, share: tuple[int, int] = (0, 1)) -> None:
        self.rows, self.counts, self.workers, self.share = rows, counts, workers, share

    def __call__(self) -> Iterator[Ids]:
        """Yields the ids <s> .. </s> of each sentence.

        Raises:
            CorpusError: a file that cannot be read.
        """
        if not self.workers:
            for row in _share_of(self.rows, *self.share):
                yield row["tokens"]
            return
        part = _Part(self.rows, self.counts, self.share)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*worker processes in total")  # the recipe's number is a wish
            loader: Any = torch.utils.data.DataLoader(
                part,
                batch_size=None,
                num_workers=self.workers,
                prefetch_factor=AHEAD,
                worker_init_fn=_set_up_worker,
                multiprocessing_context=_context(),
            )
            parts = iter(loader)
        for sentences, left_out, problem in _read_ahead(parts):
            for reason, count in left_out.items():
                self.counts[reason] = self.counts.get(reason, 0) + count
            if problem is not None:
                raise problem
            yield from sentences


def _read_ahead(parts: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            yield next(parts)
        except StopIteration:
            return
        except RuntimeError as error:  # a worker that was killed
            reason = str(error).partition(". ")[0]
            raise TrainingError(f"data.stream_workers: {reason}; go on with --resume") from error


class _Part(torch.utils.data.IterableDataset[Any]):
    """What one worker hands over: sentences, what it left out among them, and what stopped it."""

    def __init__(self, rows: Any, counts: dict[str, int], share: tuple[int, int]) -> None:
        self.rows, self.counts, self.share = rows, counts, share

    def __iter__(self) -> Iterator[tuple[list[Ids], dict[str, int], UserError | None]]:
        worker = torch.utils.data.get_worker_info()
        assert worker is not None
        number, of = self.share
        shares = of * worker.num_workers
        mine = number * worker.num_workers + worker.id
        rows = _share_of(self.rows, mine, shares).iter(READ_AT_ONCE)
        # Shares that are no whole files are each read through all of them, and all leave out the same.
        counting = mine == 0 or self.rows.num_shards % shares == 0
        before = dict(self.counts)
        while True:
            problem: UserError | None = None
            sentences: list[Ids] = []
            try:
                sentences = next(rows, {"tokens": []})["tokens"]
            except UserError as error:  # as it is: the loader would wrap it into a traceback
                problem = error
            left_out = {name: count - before.get(name, 0) for name, count in self.counts.items()}
            yield sentences, left_out if counting else {}, problem
            before = dict(self.counts)
            if not sentences:
                return


def _share_of(rows: Any, number: int, shares: int) -> Any:
    if shares == 1:
        return rows
    from datasets.distributed import split_dataset_by_node

    return split_dataset_by_node(rows, rank=number, world_size=shares)


def _context() -> str | None:
    """Fork, where there is one: a stream of datasets holds functions that no other start hands over."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else None


def _set_up_worker(number: int) -> None:
    # A Ctrl-C reaches all processes of a terminal; the training saves first, and its workers end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class StreamBatches:
    """The batches of a stream that never stands in memory whole.

    The stream is read in order into buffers; each is batched as a small corpus is, by seed, epoch and the
    buffer's number. A position is a count of steps, found again by reading up to it.

    Args:
        stream: () -> a fresh iterator over ids <s> .. </s>.
        buffer: sentences held at once.
        pad_id, batch_size, batch_tokens, bucket_batches, seed, process, accumulation: as for `Batches`; no bucket is
            larger than a buffer.
    """

    steps_per_epoch = None

    def __init__(
        self,
        stream: Callable[[], Iterable[Ids]],
        pad_id: int,
        *,
        buffer: int,
        batch_size: int,
        batch_tokens: int | None = None,
        bucket_batches: int = 100,
        seed: int = 0,
        process: tuple[int, int] = (0, 1),
        accumulation: int = 1,
    ) -> None:
        self.stream, self.pad_id, self.buffer = stream, pad_id, max(buffer, batch_size)
        self.batch_size, self.batch_tokens, self.bucket_batches = batch_size, batch_tokens, bucket_batches
        self.seed = seed
        self.rank, self.world = process
        self.accumulation = accumulation
        check_pieces(batch_size, self.world * accumulation)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Step]:
        """Yields the steps of an epoch, the first `skip` left out."""
        pieces = self.world * self.accumulation
        for number, sentences in enumerate(self._buffers()):
            if len(sentences) < pieces:
                continue  # a rest at the very end that cannot be shared out
            batches = self._planned(sentences, pieces, epoch, number)
            for rows in batches[skip:]:
                yield make_step([sentences[int(row)] for row in rows], self.pad_id, self.rank, self.world, pieces)
            skip = max(0, skip - len(batches))

    def _buffers(self) -> Iterator[list[Ids]]:
        stream = iter(self.stream())
        while held := list(itertools.islice(stream, self.buffer)):
            yield held

    def _planned(self, sentences: list[Ids], smallest: int, *key: int) -> list[Rows]:
        """The batches of a buffer, each of `smallest` sentences at least; `key` decides their order."""
        return plan(
            np.asarray([len(sentence) - 1 for sentence in sentences], dtype=np.int64),
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            bucket_batches=self.bucket_batches,
            smallest=smallest,
            generator=np.random.default_rng([self.seed, *key]),
        )


class SharedStreamBatches(StreamBatches):
    """The batches of a stream of which each process reads a share of its own.

    Each process fills its own buffers and gives its part of every step's batch, so that no process reads what another
    does; which sentences stand together then depends on the number of processes. Before the steps of a buffer the
    processes tell each other how many sentences their batches have; what one has more of goes to its next buffer. An
    epoch ends when a process has nothing left: of uneven shares the rest of the longer ones stays unread.

    Args:
        stream: () -> a fresh iterator over this process's ids <s> .. </s>.
        pad_id: the padding's id.
        **options: as for `StreamBatches`; `buffer` is of each process, `batch_size` and `batch_tokens` of all
            together, `batch_size` a multiple of their number.

    Raises:
        CorpusError: a batch that cannot be shared evenly, or into as many pieces.
    """

    def __init__(self, stream: Callable[[], Iterable[Ids]], pad_id: int, **options: Any) -> None:
        super().__init__(stream, pad_id, **options)
        if self.batch_size % self.world:
            raise CorpusError(
                f"training.batch_size: got {self.batch_size}, which {self.world} processes cannot share evenly; under "
                "data.stream_shares it must be a multiple of their number"
            )
        self.batch_size //= self.world
        if self.batch_tokens is not None:
            self.batch_tokens = max(1, self.batch_tokens // self.world)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Step]:
        """Yields the steps of an epoch, the first `skip` left out."""
        stream = iter(self.stream())
        held: list[Ids] = []
        for number in itertools.count():
            held += itertools.islice(stream, self.buffer - len(held))
            enough = len(held) >= self.accumulation
            batches = self._planned(held, self.accumulation, epoch, number, self.rank) if enough else []
            mine = [(len(rows), sum(len(held[int(row)]) - 1 for row in rows)) for rows in batches]
            sizes = all_results({self.rank: mine}) if self.world > 1 else [mine]
            steps = min(map(len, sizes))
            if steps == 0:
                return
            for k in range(skip, steps):
                yield self._step([held[int(row)] for row in batches[k]], [size[k] for size in sizes])
            skip = max(0, skip - steps)
            held = [held[int(row)] for rows in batches[steps:] for row in rows]

    def _step(self, sentences: list[Ids], sizes: list[tuple[int, int]]) -> Step:
        """This process's part of a step, of which each process has so many sentences and tokens."""
        count, before = sum(size for size, _ in sizes), sum(size for size, _ in sizes[: self.rank])
        pieces = []
        for piece in range(self.accumulation):
            rows = range(piece, len(sentences), self.accumulation)
            batch = collate([sentences[row] for row in rows], self.pad_id)
            share = len(rows) * self.world * self.accumulation / count
            pieces.append(Piece(batch, torch.tensor([before + row for row in rows]), share))
        return Step(pieces, count, sum(tokens for _, tokens in sizes))
