"""The cures that are more than a divergence: each trains in the loop, resumes to the bit, and gives its figures."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import textvae
from textvae.checkpoint import latest_checkpoint
from textvae.recipe import Recipe
from textvae.training import train

CURES = {
    "bag of words": {"objective": {"kl": {"kind": "kl"}, "bag": {"kind": "bag_of_words", "hidden_dim": 8}}},
    "importance weighted": {
        "objective": {"reconstruction": {"kind": "importance_weighted"}},
        "training": {"samples": 4},
    },
    "importance weighted on a sphere": {
        "objective": {"reconstruction": {"kind": "importance_weighted", "gradient": "reparameterized"}},
        "model": {"posterior": {"kind": "von_mises_fisher"}, "prior": {"kind": "uniform_sphere"}},
        "training": {"samples": 3},
    },
    "several draws of the ELBO": {"training": {"samples": 3}},
    "squared error": {"objective": {"reconstruction": {"kind": "squared_error"}, "kl": {"kind": "kl"}}},
    "cosine": {"objective": {"reconstruction": {"kind": "cosine"}, "kl": {"kind": "kl"}}},
    "semi-amortised": {"training": {"semi_amortized": {"steps": 2}}},
    "semi-amortised in pieces": {"training": {"semi_amortized": {"steps": 2}, "accumulation": 2}},
}


def recipe(values: dict, cure: dict, **training) -> Recipe:
    values = copy.deepcopy(values)
    for name, section in copy.deepcopy(cure).items():
        values[name] = section if name == "objective" else {**values[name], **section}
    values["training"].update(training)
    return Recipe.model_validate(values)


def rows(run: Path, part: str) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["part"] == part]


@pytest.mark.parametrize("cure", CURES.values(), ids=CURES)
def test_a_cure_trains_resumes_to_the_bit_and_gives_its_figures(values, tmp_path, cure):
    whole = train(recipe(values, cure, max_steps=6, evaluate_every=3, log_every=1), tmp_path / "whole", quiet=True)
    run = tmp_path / "resumed"
    train(recipe(values, cure, max_steps=4, evaluate_every=3), run, quiet=True)
    train(recipe(values, cure, max_steps=6, evaluate_every=3), run, resume=True, quiet=True)
    weights = [load_file(latest_checkpoint(folder) / "model.safetensors") for folder in (run, whole)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(row["gradient_norm"] > 0 for row in rows(whole, "train"))
    vae = textvae.load(whole)
    assert vae.evaluate("test")["nll_iw"] > 0
    assert len(vae.sample(3, seed=0)) == 3
    assert len(vae.interpolate("the cat sees the dog", "the bird", 3)) == 3


def test_pieces_of_a_semi_amortised_step_change_nothing_beyond_rounding(values, tmp_path):
    cure = CURES["semi-amortised"]
    runs = [
        train(recipe(values, cure, max_steps=5, accumulation=pieces), tmp_path / str(pieces), quiet=True)
        for pieces in (1, 2)
    ]
    one, two = (load_file(latest_checkpoint(run) / "model.safetensors") for run in runs)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-2, atol=2e-3)


def test_a_validation_row_takes_the_kl_apart(values, tmp_path):
    run = train(recipe(values, {}), tmp_path / "run", quiet=True)
    last = rows(run, "validation")[-1]
    parts = [last[f"kl_part_{name}"] for name in ("mutual_information", "total_correlation", "dimensions")]
    # The KL in closed form, its parts on one draw of 40 sentences.
    assert sum(parts) == pytest.approx(last["kl"], abs=1.5)
    assert last["kl_part_mutual_information"] == pytest.approx(last["mutual_information"], abs=1e-3)


def test_the_monitored_loss_of_a_bound_is_the_negative_elbo_and_a_head_has_no_part_in_it(values, tmp_path):
    for cure, figure in (("importance weighted", "nll_elbo"), ("bag of words", None)):
        run = train(recipe(values, CURES[cure], max_steps=3, evaluate_every=3), tmp_path / cure, quiet=True)
        last = rows(run, "validation")[-1]
        expected = last[figure] if figure else last["reconstruction"] + last["term_kl"]
        assert last["loss"] == pytest.approx(expected)
        assert "term_bag" not in last
