"""A step that is left out leaves all as it was: critics, controllers, running statistics, terms of a user's own."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from textvae.latent.critics import Adversarial, WassersteinCritic
from textvae.latent.posteriors import BatchNormPosterior
from textvae.latent.priors import StandardNormal
from textvae.recipe import Recipe
from textvae.training import loop, steps, train
from textvae.training.critics import optimizers, update_critics

SPOILED = 4  # the step without a finite gradient
AVERAGED = """
import sys
import torch
import torch.distributed as dist
from textvae.distributed import average_gradients

dist.init_process_group("gloo")
rank = dist.get_rank()
parameters = [torch.zeros(2) for _ in range(4)]
for number, parameter in enumerate(parameters):
    # The second has a gradient on the first process alone, the third on neither.
    if number != 2 and not (number == 1 and rank == 1):
        parameter.grad = torch.full((2,), 10.0 * (number + 1) + rank)
average_gradients(parameters)
open(f"{sys.argv[1]}-{rank}", "w").write(repr([p.grad if p.grad is None else p.grad.tolist() for p in parameters]))
"""


@pytest.mark.parametrize("kind", [Adversarial, WassersteinCritic])
def test_critics_learn_nothing_from_latents_that_are_not_finite(kind):
    torch.manual_seed(0)
    critic = kind(4, hidden_dim=8)
    critics = optimizers([critic])
    prior = StandardNormal(4)()
    good = SimpleNamespace(z=torch.randn(1, 16, 4), prior=prior)
    update_critics(critics, good)
    before = copy.deepcopy(critic.state_dict())
    for bad in (torch.inf, torch.nan, 1e30):  # of the last the loss may be finite, and its gradient is not
        z = torch.randn(1, 16, 4)
        z[0, 3] = bad
        update_critics(critics, SimpleNamespace(z=z, prior=prior))
        assert all(torch.isfinite(value).all() for value in critic.state_dict().values())
    for name in ("inf", "nan"):
        z = torch.full((1, 16, 4), float(name))
        after = copy.deepcopy(critic.state_dict())
        update_critics(critics, SimpleNamespace(z=z, prior=prior))
        assert all(torch.equal(value, after[key]) for key, value in critic.state_dict().items())
    update_critics(critics, good)
    assert any(not torch.equal(value, before[key]) for key, value in critic.state_dict().items())


def test_running_statistics_pass_over_what_is_not_finite():
    torch.manual_seed(0)
    posterior = BatchNormPosterior(6, 3).train()
    posterior(torch.randn(8, 6))
    before = copy.deepcopy(dict(posterior.named_buffers()))
    features = torch.randn(8, 6)
    features[2] = torch.nan
    posterior(features)
    for name, value in posterior.named_buffers():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    features[2] = 1e22  # whose mean is finite, and whose square is not
    posterior(features)
    for name, value in posterior.named_buffers():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    posterior(torch.randn(8, 6))
    assert all(torch.isfinite(value).all() for _, value in posterior.named_buffers())


@pytest.mark.parametrize("kind", ["geco", "pid"])
def test_a_controller_takes_back_what_a_left_out_step_has_moved(values, tmp_path, monkeypatch, kind):
    values["objective"] = {"kl": {"kind": "kl", "weight": {"kind": kind, "target": 1.0}}}
    values["training"] |= {"max_steps": 8, "log_every": 1, "evaluate_every": 8}
    backward, mean = steps._backward, "textvae.objective._mean_of_rows"

    def spoiled(experiment, recipe, accelerator, step, *key):
        if key[0] != SPOILED:
            return backward(experiment, recipe, accelerator, step, *key)
        with monkeypatch.context() as huge:  # finite, as a KL of 10^30 nats is whose gradient has no norm
            huge.setattr(mean, lambda value, share: torch.tensor(1e30))
            found = backward(experiment, recipe, accelerator, step, *key)
        next(experiment.unwrapped.parameters()).grad.fill_(torch.inf)
        return found

    monkeypatch.setattr(steps, "_backward", spoiled)
    run = train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = [row["kl_weight"] for row in lines if row["part"] == "train"]
    assert len(weights) == 8
    assert weights[SPOILED] > 0.9 * max(weights)  # it did see it
    after, before = weights[SPOILED + 1], weights[SPOILED - 1]
    assert after == pytest.approx(before, rel=0.3, abs=0.02)
    assert after < 0.9 * weights[SPOILED]


def test_a_controller_takes_back_what_a_left_out_step_of_the_encoder_alone_has_moved(values, tmp_path, monkeypatch):
    values["objective"] = {"kl": {"kind": "kl", "weight": {"kind": "geco", "target": 1.0}}}
    values["training"] |= {"max_steps": 8, "log_every": 1, "evaluate_every": 8}
    values["training"]["aggressive"] = {"steps": 3, "window": 3}
    backward, mean = steps._backward, "textvae.objective._mean_of_rows"

    def spoiled(experiment, recipe, accelerator, step, *key):
        if key[0] != SPOILED or len(key) == 1:
            return backward(experiment, recipe, accelerator, step, *key)
        with monkeypatch.context() as huge:
            huge.setattr(mean, lambda value, share: torch.tensor(1e30))
            found = backward(experiment, recipe, accelerator, step, *key)
        experiment.encoder_parameters[0].grad.fill_(torch.inf)
        return found

    monkeypatch.setattr(steps, "_backward", spoiled)
    run = train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = [row["kl_weight"] for row in lines if row["part"] == "train"]
    assert len(weights) == 8
    assert max(weights) < 2 * min(weights)  # 10^6 without


def test_what_a_term_of_ones_own_learns_is_clipped_and_asked_for_too():
    model, own = torch.nn.Linear(2, 1), torch.nn.Parameter(torch.zeros(2))
    experiment = SimpleNamespace(model=model, term_parameters=[own])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    own.grad = torch.tensor([3.0, 4.0])
    assert float(steps._clip(experiment, Accelerator(cpu=True), 1.0)) == pytest.approx(5)
    torch.testing.assert_close(own.grad, torch.tensor([0.6, 0.8]), rtol=1e-4, atol=1e-5)
    own.grad = torch.tensor([torch.nan, 0.0])
    assert not torch.isfinite(steps._clip(experiment, Accelerator(cpu=True), 1.0))


def test_a_training_that_was_stopped_is_saved_as_one(values, tmp_path, monkeypatch):
    saved, save = [], loop._save

    def seen(experiment, accelerator, position, folder):
        saved.append((position.step, position.stopped))
        save(experiment, accelerator, position, folder)

    monkeypatch.setattr(loop, "_save", seen)
    values["training"] |= {"max_steps": 500, "early_stopping": 2, "optimizer": {"kind": "sgd", "lr": 1e-9}}
    train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    end = saved[-1][0]
    assert end < 500
    assert {stopped for step, stopped in saved if step == end} == {True}
    assert {stopped for step, stopped in saved if step < end} == {False}


def test_a_gradient_of_one_process_alone_is_averaged_with_nothing(tmp_path):
    script = tmp_path / "averaged.py"
    script.write_text(AVERAGED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = str(Path(__file__).resolve().parents[2])
    around = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "TMPDIR": str(tmp_path)}
    command = [*launch, str(script), str(tmp_path / "out")]
    done = subprocess.run(command, env=around, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert (tmp_path / f"out-{rank}").read_text() == repr([[10.5, 10.5], [10.0, 10.0], None, [40.5, 40.5]])
