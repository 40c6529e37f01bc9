"""Words from a latent: greedy, ancestral sampling (temperature, top-k, nucleus) and beam search, a batch at once.

Sentences and hypotheses leave the batch as they end, so that the output layer, which is nearly all of the work, never
runs for one that is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from textvae.errors import UserError
from textvae.generation.draws import NUMBERS, ONCE, Streams, draw, draw_from_nucleus, largest, seeds_of
from textvae.recipe import Generation

State = tuple[Tensor, ...]  # each (layers, B, H)

# Rows worked on at once. On a CPU larger logits fall out of the cache and of malloc's reuse: 1,000 rows of 10,000
# words cost 25 % more a row than 500.
CPU_ROWS = 512
DEVICE_ROWS = 4096
COLDEST = 1e-20  # temperature


class StepModel(Protocol):
    """What generation needs of a model; `textvae.model.SequenceVAE` is one."""

    def start(self, z: Tensor) -> State:
        """Returns the state before the first word, each tensor (layers, B, H), for z (B, D)."""
        ...

    def step(self, tokens: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads tokens (B,); returns the next word's logits (B, V), which the caller may overwrite, and the state."""
        ...


class Generated(NamedTuple):
    """Sentences and what the model makes of them, row for row."""

    ids: list[list[int]]  # without <s>, up to and without </s>
    log_likelihood: Tensor  # (B,) float64, log p(x|z) in nats; </s> counted where the sentence reached it


def generate(
    model: StepModel,
    z: Tensor,
    *,
    settings: Generation,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    unk_id: int | None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Decodes each latent into the ids of one sentence.

    <pad> and <s> are never generated, <unk> only where `ban_unk` is off. Greedy and beam search maximise the model's
    own log p(x|z) over the sentences that are left, without length penalty; sampling draws from the probabilities that
    are left, renormalised: first the temperature, then the `top_k` most probable, then the nucleus, the smallest set
    that holds `top_p` of the probability (words tied with its least probable one are kept too).

    Each row draws from a random stream of its own, so that what the others in the batch do changes nothing, and
    generating a batch in consecutive parts gives what generating it whole gives. The model should be in `.eval()`.

    Args:
        model: `start` and `step`.
        z: (B, D).
        settings: method, temperature, top_k, top_p, beam_size, max_length (</s> counted) and ban_unk.
        bos_id: read before the first word.
        eos_id: ends a sentence.
        pad_id: never generated.
        unk_id: None where the vocabulary has no <unk>.
        generator: of the random streams; the global one where absent. Read once a call, and only to sample.

    Returns:
        B lists of ids, row i from z[i], without <s>, up to and without </s>.

    Raises:
        UserError: settings that belong to another method.
    """
    return _generate(model, z, settings, bos_id, eos_id, pad_id, unk_id, generator, scored=False).ids


def generate_scored(
    model: StepModel,
    z: Tensor,
    *,
    settings: Generation,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    unk_id: int | None,
    generator: torch.Generator | None = None,
) -> Generated:
    """Decodes as `generate` does, and returns each sentence's log p(x|z) beside it.

    The log-likelihood is the model's, whatever the temperature, truncation and banned words a sentence was decoded
    with; of a sentence cut at `max_length` it is that of its words. It costs one more pass over the logits; beam
    search has it anyway.
    """
    return _generate(model, z, settings, bos_id, eos_id, pad_id, unk_id, generator, scored=True)


class _Words(NamedTuple):
    bos: int
    eos: int
    banned: Tensor  # ids that are never generated


Pick = Callable[[Tensor, Tensor, int], Tensor]  # logits (R, V), rows (R,), step -> words (R,)


@torch.no_grad()
def _generate(
    model: StepModel,
    z: Tensor,
    settings: Generation,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    unk_id: int | None,
    generator: torch.Generator | None,
    *,
    scored: bool,
) -> Generated:
    _check(settings)
    # A tokenizer may use one id for two of its special tokens; </s> must stay possible.
    banned = {pad_id, bos_id, unk_id if settings.ban_unk else None} - {eos_id, None}
    words = _Words(bos_id, eos_id, torch.tensor(sorted(i for i in banned if i is not None), device=z.device).long())
    seeds = seeds_of(len(z), generator, z.device) if settings.method == "sample" else None
    at_once = CPU_ROWS if z.device.type == "cpu" else DEVICE_ROWS
    if settings.method == "beam":
        at_once = max(1, at_once // settings.beam_size)
    parts = []
    for begin in range(0, len(z), at_once):
        part = slice(begin, begin + at_once)
        if settings.method == "beam":
            parts.append(_beam_search(model, z[part], settings, words))
        else:
            pick = _argmax if seeds is None else _sampler(settings, seeds[part])
            parts.append(_word_by_word(model, z[part], pick, settings.max_length, words, scored=scored))
    log_likelihoods = [part.log_likelihood for part in parts]
    return Generated(
        [ids for part in parts for ids in part.ids],
        torch.cat(log_likelihoods) if parts else z.new_zeros(0, dtype=torch.float64),
    )


def _check(settings: Generation) -> None:
    if settings.method == "sample":
        return
    ignored = {"temperature": settings.temperature != 1.0, "top_k": settings.top_k, "top_p": settings.top_p}
    for name, given in ignored.items():
        if given:
            raise UserError(
                f"generation.{name}: got {getattr(settings, name)} with method {settings.method!r}, which draws "
                f"nothing; leave {name} out or set method: sample"
            )


def _word_by_word(
    model: StepModel, z: Tensor, pick: Pick, max_length: int, words: _Words, *, scored: bool
) -> Generated:
    """Greedy decoding and sampling: one word a row and step, rows leaving as they end."""
    total = len(z)
    rows = torch.arange(total, device=z.device)  # (R,), the rows that go on
    tokens = torch.full_like(rows, words.bos)
    state = model.start(z)
    log_likelihood = torch.zeros(total, dtype=torch.float64, device=z.device)
    written = []
    for step in range(max_length):
        logits, state = model.step(tokens, z, state)
        log_p = torch.log_softmax(logits, dim=-1) if scored else None
        tokens = pick(logits.index_fill_(1, words.banned, -torch.inf), rows, step)
        del logits  # freed before the next step's are made, which then find memory that is mapped and in the cache
        if log_p is not None:
            log_likelihood.index_add_(0, rows, log_p.gather(1, tokens[:, None]).squeeze(1).double())
        kept = (tokens != words.eos).nonzero().squeeze(1)
        if len(kept) < len(rows):
            rows, tokens, z = rows[kept], tokens[kept], z[kept]
            state = _select(state, kept)
        if not len(kept):
            break
        written.append((rows, tokens))
    table = torch.zeros(total, len(written), dtype=torch.int64, device=z.device)
    lengths = torch.zeros(total, dtype=torch.int64, device=z.device)
    for column, (rows, tokens) in enumerate(written):
        table[rows, column] = tokens
        lengths[rows] = column + 1
    return Generated(_lists(table, lengths), log_likelihood)


def _sampler(settings: Generation, seeds: Tensor) -> Pick:
    """Draws from softmax(logits / temperature), cut to the top k and the nucleus; row i has the stream of seeds[i]."""

    # Nearer to 0 or to infinity than single precision goes, 0/0 would come of it: here it is greedy, or uniform.
    temperature = min(max(settings.temperature, COLDEST), 1 / COLDEST)
    memory: Tensor | None = None  # kept, because mapping 20 MB afresh each step takes longer than the softmax
    top_p = 1.0 if settings.top_p is None else settings.top_p
    whole = top_p == 1.0
    streams = Streams(seeds, ONCE if whole else NUMBERS)

    def pick(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        candidates = None
        if settings.top_k is not None and settings.top_k < logits.shape[1]:
            logits, candidates = largest(logits, settings.top_k)
        if temperature != 1.0:
            logits /= temperature
        nonlocal memory
        memory = torch.empty_like(logits) if memory is None else memory
        weights = torch.softmax(logits, dim=-1, out=memory[: len(logits)])
        numbers = streams.of_word(step, rows)
        choice = draw(weights, numbers) if whole else draw_from_nucleus(weights, top_p, numbers)
        return choice if candidates is None else candidates.gather(1, choice[:, None]).squeeze(1)

    return pick


def _beam_search(model: StepModel, z: Tensor, settings: Generation, words: _Words) -> Generated:
    """Beam search for all sentences at once; returns each one's best hypothesis.

    A sentence keeps its best finished hypothesis and its `beam_size` best unfinished ones. One finishes where its </s>
    is among the `beam_size` best words of all: any hypothesis could end at any step, and the likeliest sentence of many
    models is the empty one (Stahlberg & Byrne 2019, arXiv 1908.10090). Scores only fall, so an unfinished one that is
    not above the finished one can never win: it leaves the batch, and a sentence is done when it has none left. At
    `max_length` the unfinished compete as they are. A beam of 1 is greedy.
    """
    sentences, width = len(z), settings.beam_size
    at, state = z, model.start(z)
    # Row r of the batch is the hypothesis in place slot[r] of sentence owner[r]; row_of is the way back.
    owner = torch.arange(sentences, device=z.device)
    slot = torch.zeros_like(owner)
    row_of = owner[:, None].expand(-1, width)
    tokens = torch.full_like(owner, words.bos)
    score = torch.zeros(sentences, dtype=torch.float64, device=z.device)
    best = torch.full_like(score, -torch.inf)
    best_length, best_row = torch.zeros_like(owner), torch.zeros_like(owner)
    history: list[tuple[Tensor, Tensor]] = []  # a step's rows: the row each came from, the word it added
    memory = None  # kept, because mapping 20 MB afresh each step takes longer than the softmax
    for step in range(settings.max_length):
        logits, state = model.step(tokens, at, state)
        if memory is None:
            memory = logits.new_empty(sentences * width, logits.shape[1])
        log_p = torch.log_softmax(logits, dim=-1, out=memory[: len(logits)])
        del logits
        log_p.index_fill_(1, words.banned, -torch.inf)

        ended = best.new_full((sentences, width), -torch.inf)
        ended[owner, slot] = score + log_p[:, words.eos]
        top, place = ended.max(-1)

        log_p[:, words.eos] = -torch.inf
        values, following = largest(log_p, min(width, log_p.shape[1]))  # (R, k)
        count = values.shape[1]
        grown = best.new_full((sentences, width, count), -torch.inf)
        grown[owner, slot] = score[:, None] + values
        scores, index = grown.flatten(1).topk(width)  # (sentences, width), best first
        better = (top > best) & (top >= scores[:, -1])
        best = torch.where(better, top, best)
        best_length = torch.where(better, step, best_length)
        best_row = torch.where(better, row_of.gather(1, place[:, None]).squeeze(1), best_row)
        alive = scores > best[:, None]
        owner, slot = alive.nonzero(as_tuple=True)
        if not len(owner):
            break
        chosen = index[owner, slot]
        parents = row_of[owner, chosen // count]
        tokens = following[parents, chosen % count]
        score = scores[owner, slot]
        history.append((parents, tokens))
        row_of = torch.zeros_like(index)
        row_of[owner, slot] = torch.arange(len(owner), device=z.device)
        at, state = z[owner], _select(state, parents)
    else:
        # Cut at max_length: what is still alive is above every finished hypothesis, the first place most of all.
        cut = alive[:, 0]
        best = torch.where(cut, scores[:, 0], best)
        best_length = torch.where(cut, settings.max_length, best_length)
        best_row = torch.where(cut, row_of[:, 0], best_row)
    return Generated(_trace(history, best_length, best_row), best)


def _trace(history: list[tuple[Tensor, Tensor]], lengths: Tensor, rows: Tensor) -> list[list[int]]:
    """Follows each hypothesis back from its last row to its first word."""
    table = torch.zeros(len(lengths), len(history), dtype=torch.int64, device=lengths.device)
    for column in range(len(history) - 1, -1, -1):
        parents, tokens = history[column]
        inside = (lengths > column).nonzero().squeeze(1)
        table[inside, column] = tokens[rows[inside]]
        rows = rows.index_copy(0, inside, parents[rows[inside]])
    return _lists(table, lengths)


def _select(state: State, rows: Tensor) -> State:
    return tuple(tensor.index_select(1, rows) for tensor in state)


def _lists(table: Tensor, lengths: Tensor) -> list[list[int]]:
    return [row[:length] for row, length in zip(table.tolist(), lengths.tolist())]


def _argmax(logits: Tensor, rows: Tensor, step: int) -> Tensor:
    """(R,) the most probable words; the first of equals."""
    return largest(logits, 1)[1].squeeze(1)
