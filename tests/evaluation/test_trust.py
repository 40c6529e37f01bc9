"""What a figure is of: its text whatever the tokenizer, its settings, its company; and what may be compared."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from conftest import sentences, tiny_model
from sacrebleu.metrics.chrf import CHRF

import textvae
from textvae.cli import main
from textvae.errors import UserError
from textvae.evaluation import annealing, compare, estimators, page, suite
from textvae.recipe import Recipe
from textvae.training import train

RARE = [*sentences(20, 3), "a zebra sees the yak here", "the gnu wants <unk> at home"]


def run_of(folder, tokenizer: dict[str, Any], *, latent_dim: int = 4, **data: Any):
    folder.mkdir()
    parts = {"train": sentences(120, 1), "validation": sentences(20, 2), "test": RARE}
    for part, texts in parts.items():
        (folder / f"{part}.txt").write_text("".join(f"{text}\n" for text in texts))
    values = {
        "data": {"files": {part: str(folder / f"{part}.txt") for part in parts}, **data},
        "tokenizer": tokenizer,
        "model": tiny_model(latent_dim=latent_dim),
        "objective": {"kl": {"kind": "kl"} if latent_dim else None},
        "training": {"batch_size": 16, "max_steps": 4, "evaluate_every": 4, "threads": 1},
        "evaluation": {"iw_samples": 3},
        "generation": {"max_length": 40},
    }
    train(Recipe.model_validate(values), folder / "run", quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust")
    kinds = {
        "word": {"kind": "word"},
        "few": {"kind": "word", "vocab_size": 9},
        "character": {"kind": "character"},
        "byte": {"kind": "byte"},
        "bpe": {"kind": "bpe", "vocab_size": 300},
    }
    return {name: run_of(folder / name, tokenizer) for name, tokenizer in kinds.items()}


@pytest.fixture(scope="module")
def results(runs):
    return {name: textvae.load(run).evaluate("test", whole=True) for name, run in runs.items()}


# ---- of the text, not of the tokenizer


def test_the_sentences_are_the_same_whatever_the_tokenizer(results):
    assert len({result["fingerprint"] for result in results.values()}) == 1
    assert results["word"]["fingerprint"] == compare.fingerprint(RARE)


def test_the_share_of_unknown_words_is_counted_and_a_texts_own_unk_is_no_such_word(results):
    tokens = sum(len(text.split()) + 1 for text in RARE)
    assert results["word"]["target_tokens"] == tokens
    assert results["word"]["unknown_tokens"] == pytest.approx(4 / tokens)  # a, zebra, yak and gnu
    assert results["few"]["unknown_tokens"] > 10 * results["word"]["unknown_tokens"]
    assert results["byte"]["unknown_tokens"] == results["bpe"]["unknown_tokens"] == 0


OWN_UNK = ["the zebra <unk> yak sees it", "the <unk> gnu wants it all", "the no-<unk> sees <unk>"]


@pytest.mark.parametrize(
    ("kind", "data", "unknown", "tokens"),
    [
        # zebra, yak and gnu of two shortened sentences; "no-<unk>" is a word that no vocabulary has.
        ("word", {"max_length": 5, "too_long": "truncate"}, 4, 3 * 5),
        ("word", {"max_length": 6}, 1, 5),  # two sentences dropped
        # Read letter by letter: < and > are characters that the training part lacks, as others.
        (
            "character",
            {},
            sum(letter not in "".join(sentences(120, 1)) for text in OWN_UNK for letter in text),
            sum(len(text) + 1 for text in OWN_UNK),
        ),
    ],
)
def test_what_is_unknown_is_told_from_a_texts_own_unk(runs, tmp_path, kind, data, unknown, tokens):
    (tmp_path / "test.txt").write_text("".join(f"{text}\n" for text in OWN_UNK))
    vae = textvae.load(runs[kind])
    files = {**vae.recipe.data.files, "test": str(tmp_path / "test.txt")}
    recipe = vae.recipe.model_copy(update={"data": vae.recipe.data.model_copy(update={"files": files, **data})})
    found = vae.evaluate("test", recipe=recipe)
    assert (found["unknown_tokens"] * tokens, found["target_tokens"]) == pytest.approx((unknown, tokens))
    assert found["bits_per_character_elbo"] is None


def test_a_streamed_part_is_refused_in_a_line(runs):
    vae = textvae.load(runs["word"])
    recipe = vae.recipe.model_copy(update={"data": vae.recipe.data.model_copy(update={"streaming": True})})
    with pytest.raises(UserError, match=r"train is streamed.*data\.streaming=false"):
        vae.evaluate("train", recipe=recipe)


def test_sentences_annealed_together_are_fewer_where_there_is_less_memory_and_never_more(runs, monkeypatch):
    """What is drawn goes by batches: more memory than the default changes no figure."""
    vae, sizes, refine = textvae.load(runs["word"]), [], annealing.refine
    monkeypatch.setattr(annealing, "refine", lambda model, batch, **o: sizes.append(batch) or refine(model, batch, **o))
    found, largest = [], []
    for tokens in (20_000, 80_000, 160):
        evaluation = vae.recipe.evaluation.model_copy(update={"batch_tokens": tokens})
        recipe = vae.recipe.model_copy(update={"evaluation": evaluation})
        sizes.clear()
        found.append(vae.evaluate("test", recipe=recipe, anneal=6)["annealed"])
        largest.append([batch.targets.shape for batch in sizes])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert largest[0] == largest[1]
    assert len(largest[2]) > len(largest[0])
    assert all(rows == 1 or rows * width <= 160 // 8 for rows, width in largest[2])
    assert found[2]["nll_ais"] == pytest.approx(found[0]["nll_ais"], abs=4 * found[0]["nll_ais_standard_error"] + 0.2)


def test_units_of_no_tokenizer_are_of_the_corpus_text_and_none_where_words_are_unknown(results):
    characters = sum(len(text) + 1 for text in RARE)
    for name in ("byte", "bpe"):
        nats = results[name]["nll_iw"] * len(RARE)
        assert results[name]["bits_per_character_iw"] == pytest.approx(nats / characters / math.log(2))
        words = sum(len(text.split()) + 1 for text in RARE)
        assert results[name]["ppl_word_elbo"] == pytest.approx(math.exp(results[name]["nll_elbo"] * len(RARE) / words))
    assert results["few"]["bits_per_character_iw"] is None
    assert results["few"]["ppl_word_elbo"] is None


def test_what_is_left_out_is_said_and_what_is_shortened_is_compared_as_it_is_left(runs, capfdbinary):
    short = [text for text in RARE if len(text.split()) + 1 <= 7]
    assert 0 < len(short) < len(RARE)
    assert main(["evaluate", str(runs["word"]), "data.max_length=7", "--save", "--json"]) == 0
    out, error = (text.decode() for text in capfdbinary.readouterr())
    figures = json.loads(out)
    assert figures["sentences"] == len(short)
    assert figures["dropped"] == {"too_long": len(RARE) - len(short)}
    assert f"textvae: of the part test: {len(RARE) - len(short)} too_long" in error
    saved = json.loads((runs["word"] / "evaluation-test.json").read_text())
    assert saved["fingerprint"] == compare.fingerprint(short)
    recipe = textvae.load(runs["word"]).recipe
    data = recipe.data.model_copy(update={"max_length": 7, "too_long": "truncate"})
    cut = textvae.load(runs["word"]).evaluate("test", recipe=recipe.model_copy(update={"data": data}), whole=True)
    assert cut["dropped"] == {"truncated": len(RARE) - len(short)}
    assert cut["sentences"] == len(RARE)


# ---- beside the corpus


def test_training_sentences_are_no_novelty_though_the_vocabulary_lacks_their_words(runs, monkeypatch):
    vae = textvae.load(runs["few"])
    known = sentences(120, 1)[:30]
    through = vae.tokenizer.decode(vae.tokenizer.encode(known))
    assert "<unk>" in through[0]
    monkeypatch.setattr(textvae.TextVAE, "sample", lambda self, n, **options: through[:n])
    found = vae.evaluate("test", samples=30)["samples"]
    assert (found["novelty"], found["copied"], found["nearest_distance"]) == (0.0, 1.0, 0.0)
    assert (found["count"], found["train_sentences"], found["reference_sentences"]) == (30, 120, len(RARE))


def test_a_copy_beyond_the_searched_sentences_is_a_copy(monkeypatch):
    monkeypatch.setattr(suite, "SEARCHED", 2)
    found = suite.of_samples(["d e", "a b x"], ["a b", "b c", "d e"], ["a b", "b"], tokens=str.split)
    assert found["copied"] == 0.5
    assert found["nearest_distance"] == pytest.approx((0 + 1 / 3) / 2)


def test_real_text_in_the_samples_place_gets_the_references_figures():
    real, corpus = sentences(40, 5), sentences(200, 6)
    found = suite.of_samples(real[:20], corpus, real, tokens=str.split)
    for name in ("distinct_1", "self_bleu", "novelty", "nearest_distance", "duplicates", "copied"):
        assert found[name] == found[f"{name}_reference"], name
    # As many training sentences as samples, against the same real ones.
    assert found["unigram_kl_reference"] > 0
    again = suite.of_samples(corpus, corpus, real, tokens=str.split)
    assert again["unigram_kl"] == pytest.approx(again["unigram_kl_reference"])


# ---- settings


def test_samples_are_drawn_as_asked_and_the_result_says_how(runs, capfdbinary):
    vae = textvae.load(runs["word"])
    command = ["evaluate", str(runs["word"]), "--samples", "20", "--json", "--seed", "4"]
    command += ["generation.method=sample", "generation.temperature=0.5", "generation.max_length=3"]
    assert main(command) == 0
    found = json.loads(capfdbinary.readouterr().out)
    own = vae.sample(20, seed=4, method="sample", temperature=0.5, max_length=3)
    expected = suite.of_samples(own, sentences(120, 1), found_references(vae), tokens=str.split, seed=4)
    assert found["samples"]["distinct_1"] == pytest.approx(expected["distinct_1"])
    assert found["samples"]["length_kl"] == pytest.approx(expected["length_kl"])
    assert found["settings"]["samples_by"] | {"temperature": 0.5, "max_length": 3} == found["settings"]["samples_by"]
    assert found["settings"]["seed"] == 4
    assert vae.recipe.generation.max_length == 40


def found_references(vae) -> list[str]:
    return vae.tokenizer.decode(vae.tokenizer.encode(RARE))


@pytest.mark.parametrize("override", ["model.latent_dim=8", "seed=3", "tokenizer.kind=byte", "training.max_steps=1"])
def test_what_an_evaluation_cannot_change_is_refused(runs, override, capsys):
    assert main(["evaluate", str(runs["word"]), override]) == 2
    assert f"{override}: a run is evaluated as it is" in capsys.readouterr().err


def test_what_cannot_be_had_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    run = run_of(tmp_path / "lm", {"kind": "word"}, latent_dim=0)
    vae = textvae.load(run)
    monkeypatch.setattr(vae.model, "log_likelihood", None)
    with pytest.raises(UserError, match="exact already"):
        vae.evaluate("test", anneal=2)


# ---- reconstructions of other units than words


@pytest.mark.parametrize("kind", ["character", "bpe"])
def test_figures_of_reconstructions_are_sacrebleus_of_the_texts_themselves(runs, results, kind):
    vae, result = textvae.load(runs[kind]), results[kind]
    read = vae.tokenizer.decode(vae.tokenizer.encode(RARE))
    rebuilt = vae.reconstruct(read)
    assert result["chrf"] == pytest.approx(CHRF().corpus_score(rebuilt, [read]).score)
    assert result["reconstructions"][0] == (read[0], rebuilt[0])


def test_one_bucket_has_the_bleu_of_the_whole(runs, monkeypatch):
    vae = textvae.load(runs["bpe"])
    almost = [f"{text[:-1]}, x" for text in RARE]
    monkeypatch.setattr(textvae.TextVAE, "reconstruct", lambda self, texts, **options: almost)
    monkeypatch.setattr(suite.text, "EDGES", (1000,))
    result = vae.evaluate("test")
    assert len(result["by_length"]) == 1
    assert 0 < result["bleu"] == pytest.approx(result["by_length"][0]["bleu"])


def test_characters_are_cut_into_buckets_of_their_own(results):
    texts = [row["texts"] for row in results["character"]["by_length"]]
    assert len(texts) > 2
    assert max(texts) < len(RARE) / 2


# ---- what is compared with what


def saved(results, *names, **changes):
    return {name: json.loads(json.dumps({**results[name], **changes.get(name, {})})) for name in names}


def test_likelihoods_of_other_words_or_other_samples_are_not_compared(results):
    with pytest.raises(UserError, match=r"know different words.*few 0\."):
        compare.same_measure(saved(results, "word", "few"), "nll_iw")
    with pytest.raises(UserError, match="know different words"):
        compare.same_measure(saved(results, "word", "few"), "reconstruction")
    both = {**saved(results, "word"), "other": {**results["word"], "iw_samples": 5}}
    with pytest.raises(UserError, match=r"word 3, other 5"):
        compare.same_measure(both, "nll_iw")
    compare.same_measure(both, "nll_elbo")
    compare.same_measure({**both, "other": {**results["word"], "iw_samples": 0}}, "nll_iw")  # exact


def test_all_figures_stand_side_by_side_and_a_shift_beyond_noise_is_marked(results):
    worse = {**results["word"], "kl": results["word"]["kl"] + 1}
    columns = results["word"]["per_sentence"]
    worse["per_sentence"] = {**columns, "kl": [value + 1 for value in columns["kl"]]}
    rows = {row["figure"]: row for row in compare.side_by_side({"a": results["word"], "b": worse})}
    assert {"kl", "bleu", "mutual_information", "active_units", "ppl_iw", "chrf"} <= set(rows)
    assert rows["kl"]["beyond_noise"] == ["b"]
    assert rows["nll_iw"]["beyond_noise"] == []
    assert rows["bleu"]["beyond_noise"] is None
    fewer = {
        row["figure"]: row for row in compare.side_by_side({"a": results["word"], "b": {**worse, "iw_samples": 5}})
    }
    assert fewer["nll_iw"]["beyond_noise"] is None  # of other samples: no test tells
    assert fewer["kl"]["beyond_noise"] == ["b"]
    # Of settings and spreads nothing is a figure.
    probed = {**results["word"], "probe": {"repeats": 5, "linear": 0.5, "linear_spread": 0.1, "test_sentences": 9}}
    names = {row["figure"] for row in compare.side_by_side({"a": probed})}
    assert {name for name in names if name.startswith("probe")} == {"probe.linear"}
    odd = compare.side_by_side({"a": results["word"], "b": {**worse, "chrf": "many"}})
    assert next(row for row in odd if row["figure"] == "chrf")["values"]["b"] is None
    text = compare.side_by_side_table(list(rows.values()))
    assert next(line for line in text.splitlines() if line.startswith("kl ")).endswith("*")
    table = compare.table(compare.compare({"a": [1.0, 2.0], "b": [2.0, 2.5]}), figure="kl")
    assert "kl (nats)" in table
    assert "perplexity" not in table


def test_perplexities_of_other_tokens_are_not_compared_and_those_of_the_text_are(results):
    byte, other = results["byte"], {**results["byte"]}
    columns = byte["per_sentence"]
    other["per_sentence"] = {**columns, "nll_iw": [value + 1 for value in columns["nll_iw"]]}
    rows = {row["figure"]: row for row in compare.side_by_side({"a": byte, "b": other})}
    for name in ("nll_iw", "ppl_iw", "bits_per_character_iw", "ppl_word_iw"):
        assert rows[name]["beyond_noise"] == ["b"]
    # Half the tokens for the same text: the mean is still that of the sentences, the perplexity another thing.
    other["per_sentence"] |= {"tokens": [count // 2 for count in columns["tokens"]]}
    rows = {row["figure"]: row for row in compare.side_by_side({"a": byte, "b": other})}
    assert rows["ppl_iw"]["beyond_noise"] is None
    assert rows["nll_iw"]["beyond_noise"] == rows["bits_per_character_iw"]["beyond_noise"] == ["b"]


# ---- the page


def test_a_figure_of_molecules_is_not_taken_for_its_namesake_of_texts():
    found = {f.name: f.estimator for f in page.figures({"samples": {"novelty": 0.5}, "molecules": {"novelty": 0.5}})}
    assert "molecules" in found["molecules.novelty"]
    assert "to the letter" in found["samples.novelty"]


def test_every_number_of_a_whole_result_says_what_estimates_it(runs):
    vae = textvae.load(runs["word"])
    labelled = (RARE, [text.split()[0] for text in RARE])
    pairs = (RARE[:10], RARE[10:20], list(range(10)))
    result = vae.evaluate(
        "test",
        **{"samples": 10, "paths": 2, "whole": True, "anneal": 2, "language": 5, "language_steps": 2},
        probe=(labelled, labelled),
        per_label=(2,),
        pairs=pairs,
    )
    found = page.figures(result)
    bare = [f.name for f in found if not f.estimator and f.name.rpartition(".")[2] not in estimators.PLAIN]
    assert [name for name in bare if not name.startswith("settings.samples_by")] == []
    table = page.markdown(result)
    assert "## by_length" in table
    assert "| perplexity_along |" in table
    assert RARE[0] in page.html(result)


def test_a_language_models_likelihood_is_called_exact(tmp_path):
    result = textvae.load(run_of(tmp_path / "lm", {"kind": "word"}, latent_dim=0)).evaluate("test", whole=True)
    found = {figure.name: figure.estimator for figure in page.figures(result)}
    assert "exact" in found["nll_iw"]
    assert "bound" not in found["nll_elbo"]


def test_a_recipes_own_reading_of_text_is_everybodys(tmp_path):
    vae = textvae.load(run_of(tmp_path / "lower", {"kind": "word"}, lowercase=True))
    text = sentences(1, 1)[0]
    assert vae.encode([text.upper()]).tolist() == vae.encode([text]).tolist()
    assert vae.score([text.title()], iw_samples=2) == vae.score([text], iw_samples=2)
    assert vae.reconstruct([text.upper()]) == vae.reconstruct([text])
