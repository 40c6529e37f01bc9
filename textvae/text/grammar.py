"""The built-in corpus: English-like sentences from a probabilistic grammar whose every probability is known.

A sentence is drawn in two steps. First its structure: topic, frame, sentiment, tense, number, form and negation.
Then its words, independent of one another given the structure: the topic chooses the nouns, places and verbs, the
sentiment the verb and the adjective, the tense the time. What was chosen can be read off the words without doubt, so
that a sentence has one derivation, its probability is one product, and the entropy is a finite sum.

    transitive    the happy waiters did not like the soup in the kitchen yesterday .
    intransitive  will the old dog sleep on the hill tomorrow ?
    copular       the lessons were boring last week .
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from textvae.errors import UserError
from textvae.text import lexicon
from textvae.text.lexicon import Distribution


class Structure(NamedTuple):
    """What a sentence is about, before its words."""

    topic: str
    frame: str  # transitive, intransitive, copular
    sentiment: str  # positive, negative, neutral: of verb, adjective and quality, before any negation
    tense: str  # past, present, future
    number: str  # singular, plural: of the subject
    form: str  # statement, question
    negation: str  # affirmative, negated


class Words(NamedTuple):
    """The words of a sentence in their dictionary form; the empty word is a slot left out."""

    adjective: str
    subject: str  # singular
    predicate: str  # base form of the verb, or the quality
    object: str
    place: str
    time: str


class Derivation(NamedTuple):
    """How the grammar makes one sentence."""

    structure: Structure
    words: Words


def sentences(seed: int, part: str, count: int) -> list[str]:
    """Returns `count` sentences drawn independently; the same for the same seed and part, everywhere.

    A smaller corpus is the beginning of a larger one. Parts are drawn independently too, so that frequent sentences
    stand in more than one of them, and the mean NLL of a perfect model is `entropy()` on each.

    Args:
        seed: of the corpus.
        part: train, validation or test; each has a stream of its own.
        count: how many.
    """
    name = f"textvae grammar {seed} {part}".encode()
    # Python keeps random() the same across versions, which it does not promise of choice() or shuffle().
    uniform = random.Random(int.from_bytes(hashlib.sha256(name).digest()[:8], "big")).random  # nosec B311
    structures, weights = zip(*_structures().items())
    cumulative = list(itertools.accumulate(weights))
    drawn = []
    for _ in range(count):
        structure = structures[bisect.bisect(cumulative, uniform() * cumulative[-1], hi=len(structures) - 1)]
        words = Words(*(_draw(slot, uniform()) for slot in _slots(structure)))
        drawn.append(render(Derivation(structure, words)))
    return drawn


def log_probability(sentence: str) -> float:
    """Returns log p(sentence) in nats; minus infinity for one that the grammar cannot make."""
    derivation = parse(sentence)
    if derivation is None:
        return -math.inf
    structure, words = derivation
    slots = _slots(structure)
    return math.log(_structures()[structure]) + sum(math.log(slot[word]) for slot, word in zip(slots, words))


def entropy() -> float:
    """Returns the entropy in nats a sentence: the lowest mean NLL that any model can have.

    H = sum over structures s of p(s) (-log p(s) + sum over slots of H(word | s)).
    """
    return math.fsum(
        p * (sum(map(_entropy, _slots(structure))) - math.log(p)) for structure, p in _structures().items()
    )


def size() -> int:
    """Returns how many different sentences there are."""
    return sum(math.prod(map(len, _slots(structure))) for structure in _structures())


def attributes(sentence: str) -> dict[str, str]:
    """Returns topic, frame, sentiment, tense, number, form and negation of a sentence.

    Raises:
        UserError: the grammar cannot make the sentence.
    """
    derivation = parse(sentence)
    if derivation is None:
        raise UserError(f"{sentence!r} is no sentence of the built-in grammar, so it has no attributes there")
    return derivation.structure._asdict()


def derivations() -> Iterator[tuple[Derivation, float]]:
    """Yields every derivation with its probability: `size()` of them."""
    for structure, p in _structures().items():
        for choices in itertools.product(*(slot.items() for slot in _slots(structure))):
            words = Words(*(word for word, _ in choices))
            yield Derivation(structure, words), p * math.prod(share for _, share in choices)


def render(derivation: Derivation) -> str:
    """Returns a derivation's sentence."""
    structure, words = derivation
    negated, question = structure.negation == "negated", structure.form == "question"
    subject = f"the {words.adjective} {_inflected(structure, words.subject)}"
    auxiliary, predicate = _auxiliary(structure), words.predicate
    if structure.frame == "copular":
        predicate = f"be {predicate}" if structure.tense == "future" else predicate
    elif not (question or negated or structure.tense == "future"):
        auxiliary, predicate = "", _conjugated(structure, predicate)
    clause = f"{auxiliary} {subject}" if question else f"{subject} {auxiliary}"
    refusal = "not" if negated else ""
    thing = f"the {words.object}" if words.object else ""
    end = "?" if question else "."
    # Slots left out leave spaces behind; split() takes them away.
    return " ".join(f"{clause} {refusal} {predicate} {thing} {words.place} {words.time} {end}".split())


def parse(sentence: str) -> Derivation | None:
    """Returns the one derivation of a sentence, or None."""
    match = _pattern().fullmatch(sentence)
    if match is None:
        return None
    topic, noun = _nouns()[match["subject"]]
    auxiliary = match["first"] or match["auxiliary"] or ""
    base, conjugation = _conjugations().get(match["predicate"], (match["predicate"], ""))
    frame = "transitive" if match["object"] else "intransitive"
    frame = "copular" if base not in lexicon.VERBS else frame
    sentiment = next((name for name, some in _predicates(topic, frame).items() if base in some), None)
    if sentiment is None:
        return None
    structure = Structure(
        topic=topic,
        frame=frame,
        sentiment=sentiment,
        tense=_TENSE_OF.get(auxiliary) or ("past" if conjugation == "past" else "present"),
        number="singular" if noun == match["subject"] else "plural",
        form="question" if match["first"] else "statement",
        negation="negated" if match["refusal"] else "affirmative",
    )
    words = Words(match["adjective"] or "", noun, base, *(match[name] or "" for name in ("object", "place", "time")))
    derivation = Derivation(structure, words)
    # The pattern is loose: each word must belong to the structure, and the derivation must write this very sentence.
    fits = all(word in slot for slot, word in zip(_slots(structure), words))
    return derivation if fits and render(derivation) == sentence else None


_TENSE_OF = {"did": "past", "was": "past", "were": "past", "will": "future"} | dict.fromkeys(
    ("do", "does", "is", "are"), "present"
)


def _auxiliary(structure: Structure) -> str:
    if structure.tense == "future":
        return "will"
    plural, past = structure.number == "plural", structure.tense == "past"
    if structure.frame == "copular":
        return ("were" if plural else "was") if past else ("are" if plural else "is")
    return "did" if past else ("do" if plural else "does")


def _conjugated(structure: Structure, base: str) -> str:
    third, past = lexicon.VERBS[base]
    if structure.tense == "past":
        return past
    return base if structure.number == "plural" else third


def _inflected(structure: Structure, noun: str) -> str:
    if structure.number == "singular":
        return noun
    topic = lexicon.TOPICS[structure.topic]
    return topic.things[noun] if structure.frame == "copular" else topic.subjects[noun]


@functools.cache
def _structures() -> dict[Structure, float]:
    """Structure -> probability."""
    return {
        Structure(name, frame, sentiment, tense, number, form, negation): topic.probability
        * lexicon.FRAMES[frame]
        * topic.sentiments[sentiment]
        * lexicon.TENSES[tense]
        * lexicon.NUMBERS[number]
        * lexicon.FORMS[form]
        * lexicon.NEGATIONS[form][negation]
        for name, topic in lexicon.TOPICS.items()
        for frame, sentiment, tense, number, form in itertools.product(
            lexicon.FRAMES, topic.sentiments, lexicon.TENSES, lexicon.NUMBERS, lexicon.FORMS
        )
        for negation in lexicon.NEGATIONS[form]
    }


@functools.cache
def _slots(structure: Structure) -> tuple[Distribution, ...]:
    """The distributions of the words, in the order of `Words`, given the structure."""
    topic, frame = lexicon.TOPICS[structure.topic], structure.frame
    nothing = {"": 1.0}
    copular = frame == "copular"
    return (
        nothing if copular else lexicon.ADJECTIVES[structure.sentiment],
        _ranked(topic.things if copular else topic.subjects),
        _ranked(_predicates(structure.topic, frame)[structure.sentiment]),
        _ranked(topic.things) if frame == "transitive" else nothing,
        nothing if copular else dict(zip(["", *topic.places], lexicon.PLACE_RANKS, strict=True)),
        lexicon.TIMES[structure.tense],
    )


def _predicates(topic: str, frame: str) -> dict[str, list[str]]:
    """Sentiment -> the topic's verbs or qualities."""
    scene = lexicon.TOPICS[topic]
    return {"transitive": scene.actions, "intransitive": scene.doings, "copular": scene.qualities}[frame]


def _ranked(words: Iterable[str]) -> Distribution:
    words = list(words)
    return dict(zip(words, lexicon.RANKS[len(words)], strict=True))


@functools.cache
def _nouns() -> dict[str, tuple[str, str]]:
    """Singular or plural of whatever can be a subject -> (topic, singular)."""
    return {
        form: (name, singular)
        for name, topic in lexicon.TOPICS.items()
        for singular, plural in (topic.subjects | topic.things).items()
        for form in (singular, plural)
    }


@functools.cache
def _conjugations() -> dict[str, tuple[str, str]]:
    """A verb's form -> (base form, which of its forms)."""
    return {
        form: (base, name)
        for base, (third, past) in lexicon.VERBS.items()
        for form, name in ((base, "base"), (third, "third"), (past, "past"))
    }


@functools.cache
def _pattern() -> re.Pattern[str]:
    def any_of(words: Iterable[str]) -> str:
        return "|".join(sorted({re.escape(word) for word in words if word}))

    topics = lexicon.TOPICS.values()
    adjectives = any_of(word for words in lexicon.ADJECTIVES.values() for word in words)
    qualities = {word for topic in topics for words in topic.qualities.values() for word in words}
    places = any_of(place for topic in topics for place in topic.places)
    times = any_of(time for words in lexicon.TIMES.values() for time in words)
    auxiliaries = any_of(_TENSE_OF)
    return re.compile(
        rf"(?:(?P<first>{auxiliaries}) )?the (?:(?P<adjective>{adjectives}) )?(?P<subject>{any_of(_nouns())}) "
        rf"(?:(?P<auxiliary>{auxiliaries}) )?(?P<refusal>not )?(?:be )?"
        rf"(?P<predicate>{any_of(qualities | set(_conjugations()))})"
        rf"(?: the (?P<object>{any_of(thing for topic in topics for thing in topic.things)}))?"
        rf"(?: (?P<place>{places}))?(?: (?P<time>{times}))? [.?]"
    )


def _draw(distribution: Distribution, uniform: float) -> str:
    for word, p in distribution.items():
        uniform -= p
        if uniform < 0:
            return word
    return word  # what rounding leaves over belongs to the last


def _entropy(distribution: Distribution) -> float:
    return -math.fsum(p * math.log(p) for p in distribution.values())
