"""An average of the parameters in training: it is what is measured and kept, and a resumed run has the same."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from textvae.checkpoint import latest_checkpoint
from textvae.errors import CheckpointError
from textvae.recipe import Recipe
from textvae.training import train

STEPS = 8


def recipe(values: dict, **training) -> Recipe:
    values = copy.deepcopy(values)
    values["training"].update(training)
    return Recipe.model_validate(values)


def validation(run: Path) -> list[dict]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["part"] == "validation"]


def test_the_mean_over_the_steps_is_kept_and_resumed_step_by_step_it_is_the_same(values, tmp_path):
    training = {"average": {"kind": "uniform", "every": 1}, "evaluate_every": STEPS}
    seen = []
    for step in range(1, STEPS + 1):  # each checkpoint holds the parameters themselves
        run = train(recipe(values, **training, max_steps=step), tmp_path / "run", resume=step > 1, quiet=True)
        seen.append(load_file(latest_checkpoint(run) / "model.safetensors"))
    kept = load_file(run / "model.safetensors")
    assert validation(run)[-1]["nll_elbo"] == min(row["nll_elbo"] for row in validation(run))
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, torch.stack([state[name] for state in seen]).mean(0), msg=name)

    whole = train(recipe(values, **training, max_steps=STEPS), tmp_path / "whole", quiet=True)
    for name, tensor in load_file(whole / "model.safetensors").items():
        assert torch.equal(tensor, kept[name]), name


def test_the_training_goes_on_from_the_parameters_as_without_an_average(values, tmp_path):
    plain = train(recipe(values, max_steps=40), tmp_path / "plain", quiet=True)
    averaged = train(
        recipe(values, max_steps=40, average={"kind": "exponential", "over": 20}), tmp_path / "averaged", quiet=True
    )
    for name, tensor in load_file(latest_checkpoint(plain) / "model.safetensors").items():
        assert torch.equal(tensor, load_file(latest_checkpoint(averaged) / "model.safetensors")[name])
    assert validation(plain)[-1]["nll_elbo"] != validation(averaged)[-1]["nll_elbo"]


def test_after_a_reload_the_average_begins_anew(values, tmp_path):
    # No unit is ever active, so the first evaluation stays the best; the decay takes the rate to nearly nothing.
    run = train(
        recipe(
            values,
            monitor="active_units",
            decay={"kind": "plateau", "factor": 1e-9, "patience": 1, "decays": 3},
            average={"kind": "uniform", "every": 1},
            evaluate_every=10,
            max_steps=60,
        ),
        tmp_path / "run",
        quiet=True,
    )
    rows = validation(run)
    first, *later = [row["loss"] for row in rows if row["step"] != 20]
    assert rows[1]["loss"] != pytest.approx(first, rel=1e-2)
    assert later == pytest.approx([first] * len(later), rel=1e-4)


def test_a_checkpoint_without_the_average_is_no_checkpoint_of_this_training(values, tmp_path):
    values["training"]["average"] = {"kind": "uniform"}
    run = train(recipe(values, max_steps=20), tmp_path / "run", quiet=True)
    last = latest_checkpoint(run)
    state = torch.load(last / "training.pt", weights_only=True)
    del state["average"]
    torch.save(state, last / "training.pt")
    saved = json.loads((last / "state.json").read_text())
    saved["sha256"]["training.pt"] = hashlib.sha256((last / "training.pt").read_bytes()).hexdigest()
    (last / "state.json").write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="is not of this training"):
        train(recipe(values, max_steps=30), run, resume=True, quiet=True)


def test_an_average_that_needs_an_epochs_length_is_refused_for_a_stream_without_one(values, tmp_path):
    values["data"]["streaming"] = True
    wanted = recipe(values, max_steps=5, average={"kind": "exponential"})
    with pytest.raises(Exception, match=r"training.average: got '1 epoch'") as caught:
        train(wanted, tmp_path / "run", quiet=True)
    assert "use steps" in str(caught.value)
