"""Attribute vectors and analogies on real text, judged by the grammar and by a classifier that sees no latent."""

import gzip

import numpy
import pytest
import torch

import textvae
from textvae.errors import UserError
from textvae.recipe import Recipe
from textvae.text import grammar
from textvae.toolbox import directions
from textvae.toolbox.success import Classifier, judge_by_grammar, success
from textvae.training import train


def tense(texts):
    return [grammar.attributes(text)["tense"] for text in texts]


def test_the_vector_leads_from_mean_to_mean():
    z = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(directions.direction(z[:10], z[10:]), z[10:].mean(0) - z[:10].mean(0))


def test_the_vector_of_a_tense_changes_most_sentences_to_it(vae, corpus, unseen):
    past = [text for text in unseen if grammar.attributes(text)["tense"] == "past"]
    vector = directions.attribute_vector(vae, corpus, tense(corpus), source="past", target="future")
    moved = success(past, directions.shift(vae, past, vector), judge_by_grammar, attribute="tense", target="future")
    still = success(past, vae.reconstruct(past), judge_by_grammar, attribute="tense", target="future")
    assert moved.sentences == len(past) > 100
    assert still.changed < 0.05
    assert moved.changed > 0.3  # a reconstruction alone changes next to none; the exact share moves with rounding
    assert all(moved.others[name] > 0.6 * still.others[name] for name in still.others)
    back = directions.shift(vae, past, vector, strength=0.0)
    assert back == vae.reconstruct(past)


def test_an_analogy_carries_a_tense_over(vae, corpus, unseen):
    """The pairs differ in nothing but the tense: the grammar itself writes them."""
    pairs = []
    for text in corpus[:1500]:
        structure, words = grammar.parse(text)
        if structure.tense == "past" and not words.time:
            future = grammar.render(grammar.Derivation(structure._replace(tense="future"), words))
            pairs.append((text, future))
    # Where a time is named the verb alone does not make the tense.
    derivations = {text: grammar.parse(text) for text in unseen}
    past = [text for text, (structure, words) in derivations.items() if structure.tense == "past" and not words.time]
    results = directions.analogies(vae, pairs[:50], past)
    found = success(past, results, judge_by_grammar, attribute="tense", target="future")
    assert found.sentences > 40
    assert found.changed > 0.3  # a reconstruction alone changes next to none; the exact share moves with rounding
    (a, b), c = pairs[0], past[0]
    z = vae.encode([a, b, c])
    assert directions.analogy(vae, a, b, c) == vae.decode((z[2] + z[1] - z[0])[None], method="greedy")[0]
    assert directions.analogy(vae, a, a, c) == vae.reconstruct([c])[0]


def test_without_a_source_all_other_labels_are_it(vae, corpus):
    texts, labels = corpus[:200], tense(corpus[:200])
    z = vae.encode(texts)
    future = torch.tensor([label == "future" for label in labels])
    vector = directions.attribute_vector(vae, texts, labels, target="future").vector
    torch.testing.assert_close(vector, z[future].mean(0) - z[~future].mean(0), atol=1e-5, rtol=1e-5)


def test_labels_may_be_numbers_arrays_and_of_mixed_kinds(vae, corpus):
    texts, words = corpus[:200], tense(corpus[:200])
    numbers = [int(word == "future") for word in words]
    wanted = directions.attribute_vector(vae, texts, words, target="future").vector
    for labels in (numbers, torch.tensor(numbers), numpy.array(numbers), ["no" if n == 0 else 1 for n in numbers]):
        assert torch.equal(directions.attribute_vector(vae, texts, labels, target=1).vector, wanted)
    for labels, message in (
        (numbers[1:], "labels: got 199 for 200"),
        ("x" * 200, "labels: got 'xxx"),
        ([["a"], *numbers[1:]], r"labels: item 0 is \['a'\]"),
    ):
        with pytest.raises(UserError, match=message):
            directions.attribute_vector(vae, texts, labels, target=1)
    with pytest.raises(UserError, match="target: no sentence has the label 'two'; known: 0, 1"):
        directions.attribute_vector(vae, texts, numbers, target="two")


def test_a_vector_may_be_a_list_and_must_be_numbers_of_the_latents_width(vae, corpus):
    vector = torch.linspace(-1, 1, vae.latent_dim)
    moved = directions.shift(vae, corpus[:3], vector.tolist())
    assert moved == vae.decode(vae.encode(corpus[:3]) + vector, method="greedy")
    for wrong, message in (("up", "vector: got 'up'"), ([1.0], r"vector: got shape \(1,\)"), ([None], "vector: got")):
        with pytest.raises(UserError, match=message):
            directions.shift(vae, corpus[:3], wrong)


def test_success_counts_what_the_grammar_says():
    sources = [
        "the lessons were boring last week .",
        "the lessons were boring .",
        "the lessons will be boring .",  # is there already: left out
        "the lessons were boring .",
        "no sentence of the grammar",  # cannot be told: left out
    ]
    results = [
        "the lessons will be boring .",  # changed, all else kept
        "the lesson will be clever .",  # changed, number and sentiment not kept
        "the lessons will be boring .",
        "lessons boring",  # cannot be told
        "the lessons will be boring .",
    ]
    found = success(sources, results, judge_by_grammar, attribute="tense", target="future")
    assert found.sentences == 3
    assert (found.readable, found.changed, found.kept, found.both) == pytest.approx((2 / 3, 2 / 3, 1 / 3, 1 / 3))
    assert found.others["number"] == pytest.approx(1 / 3)
    assert found.others["topic"] == pytest.approx(2 / 3)
    # Edits over words: 4 of 7 (two for "were" to "will be", two left out), 4 of 6, 3 of 5.
    expected = [1 - 4 / 7, 1 - 4 / 6, 1 - 3 / 5]
    assert found.similarity == pytest.approx(sum(expected) / 3)


def test_the_classifier_is_scikit_learns_naive_bayes():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    texts = grammar.sentences(1, "train", 300)
    labels = [grammar.attributes(text)["sentiment"] for text in texts]
    counter = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", binary=True)
    theirs = MultinomialNB().fit(counter.fit_transform(texts), labels)
    others = grammar.sentences(2, "test", 200)
    assert Classifier(texts, labels).predict(others) == theirs.predict(counter.transform(others)).tolist()


def labelled_reviews(shared, part, count):
    with gzip.open(shared(f"yelp/{part}.txt.gz"), "rt", encoding="utf-8") as file:
        texts = [line.rstrip("\n") for _, line in zip(range(count), file)]
    labels = shared(f"yelp/{part}.label").read_text().split()[:count]
    return texts, ["positive" if label == "1" else "negative" for label in labels]


def test_the_classifier_knows_good_reviews_from_bad_ones(shared):
    texts, labels = labelled_reviews(shared, "test", 1000)
    predicted = Classifier(*labelled_reviews(shared, "train", 10_000)).predict(texts)
    assert sum(a == b for a, b in zip(predicted, labels)) > 0.87 * len(labels)


@pytest.mark.slow
def test_reviews_turn_from_negative_to_positive(shared, tmp_path):
    texts, labels = labelled_reviews(shared, "train", 40_000)
    judge = Classifier(texts, labels, name="opinion")
    parts = {"train": texts, "validation": texts[:500]}
    for part, some in parts.items():
        (tmp_path / f"{part}.txt").write_text("\n".join(some) + "\n", encoding="utf-8")
    values = {
        "data": {"files": {part: str(tmp_path / f"{part}.txt") for part in parts}, "max_length": 12},
        "tokenizer": {"kind": "word", "vocab_size": 3000},
        "model": {
            "latent_dim": 32,
            "embedding_dim": 96,
            "encoder": {"cell": "gru", "hidden_dim": 96, "bidirectional": True},
            "decoder": {"cell": "gru", "hidden_dim": 128, "z_to": ["state", "input"], "input_dropout": 0.2},
        },
        "objective": {"kl": {"kind": "kl", "weight": 0.3}, "bag": {"kind": "bag_of_words", "weight": 1.0}},
        "training": {
            "batch_size": 64,
            "max_steps": 1500,
            "evaluate_every": 1500,
            "optimizer": {"kind": "adamw", "lr": 0.003},
            "threads": 1,
        },
        "evaluation": {"iw_samples": 2},
        "generation": {"max_length": 20, "ban_unk": True},
    }
    train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    vae = textvae.load(tmp_path / "run")
    vector = directions.attribute_vector(vae, texts[:4000], labels[:4000], source="negative", target="positive")
    others, known = labelled_reviews(shared, "test", 2000)
    bad = [text for text, label in zip(others, known) if label == "negative" and len(text.split()) <= 12][:200]
    still, moved = (
        success(bad, results, judge.judge, attribute="opinion", target="positive")
        for results in (vae.reconstruct(bad), directions.shift(vae, bad, vector))
    )
    assert moved.changed > 0.6
    assert moved.changed > still.changed + 0.3


def test_what_cannot_be_is_refused(vae):
    z = torch.zeros(2, 3)
    texts, labels = ["a", "b"], ["past", "future"]
    for call, message in (
        (lambda: directions.direction(z, z[:0]), "N and M above 0"),
        (lambda: directions.attribute_vector(vae, texts, labels, target="futur"), "Did you mean 'future'"),
        (lambda: directions.attribute_vector(vae, texts, labels, target="past", source="past"), "the target itself"),
        (lambda: directions.attribute_vector(vae, texts, ["past"] * 2, target="past"), "the target itself"),
        (lambda: directions.attribute_vector(vae, texts, ["past"], target="past"), "got 1 for 2"),
        (lambda: directions.shift(vae, texts, z[0]), r"must be \(8,\)"),
        (lambda: directions.shift(vae, texts, torch.zeros(8), strength=float("nan")), "finite"),
        (lambda: directions.shift(vae, texts, torch.zeros(8), strength=-1e30), "strength: got -1e[+]30"),
        (lambda: directions.analogy(vae, "a", "b", ""), "c: is empty"),
        (lambda: directions.attribute_vector(vae, "ab", labels, target="past"), "texts: got the single text"),
        (lambda: directions.analogies(vae, [], texts), "got none"),
        (lambda: success(texts, texts[:1], judge_by_grammar, attribute="tense", target="past"), "got 1 of 2"),
        (lambda: success(texts, texts, judge_by_grammar, attribute="tense", target="past"), "can tell none"),
        (lambda: Classifier(texts, ["one", "one"]), "1 different"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    right = ["the lessons were boring ."]
    with pytest.raises(UserError, match="Did you mean 'tense'"):
        success(right, right, judge_by_grammar, attribute="tens", target="past")
