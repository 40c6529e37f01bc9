"""The model as most repositories write it: the baseline of every ratio.

nn.Embedding, nn.LSTM, nn.Linear, F.cross_entropy, pack_padded_sequence; IW-NLL a sentence at a time; sampling with
torch.multinomial over the full batch until every sentence has ended; nucleus by sorting; beam search a sentence at a
time; a vocabulary in a dict and torch's DataLoader.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from tests.benchmarks.sizes import BOS, EOS, PAD, SPECIALS, UNK, Sizes
from textvae.types import Batch

State = tuple[Tensor, Tensor]


class Textbook(nn.Module):
    """The LSTM-VAE, z into the decoder's first state and each of its inputs."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        vocabulary, embedding, hidden, latent = sizes
        self.encoder_embedding = nn.Embedding(vocabulary, embedding)
        self.encoder = nn.LSTM(embedding, hidden, batch_first=True)
        self.to_posterior = nn.Linear(hidden, 2 * latent)
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.to_state = nn.Linear(latent, hidden)
        self.lstm = nn.LSTM(embedding + latent, hidden, batch_first=True)
        self.output = nn.Linear(hidden, vocabulary)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns mean and log variance of q(z|x), each (B, D)."""
        embedded = self.encoder_embedding(batch.targets)
        packed = pack_padded_sequence(embedded, batch.lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.encoder(packed)
        mean, log_variance = self.to_posterior(hidden[-1]).chunk(2, dim=-1)
        return mean, log_variance

    def start(self, z: Tensor) -> State:
        memory = self.to_state(z)[None]
        return torch.tanh(memory), memory

    def decode(self, batch: Batch, z: Tensor) -> Tensor:
        """Returns logits (B, T, V)."""
        embedded = self.embedding(batch.inputs)
        inputs = torch.cat([embedded, z[:, None].expand(-1, embedded.shape[1], -1)], dim=-1)
        packed = pack_padded_sequence(inputs, batch.lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.lstm(packed, self.start(z))[0], batch_first=True)
        return self.output(hidden)

    def loss(self, batch: Batch, noise: Tensor) -> Tensor:
        """Returns -ELBO, nats a sentence, with z from standard normal noise (B, D)."""
        mean, log_variance = self.encode(batch)
        z = mean + torch.exp(0.5 * log_variance) * noise
        logits = self.decode(batch, z).flatten(0, 1)
        reconstruction = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=PAD, reduction="sum")
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
        return (reconstruction + kl) / len(batch.lengths)

    def step(self, tokens: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        inputs = torch.cat([self.embedding(tokens), z], dim=-1)
        hidden, state = self.lstm(inputs[:, None], state)
        return self.output(hidden[:, 0]), state


@torch.no_grad()
def iw_nll(model: Textbook, sentences: Sequence[Batch], noise: Sequence[Tensor], chunk: int = 100) -> Tensor:
    """Returns (N,) nats: one sentence at a time, `chunk` samples at a time, z from noise (S, D) of each sentence."""
    result = []
    for batch, draws in zip(sentences, noise):
        mean, log_variance = model.encode(batch)
        deviation = torch.exp(0.5 * log_variance)
        weights = []
        for eps in draws.split(chunk):
            z = mean + deviation * eps
            copies = Batch(batch.tokens.expand(len(z), -1), batch.lengths.expand(len(z)))
            logits = model.decode(copies, z)
            nll = F.cross_entropy(logits.flatten(0, 1), copies.targets.flatten(), reduction="none")
            log_q = (-0.5 * (eps.square() + log_variance + math.log(2 * math.pi))).sum(-1)
            log_prior = (-0.5 * (z.square() + math.log(2 * math.pi))).sum(-1)
            weights.append(-nll.view(len(z), -1).sum(-1) + log_prior - log_q)
        result.append(math.log(len(draws)) - torch.logsumexp(torch.cat(weights), 0))
    return torch.stack(result)


Pick = Callable[[Tensor], Tensor]  # logits (B, V) -> words (B,)


def multinomial(logits: Tensor) -> Tensor:
    return torch.multinomial(torch.softmax(logits, dim=-1), 1).squeeze(1)


def nucleus(logits: Tensor, top_p: float = 0.9) -> Tensor:
    ordered, index = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
    return index.gather(1, torch.multinomial(ordered, 1)).squeeze(1)


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


@torch.no_grad()
def generate(model: Textbook, z: Tensor, pick: Pick, max_length: int) -> list[list[int]]:
    tokens = torch.full((len(z),), BOS, device=z.device)
    ended = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    state = model.start(z)
    written = []
    for _ in range(max_length):
        logits, state = model.step(tokens, z, state)
        logits[:, [PAD, BOS]] = -torch.inf
        tokens = pick(logits)
        written.append(tokens)
        ended |= tokens == EOS
        if ended.all():
            break
    rows = torch.stack(written, dim=1).tolist()
    return [row[: row.index(EOS)] if EOS in row else row for row in rows]


@torch.no_grad()
def interpolate(model: Textbook, a: Tensor, b: Tensor, points: int, max_length: int) -> list[list[int]]:
    """A pair of ends at a time, point after point of the straight line."""
    shares = torch.linspace(0, 1, points, device=a.device)
    lines = [torch.stack([(1 - t) * one + t * other for t in shares]) for one, other in zip(a, b)]
    return [row for line in lines for row in generate(model, line, greedy, max_length)]


@torch.no_grad()
def beam(model: Textbook, z: Tensor, width: int, max_length: int) -> list[list[int]]:
    return [_beam_of_one(model, row[None], width, max_length) for row in z]


def _beam_of_one(model: Textbook, z: Tensor, width: int, max_length: int) -> list[int]:
    prefixes: list[list[int]] = [[]]
    scores = torch.zeros(1, device=z.device)
    state = model.start(z)
    best: tuple[list[int], float] = ([], -float("inf"))
    for _ in range(max_length):
        tokens = torch.tensor([prefix[-1] if prefix else BOS for prefix in prefixes], device=z.device)
        logits, state = model.step(tokens, z.expand(len(prefixes), -1), state)
        log_p = torch.log_softmax(logits, dim=-1)
        log_p[:, [PAD, BOS]] = -torch.inf
        grown = scores[:, None] + log_p
        ended, row = grown[:, EOS].max(0)
        grown[:, EOS] = -torch.inf
        scores, index = grown.flatten().topk(width)
        if ended.item() > best[1] and ended.item() >= scores[-1].item():
            best = prefixes[int(row)], ended.item()
        if scores[0].item() <= best[1]:
            return best[0]
        parents = index // log_p.shape[1]
        prefixes = [prefixes[p] + [w] for p, w in zip(parents.tolist(), (index % log_p.shape[1]).tolist())]
        state = state[0][:, parents], state[1][:, parents]
    return prefixes[0]


def vocabulary_of(lines: Sequence[str]) -> dict[str, int]:
    counts = Counter(word for line in lines for word in line.split())
    return {word: SPECIALS + rank for rank, (word, _) in enumerate(counts.most_common())}


def loader(lines: Sequence[str], words: dict[str, int], batch_size: int) -> DataLoader:
    rows = [torch.tensor([BOS, *(words.get(word, UNK) for word in line.split()), EOS]) for line in lines]
    return DataLoader(rows, batch_size=batch_size, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]


def collate(rows: list[Tensor]) -> Batch:
    tokens = pad_sequence(rows, batch_first=True, padding_value=PAD)
    return Batch(tokens, torch.tensor([len(row) - 1 for row in rows]))
