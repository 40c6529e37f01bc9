"""Did the attribute change, and nothing else? Judged by what knows nothing of latents."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from textvae.errors import UserError, suggest
from textvae.evaluation.text import normalized_distance
from textvae.generation import given
from textvae.text import grammar

# Sentences to the attributes of each; None for one that cannot be told.
Judge = Callable[[Sequence[str]], Sequence[Mapping[str, str] | None]]


class Success(NamedTuple):
    """How changed sentences did; shares of all sentences that had another value before, 0 to 1."""

    sentences: int
    readable: float  # the judge knows the result's attributes
    changed: float  # the attribute has the target's value
    kept: float  # every other attribute is as it was
    both: float
    similarity: float  # mean of 1 - normalised edit distance over words, source to result
    others: dict[str, float]  # each other attribute: the share where it is as it was


def success(sources: Sequence[str], results: Sequence[str], judge: Judge, *, attribute: str, target: str) -> Success:
    """Returns how often an attribute changed to the target's value while the others stayed.

    Sentences that have the value already are left out, as are those that the judge cannot tell. A result that it
    cannot tell has neither changed nor kept anything. What a plain reconstruction keeps is the ceiling of `kept`:
    give it as `results` to know it.

    Args:
        sources: N sentences.
        results: N sentences, each made of its source.
        judge: sentences to attributes, as `judge_by_grammar` or `Classifier.judge`.
        attribute: that should have changed.
        target: its value.

    Raises:
        UserError: other numbers of results than of sources, an unknown attribute, or no sentence left.
    """
    if len(sources) != len(results):
        raise UserError(f"results: got {len(results)} of {len(sources)} sentences; each has one")
    rows = [
        (source, result, before, after)
        for source, result, before, after in zip(sources, results, judge(sources), judge(results))
        if before is not None
    ]
    for _, _, before, _ in rows[:1]:
        if attribute not in before:
            raise UserError(f"attribute: got {attribute!r}{suggest(attribute, before)}")
    rows = [row for row in rows if row[2][attribute] != target]
    if not rows:
        raise UserError(f"success: no sentence to change: the judge can tell none, or all are {target!r} already")
    names = [name for name in rows[0][2] if name != attribute]
    same: Counter[str] = Counter()
    readable = changed = kept = both = 0
    for _, _, before, after in rows:
        if after is None:
            continue
        readable += 1
        stayed = [name for name in names if after[name] == before[name]]
        same.update(stayed)
        flipped, whole = after[attribute] == target, len(stayed) == len(names)
        changed, kept, both = changed + flipped, kept + whole, both + (flipped and whole)
    near = [1 - normalized_distance(source.split(), result.split()) for source, result, _, _ in rows]
    count = len(rows)
    return Success(
        sentences=count,
        readable=readable / count,
        changed=changed / count,
        kept=kept / count,
        both=both / count,
        similarity=sum(near) / count,
        others={name: same[name] / count for name in names},
    )


def judge_by_grammar(texts: Sequence[str]) -> list[Mapping[str, str] | None]:
    """Returns what the built-in grammar says of sentences; None for one that it cannot make."""
    found = map(grammar.parse, texts)
    return [None if derivation is None else derivation.structure._asdict() for derivation in found]


class Classifier:
    """A naive Bayes classifier of texts by their words and pairs of neighbouring words; it sees no latent.

    p(label | text) is proportional to p(label) prod_f p(f | label), p(f | label) = (n(f, label) + 1) / (n(label) + F)
    over the F features of the training texts; others say nothing.

    Args:
        texts: N texts, thousands of them.
        labels: N labels.
        name: of the attribute that `judge` tells.

    Raises:
        UserError: other numbers of labels than texts, or fewer than 2 different ones.

    References:
        Wang & Manning 2012, ACL (naive Bayes on pairs of words as a strong baseline).
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[str], *, name: str = "label") -> None:
        labels = given.labels(labels, len(texts))
        if len(set(labels)) < 2:
            raise UserError(f"classifier: got {len(set(labels))} different labels; there must be 2 or more")
        self.name = name
        self.labels = sorted(set(labels), key=str)
        counts: dict[str, Counter[str]] = {label: Counter() for label in self.labels}
        for text, label in zip(texts, labels):
            counts[label].update(set(_features(text)))
        features = set().union(*counts.values())
        texts_of = Counter(labels)
        self._prior = {label: math.log(texts_of[label] / len(labels)) for label in self.labels}
        totals = {label: math.log(sum(found.values()) + len(features)) for label, found in counts.items()}
        self._log_p = {
            feature: [math.log(counts[label][feature] + 1) - totals[label] for label in self.labels]
            for feature in features
        }

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Returns the most probable label of each text."""
        found = []
        for text in texts:
            scores = [self._prior[label] for label in self.labels]
            for feature in set(_features(text)):
                if feature in self._log_p:
                    scores = [score + gain for score, gain in zip(scores, self._log_p[feature])]
            found.append(self.labels[scores.index(max(scores))])
        return found

    def judge(self, texts: Sequence[str]) -> list[Mapping[str, str] | None]:
        """Returns the predictions as `success` takes them."""
        return [{self.name: label} for label in self.predict(texts)]


def _features(text: str) -> Iterator[str]:
    words = text.split()
    yield from words
    for first, second in itertools.pairwise(words):
        yield f"{first} {second}"
