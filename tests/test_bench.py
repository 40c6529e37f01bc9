"""What each form of a run gives: rates by turns, ratios within a round, and what int8 costs."""

import json

import pytest
import torch
from conftest import sentences

import textvae
from textvae import bench as benches
from textvae import build
from textvae.errors import UserError
from textvae.evaluation.text import bleu
from textvae.recipe import Recipe
from textvae.text import tokenizers


class Slower(textvae.TextVAE):
    """The same run, but it takes a hundredth of a second to encode; every text comes back empty."""

    def encode(self, texts):
        import time

        time.sleep(0.01)
        return super().encode(texts)

    def reconstruct(self, texts, **options):
        return ["" for _ in texts]


@pytest.fixture
def runs(values):
    recipe = Recipe.model_validate(values)
    tokenizer = tokenizers.train({"kind": "word"}, sentences(200))
    torch.manual_seed(2)
    model = build.build_model(recipe, tokenizer)
    return textvae.TextVAE(model, tokenizer, recipe), Slower(model, tokenizer, recipe)


def test_rates_ratios_and_quality_of_sides_that_are_known(runs, monkeypatch):
    plain, slower = runs
    monkeypatch.setattr(benches, "_sides", lambda vae, folder: {benches.PLAIN: plain, "onnx": slower})
    texts = sentences(12, seed=3)
    first, second = benches.bench(plain, texts, rounds=3, batch=4)
    assert first["encode_ratio"] == first["decode_ratio"] == 1
    assert second["encode"] < 12 / 0.03  # three batches, each at least a hundredth of a second
    assert second["encode_ratio"] < 1
    assert second["encode_lowest"] <= second["encode"] <= second["encode_highest"]
    assert first["bleu"] == pytest.approx(bleu(plain.reconstruct(texts), texts))
    assert second["bleu"] == 0
    scores = plain.score(texts, seed=0)
    nats, tokens = sum(row["nll_elbo"] for row in scores), sum(row["tokens"] for row in scores)
    expected = torch.tensor(nats / tokens).exp().item()
    assert first["ppl_elbo"] == pytest.approx(expected, rel=1e-5)
    assert second["ppl_elbo"] == pytest.approx(expected, rel=1e-5)
    lines = benches.table([first, second]).splitlines()
    assert lines[0].startswith("12 sentences, 3 rounds by turns, 1 thread(s)")
    assert [line.split()[0] for line in lines[3:]] == ["pytorch", "onnx"]


def test_a_plain_autoencoder_has_no_perplexity(values):
    values["model"]["posterior"] = {"kind": "point"}
    values["objective"] = {"mmd": {"kind": "mmd"}}
    recipe = Recipe.model_validate(values)
    tokenizer = tokenizers.train({"kind": "word"}, sentences(200))
    run = textvae.TextVAE(build.build_model(recipe, tokenizer), tokenizer, recipe)
    assert benches.quality(run, run, sentences(5))["ppl_elbo"] is None


@pytest.mark.parametrize(
    ("texts", "given", "message"),
    [
        (sentences(3), {"rounds": 0}, "rounds: got 0; it must be 1 or more"),
        (sentences(3), {"batch": 0}, "batch: got 0; it must be 1 or more"),
        ([], {}, "texts: got none"),
        ("the cat", {}, "texts: got the single text"),
    ],
)
def test_nothing_to_measure_is_said(runs, texts, given, message):
    with pytest.raises(UserError, match=message):
        benches.bench(runs[0], texts, **given)


@pytest.mark.slow
def test_the_shell_exports_and_measures_every_form(values, tmp_path, capfdbinary):
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    from textvae.cli import main
    from textvae.training import train

    train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    run = str(tmp_path / "run")
    assert main(["export", run, "--format", "int8", "--out", str(tmp_path / "int8"), "--json"]) == 0
    told = json.loads(capfdbinary.readouterr().out)
    assert told["bytes"]["greedy.onnx"] == (tmp_path / "int8" / "greedy.onnx").stat().st_size
    assert main(["export", run, "--out", str(tmp_path / "run")]) == 2
    assert main(["bench", run, "--sentences", "20", "--rounds", "2", "--json"]) == 0
    rows = [json.loads(line) for line in capfdbinary.readouterr().out.decode().splitlines()]
    assert [row["side"] for row in rows] == ["pytorch", "torch.export", "onnx", "onnx int8"]
    assert rows[2]["ppl_elbo"] == pytest.approx(rows[0]["ppl_elbo"], rel=1e-4)
    assert rows[2]["bleu"] == rows[0]["bleu"]
    assert main(["bench", run, "--rounds", "0"]) == 2
