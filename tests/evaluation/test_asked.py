"""What `evaluate` adds where it is asked: perplexities by language models, probes, pairs; and odd corpora."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from conftest import sentences, tiny_model

import textvae
from textvae.cli import main
from textvae.errors import UserError
from textvae.evaluation import progress, suite
from textvae.recipe import Recipe
from textvae.text import grammar, tokenizers
from textvae.training import train

KINDS = {"cat": "the cat sleeps", "dog": "a dog runs at home"}  # two sentences, and what each is


def run_of(folder, parts: dict[str, list[str]], **model: Any):
    files = {part: str(folder / f"{part}.txt") for part in parts}
    for part, texts in parts.items():
        (folder / f"{part}.txt").write_text("".join(f"{text}\n" for text in texts))
    values = {
        "data": {"files": files},
        "model": tiny_model(**model),
        "objective": {"kl": None if model.get("latent_dim") == 0 else {"kind": "kl"}},
        "training": {"batch_size": 16, "max_steps": 4, "evaluate_every": 4, "threads": 1},
        "evaluation": {"iw_samples": 5},
        "generation": {"max_length": 20},
    }
    train(Recipe.model_validate(values), folder / "run", quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    parts = {part: sentences(count, i) for i, (part, count) in enumerate([("train", 80), ("validation", 20)])}
    return run_of(tmp_path_factory.mktemp("asked"), {**parts, "test": [*KINDS.values(), *sentences(10, 2)]})


@pytest.fixture(scope="module")
def vae(run):
    return textvae.load(run)


def kinds(count: int) -> tuple[list[str], list[str]]:
    labels = [("cat", "dog")[i % 2] for i in range(count)]
    return [KINDS[label] for label in labels], labels


# ---- language models


def test_exact_samples_get_what_real_text_gets_and_no_model_beats_the_grammars_entropy():
    test, count = grammar.sentences(0, "test", 500), 3000
    drawn, corpus = grammar.sentences(7, "train", count), grammar.sentences(0, "train", count)
    figures, judge = suite.of_language(
        drawn,
        train=corpus,
        validation=grammar.sentences(0, "validation", 200),
        test=test,
        tokenizer=tokenizers.train({"kind": "word"}, corpus),
        steps=250,
        seed=0,
        hidden_dim=48,
        dropout=0.0,
        lr=0.04,
    )
    tokens = sum(len(text.split()) + 1 for text in test)
    true = torch.tensor([-grammar.log_probability(text) for text in test], dtype=torch.float64)
    # In nats a token: the entropy, and how far the mean of 500 sentences is off it.
    entropy, error = grammar.entropy() * len(test) / tokens, float(true.std()) * math.sqrt(len(test)) / tokens
    found = {name: math.log(value) for name, value in figures.items() if "perplexity" in name}
    assert len(found) == 4
    # 0.15 to 0.3 of 1.26 above it with this budget, which is a small one.
    assert all(entropy - 3 * error < value < entropy + 0.4 for value in found.values())
    # Samples and corpus are draws of one distribution: the same model scores them alike, and so do two that learned
    # them, each up to the noise of its own training.
    assert found["forward_perplexity"] == pytest.approx(found["forward_perplexity_reference"], abs=4 * error)
    assert found["reverse_perplexity"] == pytest.approx(found["reverse_perplexity_reference"], abs=0.1)
    assert judge.perplexity(test) == figures["forward_perplexity_reference"]
    budget = {"samples": count, "steps": 250, "hidden_dim": 48, "seed": 0, "batch_size": 64}
    assert {name: figures[name] for name in budget} == budget
    assert (figures["train_sentences"], figures["reference_sentences"], figures["test_sentences"]) == (3000, 3000, 500)


def test_a_run_is_judged_on_its_own_sentences_and_along_its_paths(vae):
    result = vae.evaluate("test", language=10, language_steps=3, paths=2)
    found = result["language"]
    assert [
        found[name] for name in ("samples", "reference_sentences", "train_sentences", "test_sentences", "steps")
    ] == [
        10,
        10,
        80,
        12,
        3,
    ]
    along = result["paths"]["perplexity_along"]
    assert len(along) == 7
    assert min(along[0], along[-1]) <= result["paths"]["perplexity_ends"] <= max(along[0], along[-1])
    assert min(along[1:-1]) <= result["paths"]["perplexity_between"] <= max(along[1:-1])
    again = vae.evaluate("test", language=10, language_steps=3)
    assert again["language"] == found
    assert "perplexity_along" not in vae.evaluate("test", paths=2)["paths"]
    assert {name: again[name] for name in ("nll_iw", "bleu")} == {name: result[name] for name in ("nll_iw", "bleu")}


# ---- probes and pairs


def test_two_sentences_are_told_apart_by_any_encoder_and_equal_ones_by_none(vae):
    found = vae.evaluate("test", probe=(kinds(40), kinds(11)), per_label=(2, None))["probe"]
    assert (found["train_sentences"], found["test_sentences"], found["labels"]) == (40, 11, 2)
    assert found["majority"] == pytest.approx(6 / 11)
    for size, count in (("2", 4), ("all", 40)):
        row = found[f"per_label_{size}"]
        assert row["sentences"] == count
        assert row["linear"] == row["knn"] == 1
    # Of equal latents any is nearest; the linear probe says what most are.
    same = ["the cat"] * 30, ["x"] * 20 + ["y"] * 10
    found = vae.evaluate("test", probe=(same, same), per_label=(None,))["probe"]
    assert found["per_label_all"]["linear"] == found["majority"] == pytest.approx(2 / 3)
    assert found["per_label_all"]["linear_spread"] is None


def test_pairs_of_one_sentence_and_of_two_are_told_apart_and_equal_cosines_have_no_figure(vae):
    cat, dog = KINDS.values()
    found = vae.evaluate("test", pairs=([cat, dog, cat], [cat, dog, dog], [5, 5, 1]))["similarity"]
    assert found == {"pairs": 3, "pearson": pytest.approx(1), "spearman": pytest.approx(1)}
    found = vae.evaluate("test", pairs=([cat, dog], [cat, dog], [1, 2]))["similarity"]
    assert found == {"pairs": 2, "pearson": None, "spearman": None}


def test_labelled_texts_are_read_as_the_corpus_is(tmp_path, vae):
    recipe = vae.recipe.model_copy(update={"data": vae.recipe.data.model_copy(update={"lowercase": True})})
    upper = tuple(([text.upper() for text in texts], labels) for texts, labels in (kinds(10), kinds(4)))
    found = vae.evaluate("test", recipe=recipe, probe=upper, per_label=(None,))["probe"]
    assert found == vae.evaluate("test", probe=(kinds(10), kinds(4)), per_label=(None,))["probe"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": 1}, "language: got 1 samples"),
        ({"language": 10, "language_steps": 0}, "0 steps"),
        ({"probe": ((["a", "b"], ["x", "x"]), (["a"], ["x"]))}, "2 labels or more; found 'x' alone"),
        ({"probe": (kinds(4), kinds(4)), "per_label": (0,)}, r"per_label: got \[0\]"),
        ({"probe": (kinds(4), kinds(4)), "per_label": ()}, r"per_label: got \[\]"),
        ({"pairs": (["a"], ["b"], [1.0])}, "2 numbers or more"),
        ({"pairs": (["a", "b"], ["b", "a"], [1.0, math.nan])}, "finite"),
    ],
)
def test_what_cannot_be_asked_is_refused(vae, options, message):
    with pytest.raises(UserError, match=message):
        vae.evaluate("test", **options)


def test_scores_that_are_all_alike_are_refused_before_anything_is_computed(vae, monkeypatch):
    monkeypatch.setattr("textvae.evaluation.whole.opened", lambda *_: pytest.fail("the corpus was read"))
    with pytest.raises(UserError, match="numbers that differ"):
        vae.evaluate("test", pairs=(["a", "b"], ["b", "a"], [1.0, 1.0]))


def test_a_language_model_has_perplexities_and_no_latents_to_look_at(tmp_path):
    parts = {part: sentences(30, i) for i, part in enumerate(["train", "validation", "test"])}
    model = textvae.load(run_of(tmp_path, parts, latent_dim=0))
    assert model.evaluate("test", language=5, language_steps=2)["language"]["forward_perplexity"] > 1
    for asked in ({"probe": (kinds(4), kinds(4))}, {"pairs": (["a"], ["b"], [1])}, {"paths": 1}):
        with pytest.raises(UserError, match=f"{next(iter(asked))}: the run is a language model"):
            model.evaluate("test", **asked)


# ---- the shell


def test_everything_asked_is_printed_saved_and_pictured(run, tmp_path, capfdbinary):
    for name, count in (("train", 8), ("test", 4)):
        lines = [f"{label}\t{text}\n" for text, label in zip(*kinds(count))]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    cat, dog = KINDS.values()
    (tmp_path / "pairs.csv").write_text(f"5\t{cat}\t{cat}\n1\t{cat}\t{dog}\n")
    command = ["evaluate", str(run), "--save", "--language", "8", "--language-steps", "2", "--paths", "1"]
    command += ["--pairs", str(tmp_path / "pairs.csv"), "--pairs-columns", "2", "3", "1", "--labelled-format", "tsv"]
    command += ["--probe", str(tmp_path / "train.tsv"), str(tmp_path / "test.tsv"), "--probe-columns", "2", "1"]
    command += ["--per-label", "3,all", "evaluation.iw_samples=3"]
    assert main(command) == 0
    out, error = (text.decode() for text in capfdbinary.readouterr())
    assert "textvae: a language model of 80 training sentences, 2 steps" in error
    assert "textvae: 12 probes of 8 labelled sentences" in error
    names = ["language.forward_perplexity", "language.reverse_perplexity", "paths.perplexity_between"]
    names += ["probe.per_label_3.linear", "probe.per_label_all.knn", "probe.majority", "similarity.pearson"]
    table, page = ((run / f"evaluation-test.{end}").read_text("utf-8") for end in ("md", "html"))
    for name in names:
        assert any(line.startswith(f"{name} ") for line in out.splitlines()), name
        assert f"| {name} | " in table
        assert f">{name}</th>" in page
    assert "real text" in table
    assert "Perplexity along the paths" in page
    assert json.loads((run / "evaluation-test.json").read_text())["similarity"]["pearson"] == pytest.approx(1)
    assert main([*command, "--json"]) == 0
    (line,) = capfdbinary.readouterr().out.decode().splitlines()
    assert {"language", "probe", "similarity"} <= set(json.loads(line))


def test_the_shell_reads_the_corpora_of_questions_and_pairs(run, shared, capfdbinary):
    trec, stsb = shared("trec"), shared("stsb")
    command = ["evaluate", str(run), "--json", "--probe", str(trec / "train.tsv.gz"), str(trec / "test.tsv.gz")]
    command += ["--probe-columns", "2", "1", "--per-label", "10", "--pairs", str(stsb / "sts-test.csv.gz")]
    assert main([*command, "--pairs-columns", "6", "7", "5", "--labelled-format", "tsv"]) == 0
    result = json.loads(capfdbinary.readouterr().out)
    assert result["probe"]["per_label_10"]["sentences"] == 60
    # Of the 500 test questions 94 are of the label that most training questions have.
    assert result["probe"]["majority"] == pytest.approx(0.188)
    assert result["similarity"]["pairs"] == 1379


def test_progress_is_lines_on_standard_error_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", -1.0)
    with progress.shown("a long piece of work", 3) as step:
        for _ in range(3):
            step()
    out, error = capsys.readouterr()
    assert out == ""
    lines = [line.strip("\r ") for line in error.splitlines()]
    assert [line.split(", ")[0] for line in lines if line] == [
        "textvae: a long piece of work",
        *(f"textvae:   {done} of 3" for done in (1, 2, 3)),
    ]
    with progress.silent("nothing to see", 3) as step:
        step()
    assert capsys.readouterr() == ("", "")


# ---- odd corpora


def numbers(value: Any, path: str = "") -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [found for name, inner in value.items() for found in numbers(inner, f"{path}.{name}")]
    if isinstance(value, (list, tuple)):
        return [found for inner in value for found in numbers(inner, path)]
    return [(path, value)] if isinstance(value, (int, float)) else []


ODD = {
    "one": ["the cat sees the dog"],
    "equal": ["the cat sees the dog"] * 9,
    "long": [" ".join(["the cat sees"] * 60), "the dog " * 100],
    "unknown": ["zzz qqq", "www zzz yyy"],
    "unknown characters": ["\u4e2d\u6587", "\U0001f600"],
}
EVERYTHING = {"samples": 5, "whole": True, "anneal": 2, "language": 5, "language_steps": 2}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_test_part_gives_figures_and_never_a_nan(vae, tmp_path, name):
    (tmp_path / "odd.txt").write_text("".join(f"{text}\n" for text in ODD[name]), "utf-8")
    files = {**vae.recipe.data.files, "test": str(tmp_path / "odd.txt")}
    recipe = vae.recipe.model_copy(update={"data": vae.recipe.data.model_copy(update={"files": files})})
    pairs = (ODD[name][:1] * 2, [ODD[name][0], "the cat"], [1, 2])
    result = vae.evaluate("test", recipe=recipe, pairs=pairs, paths=len(ODD[name]) > 1, **EVERYTHING)
    assert result["sentences"] == len(ODD[name])
    assert [found for found in numbers(result) if not math.isfinite(found[1])] == []
    if len(ODD[name]) == 1:
        with pytest.raises(UserError, match="paths: each goes from one sentence to another"):
            vae.evaluate("test", recipe=recipe, paths=1)


@pytest.mark.parametrize("name", ["one", "equal"])
@pytest.mark.parametrize("latent_dim", [0, 4])
def test_a_run_of_an_odd_corpus_gives_figures_and_never_a_nan(tmp_path, name, latent_dim):
    run = run_of(tmp_path, dict.fromkeys(("train", "validation", "test"), ODD[name]), latent_dim=latent_dim)
    everything = EVERYTHING if latent_dim else {**EVERYTHING, "anneal": 0}
    result = textvae.load(run).evaluate("test", **everything)
    assert [found for found in numbers(result) if not math.isfinite(found[1])] == []
    assert result["mutual_information"] == pytest.approx(0, abs=1e-6)
    assert (result["language"]["reverse_perplexity_reference"] is None) == (name == "one")


def test_a_corpus_of_one_sentence_without_a_validation_part_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"data\.validation_fraction: 0\.05 of 1 train sentences leaves none to train"):
        run_of(tmp_path, {"train": ODD["one"], "test": ODD["one"]})


@pytest.mark.parametrize("name", ["samples", "paths", "anneal"])
def test_a_number_below_none_is_said_by_its_name_before_anything_is_computed(vae, run, name, capsys):
    with pytest.raises(UserError, match=f"^{name}: got -5; it must be 0 or more"):
        vae.evaluate("test", **{name: -5})
    assert main(["evaluate", str(run), f"--{name}", "-5"]) == 2
    assert f"{name}: got -5" in capsys.readouterr().err
