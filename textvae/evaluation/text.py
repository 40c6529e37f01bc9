"""How near texts are to texts: BLEU, chrF, edit distance, accuracy, exact match; over all, and by length."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from textvae.errors import UserError, suggest

Tokens = Callable[[str], Sequence[str]]  # str.split for words, list for characters (SMILES)
EDGES = (5, 10, 15, 20, 30, 40)  # of the length buckets, tokens, each the longest of its bucket
BLEU_ORDER = 4


def bleu(hypotheses: Sequence[str], references: Sequence[str], *, tokenize: str = "none") -> float:
    """Returns corpus BLEU, 0 to 100, by sacrebleu.

    Args:
        hypotheses: N texts.
        references: N texts, one for each.
        tokenize: sacrebleu's tokenizer: "none" splits at spaces (text that is tokenised already), "13a" is the
            usual one for plain text, "char" for characters.

    Raises:
        ValueError: no texts, another number of references, or an unknown tokenizer.
    """
    from sacrebleu.metrics.bleu import BLEU

    _in_pairs(hypotheses, references)
    if tokenize not in BLEU.TOKENIZERS:
        raise UserError(f"tokenize: got {tokenize!r}{suggest(tokenize, BLEU.TOKENIZERS)}")
    # `force` only silences the warning that the text looks tokenised, which is what "none" is for.
    return float(BLEU(tokenize=tokenize, force=True).corpus_score(list(hypotheses), [list(references)]).score)


def chrf(hypotheses: Sequence[str], references: Sequence[str], *, word_order: int = 0) -> float:
    """Returns corpus chrF, 0 to 100, by sacrebleu: the F2 score of character 1- to 6-grams, spaces left out.

    Args:
        hypotheses: N texts.
        references: N texts, one for each.
        word_order: longest word n-gram counted besides; 2 is chrF++.

    Raises:
        UserError: no texts, another number of references, or a negative word_order.

    References:
        Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation"; chrF++: Popovic 2017.
    """
    from sacrebleu.metrics.chrf import CHRF

    _in_pairs(hypotheses, references)
    if word_order < 0:
        raise UserError(f"word_order: got {word_order}; it is 0 (chrF), 2 (chrF++) or another length of word n-grams")
    return float(CHRF(word_order=word_order).corpus_score(list(hypotheses), [list(references)]).score)


def levenshtein(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Returns the fewest insertions, deletions and substitutions that turn one sequence into the other.

    Works through `b` item by item with a whole column of the dynamic programme in the bits of an integer: a bit of
    `rises` says that the distance goes up by 1 from one row to the next, a bit of `falls` that it goes down.

    References:
        Myers 1999, "A fast bit-vector algorithm for approximate string matching"; Hyyro 2003.
    """
    if not a:
        return len(b)
    places: dict[Hashable, int] = {}
    for row, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << row
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = every, 0, len(a)
    for item in b:
        equal = places.get(item, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal
        vertical = equal | falls
        right_up = falls | (every & ~(diagonal | rises))
        right_down = rises & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        # The first row's distance rises by 1 with every column.
        right_up, right_down = right_up << 1 | 1, right_down << 1
        rises = (right_down | ~(vertical | right_up)) & every
        falls = right_up & vertical & every
    return distance


def edit_distances(hypotheses: Sequence[str], references: Sequence[str], *, tokens: Tokens = str.split) -> list[float]:
    """Returns each pair's normalised edit distance, 0 to 1: levenshtein(a, b) / max(|a|, |b|), in tokens.

    Args:
        hypotheses: N texts.
        references: N texts, one for each.
        tokens: text -> its tokens: str.split for words, list for characters.

    Returns:
        N shares; 0 for two texts without tokens.

    Raises:
        UserError: no texts, or another number of references.
    """
    _in_pairs(hypotheses, references)
    return [normalized_distance(tokens(a), tokens(b)) for a, b in zip(hypotheses, references)]


def edit_distance(hypotheses: Sequence[str], references: Sequence[str], *, tokens: Tokens = str.split) -> float:
    """Returns the mean over pairs of the normalised edit distance, 0 to 1; see `edit_distances`."""
    distances = edit_distances(hypotheses, references, tokens=tokens)
    return sum(distances) / len(distances)


def normalized_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Returns levenshtein(a, b) over the longer one's length, 0 to 1; 0 for two empty sequences."""
    return levenshtein(a, b) / max(len(a), len(b), 1)


def token_accuracy(hypotheses: Sequence[str], references: Sequence[str], *, tokens: Tokens = str.split) -> float:
    """Returns the share of words given back at their place: hits over the longer text's words, summed over pairs.

    Args:
        hypotheses: N texts.
        references: N texts, one for each.
        tokens: text -> its tokens: str.split for words, list for characters.

    Raises:
        ValueError: no texts, or another number of references.
    """
    _in_pairs(hypotheses, references)
    pairs = [(tokens(a), tokens(b)) for a, b in zip(hypotheses, references)]
    hits = sum(x == y for a, b in pairs for x, y in zip(a, b))
    # Over the longer one, so that words left out and words added both cost.
    return hits / max(sum(max(len(a), len(b)) for a, b in pairs), 1)


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of texts given back to the letter.

    Raises:
        ValueError: no texts, or another number of references.
    """
    _in_pairs(hypotheses, references)
    return sum(a == b for a, b in zip(hypotheses, references)) / len(references)


def length_edges(texts: Sequence[str], *, tokens: Tokens = str.split, buckets: int = 6) -> list[int]:
    """Returns edges for `by_length` that cut the texts into buckets of about as many, by their length in tokens.

    Raises:
        UserError: no texts.
    """
    if not texts:
        raise UserError("there are no texts to cut into buckets")
    lengths = sorted(len(tokens(text)) for text in texts)
    return sorted({lengths[len(lengths) * i // buckets] for i in range(1, buckets)})


def by_length(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    edges: Sequence[int] = EDGES,
    tokenize: str = "none",
    tokens: Tokens = str.split,
    spaced: Callable[[Sequence[str]], Sequence[str]] = list,
) -> list[dict[str, Any]]:
    """Returns the figures of reconstructions bucket by bucket of the reference's length.

    Args:
        hypotheses: N texts.
        references: N texts, one for each.
        edges: the longest length of each bucket, rising; longer references make one more bucket.
        tokenize: sacrebleu's tokenizer, for BLEU.
        tokens: text -> its tokens, for lengths, token accuracy and edit distance.
        spaced: texts -> what BLEU splits.

    Returns:
        A row for each bucket that holds a text, short ones first: shortest and longest (tokens, of the references in
        it), texts, bleu and chrf (0 to 100), edit_distance, token_accuracy and exact_match (0 to 1). bleu is None
        where no reference has 4 tokens, for BLEU is 0 there whatever is given back.

    Raises:
        UserError: no texts, another number of references, edges that do not rise, or an unknown tokenizer.
    """
    _in_pairs(hypotheses, references)
    if any(a >= b for a, b in itertools.pairwise(edges)):
        raise UserError(f"edges: got {list(edges)}; each must be above the one before")
    lengths = [len(tokens(reference)) for reference in references]
    buckets: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        buckets.setdefault(bisect.bisect_left(edges, length), []).append(row)
    rows_of: list[dict[str, Any]] = []
    for _, rows in sorted(buckets.items()):
        a, b = [hypotheses[row] for row in rows], [references[row] for row in rows]
        shortest, longest = min(lengths[row] for row in rows), max(lengths[row] for row in rows)
        rows_of.append(
            {
                "shortest": shortest,
                "longest": longest,
                "texts": len(rows),
                "bleu": bleu(spaced(a), spaced(b), tokenize=tokenize) if longest >= BLEU_ORDER else None,
                "chrf": chrf(a, b),
                "edit_distance": edit_distance(a, b, tokens=tokens),
                "token_accuracy": token_accuracy(a, b, tokens=tokens),
                "exact_match": exact_match(a, b),
            }
        )
    return rows_of


def _in_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if not hypotheses or len(hypotheses) != len(references):
        raise UserError(f"texts are compared in pairs; got {len(hypotheses)} and {len(references)}")
