"""How near texts are to texts."""

from __future__ import annotations

from collections.abc import Sequence

from textvae.errors import suggest


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
        raise ValueError(f"tokenize: got {tokenize!r}{suggest(tokenize, BLEU.TOKENIZERS)}")
    # `force` only silences the warning that the text looks tokenised, which is what "none" is for.
    return float(BLEU(tokenize=tokenize, force=True).corpus_score(list(hypotheses), [list(references)]).score)


def token_accuracy(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of words given back at their place: hits over the longer text's words, summed over pairs.

    Raises:
        ValueError: no texts, or another number of references.
    """
    _in_pairs(hypotheses, references)
    pairs = [(a.split(), b.split()) for a, b in zip(hypotheses, references)]
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


def _in_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"texts are compared in pairs; got {len(hypotheses)} and {len(references)}")
