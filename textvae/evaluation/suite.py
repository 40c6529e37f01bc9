"""Figures of texts beside the likelihoods: what samples, reconstructions and paths are like, each by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from textvae.errors import UserError
from textvae.evaluation import paths, samples, text

Tokens = Callable[[str], list[str]]
COMPARED = 500  # samples that self-BLEU compares with each other: its time grows with their square


def of_reconstructions(hypotheses: Sequence[str], references: Sequence[str], *, tokens: Tokens) -> dict[str, Any]:
    """Returns chrf (0 to 100), edit_distance (share of tokens, 0 to 1) and by_length of reconstructions.

    Args:
        hypotheses: N texts.
        references: N texts, one for each.
        tokens: text -> its tokens, where edits are counted.
    """
    return {
        "chrf": text.chrf(hypotheses, references),
        "edit_distance": text.edit_distance(hypotheses, references, tokens=tokens),
        "by_length": text.by_length(hypotheses, references, tokens=tokens),
    }


def of_samples(
    drawn: Sequence[str], train_texts: Sequence[str], references: Sequence[str], *, tokens: Tokens
) -> dict[str, Any]:
    """Returns what samples are like beside the corpus; None where a figure does not exist for them.

    Args:
        drawn: the samples.
        train_texts: the training part, for novelty and memorisation.
        references: real sentences, whose unigrams and lengths are compared.
        tokens: text -> its tokens.

    Returns:
        count, distinct_1, distinct_2, duplicates and novelty (shares), self_bleu (0 to 100, of the first 500),
        unigram_kl, unigram_js, length_kl, length_js (nats), nearest_distance (mean normalised edit distance to the
        nearest training sentence) and copied (share of samples that are one).
    """
    unigram = _or_none(lambda: samples.unigram_divergence(drawn, references, tokens=tokens))
    length = _or_none(lambda: samples.length_divergence(drawn, references, tokens=tokens))
    near = samples.nearest(drawn, train_texts, tokens=tokens)
    distances = [distance for _, distance, _ in near]
    return {
        "count": len(drawn),
        "distinct_1": _or_none(lambda: samples.distinct_n(drawn, 1, tokens=tokens)),
        "distinct_2": _or_none(lambda: samples.distinct_n(drawn, 2, tokens=tokens)),
        "duplicates": samples.duplicates(drawn),
        "novelty": samples.novelty(drawn, train_texts),
        "self_bleu": _or_none(lambda: samples.self_bleu(drawn[:COMPARED], tokens=tokens)),
        "unigram_kl": unigram and unigram[0],
        "unigram_js": unigram and unigram[1],
        "length_kl": length and length[0],
        "length_js": length and length[1],
        "nearest_distance": sum(distances) / len(distances),
        "copied": sum(distance == 0 for distance in distances) / len(distances),
    }


def of_paths(walks: Sequence[Sequence[str]], *, tokens: Tokens) -> dict[str, Any]:
    """Returns the figures of `textvae.evaluation.paths` and how many paths they are of.

    Args:
        walks: paths between two sentences, each decoded point by point.
        tokens: text -> its tokens.
    """
    return {"count": len(walks), **paths.figures(walks, tokens=tokens)._asdict()}


def _or_none(figure: Callable[[], Any]) -> Any:
    # Samples may be all empty, or a single one: then there is no such figure, and that is no error.
    try:
        return figure()
    except UserError:
        return None
