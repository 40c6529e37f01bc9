"""Forward and reverse perplexity: an LSTM language model of this toolkit, trained in memory, judges texts."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textvae import build
from textvae.errors import UserError
from textvae.evaluation.bounds import evaluating, perplexity
from textvae.model import SequenceVAE
from textvae.optimizers import OPTIMIZERS
from textvae.recipe import Recipe
from textvae.seeds import set_aside
from textvae.text import tokenizers
from textvae.text.batching import ListStore, collate, evaluation_batches, plan
from textvae.types import Batch, Tokenizer

STEPS = 4_000
BATCH_SIZE = 64
HIDDEN_DIM = 256
EVALUATIONS = 10  # looks at the validation texts in a training
HELD_OUT = 20  # without validation texts every 20th is held out
GRADIENT_CLIP = 5.0


class LanguageModel:
    """A trained language model in the hand: p(x) = prod_t p(x_t | x_<t), exact.

    Args:
        model: a `SequenceVAE` without latents.
        tokenizer: the one it was trained with.
    """

    def __init__(self, model: SequenceVAE, tokenizer: Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    def nll(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns -log p(x) of each text, (N,) float64 nats a sequence, and its target tokens, (N,) int64.

        Raises:
            UserError: no texts.
        """
        if not len(texts):
            raise UserError("there is no text to score")
        store = ListStore(self.tokenizer.encode(list(texts)))
        return _nll(self.model, store, self.tokenizer.pad_id)

    def perplexity(self, texts: Sequence[str]) -> float:
        """Returns exp(nats / target tokens) of the texts together: </s> counted, <s> not, <unk> as any token.

        Raises:
            UserError: no texts.
        """
        nll, tokens = self.nll(texts)
        return perplexity(float(nll.sum()), int(tokens.sum()))


def language_model(
    texts: Sequence[str],
    validation: Sequence[str] | None = None,
    *,
    steps: int = STEPS,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    hidden_dim: int = HIDDEN_DIM,
    dropout: float = 0.2,
    lr: float = 2e-3,
    device: str | torch.device = "cpu",
    on_step: Callable[[], object] | None = None,
) -> LanguageModel:
    """Trains an LSTM language model on texts, with a budget fixed in advance.

    One layer; `steps` steps of Adam on batches of 64 sentences, the learning rate falling in a straight line to 0,
    gradients clipped at 5. Of 10 evaluations along the way the parameters that were best on the validation texts are
    kept. The same texts, budget and seed give the same model; figures of two corpora are comparable with the same
    budget alone.

    Args:
        texts: what it learns.
        validation: what picks the parameters; where absent, every 20th of `texts` is held out for it.
        steps: optimiser steps.
        seed: of parameters, order and dropout; the caller's random state stays as it was.
        tokenizer: text to ids; where absent the words of `texts` and `validation`.
        hidden_dim: H, of embedding and LSTM.
        dropout: on the LSTM's inputs and outputs.
        lr: the first learning rate.
        device: where it is trained and stays.
        on_step: called after each step, to show that it goes on.

    Returns:
        The scorer.

    Raises:
        UserError: no texts, too few to hold some out, or a budget below 1.
    """
    if not len(texts) or (validation is not None and not len(validation)) or steps < 1:
        held = "" if validation is None else f", {len(validation)} validation texts"
        raise UserError(f"a language model needs texts and steps; got {len(texts)} texts{held}, {steps} steps")
    if validation is None:
        if len(texts) < 2:
            raise UserError("a language model needs validation texts, or 2 texts of which one is held out; got 1 text")
        validation, texts = texts[::HELD_OUT], [text for i, text in enumerate(texts) if i % HELD_OUT]
    tokenizer = tokenizer or tokenizers.train({"kind": "word"}, itertools.chain(texts, validation))
    train, held_out = (ListStore(tokenizer.encode(list(part))) for part in (texts, validation))
    with set_aside(seed, device), torch.inference_mode(False), torch.enable_grad():
        model = build.build_model(_recipe(hidden_dim, dropout, steps), tokenizer).to(device)
        _train(model, train, held_out, tokenizer.pad_id, steps=steps, seed=seed, lr=lr, on_step=on_step)
    return LanguageModel(model.requires_grad_(False), tokenizer)


def forward_perplexity(
    samples: Sequence[str],
    train_texts: Sequence[str],
    validation: Sequence[str] | None = None,
    **options: Any,
) -> float:
    """Returns the perplexity of samples under a language model trained on the corpus: fluency, blind to variety.

    exp(-sum_i log p_corpus(x_i) / target tokens). Its floor is not 1 but what real text gets: print the test set's
    own under the same model beside it (`language_model(train_texts).perplexity(test)`). One sentence over and over
    can score below that.

    Args:
        samples: what is judged.
        train_texts: the corpus.
        validation: the corpus's validation texts; every 20th training text where absent.
        **options: of `language_model`: steps, seed, tokenizer, hidden_dim, dropout, lr, device, on_step.

    Raises:
        UserError: no samples or no texts.

    References:
        Zhao 2018 (ARAE), arXiv 1706.04223, section 5.
    """
    _some(samples, "samples")
    return language_model(train_texts, validation, **options).perplexity(samples)


def reverse_perplexity(
    samples: Sequence[str],
    test_texts: Sequence[str],
    validation: Sequence[str] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> float:
    """Returns the perplexity of the test set under a language model trained on samples: fluency and variety.

    exp(-sum_i log p_samples(x_i) / target tokens). Biased upwards where samples are few, whatever their quality: the
    figure for as many training sentences in place of the samples is what to compare with, and figures are comparable
    for equal numbers of samples alone.

    Args:
        samples: what the language model learns, thousands of them.
        test_texts: what it is tested on.
        validation: samples that pick the parameters; every 20th of `samples` where absent. Never real text: the
            model would be chosen by what it is tested for.
        tokenizer: the run's, so that words that the samples lack are still there to be missed; where absent the words
            of samples and test set together.
        **options: of `language_model`: steps, seed, hidden_dim, dropout, lr, device, on_step.

    Raises:
        UserError: no samples or no texts.

    References:
        Zhao 2018 (ARAE), arXiv 1706.04223, section 5.
    """
    _some(samples, "samples")
    _some(test_texts, "test texts")
    tokenizer = tokenizer or tokenizers.train({"kind": "word"}, itertools.chain(samples, test_texts))
    return language_model(samples, validation, tokenizer=tokenizer, **options).perplexity(test_texts)


def perplexity_along(paths: Sequence[Sequence[str]], model: LanguageModel) -> list[float]:
    """Returns the perplexity of all paths' texts at each position of the path: high in the middle is broken text.

    Args:
        paths: P paths of equally many texts, ends included.
        model: trained on the corpus.

    Returns:
        One perplexity a position, over the P texts there together.

    Raises:
        UserError: no paths, or paths of different numbers of texts.
    """
    _some(paths, "paths")
    counts = sorted({len(path) for path in paths})
    if len(counts) > 1 or not counts[0]:
        raise UserError(
            f"paths: got some of {', '.join(map(str, counts))} texts; all must have the same number, 1 or more"
        )
    return [model.perplexity(texts) for texts in zip(*paths)]


def _recipe(hidden_dim: int, dropout: float, steps: int) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"grammar": {}},  # a recipe must name a source; the model is built without it
            "model": {
                "latent_dim": 0,
                "embedding_dim": hidden_dim,
                "tie_output": False,
                "decoder": {
                    "cell": "lstm",
                    "hidden_dim": hidden_dim,
                    "input_dropout": dropout,
                    "output_dropout": dropout,
                },
            },
            "training": {"max_steps": steps},
        }
    )


def _train(
    model: SequenceVAE,
    train: ListStore,
    held_out: ListStore,
    pad_id: int,
    *,
    steps: int,
    seed: int,
    lr: float,
    on_step: Callable[[], object] | None,
) -> None:
    """Trains in place; the parameters that are best on what is held out are put in at the end."""
    device = model.decoder_embedding.weight.device
    optimizer = OPTIMIZERS.build({"kind": "adam", "lr": lr}, model.parameters(), path="optimizer")
    every = max(1, steps // EVALUATIONS)
    best, kept = math.inf, copy.deepcopy(model.state_dict())
    model.train()
    for step, batch in enumerate(itertools.islice(_batches(train, pad_id, seed), steps), start=1):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - (step - 1) / steps)
        loss = -model(Batch(*(part.to(device) for part in batch))).log_likelihood.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0 or step == steps:
            nll = float(_nll(model, held_out, pad_id)[0].mean())
            if nll < best:
                best, kept = nll, copy.deepcopy(model.state_dict())
        if on_step is not None:
            on_step()
    model.load_state_dict(kept)
    model.eval()


def _batches(store: ListStore, pad_id: int, seed: int) -> Iterator[Batch]:
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch])
        for rows in plan(store.lengths, batch_size=BATCH_SIZE, generator=order):
            yield collate([store[int(row)] for row in rows], pad_id)


def _nll(model: SequenceVAE, store: ListStore, pad_id: int) -> tuple[Tensor, Tensor]:
    """(N,) float64 nats a sequence and (N,) target tokens, on the CPU."""
    device = model.decoder_embedding.weight.device
    nll = torch.empty(len(store), dtype=torch.float64)
    with evaluating(model):
        for rows, batch in evaluation_batches(store, pad_id):
            output = model(Batch(*(part.to(device) for part in batch)))
            nll[torch.from_numpy(rows)] = -output.log_likelihood[0].double().cpu()
    return nll, torch.from_numpy(store.lengths)


def _some(texts: Sequence[Any], what: str) -> None:
    if not len(texts):
        raise UserError(f"there are no {what}; at least one is needed")
