"""Generation against the textbook: the same weights, one core or two, interleaved repeats.

    python tests/benchmarks/bench_generation.py --threads 1

The textbook is what most repositories hold: sampling steps the full batch, with torch.multinomial, until every
sentence has ended; beam search takes one sentence at a time. Weights are random, but one hidden unit counts and
feeds </s>, so that sentences have about 20 words, as those of Penn Treebank; with --endless none ends before the limit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from textvae.generation.search import generate
from textvae.model import SequenceVAE
from textvae.nets.decoders import RecurrentDecoder
from textvae.nets.output import SoftmaxOutput
from textvae.recipe import Generation

VOCABULARY, EMBEDDING, HIDDEN, LATENT = 10_000, 256, 256, 32
PAD, BOS, EOS, UNK = 0, 1, 2, 3
SHARPNESS, END_SLOPE, END_BIAS = 40.0, 60.0, -24.0


class Textbook(nn.Module):
    """nn.Embedding, nn.LSTM, nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.to_state = nn.Linear(LATENT, HIDDEN)
        self.lstm = nn.LSTM(EMBEDDING + LATENT, HIDDEN, batch_first=True)
        self.output = nn.Linear(HIDDEN, VOCABULARY)

    def start(self, z: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.to_state(z)[None]
        return torch.tanh(memory), memory

    def step(self, tokens: Tensor, z: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        inputs = torch.cat([self.embedding(tokens), z], dim=-1)
        hidden, state = self.lstm(inputs[:, None], state)
        return self.output(hidden[:, 0]), state


@torch.no_grad()
def textbook_sample(model: Textbook, z: Tensor, max_length: int) -> list[list[int]]:
    tokens = torch.full((len(z),), BOS)
    ended = torch.zeros(len(z), dtype=torch.bool)
    state = model.start(z)
    written = []
    for _ in range(max_length):
        logits, state = model.step(tokens, z, state)
        logits[:, [PAD, BOS]] = -torch.inf
        tokens = torch.multinomial(torch.softmax(logits, dim=-1), 1).squeeze(1)
        written.append(tokens)
        ended |= tokens == EOS
        if ended.all():
            break
    rows = torch.stack(written, dim=1).tolist()
    return [row[: row.index(EOS)] if EOS in row else row for row in rows]


@torch.no_grad()
def textbook_beam(model: Textbook, z: Tensor, max_length: int, width: int) -> list[list[int]]:
    return [_beam_of_one(model, row[None], max_length, width) for row in z]


def _beam_of_one(model: Textbook, z: Tensor, max_length: int, width: int) -> list[int]:
    prefixes: list[list[int]] = [[]]
    scores = torch.zeros(1)
    state = model.start(z)
    best: tuple[list[int], float] = ([], -float("inf"))
    for _ in range(max_length):
        tokens = torch.tensor([prefix[-1] if prefix else BOS for prefix in prefixes])
        logits, state = model.step(tokens, z.expand(len(prefixes), -1), state)
        log_p = torch.log_softmax(logits, dim=-1)
        log_p[:, [PAD, BOS]] = -torch.inf
        grown = scores[:, None] + log_p
        ended, row = grown[:, EOS].max(0)
        if ended.item() > best[1]:
            best = prefixes[int(row)], ended.item()
        grown[:, EOS] = -torch.inf
        scores, index = grown.flatten().topk(width)
        if scores[0].item() <= best[1]:
            return best[0]
        parents = index // VOCABULARY
        prefixes = [prefixes[p] + [w] for p, w in zip(parents.tolist(), (index % VOCABULARY).tolist())]
        state = state[0][:, parents], state[1][:, parents]
    return prefixes[0]


def models(endless: bool) -> tuple[Textbook, SequenceVAE]:
    """The same weights twice: in the textbook's modules and in ours."""
    torch.manual_seed(0)
    textbook = Textbook().eval()
    with torch.no_grad():
        # Sharper than an untrained model: a word's entropy is a few nats, as a trained one's.
        textbook.output.weight.mul_(SHARPNESS)
        # Unit 0: all gates open, so that c = c0 + 0.03 t; </s> gets its logit from tanh(c).
        gates = textbook.lstm.bias_ih_l0.view(4, HIDDEN)  # input, forget, cell, output
        for weight in (textbook.lstm.weight_ih_l0, textbook.lstm.weight_hh_l0):
            weight.view(4, HIDDEN, -1)[:, 0] = 0
        gates[:, 0] = torch.tensor([20.0, 20.0, 0.03, 20.0])
        textbook.lstm.bias_hh_l0.view(4, HIDDEN)[:, 0] = 0
        textbook.to_state.weight[0] *= 0.3
        textbook.to_state.bias[0] = 0
        textbook.output.weight[:, 0] = 0
        textbook.output.weight[EOS] = 0
        textbook.output.weight[EOS, 0] = END_SLOPE
        textbook.output.bias[EOS] = -torch.inf if endless else END_BIAS
    ours = SequenceVAE(
        latent_dim=LATENT,
        decoder_embedding=textbook.embedding,
        decoder=RecurrentDecoder(EMBEDDING, LATENT, hidden_dim=HIDDEN),
        output=SoftmaxOutput(HIDDEN, VOCABULARY),
        word_dropout=nn.Identity(),
    ).eval()
    ours.decoder.rnn.load_state_dict(textbook.lstm.state_dict())
    ours.decoder.z_to_state.load_state_dict(textbook.to_state.state_dict())
    ours.output.load_state_dict(textbook.output.state_dict())
    return textbook, ours


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> None:
    """Interleaves the two, so that a slow minute of the machine falls on both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, taken in zip((ours, theirs), times):
            begin = time.perf_counter()
            function()
            taken.append(time.perf_counter() - begin)
    ratios = [b / a for a, b in zip(*times)]
    print(
        f"{name}: ours {statistics.median(times[0]):.2f} s ({min(times[0]):.2f} to {max(times[0]):.2f}), textbook "
        f"{statistics.median(times[1]):.2f} s ({min(times[1]):.2f} to {max(times[1]):.2f}), "
        f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=1_000)
    parser.add_argument("--beam-sentences", type=int, default=100)
    parser.add_argument("--max-length", type=int, default=60)
    parser.add_argument("--endless", action="store_true", help="no sentence ends before the limit: nothing to drop")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    textbook, model = models(options.endless)
    z = torch.randn(options.sentences, LATENT)
    few = z[: options.beam_sentences]
    limit = options.max_length

    def ours(rows: Tensor, method: str) -> list[list[int]]:
        settings = Generation.model_validate({"method": method, "max_length": limit})
        return generate(model, rows, settings=settings, bos_id=BOS, eos_id=EOS, pad_id=PAD, unk_id=UNK)

    sampled, reference = ours(z, "sample"), textbook_sample(textbook, z[:200], limit)
    beam, beam_reference = ours(few, "beam"), textbook_beam(textbook, few, limit, 5)
    same = sum(a == b for a, b in zip(beam, beam_reference))
    logits, _ = textbook.step(torch.full((len(z),), BOS), z, textbook.start(z))
    print(
        f"threads {options.threads}; words a sentence, sampled: ours {statistics.mean(map(len, sampled)):.1f}, "
        f"textbook {statistics.mean(map(len, reference)):.1f}, longest {max(map(len, sampled))}; beam: "
        f"{statistics.mean(map(len, beam)):.1f}, {same} of {len(few)} as the textbook's; entropy of the first word "
        f"{torch.distributions.Categorical(logits=logits).entropy().mean():.1f} nats"
    )
    repeats = options.repeats
    compare(f"beam 5, {len(few)}", lambda: ours(few, "beam"), lambda: textbook_beam(textbook, few, limit, 5), repeats)
    compare(f"sample, {len(z)}", lambda: ours(z, "sample"), lambda: textbook_sample(textbook, z, limit), repeats)


if __name__ == "__main__":
    main()
