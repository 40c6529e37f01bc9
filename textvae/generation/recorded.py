"""Greedy decoding and sampling on a GPU, each step's kernels recorded once and started together (CUDA graphs).

A step is some thirty small kernels, and a program that starts them one by one takes several times as long as they do;
one that asks after each which sentences have ended stops the device as well. Here all rows take every step, those that
have ended too, whose words go nowhere, and now and then the program looks how many are left and goes on with fewer.
What is drawn is what `word_by_word` draws: a row's numbers depend on its seed and the step alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from textvae.generation.draws import WORDS, Streams
from textvae.generation.stepwise import Generated, Pick, StepModel, Words, lists
from textvae.model import SequenceVAE
from textvae.nets.devices import runs_ahead
from textvae.nets.recording import Recorder, are_known
from textvae.recipe import Generation

LOOKED = 8  # steps between two looks at what has ended; a divisor of WORDS
SHORTEST = 2 * LOOKED  # steps at most: for fewer nothing is recorded
LONGEST = 4096  # steps at most: there is a place for each word of each sentence before it is written
WORTH = 2**16  # steps of a row that take as long as a recording, or so


def can_be_recorded(model: StepModel, z: Tensor, settings: Generation) -> bool:
    """Returns whether a step's kernels are the same each time: not a nucleus's, which tries until it has a word.

    Nor where a program's threads work beside each other: while a recording is open no other can draw random numbers on
    its GPU. Threads that the program does not wait for (daemons: a progress bar's, a notebook's) are taken for idle.
    """
    if not alone():
        return False
    if not (runs_ahead(z) and isinstance(model, SequenceVAE) and SHORTEST < settings.max_length <= LONGEST):
        return False
    if model.training:
        return False
    if settings.method == "beam" or (settings.method == "sample" and settings.top_p not in (None, 1.0)):
        return False
    parts = (model.decoder, model.output, model.decoder_embedding)
    return are_known([model, *(part for own in parts for part in own.modules())])


def alone() -> bool:
    """Returns whether this is the program's main thread, and no other is one that it would wait for."""
    main = threading.main_thread()
    return threading.current_thread() is main and all(one is main or one.daemon for one in threading.enumerate())


class _Rows(NamedTuple):
    """A number of rows and their step, all in place: each tensor is read and written where it is."""

    tokens: Tensor  # (R,), the last words
    place: Tensor  # (R,), their columns of the table; the last column is nobody's
    going: Tensor  # (R,), whether the sentence has not ended
    z: Tensor  # (R, D)
    state: tuple[Tensor, ...]  # each (layers, R, H)


class RecordedSteps:
    """Decodes parts of a batch, each of at most so many rows, by steps that are recorded when they come again.

    Args:
        model: a `SequenceVAE`, in evaluation.
        pick: chooses a step's words.
        settings: max_length.
        words: those with a part of their own.
        rows: R, of a part at most.
        parts: how many parts there are.
        scored: whether log-likelihoods are wanted; zeros otherwise.
        recorder: of the device.
    """

    def __init__(
        self,
        model: StepModel,
        pick: Pick,
        settings: Generation,
        words: Words,
        rows: int,
        parts: int,
        *,
        scored: bool,
        recorder: Recorder,
    ) -> None:
        self.model, self.pick, self.words, self.scored, self.recorder = model, pick, words, scored, recorder
        self.rows, self.parts, self.max_length = rows, parts, settings.max_length
        device = words.banned.device
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.numbers: Tensor | None = None  # (WORDS, numbers, rows + 1)
        self.table = torch.empty(self.max_length, rows + 1, dtype=torch.int64, device=device)
        self.log_likelihood = torch.zeros(rows + 1, dtype=torch.float64, device=device)
        self.sizes: dict[int, _Rows] = {}
        self.taken: set[int] = set()  # sizes of which a step has been launched
        self.plays: dict[int, Callable[[], object] | None] = {}  # None: there is no memory for it

    def part(self, z: Tensor, streams: Streams | None) -> Generated:
        """Decodes latents (B, D) with B at most `rows`, each part with streams of its own."""
        self.parts -= 1
        self.step.zero_()
        self.table.fill_(self.words.eos)
        self.log_likelihood.zero_()
        at = self._placed(self._started(z))
        for step in range(self.max_length):
            if streams is not None and not step % WORDS:
                self._draw(streams, step)
            self._take(at)
            if step % LOOKED < LOOKED - 1 or step == self.max_length - 1:
                continue
            left = at.going.nonzero().squeeze(1)  # waits for the device
            if not len(left):
                break
            at = self._with_fewer(at, left, step)
        count = len(z)
        table = self.table[: step + 1, :count].T
        return Generated(lists(table, (table != self.words.eos).sum(1)), self.log_likelihood[:count].clone())

    def _started(self, z: Tensor) -> _Rows:
        """The rows before the first word, those that a smaller part lacks ended already."""
        lacking = self.rows - len(z)
        row = torch.arange(self.rows, device=z.device)
        going = row < len(z)
        z = torch.cat([z, z.new_zeros(lacking, z.shape[1])])
        place = torch.where(going, row, self.rows)
        return _Rows(torch.full_like(row, self.words.bos), place, going, z, self.model.start(z))

    def _with_fewer(self, at: _Rows, left: Tensor, step: int) -> _Rows:
        """The rows that are left and as many ended ones as make up one of the sizes: halves of halves of all."""
        size = len(at.tokens)
        while len(left) <= (size + 1) // 2 < size:
            size = (size + 1) // 2
        saved = (len(at.tokens) - size) * (self.max_length - step) * (self.parts + 1)
        if size == len(at.tokens) or (size not in self.sizes and saved < WORTH):
            return at
        row = torch.arange(size, device=left.device)
        going = row < len(left)
        chosen = torch.zeros_like(row).index_copy_(0, row[: len(left)], left)
        place = torch.where(going, at.place[chosen], self.rows)
        state = tuple(part.index_select(1, chosen) for part in at.state)
        return self._placed(_Rows(at.tokens[chosen], place, going, at.z[chosen], state))

    def _placed(self, rows: _Rows) -> _Rows:
        """Puts rows where the steps of their number read them."""
        size = len(rows.tokens)
        if size not in self.sizes:
            *own, state = rows
            tokens, place, going, z = (part.clone() for part in own)
            self.sizes[size] = _Rows(tokens, place, going, z, tuple(part.clone() for part in state))
            return self.sizes[size]
        held = self.sizes[size]
        for old, new in zip((*held[:-1], *held.state), (*rows[:-1], *rows.state)):
            old.copy_(new)
        return held

    def _draw(self, streams: Streams, step: int) -> None:
        """Makes the numbers of the words from `step` on."""
        made = streams.from_word(step)  # (WORDS, numbers, B)
        if self.numbers is None:
            self.numbers = made.new_zeros(*made.shape[:2], self.rows + 1)
        self.numbers[:, :, : made.shape[2]] = made

    def _take(self, at: _Rows) -> None:
        """Takes a step: launched the first time, which makes ready what a recording finds, and recorded the second."""
        size = len(at.tokens)
        if size in self.taken and size not in self.plays:
            self.plays[size] = self._recorded(at)
        self.taken.add(size)
        play = self.plays.get(size)
        if play is None:
            self._work(at)
        else:
            play()

    def _recorded(self, at: _Rows) -> Callable[[], object] | None:
        try:
            if self.recorder.has_room():
                return self.recorder.record(lambda: self._work(at))[0]
        except torch.OutOfMemoryError:
            self.recorder.clear()
        return None

    def _work(self, at: _Rows) -> Tensor:
        logits, state = self.model.step(at.tokens, at.z, at.state)
        log_p = torch.log_softmax(logits, dim=-1) if self.scored else None
        numbers = self.numbers
        if numbers is not None:
            numbers = numbers.index_select(0, self.step % WORDS).squeeze(0).index_select(1, at.place)
        tokens = self.pick(logits.index_fill_(1, self.words.banned, -torch.inf), numbers)
        place = torch.where(at.going, at.place, self.rows)
        if log_p is not None:
            self.log_likelihood.index_add_(0, place, log_p.gather(1, tokens[:, None]).squeeze(1).double())
        self.table.view(-1).index_copy_(0, self.step * (self.rows + 1) + place, tokens)
        at.going.logical_and_(tokens != self.words.eos)
        at.tokens.copy_(tokens)
        for old, new in zip(at.state, state):
            old.copy_(new)
        self.step += 1
        return at.tokens
