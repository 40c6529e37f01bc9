"""The keys of `training` reach what they name: each is followed to a number that is known from elsewhere."""

import copy
import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from textvae.checkpoint import latest_checkpoint
from textvae.errors import UserError
from textvae.folders import metrics
from textvae.latent.posteriors import BatchNormPosterior, GaussianPosterior
from textvae.model import SequenceVAE
from textvae.recipe import Recipe
from textvae.training import loop, steps, train

STILL = 1e-12  # a rate at which nothing moves


def run_of(values, folder, *, resume=False, **training):
    values = copy.deepcopy(values)
    values["training"] |= {"log_every": 1, **training}
    return train(Recipe.model_validate(values), folder, resume=resume, quiet=True)


def part(run, name):
    return [row for row in metrics(run) if row["part"] == name]


def position_of(run):
    return json.loads((latest_checkpoint(run) / "state.json").read_text())["position"]


def weights_at(run):
    return load_file(latest_checkpoint(run) / "model.safetensors")


def moved(one, other):
    return {name for name in one if not torch.allclose(one[name], other[name], rtol=0, atol=1e-9)}


@pytest.fixture
def seen(monkeypatch):
    """What the model is called with in training: (tokens, samples, noise) of each call."""
    calls, forward = [], SequenceVAE.forward

    def spy(self, batch, *, samples=1, noise=None, **options):
        if self.training:
            calls.append((batch.tokens.clone(), samples, noise.clone()))
        return forward(self, batch, samples=samples, noise=noise, **options)

    monkeypatch.setattr(SequenceVAE, "forward", spy)
    return calls


@pytest.fixture
def figures(monkeypatch):
    """Returns a function that has each evaluation give the next of some values of a figure."""
    quick = loop.quick

    def give(name, found):
        following = iter(found)
        monkeypatch.setattr(loop, "quick", lambda *a, **k: {**quick(*a, **k), name: next(following)})

    return give


def test_rates_are_those_of_the_schedule(values, tmp_path):
    run = run_of(values, tmp_path / "run", max_steps=8, lr_schedule={"kind": "cosine", "end": 0.1})
    expected = [0.01 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 8))) for step in range(8)]
    assert [row["learning_rate"] for row in part(run, "train")] == pytest.approx(expected)


def test_a_clipped_step_is_as_long_as_the_clip(values, tmp_path):
    sgd = {"kind": "sgd", "lr": 1.0}
    before = weights_at(run_of(values, tmp_path / "still", max_steps=1, optimizer=sgd | {"lr": STILL}))
    for clip in (0.01, 0.03):
        run = run_of(values, tmp_path / f"{clip}", max_steps=1, optimizer=sgd, gradient_clip=clip)
        after = weights_at(run)
        length = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))
        assert length == pytest.approx(clip, rel=1e-3)
        assert part(run, "train")[0]["gradient_norm"] > clip  # of what it was before


@pytest.mark.parametrize(
    ("monitor", "found", "best"),
    [
        ("mutual_information", [1.0, 2.0, 3.0, 2.5, 2.0], 30),
        ("kl", [3.0, 2.0, 1.0, 1.5, 2.0], 30),
        ("kl", [1.0, 2.0, 3.0], 10),
    ],
)
def test_patience_goes_by_the_figure_that_is_named_and_ends_when_it_says(
    values, tmp_path, figures, monitor, found, best
):
    figures(monitor, found)
    run = run_of(values, tmp_path / "run", max_steps=900, evaluate_every=10, early_stopping=2, monitor=monitor)
    assert position_of(run)["best_step"] == best
    assert position_of(run)["step"] == best + 20
    assert len(part(run, "validation")) == len(found)


@pytest.mark.parametrize("reload", [True, False])
def test_a_decay_lowers_the_rate_and_goes_back_to_the_best_where_it_is_told_to(values, tmp_path, figures, reload):
    figures("nll_elbo", [1.0, *[2.0] * 20])
    plateau = {"kind": "plateau", "factor": 0.5, "patience": 2, "decays": 2, "reload": reload}
    run = run_of(values, tmp_path / "run", max_steps=900, evaluate_every=10, decay=plateau, monitor="nll_elbo")
    # Two evaluations without gain: a decay, and the count begins anew; at the stall after the second it ends.
    assert position_of(run)["step"] == 70
    assert position_of(run)["decays"] == 2
    rates = [row["learning_rate"] for row in part(run, "train")]
    assert rates == pytest.approx([0.01] * 30 + [0.005] * 20 + [0.0025] * 20)
    cut = tmp_path / "cut"
    figures("nll_elbo", [1.0, 2.0, 2.0])
    run_of(values, cut, max_steps=30, evaluate_every=10, decay=plateau, monitor="nll_elbo")
    best, last = load_file(cut / "model.safetensors"), weights_at(cut)
    assert (not moved(best, last)) == reload
    state = torch.load(latest_checkpoint(cut) / "training.pt", weights_only=True)["optimizer"]["state"]
    assert (not state) == reload  # momenta belong to the parameters that were left


def test_what_a_run_knows_of_its_best_outlives_a_resume(values, tmp_path, figures):
    plateau = {"kind": "plateau", "factor": 0.5, "patience": 2}
    options = {"evaluate_every": 10, "decay": plateau, "monitor": "nll_elbo"}
    figures("nll_elbo", [1.0, 2.0, 2.0])
    run = run_of(values, tmp_path / "run", max_steps=30, **options)
    best = load_file(run / "model.safetensors")
    figures("nll_elbo", [1.5, 1.5])
    run_of(values, run, resume=True, max_steps=50, **options)
    assert not moved(best, load_file(run / "model.safetensors"))
    assert (position_of(run)["best_step"], position_of(run)["decays"]) == (10, 2)
    assert [row["learning_rate"] for row in part(run, "train")][30:] == pytest.approx([0.005] * 20)


def test_batches_noise_and_first_weights_are_of_the_seed_the_step_and_the_epoch(values, tmp_path, seen):
    values["training"]["optimizer"]["lr"] = STILL
    runs = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        values["seed"] = seed
        run = run_of(values, tmp_path / name, max_steps=26)  # two epochs of 13 steps
        runs[name] = weights_at(run), list(seen)
        seen.clear()
    (weights, calls), (same, repeated), (others, foreign) = runs.values()
    assert not moved(weights, same)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[2], b[2]) for a, b in zip(calls, repeated, strict=True))
    assert moved(weights, others)
    assert not any(torch.equal(a[2], b[2]) for a, b in zip(calls, foreign) if a[2].shape == b[2].shape)
    some = calls[:13], calls[13:], foreign[:13]
    epochs = [[sorted(map(tuple, tokens.tolist())) for tokens, _, _ in epoch] for epoch in some]
    assert epochs[0] != epochs[1]
    assert epochs[0] != epochs[2]
    assert [sum(map(len, epoch)) for epoch in epochs] == [200, 200, 200]
    for before, after in itertools.pairwise(calls):
        assert before[2].shape != after[2].shape or not torch.equal(before[2], after[2])


def test_as_many_draws_as_are_asked_for(values, tmp_path, seen):
    run_of(values, tmp_path / "run", max_steps=2, samples=3)
    assert all((samples, len(noise)) == (3, 3) for _, samples, noise in seen)


def test_a_batch_has_no_more_tokens_than_it_may(values, tmp_path, seen):
    run_of(values, tmp_path / "run", max_steps=None, max_epochs=1, batch_tokens=60)
    sizes = [(len(tokens), tokens.shape[1] - 1) for tokens, _, _ in seen]
    assert all(rows == 1 or rows * width <= 60 for rows, width in sizes)
    assert sum(rows for rows, _ in sizes) == 200
    assert max(rows for rows, _ in sizes) < 16


def test_lengths_are_sorted_within_as_many_batches_as_are_named(values, tmp_path, seen):
    waste = []
    for batches in (1, 100):
        run_of(values, tmp_path / f"{batches}", max_steps=None, max_epochs=1, bucket_batches=batches)
        waste.append(sum(int((tokens == 0).sum()) for tokens, _, _ in seen))
        seen.clear()
    assert waste[1] < 0.5 * waste[0]  # padding


def test_what_a_term_of_ones_own_learns_is_moved_with_the_model(values, tmp_path, monkeypatch):
    (tmp_path / "learning_term.py").write_text(
        "import torch\n"
        "class Own(torch.nn.Module):\n"
        "    unit = 'nats'\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.factor = torch.nn.Parameter(torch.ones(1))\n"
        "    def forward(self, posterior, prior, z):\n"
        "        return self.factor * z.square().sum((0, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    values["objective"]["own"] = {"kind": "learning_term.Own"}
    run = run_of(values, tmp_path / "run", max_steps=2)
    (factor,) = torch.load(latest_checkpoint(run) / "training.pt", weights_only=True)["objective"].values()
    assert float(factor) < 0.999


def test_a_term_of_ones_own_that_gives_other_than_a_value_a_sentence_is_refused(values, tmp_path, monkeypatch):
    (tmp_path / "shapeless_term.py").write_text(
        "class Own:\n    unit = 'nats'\n    def __call__(self, posterior, prior, z):\n        return z\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    values["objective"]["own"] = {"kind": "shapeless_term.Own"}
    with pytest.raises(
        UserError, match=r"objective\.own: gave a value of shape \(1, 16, 4\); \(\) is needed, or \(16,\)"
    ):
        run_of(values, tmp_path / "run", max_steps=2)


def test_aggressive_steps_are_the_encoders_and_the_last_one_the_decoders(values, tmp_path, monkeypatch, figures):
    clip, reached = steps._clip, []

    def spy(experiment, *rest):
        own = {id(p) for p in experiment.encoder_parameters}
        given = {id(p) for p in experiment.unwrapped.parameters() if p.grad is not None}
        reached.append((bool(given & own), bool(given - own)))
        return clip(experiment, *rest)

    monkeypatch.setattr(steps, "_clip", spy)
    values["training"]["aggressive"] = {"steps": 4, "window": 4}
    figures("mutual_information", [0.5, 1.0, 0.9])  # it rises, and then has fallen
    run = run_of(values, tmp_path / "run", max_steps=3, evaluate_every=1)
    assert reached == [*[(True, False)] * 4, (False, True)] * 3
    assert position_of(run)["aggressive"] is False
    figures("mutual_information", [0.5, 1.0])
    run = run_of(values, tmp_path / "rising", max_steps=2, evaluate_every=1)
    assert position_of(run)["aggressive"] is True


@pytest.mark.parametrize(("losses", "taken"), [([3.0, 2.0, 2.5], 3), ([3.0, 3.5], 2), ([4.0, 3.0, 2.0, 1.0], 4)])
def test_aggressive_steps_end_where_a_windows_mean_loss_no_longer_falls(values, tmp_path, monkeypatch, losses, taken):
    backward, done = steps._backward, []

    def measured(experiment, recipe, accelerator, step, *key):
        found, reached = backward(experiment, recipe, accelerator, step, *key)
        if len(key) > 1:
            done.append(tuple(step.pieces[0].batch.tokens.flatten().tolist()))
            figures = found.figures.clone()
            figures[0] = losses[(len(done) - 1) // 2]
            found = found._replace(figures=figures)
        return found, reached

    monkeypatch.setattr(steps, "_backward", measured)
    values["training"]["aggressive"] = {"steps": 8, "window": 2}
    run_of(values, tmp_path / "run", max_steps=1)
    assert len(done) == 2 * taken
    assert len(set(done)) > 1  # batches of their own


@pytest.mark.parametrize("kind", [GaussianPosterior, BatchNormPosterior])
def test_the_head_gives_the_logarithm_of_the_variance(kind):
    torch.manual_seed(0)
    posterior, features = kind(6, 3).eval(), torch.randn(5, 6)
    expected = posterior.head(features)[:, 3:].exp()
    torch.testing.assert_close(posterior(features).variance, expected)
