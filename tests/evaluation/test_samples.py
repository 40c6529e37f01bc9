"""Figures of samples: by hand, by sacrebleu and scipy, by brute force, and by a grammar whose entropy is known."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter

import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from conftest import sentences

from textvae.errors import UserError
from textvae.evaluation import language, samples
from textvae.evaluation.text import edit_distances
from textvae.text import grammar


def test_self_bleu_is_sacrebleus_sentence_bleu_against_the_others():
    from sacrebleu.metrics.bleu import BLEU

    texts = [*sentences(25, seed=2), "the", "", "the cat", "zzz qqq", "the the the cat sees the dog here there at home"]
    bleu = BLEU(tokenize="none", effective_order=True, force=True)
    expected = [
        bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score if text else 0 for i, text in enumerate(texts)
    ]
    assert samples.self_bleu(texts) == pytest.approx(sum(expected) / len(texts), rel=1e-9)
    assert samples.self_bleu(["a b c d e"] * 3) == pytest.approx(100)
    assert samples.self_bleu(["a b", "c d"]) == 0


def test_distinct_n_duplicates_and_novelty_by_hand():
    texts = ["a b a b", "a b", "", "a b"]
    assert samples.distinct_n(texts, 1) == pytest.approx(2 / 8)
    assert samples.distinct_n(texts, 2) == pytest.approx(2 / 5)
    assert samples.distinct_n(texts, 7) == 0
    assert samples.distinct_n(["CCO"], 1, tokens=list) == pytest.approx(2 / 3)
    assert samples.duplicates(texts) == pytest.approx(1 / 4)
    assert samples.novelty(texts, ["a b", "c"]) == pytest.approx(2 / 4)
    assert samples.novelty(texts, {"", "a b", "a b a b"}) == 0


def test_unigram_divergence_is_scipys():
    ours, theirs = sentences(50, seed=1), [*sentences(80, seed=2), "only here"]
    counts = [Counter(word for text in texts for word in text.split()) for texts in (ours, theirs)]
    words = sorted(counts[0] | counts[1])
    p, q = ([count[word] for word in words] for count in counts)
    found = samples.unigram_divergence(ours, theirs, smoothing=0.3)
    assert found.kl == pytest.approx(scipy.stats.entropy([n + 0.3 for n in q], [n + 0.3 for n in p]))
    assert found.js == pytest.approx(scipy.spatial.distance.jensenshannon(p, q) ** 2)


def test_divergences_are_0_for_equal_sets_and_ln_2_for_disjoint_ones():
    texts = sentences(30)
    for divergence in (samples.unigram_divergence, samples.length_divergence):
        assert divergence(texts, texts) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    apart = samples.unigram_divergence(["a"], ["b"])
    # Smoothed by 1/2: 3/4 against 1/4.
    assert apart == (pytest.approx(0.5 * math.log(3)), pytest.approx(math.log(2)))
    lengths = samples.length_divergence(["a", "a b"], ["c d", ""])
    assert lengths.js == pytest.approx(0.5 * math.log(2))


def test_the_bias_of_a_unigram_divergence_is_as_stated():
    draw = random.Random(0)
    words = [f"w{i}" for i in range(50)]
    one, other = ([" ".join(draw.choices(words, k=20)) for _ in range(500)] for _ in range(2))
    stated = 49 / 2 * (2 / 10_000)
    found = samples.unigram_divergence(one, other)
    # A chi-squared variable with 49 degrees of freedom: its standard error is sqrt(2 / 49) of the mean.
    assert found.kl == pytest.approx(stated, rel=3 * math.sqrt(2 / 49))
    assert found.js == pytest.approx(stated / 4, rel=3 * math.sqrt(2 / 49))


def test_wasserstein_1_is_scipys():
    draw = random.Random(0)
    a, b = ([draw.choice([draw.gauss(m, 1), 3.0]) for _ in range(n)] for m, n in ((0, 70), (2, 41)))
    assert samples.wasserstein_1d(a, b) == pytest.approx(scipy.stats.wasserstein_distance(a, b))
    assert samples.wasserstein_1d([1], [4.5]) == 3.5
    assert samples.wasserstein_1d(a, a) == 0


def test_the_nearest_training_sentence_is_that_of_brute_force_where_it_says_so():
    train = sorted(set(grammar.sentences(1, "train", 400)))
    texts = [*grammar.sentences(2, "test", 40), "zzz", "", train[7], "the the the"]
    found = samples.nearest(texts, train, comparisons=60)
    for text, near in zip(texts, found):
        distances = edit_distances([text] * len(train), train)
        assert near.distance == distances[near.row]
        assert near.distance >= min(distances)
        assert near.distance == min(distances) or not near.exact
    assert found[-2] == (7, 0.0, True)
    # Every sentence is at distance 1 from one that shares nothing.
    assert (found[40].distance, found[40].exact) == (1.0, True)
    assert all(near.exact for near in samples.nearest(texts, train, comparisons=len(train)))
    assert sum(near.exact for near in found) > 30


def test_nearest_finds_one_changed_word_among_many_sentences():
    train = list(dict.fromkeys(grammar.sentences(3, "train", 5000)))
    copies = [text.split() for text in train[100:150]]
    for words in copies:
        words[2] = "zebra"
    found = samples.nearest([" ".join(words) for words in copies], train)
    assert all(near.distance <= 1 / len(words) for near, words in zip(found, copies))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: samples.self_bleu(["a"]), "2 texts"),
        (lambda: samples.distinct_n([], 2), "no samples"),
        (lambda: samples.distinct_n(["a"], 0), "n: got 0"),
        (lambda: samples.duplicates([]), "no samples"),
        (lambda: samples.novelty(["a"], []), "no training texts"),
        (lambda: samples.unigram_divergence([""], ["a"]), "tokens on both sides; got 0 and 1"),
        (lambda: samples.length_divergence(["a"], []), "texts on both sides; got 1 and 0"),
        (lambda: samples.unigram_divergence(["a"], ["a"], smoothing=0), "smoothing: got 0"),
        (lambda: samples.wasserstein_1d([math.nan], [1]), "finite numbers"),
        (lambda: samples.nearest(["a"], []), "no training texts"),
        (lambda: samples.nearest(["a"], ["a"], comparisons=0), "comparisons: got 0"),
        (lambda: language.language_model([]), "got 0 texts"),
        (lambda: language.language_model(["a"]), "1 text"),
        (lambda: language.language_model(["a", "b"], []), "0 validation texts"),
        (lambda: language.forward_perplexity([], ["a", "b"]), "no samples"),
        (lambda: language.reverse_perplexity(["a", "b"], []), "no test texts"),
    ],
)
def test_what_has_no_figure_is_refused(call, match):
    with pytest.raises(UserError, match=match):
        call()


BUDGET = {"steps": 550, "hidden_dim": 64, "dropout": 0.0, "lr": 0.04}
HELD = 1_000  # sentences that are scored
TRAIN = 15_000


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_exact_samplers_perplexity_is_that_of_the_grammars_entropy(direction):
    scored, validation = grammar.sentences(0, "test", HELD), grammar.sentences(0, "validation", 500)
    # The samples are exact draws: forward scores them under the corpus, reverse the corpus under them.
    if direction == "forward":
        found = language.forward_perplexity(scored, grammar.sentences(0, "train", TRAIN), validation, **BUDGET)
    else:
        found = language.reverse_perplexity(grammar.sentences(7, "train", TRAIN), scored, **BUDGET)
    tokens = sum(len(text.split()) + 1 for text in scored)
    true = torch.tensor([-grammar.log_probability(text) for text in scored], dtype=torch.float64)
    # Known to the sampling error of the sentences scored: sd / sqrt(N) nats a sentence.
    error = float(true.std()) / math.sqrt(HELD)
    per_token = HELD / tokens
    floor = math.exp((grammar.entropy() - 3 * error) * per_token)
    # On the same sentences the difference is the KL from the grammar alone: 0 or more, up to an error much below
    # `error` (sd 0.7 nats a sentence), and about 0.6 nats of 12 a sentence in this budget.
    excess = math.log(found) / per_token - float(true.mean())
    assert -0.05 < excess < 0.9
    assert floor < found < math.exp((grammar.entropy() + 3 * error + 0.9) * per_token)


@pytest.mark.slow
def test_with_a_larger_budget_forward_perplexity_comes_near_the_grammars_entropy():
    test, validation = grammar.sentences(0, "test", HELD), grammar.sentences(0, "validation", 500)
    budget = {"steps": 3000, "hidden_dim": 96, "dropout": 0.0, "lr": 0.02}
    found = language.forward_perplexity(test, grammar.sentences(0, "train", 60_000), validation, **budget)
    tokens = sum(len(text.split()) + 1 for text in test)
    true = -sum(map(grammar.log_probability, test)) / tokens
    # 0.0094 nats a token (0.09 a sentence) when this was written, with a standard error of 0.001.
    assert -0.003 < math.log(found) - true < 0.0125


def test_samples_that_are_worse_have_a_higher_perplexity_in_the_direction_that_can_see_it():
    train, test = grammar.sentences(0, "train", 3000), grammar.sentences(0, "test", 300)
    draw = random.Random(0)
    shuffled = [" ".join(draw.sample(text.split(), len(text.split()))) for text in test]
    few = {"steps": 80, "hidden_dim": 32, "lr": 0.02, "seed": 1}
    corpus = language.language_model(train, **few)
    assert corpus.perplexity(shuffled) > 2 * corpus.perplexity(test)
    # One sentence again and again: fluent, without variety. Only reverse perplexity sees it.
    dull = [train[0]] * 500
    assert corpus.perplexity(dull) < 2 * corpus.perplexity(test)
    assert language.reverse_perplexity(dull, test, **few) > 5 * corpus.perplexity(test)


def test_a_language_model_repeats_from_its_seed_and_leaves_the_callers_random_state():
    texts = sentences(60)
    before = torch.random.get_rng_state()
    few = {"steps": 5, "hidden_dim": 8}
    one, again, other = (language.language_model(texts, seed=seed, **few) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.perplexity(texts) == again.perplexity(texts) != other.perplexity(texts)
    nll, tokens = one.nll(["the cat", "", "zzz zzz zzz"])
    assert tokens.tolist() == [3, 1, 4]
    assert nll.isfinite().all()
    # Row by row: what stands beside a text changes nothing.
    torch.testing.assert_close(nll[1:2], one.nll([""])[0])
    paths = [["the cat", "a b", ""], ["the dog", "c", "the cat sees"]]
    assert language.perplexity_along(paths, one) == [one.perplexity(list(texts)) for texts in zip(*paths)]
    with pytest.raises(UserError, match="some of 1, 2 texts"):
        language.perplexity_along([["a"], ["a", "b"]], one)
    with torch.inference_mode():
        assert language.language_model(texts, seed=3, **few).perplexity(texts) == one.perplexity(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert language.language_model(["a", "a"], **few).perplexity(["a"]) < 10
