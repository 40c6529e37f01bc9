"""The built-in corpus: every number against a full enumeration, every sentence against the rules of English."""

import itertools
import math
import time

import pytest

from textvae.errors import UserError
from textvae.text import grammar, lexicon

FIRST = {
    ("train", 0): "the happy guests like the salad .",
    ("test", 7): "the happy teacher does not like the lesson at the library .",
}


@pytest.fixture(scope="module")
def everything() -> dict[str, float]:
    """Sentence -> probability, summed over all derivations."""
    found: dict[str, float] = {}
    for derivation, p in grammar.derivations():
        sentence = grammar.render(derivation)
        found[sentence] = found.get(sentence, 0.0) + p
    return found


@pytest.fixture(scope="module")
def drawn() -> list[str]:
    return grammar.sentences(1, "train", 20_000)


def test_there_are_some_hundred_thousand_sentences_and_each_has_one_derivation(everything):
    assert len(everything) == grammar.size()
    assert 200_000 < grammar.size() < 2_000_000
    lengths = [len(sentence.split()) for sentence in everything]
    assert (min(lengths), max(lengths)) == (4, 14)
    words = {word for sentence in everything for word in sentence.split(" ")}
    assert 150 < len(words) < 300
    assert all(word.isascii() and word == word.lower() for word in words)


def test_probabilities_sum_to_one(everything):
    assert math.fsum(everything.values()) == pytest.approx(1.0, abs=1e-12)


def test_entropy_is_that_of_the_enumeration(everything):
    enumerated = -math.fsum(p * math.log(p) for p in everything.values())
    assert grammar.entropy() == pytest.approx(enumerated, abs=1e-9)


def test_log_probability_and_attributes_find_the_derivation_again():
    for derivation, p in itertools.islice(grammar.derivations(), 0, None, 97):
        sentence = grammar.render(derivation)
        assert grammar.parse(sentence) == derivation
        assert grammar.log_probability(sentence) == pytest.approx(math.log(p), abs=1e-12)
        assert grammar.attributes(sentence) == derivation.structure._asdict()


def test_draws_have_the_entropy_as_their_mean_surprise(drawn):
    surprise = [-grammar.log_probability(sentence) for sentence in drawn]
    mean = sum(surprise) / len(surprise)
    variance = sum((s - mean) ** 2 for s in surprise) / (len(surprise) - 1)
    assert abs(mean - grammar.entropy()) < 4 * math.sqrt(variance / len(surprise))


def test_draws_follow_the_probabilities_of_structures(drawn):
    # Pearson's statistic over topic and sentiment: 17 degrees of freedom, 1 in 10,000 above 46.
    counts: dict[tuple[str, str], int] = {}
    for sentence in drawn:
        found = grammar.attributes(sentence)
        key = found["topic"], found["sentiment"]
        counts[key] = counts.get(key, 0) + 1
    statistic = 0.0
    for name, topic in lexicon.TOPICS.items():
        for sentiment, share in topic.sentiments.items():
            expected = len(drawn) * topic.probability * share
            statistic += (counts.get((name, sentiment), 0) - expected) ** 2 / expected
    assert statistic < 46


def test_every_table_of_probabilities_sums_to_one():
    tables = [lexicon.FRAMES, lexicon.TENSES, lexicon.NUMBERS, lexicon.FORMS]
    tables += [*lexicon.ADJECTIVES.values(), *lexicon.TIMES.values(), *lexicon.NEGATIONS.values()]
    tables += [topic.sentiments for topic in lexicon.TOPICS.values()]
    sums = [sum(table.values()) for table in tables] + [sum(shares) for shares in lexicon.RANKS.values()]
    sums += [sum(lexicon.PLACE_RANKS), sum(topic.probability for topic in lexicon.TOPICS.values())]
    assert sums == pytest.approx([1.0] * len(sums))


IRREGULAR = {"children", "fishermen"}


def test_number_agrees_between_subject_and_verb_everywhere(drawn):
    for sentence in drawn:
        words = sentence.split()
        found = grammar.attributes(sentence)
        start = words.index("the") + 1
        # The subject is the first word after "the", or the second where an adjective stands between.
        adjectives = {word for table in lexicon.ADJECTIVES.values() for word in table}
        position = start + 1 if words[start] in adjectives else start
        plural = words[position] in IRREGULAR or words[position].endswith("s")
        assert found["number"] == ("plural" if plural else "singular"), sentence
        finite = words[0] if found["form"] == "question" else words[position + 1]
        if found["tense"] == "future":
            assert finite == "will", sentence
        elif found["frame"] == "copular":
            allowed = {"past": ("was", "were"), "present": ("is", "are")}[found["tense"]]
            assert finite == allowed[plural], sentence
        elif found["tense"] == "past":
            assert finite == "did" or (finite not in lexicon.VERBS and not finite.endswith("s")), sentence
        else:
            assert (finite in {"do", *lexicon.VERBS}) == plural, sentence
            assert plural or finite.endswith("s"), sentence


def test_tense_agrees_with_time_and_form_with_the_mark(drawn):
    times = {
        "past": {"yesterday", "last"},
        "present": {"every", "today"},
        "future": {"tomorrow", "next"},
    }
    for sentence in drawn:
        words, found = sentence.split(), grammar.attributes(sentence)
        others = set().union(*(named for tense, named in times.items() if tense != found["tense"]))
        assert not others & set(words), sentence
        assert words[-1] == ("?" if found["form"] == "question" else "."), sentence
        assert ("not" in words) == (found["negation"] == "negated"), sentence
        # After an auxiliary other than to be the verb stands in its base form.
        for auxiliary in {"do", "does", "did"} & set(words):
            assert set(words) & set(lexicon.VERBS), (auxiliary, sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "the waiter like the soup .",  # agreement
        "the waiters likes the soup .",
        "does the waiters like the soup ?",
        "the soups was cold .",
        "the waiter liked the soup tomorrow .",  # tense and time
        "the waiter liked the ship .",  # topic
        "the soup was boring .",
        "the waiter liked the soup on the hill .",
        "the angry waiter liked the soup .",  # sentiment
        "the waiter liked the soup ?",  # form
        "did the waiter liked the soup ?",
        "did the waiter like the soup .",
        "the waiter liked the soup . ",  # spaces, capitals
        "the waiter  liked the soup .",
        "The waiter liked the soup .",
        "the waiter liked the soup .\n",
        "the waiter will liked the soup .",
        "the waiter not liked the soup .",
        "the waiter liked .",  # frame
        "the waiter smiled the soup .",
        "the waiter was cold .",
        "the soup be cold .",
        "the soup will cold .",
        "will the soup not cold ?",
        "the happy soup was fresh .",
        "the soup liked the waiter .",
    ],
)
def test_what_the_grammar_cannot_make_has_no_probability(sentence):
    assert grammar.log_probability(sentence) == -math.inf
    with pytest.raises(UserError, match="no sentence of the built-in grammar"):
        grammar.attributes(sentence)


def test_probability_is_the_product_of_the_choices():
    # school, transitive, positive, past, plural, question, negated; happy, child, love, poem, at the library, yesterday
    structure = 0.2 * 0.6 * 0.4 * 0.45 * 0.4 * 0.2 * 0.1
    words = 0.4 * 0.2 * 0.3 * 0.2 * 0.2 * 0.4
    sentence = "did the happy children not love the poem at the library yesterday ?"
    assert grammar.log_probability(sentence) == pytest.approx(math.log(structure * words), abs=1e-12)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "did the happy children not love the poem at the library yesterday ?",
            "school transitive positive past plural question negated",
        ),
        ("the tired dog hides .", "farm intransitive negative present singular statement affirmative"),
        ("the soups will not be warm next week .", "restaurant copular neutral future plural statement negated"),
    ],
)
def test_attributes_are_read_off_a_sentence(sentence, expected):
    names = ["topic", "frame", "sentiment", "tense", "number", "form", "negation"]
    assert grammar.attributes(sentence) == dict(zip(names, expected.split(), strict=True))


def test_draws_depend_on_seed_and_part_alone():
    first = grammar.sentences(0, "train", 100)
    assert first == grammar.sentences(0, "train", 100)
    assert first[:50] == grammar.sentences(0, "train", 50)
    assert first != grammar.sentences(1, "train", 100)
    assert first != grammar.sentences(0, "test", 100)
    assert grammar.sentences(0, "train", 0) == []
    # On every platform and Python: words written down once, on CPython 3.11, Linux.
    for (part, seed), sentence in FIRST.items():
        assert grammar.sentences(seed, part, 1) == [sentence]


def test_a_hundred_thousand_sentences_take_a_second_or_two():
    begin = time.process_time()
    assert len(set(grammar.sentences(0, "train", 100_000))) > 50_000
    assert time.process_time() - begin < 5  # half a second on one core of 2023; room for a busy machine
