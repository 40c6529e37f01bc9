"""Samples of a label, and what is unlike a corpus."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from textvae.errors import UserError
from textvae.text import grammar, tokenizers
from textvae.text.batching import collate
from textvae.toolbox import (
    Anomaly,
    AnomalyDetector,
    LabelledPrior,
    fit_by_label,
    judge_by_grammar,
    token_nats,
    unknown,
    unknown_words,
)


def test_samples_of_a_label_have_it_more_often_than_samples_have(vae, corpus):
    labels = [grammar.attributes(text)["tense"] for text in corpus]
    priors = fit_by_label(vae, corpus, labels, components=4, seed=0)
    assert sorted(priors.priors) == ["future", "past", "present"]
    for label in priors.priors:
        texts = priors.sample(vae, label, 150, seed=0, method="greedy")
        tenses = [found["tense"] for found in judge_by_grammar(texts) if found]
        assert len(tenses) > 60
        assert tenses.count(label) / len(tenses) > 1.5 * labels.count(label) / len(labels)


def test_latents_of_a_label_have_the_moments_of_its_posteriors(vae, corpus):
    texts = corpus[:600]
    labels = [grammar.attributes(text)["form"] for text in texts]
    priors = fit_by_label(vae, texts, labels, kind="gaussian")
    rows = torch.tensor([label == "question" for label in labels])
    means, scales = (part[rows] for part in vae.encode_distribution(texts))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    z = priors.sample_latents("question", 4000, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(priors.sample_latents("question", 4000, seed=1), z)
    spread = (means.var(0) + scales.square().mean(0)).sqrt()
    torch.testing.assert_close(z.mean(0), means.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(z.std(0), spread, atol=0, rtol=0.1)


def shuffled(texts):
    draw = random.Random(0)
    return [" ".join(draw.sample(text.split(), len(text.split()))) for text in texts]


@pytest.mark.parametrize("measure", ["token", "sentence"])
def test_sentences_of_the_corpus_are_usual_and_their_words_in_disorder_are_not(vae, unseen, measure):
    detector = AnomalyDetector(vae, unseen[:200], percentile=95, measure=measure)
    usual, odd = detector.score(unseen[200:]), detector.score(shuffled(unseen[200:]))
    # 10 of 200 are expected, +- 3 standard errors of both sets' draws.
    assert sum(found.anomalous for found in usual) <= 24
    assert sum(found.anomalous for found in odd) > 190
    assert all(found.above == 1 for found in odd if found.nats_per_token > 10)
    lengths = [len(text.split()) + 1 for text in unseen[200:]]
    assert [found.nats / found.nats_per_token for found in usual] == pytest.approx(lengths)


def test_the_threshold_is_the_percentile_of_the_elbo(vae, unseen):
    some = unseen[:40]
    scores = [[row["nll_elbo"] for row in vae.score(some, seed=5 + draw)] for draw in range(3)]
    mean = torch.tensor(scores, dtype=torch.float64).mean(0)
    detector = AnomalyDetector(vae, some, percentile=80, measure="sentence", draws=3, seed=5)
    assert detector.threshold == pytest.approx(float(torch.quantile(mean, 0.8)))
    found = detector.score(some)
    assert [row.nats for row in found] == pytest.approx(mean.tolist())
    assert sum(row.anomalous for row in found) == 8
    assert found[int(mean.argmax())].above == pytest.approx(39 / 40)
    assert detector.score([]) == []
    assert isinstance(found[0], Anomaly)


def test_the_tokens_nats_add_up_to_the_models_own_and_name_the_odd_word(vae):
    text = "the happy owner will love the soup at the table ."
    found = token_nats(vae, text)
    assert [token for token, _ in found] == [*text.split(), "</s>"]
    batch = collate(vae.tokenizer.encode([text]), vae.tokenizer.pad_id)
    with torch.inference_mode():
        output = vae.model(batch, noise=torch.zeros(1, 1, vae.latent_dim))
    assert sum(nats for _, nats in found) == pytest.approx(-float(output.log_likelihood[0, 0]), rel=1e-4)
    odd = token_nats(vae, text.replace("happy", "kitchen"))
    assert max(odd, key=lambda pair: pair[1])[0] == "kitchen"


def test_words_are_named_as_the_run_reads_them(vae, monkeypatch):
    data = vae.recipe.data.model_copy(update={"lowercase": True})
    monkeypatch.setattr(vae, "recipe", vae.recipe.model_copy(update={"data": data}))
    assert [token for token, _ in token_nats(vae, "The Owner liked the Zebra .")][4] == "zebra(<unk>)"


def test_an_unknown_word_stands_there_with_a_mark(vae):
    known, odd = "the happy owner will love the soup .", "the happy zebra will love the soup\tgrok ."
    found = token_nats(vae, odd)
    shown = ["the", "happy", "zebra(<unk>)", "will", "love", "the", "soup", "grok(<unk>)", ".", "</s>"]
    assert [token for token, _ in found] == shown
    assert found[2][1] > token_nats(vae, known)[2][1]
    assert unknown_words(vae, [known, odd, "", "grok again grok"]) == ["zebra", "grok", "again"]
    assert unknown_words(vae, []) == []


@pytest.mark.parametrize(
    ("section", "text", "shown", "words"),
    [
        ({"kind": "character"}, "ba \u00e9t", ["b", "a", " ", "\u00e9(<unk>)", "t"], ["\u00e9"]),
        ({"kind": "byte"}, "\u00e9a", ["\ufffd", "\ufffd", "a"], []),
        ({"kind": "word"}, "<unk> a <s>", ["<unk>(<unk>)", "a", "<s>(<unk>)"], ["<unk>", "<s>"]),
        # Pieces that are neither words nor characters cannot be placed in the text: they stand as they are.
        (
            {"kind": "sentencepiece", "vocab_size": 12, "byte_fallback": False},
            "tab \u00e9\u00e8ab",
            None,
            ["\u00e9\u00e8ab"],
        ),
    ],
    ids=["character", "byte", "word", "sentencepiece"],
)
def test_what_is_unknown_is_told_whatever_the_tokenizer(section, text, shown, words):
    tokenizer = tokenizers.train(section, ["a tab", "a bat at a tab", "ta ba"] * 5)
    (ids,) = tokenizer.encode([text])
    found = unknown.pieces(tokenizer, text, ids[1:-1])
    assert found == (shown or tokenizer.decode([[i] for i in ids[1:-1]]))
    run = SimpleNamespace(tokenizer=tokenizer, ids=tokenizer.encode)
    assert unknown_words(run, [text, "a tab"]) == words


def test_nothing_is_encoded_for_a_prior_that_cannot_be_fitted(vae, monkeypatch):
    monkeypatch.setattr(vae.model, "encode", None)
    for components in (0, -3):
        with pytest.raises(UserError, match=f"label 'x': components: got {components}"):
            fit_by_label(vae, ["a"] * 4, ["x"] * 4, components=components)


def test_what_cannot_be_is_refused(vae, unseen, tmp_path):
    priors = LabelledPrior({"past": nn.Identity()})
    for call, message in (
        (lambda: priors.sample_latents("passt", 1), "Did you mean 'past'"),
        (lambda: priors.sample_latents("past", -1), "n: got -1"),
        (lambda: fit_by_label(vae, ["a"], []), "got 0 for 1"),
        (lambda: fit_by_label(vae, ["a", "b"], ["x", "y"], components=2), "label 'x': .* needs 2 sentences"),
        (lambda: fit_by_label(vae, ["a"], ["x"], kind="mixtur"), "Did you mean 'mixture'"),
        (lambda: AnomalyDetector(vae, unseen[:1]), "reference: got 1 sentences; a threshold needs 2"),
        (lambda: AnomalyDetector(vae, "the cook"), "reference: got the single text"),
        (lambda: AnomalyDetector(vae, unseen[:3], draws=0), "draws: got 0"),
        (lambda: fit_by_label(vae, "ab", ["x", "y"]), "texts: got the single text"),
        (lambda: priors.sample_latents("past", 2.5), "n: got 2.5"),
        (lambda: AnomalyDetector(vae, unseen[:3], percentile=100), "percentile"),
        (lambda: AnomalyDetector(vae, unseen[:3], measure="tokens"), "Did you mean 'token'"),
    ):
        with pytest.raises(UserError, match=message):
            call()
