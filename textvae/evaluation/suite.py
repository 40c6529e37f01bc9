"""Figures of texts beside the likelihoods: what samples, reconstructions and paths are like, each by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textvae.errors import UserError
from textvae.evaluation import language, paths, probes, samples, text
from textvae.evaluation.correlation import pearson
from textvae.evaluation.language import LanguageModel
from textvae.evaluation.progress import Stage, silent
from textvae.types import Tokenizer

Tokens = Callable[[str], list[str]]
COMPARED = 500  # samples that self-BLEU compares with each other: its time grows with their square
SEARCHED = 100_000  # training sentences among which the nearest is sought


def of_reconstructions(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    tokens: Tokens,
    spaced: Callable[[Sequence[str]], Sequence[str]] = list,
    tokenize: str = "none",
) -> dict[str, Any]:
    """Returns chrf (0 to 100), edit_distance (share of tokens, 0 to 1) and by_length of reconstructions.

    Args:
        hypotheses: N texts.
        references: N texts, one for each.
        tokens: text -> its tokens, where edits and lengths are counted.
        spaced: texts -> what BLEU splits, as it was where the whole's was computed.
        tokenize: sacrebleu's tokenizer, for the same.
    """
    edges = text.EDGES if tokens is str.split else text.length_edges(references, tokens=tokens)
    return {
        "chrf": text.chrf(hypotheses, references),
        "edit_distance": text.edit_distance(hypotheses, references, tokens=tokens),
        "by_length": text.by_length(
            hypotheses, references, edges=edges, tokens=tokens, spaced=spaced, tokenize=tokenize
        ),
    }


def of_samples(
    drawn: Sequence[str], train_texts: Sequence[str], references: Sequence[str], *, tokens: Tokens, seed: int = 0
) -> dict[str, Any]:
    """Returns what samples are like beside the corpus; None where a figure does not exist for them.

    Every figure depends on how many texts it is of, so NAME_reference is that of real text in the samples' place, as
    many where there are as many: of the references, or, where these are what is compared with, of training sentences.

    Args:
        drawn: the samples.
        train_texts: the training part, for novelty and memorisation.
        references: real sentences that no training has seen, whose unigrams and lengths are compared.
        tokens: text -> its tokens.
        seed: of the choice of training sentences.

    Returns:
        count, reference_sentences, train_sentences; distinct_1, distinct_2, duplicates and novelty (shares), copied
        (share of samples that are a training sentence, token by token), self_bleu (0 to 100, of the first 500),
        nearest_distance (mean normalised edit distance to the nearest of the first 100,000 training sentences) with
        nearest_exact (the share of them that are exact; the rest are upper bounds), unigram_kl, unigram_js, length_kl
        and length_js (nats).
    """
    real = references[: len(drawn)]
    rows = np.sort(np.random.default_rng(seed).permutation(len(train_texts))[: len(drawn)])
    known = {tuple(tokens(line)) for line in train_texts}
    described = [_alone(texts, train_texts, known, tokens) for texts in (drawn, real)]
    compared = [_beside(texts, references, tokens) for texts in (drawn, [train_texts[row] for row in rows])]
    ours, theirs = ({**one, **other} for one, other in zip(described, compared))
    result: dict[str, Any] = {
        "count": len(drawn),
        "reference_sentences": len(references),
        "train_sentences": len(train_texts),
    }
    for name, value in ours.items():
        result |= {name: value} if name == "nearest_exact" else {name: value, f"{name}_reference": theirs[name]}
    return result


def _alone(
    texts: Sequence[str], train_texts: Sequence[str], known: set[tuple[str, ...]], tokens: Tokens
) -> dict[str, Any]:
    near = samples.nearest(texts, train_texts[:SEARCHED], tokens=tokens)
    copied = [tuple(tokens(line)) in known for line in texts]
    distances = [0.0 if copy else found.distance for copy, found in zip(copied, near)]
    return {
        "distinct_1": _or_none(lambda: samples.distinct_n(texts, 1, tokens=tokens)),
        "distinct_2": _or_none(lambda: samples.distinct_n(texts, 2, tokens=tokens)),
        "duplicates": samples.duplicates(texts),
        "novelty": samples.novelty(texts, train_texts),
        "copied": sum(copied) / len(copied),
        "self_bleu": _or_none(lambda: samples.self_bleu(texts[:COMPARED], tokens=tokens)),
        "nearest_distance": sum(distances) / len(distances),
        "nearest_exact": sum(copy or found.exact for copy, found in zip(copied, near)) / len(near),
    }


def _beside(texts: Sequence[str], references: Sequence[str], tokens: Tokens) -> dict[str, Any]:
    unigram = _or_none(lambda: samples.unigram_divergence(texts, references, tokens=tokens))
    length = _or_none(lambda: samples.length_divergence(texts, references, tokens=tokens))
    return {
        "unigram_kl": unigram and unigram[0],
        "unigram_js": unigram and unigram[1],
        "length_kl": length and length[0],
        "length_js": length and length[1],
    }


def of_paths(walks: Sequence[Sequence[str]], *, tokens: Tokens) -> dict[str, Any]:
    """Returns the figures of `textvae.evaluation.paths` and how many paths they are of.

    Args:
        walks: paths between two sentences, each decoded point by point.
        tokens: text -> its tokens.
    """
    return {"count": len(walks), **paths.figures(walks, tokens=tokens)._asdict()}


def of_language(
    drawn: Sequence[str],
    *,
    train: Sequence[str],
    validation: Sequence[str] | None,
    test: Sequence[str],
    tokenizer: Tokenizer,
    steps: int,
    seed: int,
    stage: Stage = silent,
    **options: Any,
) -> tuple[dict[str, Any], LanguageModel]:
    """Returns forward and reverse perplexity of samples, what real text gets in their place, and the corpus's judge.

    Three language models (`evaluation.language.language_model`) with one budget: of the training texts, of the
    samples, and of as many training texts.

    Args:
        drawn: the samples, 2 or more.
        train: what the corpus's language model learns.
        validation: what picks its parameters; every 20th training text where absent.
        test: real texts.
        tokenizer: the run's: all perplexities are a token of it.
        steps: optimiser steps of each language model.
        seed: of each language model, and of the choice of training texts.
        stage: shows that it goes on.
        **options: of `language_model`: hidden_dim, dropout, lr, device.

    Returns:
        samples, steps, batch_size, hidden_dim, seed, train_sentences, test_sentences; forward_perplexity (samples under
        the corpus's language model) with _reference (the test texts under it); reverse_perplexity (the test texts
        under the samples' one) with _reference (under that of reference_sentences training texts; None for one text,
        of which none can be held out). </s> counted.

    References:
        Zhao 2018 (ARAE), arXiv 1706.04223, section 5.
    """

    def learned(what: str, texts: Sequence[str], held_out: Sequence[str] | None = None) -> LanguageModel:
        with stage(f"a language model of {len(texts):,} {what}, {steps:,} steps", steps) as step:
            return language.language_model(
                texts, held_out, steps=steps, seed=seed, tokenizer=tokenizer, on_step=step, **options
            )

    # The first ones of a corpus may be of one document.
    rows = np.sort(np.random.default_rng(seed).permutation(len(train))[: len(drawn)])
    corpus, own = learned("training sentences", train, validation), learned("samples", drawn)
    reference = None
    if len(rows) > 1:
        as_many = learned("training sentences in place of the samples", [train[row] for row in rows])
        reference = as_many.perplexity(test)
    return {
        "samples": len(drawn),
        "steps": steps,
        "batch_size": language.BATCH_SIZE,
        "hidden_dim": options.get("hidden_dim", language.HIDDEN_DIM),
        "seed": seed,
        "train_sentences": len(train),
        "reference_sentences": len(rows),
        "test_sentences": len(test),
        "forward_perplexity": corpus.perplexity(drawn),
        "forward_perplexity_reference": corpus.perplexity(test),
        "reverse_perplexity": own.perplexity(test),
        "reverse_perplexity_reference": reference,
    }, corpus


def of_paths_perplexity(walks: Sequence[Sequence[str]], corpus: LanguageModel) -> dict[str, Any]:
    """Returns the perplexity of paths a token, </s> counted: perplexity_along, and of their ends and between them.

    Args:
        walks: paths of equally many texts, 3 or more, ends included.
        corpus: a language model of the corpus.
    """
    return {
        "perplexity_along": language.perplexity_along(walks, corpus),
        "perplexity_ends": corpus.perplexity([text for walk in walks for text in (walk[0], walk[-1])]),
        "perplexity_between": corpus.perplexity([text for walk in walks for text in walk[1:-1]]),
    }


def of_probes(
    train_z: Tensor,
    train_labels: Sequence[Hashable],
    test_z: Tensor,
    test_labels: Sequence[Hashable],
    *,
    per_label: Sequence[int | None],
    seed: int,
    stage: Stage = silent,
) -> dict[str, Any]:
    """Returns what linear and nearest-neighbour probes read off latents, with few and many labels.

    Args:
        train_z: (N, D) latents.
        train_labels: N labels.
        test_z: (M, D).
        test_labels: M labels.
        per_label: training sentences of each label; None is all there are.
        seed: of all draws.
        stage: shows that it goes on.

    Returns:
        train_sentences, test_sentences, labels (different ones), repeats, seed; majority, the accuracy of always saying
        the most frequent training label; and for each size, as per_label_10 or per_label_all: sentences (trained
        on), linear and knn (accuracy, 0 to 1; of a few the mean over `repeats` draws) with _spread (standard deviation
        over the draws; None for one).

    References:
        Alain & Bengio 2016, arXiv 1610.01644.
    """
    fits = sum(2 * (1 if size is None else probes.REPEATS) for size in per_label)
    with stage(f"{fits} probes of {len(train_labels):,} labelled sentences", fits) as step:
        rows = probes.probes(
            train_z,
            train_labels,
            test_z,
            test_labels,
            per_label=per_label,
            generator=torch.Generator().manual_seed(seed),
            on_step=step,
        )
    (most, _), *_ = Counter(train_labels).most_common(1)
    figures: dict[str, Any] = {
        "train_sentences": len(train_labels),
        "test_sentences": len(test_labels),
        "labels": len(set(train_labels)),
        "repeats": probes.REPEATS,
        "seed": seed,
        "majority": sum(label == most for label in test_labels) / len(test_labels),
    }
    for row in rows:
        name = "all" if row["per_label"] is None else row["per_label"]
        kept = ("linear", "linear_spread", "knn", "knn_spread")
        figures[f"per_label_{name}"] = {"sentences": row["labels"], **{key: row[key] for key in kept}}
    return figures


def of_pairs(first_z: Tensor, second_z: Tensor, scores: Sequence[float]) -> dict[str, Any]:
    """Returns how the cosine of pairs' latents goes with people's scores: pairs, pearson and spearman (-1 to 1).

    Both are None where all cosines are the same, as those of a collapsed posterior are.

    Args:
        first_z: (N, D) latents.
        second_z: (N, D).
        scores: N similarities, any scale.

    Raises:
        UserError: scores that are not finite, or all the same.

    References:
        Cer 2017 (STS benchmark), arXiv 1708.00055.
    """
    pearson(scores, scores)  # refuses what has no correlation with anything
    found = _or_none(lambda: probes.similarity(first_z, second_z, scores)._asdict())
    return {"pairs": len(scores), **(found or {"pearson": None, "spearman": None})}


def _or_none(figure: Callable[[], Any]) -> Any:
    # Samples may be all empty, or a single one: then there is no such figure, and that is no error.
    try:
        return figure()
    except UserError:
        return None
