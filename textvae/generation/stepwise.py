"""One word a row and step: greedy decoding and sampling, rows leaving as they end; what all kinds of decoding share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from textvae.generation.draws import NUMBERS, ONCE, Streams, draw, draw_from_nucleus, largest
from textvae.recipe import Generation

State = tuple[Tensor, ...]  # each (layers, B, H)
Pick = Callable[[Tensor, "Tensor | None"], Tensor]  # logits (R, V), random numbers (n, R) -> words (R,)

COLDEST = 1e-20  # temperature


class StepModel(Protocol):
    """What generation needs of a model; `textvae.model.SequenceVAE` is one.

    A class may have `prepared(rows, steps)` as well, which returns what takes steps of so many rows faster.
    """

    def start(self, z: Tensor) -> State:
        """Returns the state before the first word, each tensor (layers, B, H), for z (B, D)."""
        ...

    def step(self, tokens: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads tokens (B,); returns the next word's logits (B, V), which the caller may overwrite, and the state."""
        ...


def prepared(model: StepModel, rows: int, steps: int) -> StepModel:
    """Returns what takes a model's steps of so many rows faster, where it has such a thing, while its weights stay."""
    # Of its own class: what hands on another model's attributes has a step of its own to be asked for.
    prepare: Callable[[StepModel, int, int], StepModel] | None = getattr(type(model), "prepared", None)
    return model if prepare is None else prepare(model, rows, steps)


class Generated(NamedTuple):
    """Sentences and what the model makes of them, row for row."""

    ids: list[list[int]]  # without <s>, up to and without </s>
    log_likelihood: Tensor  # (B,) float64, log p(x|z) in nats; </s> counted where the sentence reached it


class Words(NamedTuple):
    """Those that decoding knows by name."""

    bos: int
    eos: int
    banned: Tensor  # ids that are never generated


def argmax(logits: Tensor, numbers: Tensor | None) -> Tensor:
    """Returns the most probable words, (R,), the first of equals; it draws nothing."""
    return largest(logits, 1)[1].squeeze(1)


def sampler(settings: Generation) -> Pick:
    """Returns what draws from softmax(logits / temperature), cut to the top k and the nucleus, by given numbers."""

    # Nearer to 0 or to infinity than single precision goes, 0/0 would come of it: here it is greedy, or uniform.
    temperature = min(max(settings.temperature, COLDEST), 1 / COLDEST)
    memory: Tensor | None = None  # kept, because mapping 20 MB afresh each step takes longer than the softmax
    top_p = 1.0 if settings.top_p is None else settings.top_p

    def pick(logits: Tensor, numbers: Tensor | None) -> Tensor:
        assert numbers is not None
        candidates = None
        if settings.top_k is not None and settings.top_k < logits.shape[1]:
            logits, candidates = largest(logits, settings.top_k)
        if temperature != 1.0:
            logits /= temperature
        nonlocal memory
        memory = torch.empty_like(logits) if memory is None or len(memory) < len(logits) else memory
        weights = torch.softmax(logits, dim=-1, out=memory[: len(logits)])
        choice = draw(weights, numbers) if top_p == 1.0 else draw_from_nucleus(weights, top_p, numbers)
        return choice if candidates is None else candidates.gather(1, choice[:, None]).squeeze(1)

    return pick


def streams_of(settings: Generation, seeds: Tensor) -> Streams:
    """Returns the random streams that `sampler` with these settings takes its numbers from; row i has seeds[i]'s."""
    return Streams(seeds, ONCE if settings.top_p in (None, 1.0) else NUMBERS)


def word_by_word(
    model: StepModel, z: Tensor, pick: Pick, streams: Streams | None, max_length: int, words: Words, *, scored: bool
) -> Generated:
    """Decodes latents (B, D) with a word a row and step; rows leave as they end.

    Args:
        model: `start` and `step`.
        z: (B, D).
        pick: chooses a step's words.
        streams: of the rows, where `pick` draws.
        max_length: words at most, </s> counted.
        words: those with a part of their own.
        scored: whether log-likelihoods are wanted; zeros otherwise.
    """
    total = len(z)
    rows = torch.arange(total, device=z.device)  # (R,), the rows that go on
    tokens = torch.full_like(rows, words.bos)
    state = model.start(z)
    log_likelihood = torch.zeros(total, dtype=torch.float64, device=z.device)
    written = []
    for step in range(max_length):
        logits, state = model.step(tokens, z, state)
        log_p = torch.log_softmax(logits, dim=-1) if scored else None
        numbers = None if streams is None else streams.of_word(step, rows)
        tokens = pick(logits.index_fill_(1, words.banned, -torch.inf), numbers)
        del logits  # freed before the next step's are made, which then find memory that is mapped and in the cache
        if log_p is not None:
            log_likelihood.index_add_(0, rows, log_p.gather(1, tokens[:, None]).squeeze(1).double())
        kept = (tokens != words.eos).nonzero().squeeze(1)
        if len(kept) < len(rows):
            rows, tokens, z = rows[kept], tokens[kept], z[kept]
            state = select(state, kept)
        if not len(kept):
            break
        written.append((rows, tokens))
    table = torch.zeros(total, len(written), dtype=torch.int64, device=z.device)
    lengths = torch.zeros(total, dtype=torch.int64, device=z.device)
    for column, (rows, tokens) in enumerate(written):
        table[rows, column] = tokens
        lengths[rows] = column + 1
    return Generated(lists(table, lengths), log_likelihood)


def select(state: State, rows: Tensor) -> State:
    """Returns the state of some rows."""
    return tuple(tensor.index_select(1, rows) for tensor in state)


def lists(table: Tensor, lengths: Tensor) -> list[list[int]]:
    """Returns the first lengths[i] words of each row of a table."""
    return [row[:length] for row, length in zip(table.tolist(), lengths.tolist())]
