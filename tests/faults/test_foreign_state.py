"""Files that are whole, and of another run: refused by name, never a traceback."""

import json

import pytest
import torch

import textvae
from textvae import checkpoint
from textvae.checkpoint import latest_checkpoint
from textvae.errors import CheckpointError
from textvae.latent import fitted
from textvae.recipe import Recipe
from textvae.training import train


@pytest.fixture
def run(values, tmp_path):
    values["training"] |= {"max_steps": 4, "max_epochs": None, "save_every": 2}
    return train(Recipe.model_validate(values), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("damage", ["optimizer", "objective", "group"])
def test_a_state_of_another_training_is_refused_by_name(run, values, damage):
    last = latest_checkpoint(run)
    state = torch.load(last / checkpoint.STATE, weights_only=True)
    if damage == "optimizer":
        state["optimizer"] = {}
    elif damage == "group":
        state["optimizer"]["param_groups"][0]["params"].pop()
    else:
        state["objective"] = {"foreign": torch.zeros(1)}
    torch.save(state, last / checkpoint.STATE)
    saved = json.loads((last / "state.json").read_text())
    saved["sha256"][checkpoint.STATE] = checkpoint._file_digest(last / checkpoint.STATE)
    (last / "state.json").write_text(json.dumps(saved))
    values["training"]["max_steps"] = 6
    with pytest.raises(CheckpointError, match=r"training\.pt: is not of this training"):
        train(Recipe.model_validate(values), run, resume=True, quiet=True)


def test_a_position_that_no_training_wrote_is_refused_and_nothing_is_written(run, values):
    state = latest_checkpoint(run) / "state.json"
    saved = json.loads(state.read_text())
    saved["position"]["step_in_epoch"] = -1
    state.write_text(json.dumps(saved))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    values["training"]["max_steps"] = 50
    with pytest.raises(CheckpointError, match=r"position\.step_in_epoch is -1"):
        train(Recipe.model_validate(values), run, resume=True, quiet=True)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_fitted_prior_of_another_run_is_refused_by_name(run, values):
    latent_dim = values["model"]["latent_dim"]
    generator = torch.Generator().manual_seed(0)
    for dimensions in (latent_dim + 1, latent_dim):
        means = torch.randn(50, dimensions, generator=generator)
        prior = fitted.fit("gaussian", means, torch.ones(50, dimensions), components=1, generator=generator)
        for kind in ("gaussian", "mixture", "unknown"):
            checkpoint.save_prior(kind, prior, run)
            if kind == "gaussian" and dimensions == latent_dim:
                assert len(textvae.load(run).sample(2, seed=0)) == 2
                continue
            with pytest.raises(CheckpointError, match=r"fitted_prior\.safetensors: holds no fitted prior of this run"):
                textvae.load(run)
