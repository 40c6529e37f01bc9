"""Bounds on the likelihood, in nats a sequence: the ELBO, and the importance-weighted estimate that tightens it."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from textvae.distributed import all_results, is_mine
from textvae.errors import UserError
from textvae.evaluation.latents import float64, gaussian_parameters
from textvae.latent.divergences import kl
from textvae.latent.posteriors import Point
from textvae.seeds import drawn_from
from textvae.types import Batch

LARGEST_EXPONENT = 700.0  # exp of more is no float64
HELD = 2**24  # numbers of z held at once: 64 MiB
SHARED = 40  # draws of a sentence scored at once


class Scored(NamedTuple):
    """What one pass says of one batch."""

    posterior: Distribution | None  # q(z|x), batch (B,); None for a language model
    z: Tensor  # (S, B, D), drawn from it
    reconstruction: Tensor  # (B,) float64 -log p(x|z) nats a sequence, mean over the draws of z
    kl: Tensor  # (B,) float64 KL(q(z|x) || p(z)) nats a sequence; nan where q is a point


class Elbo(NamedTuple):
    """Sentence by sentence, in the order of the batches; float64 on the CPU."""

    reconstruction: Tensor  # (N,) -log p(x|z) nats a sequence, mean over the draws of z
    kl: Tensor  # (N,) KL(q(z|x) || p(z)) nats a sequence
    tokens: Tensor  # (N,) int64 target tokens: </s> counted, <s> not

    @property
    def nll(self) -> Tensor:
        """(N,) -ELBO, nats a sequence; for a language model the exact -log p(x)."""
        return self.reconstruction + self.kl


class ImportanceWeighted(NamedTuple):
    """Sentence by sentence, in the order of the batches; float64 on the CPU."""

    nll: Tensor  # (N,) -log (1/S) sum_s p(x, z_s) / q(z_s|x), nats a sequence
    effective_samples: Tensor  # (N,) (sum w)^2 / sum w^2, between 1 and S
    standard_error: Tensor  # (N,) of nll, nats, from the spread of the weights; nan for S = 1, which shows none
    tokens: Tensor  # (N,) int64 target tokens


def has_gpu() -> bool:
    """Returns whether cuDNN can be met at all."""
    return torch.cuda.is_available()


@contextlib.contextmanager
def cudnn(**changes: bool) -> Iterator[None]:
    """A context in which some of cuDNN's flags are changed; its own would put defaults in for all others.

    Nothing happens without a GPU. A flag that torch does not let be read is one that the user has set by other names.
    """
    before: dict[str, bool] = {}
    if has_gpu():
        for name in changes:
            with contextlib.suppress(RuntimeError):
                before[name] = getattr(torch.backends.cudnn, name)
    try:
        for name in before:
            setattr(torch.backends.cudnn, name, changes[name])
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; each module's mode is put back afterwards.

    And without TF32, which cuDNN's recurrent cells use by default: a figure is the same on each device.
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(), cudnn(allow_tf32=False):
            yield
    finally:
        for module, training in before:
            module.training = training


def perplexity(nats: float, tokens: float) -> float:
    """Returns exp(nats / tokens), corpus level: total nats over total target tokens, </s> counted and <s> not.

    Infinity where the exponent is beyond float64 (an untrained model), never an overflow error.

    Raises:
        ValueError: no tokens.
    """
    if tokens <= 0:
        raise ValueError(f"perplexity needs target tokens, and there are {tokens}")
    exponent = nats / tokens
    if math.isnan(exponent):
        return math.nan
    return math.exp(exponent) if exponent < LARGEST_EXPONENT else math.inf


def bits_per_character(nats: float, characters: float) -> float:
    """Returns nats / (characters ln 2), corpus level; of one text the same, whatever its tokens are.

    Args:
        nats: total.
        characters: total, the end of each sentence counted as one (`counts`).

    Raises:
        UserError: no characters.
    """
    if characters <= 0:
        raise UserError(f"bits a character need characters, and there are {characters}")
    return nats / (characters * math.log(2))


def word_perplexity(nats: float, words: float) -> float:
    """Returns exp(nats / words), corpus level; comparable between tokenizers, as `perplexity` is not.

    Args:
        nats: total.
        words: total, the end of each sentence counted as one (`counts`).

    Raises:
        UserError: no words.
    """
    if words <= 0:
        raise UserError(f"perplexity a word needs words, and there are {words}")
    return perplexity(nats, words)


def counts(texts: Iterable[str]) -> tuple[int, int]:
    """Returns the words (by `split()`) and characters of texts, the end of each text counted as one of either."""
    words = characters = 0
    for text in texts:
        words, characters = words + len(text.split()) + 1, characters + len(text) + 1
    return words, characters


def draw(posterior: Distribution, samples: int, generator: torch.Generator | None) -> Tensor:
    """Returns z (S, B, D) drawn from the posterior; the same for the same generator state."""
    gaussian = gaussian_parameters(posterior)
    if gaussian is not None:
        mean, scale = gaussian
        noise = torch.randn((samples, *mean.shape), generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + scale * noise
    with drawn_from(generator):
        return posterior.sample(torch.Size([samples]))


def score(
    model: Any,
    batch: Batch,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    likelihood: bool = True,
) -> Scored:
    """Encodes a batch, draws z and scores the sentences under it: one forward pass, whose mode is the caller's.

    Without `likelihood`, the decoder's part and nearly all of the time, the reconstruction is 0: for a batch that
    another process scores, whose draws must be made here as well for the next ones to be the same.
    """
    if model.latent_dim == 0:
        # The model's own type, if it has parameters at all.
        like = next(iter(model.parameters()), torch.empty(0))
        z = torch.zeros(1, len(batch.lengths), 0, device=batch.tokens.device, dtype=like.dtype)
        if not likelihood:
            none = torch.zeros(len(batch.lengths), dtype=torch.float64)
            return Scored(None, z, none, none)
        reconstruction = -float64(model.log_likelihood(batch, z)[0])
        return Scored(None, z, reconstruction, torch.zeros_like(reconstruction))
    posterior = model.encode(batch)
    z = draw(posterior, samples, generator)
    reconstruction = (
        -float64(model.log_likelihood(batch, z)).mean(0)
        if likelihood
        else torch.zeros(len(batch.lengths), dtype=torch.float64, device=z.device)
    )
    if isinstance(posterior, Point):
        # A plain autoencoder: no density, so neither KL nor any bound on the likelihood.
        return Scored(posterior, z, reconstruction, torch.full_like(reconstruction, math.nan))
    return Scored(posterior, z, reconstruction, float64(kl(posterior, model.prior(), z)))


def elbo(model: Any, batches: Iterable[Batch], *, generator: torch.Generator | None = None, samples: int = 1) -> Elbo:
    """Computes the evidence lower bound of every sentence: E_q log p(x|z) - KL(q(z|x) || p(z)).

    Args:
        model: `encode`, `prior`, `log_likelihood`, `latent_dim`.
        batches: the sentences.
        generator: of the draws of z; it lives on the model's device.
        samples: draws a sentence for the reconstruction; the KL is exact where it has a closed form.

    Raises:
        UserError: no sentence.

    References:
        Kingma & Welling 2014, arXiv 1312.6114.
    """
    _at_least_one(samples)
    parts: list[Sequence[Tensor]] = []
    with evaluating(model):
        for batch in batches:
            scored = score(model, batch, samples=samples, generator=generator)
            parts.append((scored.reconstruction, scored.kl, batch.lengths))
    return Elbo(*joined(parts))


def iw_nll(
    model: Any,
    batches: Iterable[Batch],
    *,
    samples: int = 500,
    batch_tokens: int = 20_000,
    generator: torch.Generator | None = None,
    together: bool = False,
) -> ImportanceWeighted:
    """Estimates -log p(x) by importance sampling from the posterior.

    -log (1/S) sum_s p(x|z_s) p(z_s) / q(z_s|x), z_s from q: an upper bound in expectation that falls to -log p(x) as
    S grows. Computed in chunks of samples, whose size does not change the draws; log-sum-exp in float64.

    Args:
        model: `encode`, `prior`, `log_likelihood`, `latent_dim`; for a language model the result is exact.
        batches: the sentences.
        samples: S.
        batch_tokens: padded tokens times samples worked on at once (one sample at least).
        generator: of the draws of z; it lives on the model's device.
        together: whether the processes, each of which makes this call, share the batches out; the result is the same.

    Raises:
        UserError: no sentence.

    References:
        Burda 2016, arXiv 1509.00519, equation 8.
    """
    _at_least_one(samples)
    parts: dict[int, Sequence[Tensor]] = {}
    with evaluating(model):
        for number, batch in enumerate(batches):
            mine = is_mine(number, together=together)
            if model.latent_dim == 0:
                if mine:
                    nll = score(model, batch).reconstruction.cpu()
                    parts[number] = (nll, torch.full_like(nll, samples), torch.zeros_like(nll), batch.lengths.cpu())
            elif mine:
                weights = _log_weights(model, batch, samples, batch_tokens, generator)
                parts[number] = tuple(tensor.cpu() for tensor in (*estimate(weights), batch.lengths))
            else:  # its draws are made all the same, so that those of the next batch are what they would be alone
                posterior = model.encode(batch)
                for _ in range(samples):
                    draw(posterior, 1, generator)
    return ImportanceWeighted(*joined(all_results(parts, together=together)))


def estimate(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns -log of the mean weight, effective sample size and standard error, (B,) each, of (S, B) log weights."""
    count = log_weights.shape[0]
    log_sum = torch.logsumexp(log_weights, 0)  # (B,)
    normalized = torch.exp(log_weights - log_sum)  # (S, B), sums to 1
    effective = 1.0 / normalized.square().sum(0)
    # Delta method: the variance of a mean's logarithm is that of the mean over its square.
    variance = (normalized * count).var(0) / count if count > 1 else torch.full_like(log_sum, math.nan)
    return math.log(count) - log_sum, effective, variance.sqrt()


def joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Returns the batches' tensors put together, column by column, on the CPU.

    Raises:
        UserError: no batch.
    """
    if not parts:
        raise UserError("there is no sentence to evaluate")
    return [torch.cat([tensor.cpu() for tensor in column]) for column in zip(*parts)]


def _at_least_one(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples: got {samples}; at least 1 is needed")


def _log_weights(
    model: Any, batch: Batch, samples: int, batch_tokens: int, generator: torch.Generator | None
) -> Tensor:
    """(S, B) float64 log p(x, z) - log q(z|x) for z drawn from q."""
    posterior, prior = model.encode(batch), model.prior()
    held = max(1, HELD // max(len(batch.lengths) * model.latent_dim, 1))
    parts = []
    for begin in range(0, samples, held):
        # One sample after another, so that no size of a chunk changes which numbers are drawn.
        z = torch.cat([draw(posterior, 1, generator) for _ in range(min(held, samples - begin))])  # (S', B, D)
        rate = float64(posterior.log_prob(z)) - float64(prior.log_prob(z))
        parts.append(_log_likelihoods(model, batch, z, batch_tokens) - rate)
    return torch.cat(parts)


def _log_likelihoods(model: Any, batch: Batch, z: Tensor, batch_tokens: int) -> Tensor:
    """(S, B) float64 log p(x|z) for z (S, B, D), in blocks of sentences and draws of `batch_tokens` at most.

    A model on the CPU works best on many draws of a few sentences, which share what depends on the words alone.
    """
    samples, sentences = z.shape[:2]
    at_once = max(1, batch_tokens // max(batch.targets.shape[1], 1))  # sentences times draws
    draws = min(SHARED, samples, at_once) if z.device.type == "cpu" else max(1, at_once // sentences)
    log_p = torch.empty(samples, sentences, dtype=torch.float64, device=z.device)
    for rows in _spans(sentences, max(1, at_once // draws)):
        lengths = batch.lengths[rows]
        piece = Batch(batch.tokens[rows, : int(lengths.max()) + 1], lengths)
        for some in _spans(samples, draws):
            log_p[some, rows] = float64(model.log_likelihood(piece, z[some, rows]))
    return log_p


def _spans(count: int, most: int) -> list[slice]:
    """Nearly equal pieces of up to `most`: a small rest would make products of few rows."""
    pieces = -(-count // most)
    ends = [i * count // pieces for i in range(pieces + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]
