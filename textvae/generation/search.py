"""Words from a latent: greedy, ancestral sampling (temperature, top-k, nucleus) and beam search, a batch at once.

Sentences and hypotheses leave the batch as they end, so that the output layer, which is nearly all of the work, never
runs for one that is done; on a GPU, where steps are recorded (`recorded.py`), they leave now and then.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textvae.combinations import drawn_from_in_vain
from textvae.errors import UserError
from textvae.generation.draws import largest, seeds_of
from textvae.generation.recorded import RecordedSteps, can_be_recorded
from textvae.generation.stepwise import (
    Generated,
    StepModel,
    Words,
    argmax,
    lists,
    prepared,
    sampler,
    select,
    streams_of,
    word_by_word,
)
from textvae.nets.recording import Recorder
from textvae.recipe import Generation

# Rows worked on at once. On a CPU larger logits fall out of the cache and of malloc's reuse: 1,000 rows of 10,000
# words cost 25 % more a row than 500.
CPU_ROWS = 512
DEVICE_ROWS = 4096


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
    if wrong := drawn_from_in_vain(settings):
        raise UserError("\n".join(wrong))
    # A tokenizer may use one id for two of its special tokens; </s> must stay possible.
    banned = {pad_id, bos_id, unk_id if settings.ban_unk else None} - {eos_id, None}
    words = Words(bos_id, eos_id, torch.tensor(sorted(i for i in banned if i is not None), device=z.device).long())
    seeds = seeds_of(len(z), generator, z.device) if settings.method == "sample" else None
    at_once = CPU_ROWS if z.device.type == "cpu" else DEVICE_ROWS
    if settings.method == "beam":
        at_once = max(1, at_once // settings.beam_size)
    pick = argmax if seeds is None else sampler(settings)
    rows = min(at_once, len(z)) * (settings.beam_size if settings.method == "beam" else 1)
    model = prepared(model, rows, settings.max_length)
    recorded = None
    if len(z) and can_be_recorded(model, z, settings):
        rows, count, recorder = min(at_once, len(z)), -(-len(z) // at_once), Recorder(z.device)
        recorded = RecordedSteps(model, pick, settings, words, rows, count, scored=scored, recorder=recorder)
    parts = []
    for begin in range(0, len(z), at_once):
        part = slice(begin, begin + at_once)
        if settings.method == "beam":
            parts.append(_beam_search(model, z[part], settings, words))
            continue
        streams = None if seeds is None else streams_of(settings, seeds[part])
        if recorded is not None:
            parts.append(recorded.part(z[part], streams))
        else:
            parts.append(word_by_word(model, z[part], pick, streams, settings.max_length, words, scored=scored))
    log_likelihoods = [part.log_likelihood for part in parts]
    return Generated(
        [ids for part in parts for ids in part.ids],
        torch.cat(log_likelihoods) if parts else z.new_zeros(0, dtype=torch.float64),
    )


def _beam_search(model: StepModel, z: Tensor, settings: Generation, words: Words) -> Generated:
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
        at, state = z[owner], select(state, parents)
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
    return lists(table, lengths)
