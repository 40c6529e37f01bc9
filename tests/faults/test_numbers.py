"""Numbers that are not finite: the step is left out and counted; too many in a row end the run, with the batch kept."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from textvae.checkpoint import latest_checkpoint
from textvae.errors import TrainingError
from textvae.recipe import Recipe
from textvae.training import train
from textvae.training.loop import SKIPS_ALLOWED

# A divergence of the user's own that spoils the batches it is told to; evaluation measures it without gradients.
MODULE = """
import torch

class Spoiled:
    unit = "nats"

    def __init__(self, *, at: list[int], by: str):
        self.at, self.by, self.calls = at, float(by), 0

    def __call__(self, posterior, prior, z):
        if not torch.is_grad_enabled():
            return z.sum(-1).mean(0) * 0.0
        self.calls += 1
        return z.sum(-1).mean(0) * (self.by if self.calls in self.at else 0.0)
"""


@pytest.fixture(params=["waits", "ahead"])
def spoiled(tmp_path, monkeypatch, values, request):
    """Returns a function: steps and the number that spoils them -> a recipe; the program waits for answers, or not."""
    if request.param == "ahead":
        monkeypatch.setattr("textvae.training.setup.runs_ahead", lambda tensor: True)
    name = f"spoiling_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def recipe(at, by, **training) -> Recipe:
        changed = copy.deepcopy(values)
        changed["objective"] = {
            "kl": {"kind": "kl", "weight": 0.1},
            "bad": {"kind": f"{name}.Spoiled", "at": list(at), "by": by},
        }
        changed["training"].update(training)
        return Recipe.model_validate(changed)

    return recipe


def rows(run, part):
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["part"] == part]


@pytest.mark.parametrize("by", ["nan", "inf"])
def test_steps_that_are_not_finite_are_left_out_and_counted(spoiled, tmp_path, by, capfd):
    at = [*range(2, SKIPS_ALLOWED + 1), 14, 20]  # one fewer in a row than ends the run
    run = train(spoiled(at, by), tmp_path / "run", quiet=True)
    position = json.loads((latest_checkpoint(run) / "state.json").read_text())["position"]
    assert position["skipped"] == len(at)
    assert position["step"] == 30
    assert all(tensor.isfinite().all() for tensor in load_file(run / "model.safetensors").values())
    assert f"{len(at)} steps were left out" in capfd.readouterr().err
    assert rows(run, "validation")[-1]["loss"] < rows(run, "validation")[0]["loss"]
    # A reader of JSON need not know NaN or Infinity.
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_step_left_out_moves_nothing(spoiled, tmp_path):
    whole = train(spoiled([], "nan", max_steps=1), tmp_path / "whole", quiet=True)
    after = train(spoiled([2, 3], "nan", max_steps=3), tmp_path / "after", quiet=True)
    first, second = (load_file(latest_checkpoint(run) / "model.safetensors") for run in (whole, after))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_too_many_in_a_row_end_the_run_and_its_last_batch_can_be_read(spoiled, tmp_path, values):
    # The 16th step is the 3rd of the second epoch; a checkpoint after step 5 is from before.
    begin, end = 7, 7 + SKIPS_ALLOWED - 1
    recipe = spoiled(range(begin, 100), "nan", save_every=5, evaluate_every=100)
    with pytest.raises(TrainingError) as caught:
        train(recipe, tmp_path / "run", quiet=True)
    file = tmp_path / "run" / f"bad-batch-step-{end}.jsonl"
    message = str(caught.value)
    assert message.startswith(f"step {end}: {SKIPS_ALLOWED} steps in a row without a finite gradient")
    assert str(file) in message
    assert "training.optimizer.lr" in message
    # No checkpoint stands among the steps that were left out.
    assert latest_checkpoint(tmp_path / "run").name == "step-000000005"
    assert "step-000000005" in message

    written = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    corpus = Path(values["data"]["files"]["train"]).read_text(encoding="utf-8").splitlines()
    # 200 sentences in batches of at most 16 are 13 batches of 15 or 16.
    assert len(written) in (15, 16)
    assert sorted(row["row"] for row in written) == list(range(len(written)))
    for row in written:
        assert row["text"] in corpus
        assert len(row["tokens"]) == len(row["text"].split()) + 2  # <s> and </s>


def test_a_first_figure_that_is_not_finite_is_beaten_by_one_that_is(values, tmp_path, monkeypatch):
    from textvae.training import loop

    measured = loop.quick
    calls = []

    def first_nan(*args, **kwargs):
        calls.append(1)
        numbers = measured(*args, **kwargs)
        return numbers if len(calls) > 1 else dict.fromkeys(numbers, math.nan)

    monkeypatch.setattr(loop, "quick", first_nan)
    run = train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    position = json.loads((latest_checkpoint(run) / "state.json").read_text())["position"]
    assert position["best_step"] > 10
    assert math.isfinite(position["best"])
    assert rows(run, "validation")[0]["nll_elbo"] is None
