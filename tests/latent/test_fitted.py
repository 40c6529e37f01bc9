"""Priors fitted after training: EM's guarantees, moments, likelihoods against the truth, states that rebuild them."""

import itertools
import math

import pytest
import torch
from torch.distributions import Independent, MixtureSameFamily, MultivariateNormal, Normal

from textvae.errors import UserError
from textvae.latent import fitted
from textvae.latent.fitted import em, fit, restore


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known_mixture(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    means = torch.tensor([[-4.0, 0.0], [0.0, 5.0], [4.0, -1.0]], dtype=torch.float64)
    scales = torch.tensor([[1.0, 0.5], [0.3, 1.0], [1.0, 1.5]], dtype=torch.float64)
    draw = generator(7)
    chosen = torch.multinomial(weights, count, replacement=True, generator=draw)
    noise = torch.randn(count, 2, generator=draw, dtype=torch.float64)
    return means[chosen] + scales[chosen] * noise, weights, means, scales


def test_em_recovers_a_known_mixture():
    rows, weights, means, scales = known_mixture(6000)
    found = em(rows, 3, generator=generator())
    order = found[1][:, 0].argsort()
    torch.testing.assert_close(found[0][order], weights, atol=0.03, rtol=0)
    torch.testing.assert_close(found[1][order], means, atol=0.15, rtol=0)
    torch.testing.assert_close(found[2][order], scales, atol=0.1, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_ems_log_likelihood_never_falls_and_is_that_of_the_mixture(seed):
    torch.manual_seed(seed)
    rows = torch.cat([torch.randn(150, 3), 0.3 * torch.randn(100, 3) + 2, torch.zeros(20, 3)]).double() + 100
    weights, means, scales, path = em(rows, 6, generator=generator(seed), tolerance=-1.0, iterations=60)
    assert len(path) == 60
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(path))
    components = Independent(Normal(means, scales), 1)
    mixture = MixtureSameFamily(torch.distributions.Categorical(probs=weights), components)
    assert float(mixture.log_prob(rows).mean()) == pytest.approx(path[-1], abs=1e-6)


def test_em_survives_rows_that_are_all_equal():
    weights, _means, scales, _path = em(torch.ones(30, 2).double(), 4, generator=generator())
    assert weights.isfinite().all()
    assert (scales > 0).all()


def test_the_fitted_gaussian_has_the_aggregates_moments():
    torch.manual_seed(0)
    means, scales = torch.randn(500, 3) @ torch.randn(3, 3) + 1.0, 0.1 + torch.rand(500, 3)
    prior = fit("gaussian", means, scales)()
    # Var z = Var E(z|x) + E Var(z|x).
    expected = torch.cov(means.T, correction=0) + scales.square().mean(0).diag()
    torch.testing.assert_close(prior.covariance_matrix, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prior.mean, means.mean(0))


def test_the_mixtures_scales_hold_the_posteriors_own():
    torch.manual_seed(0)
    means = torch.zeros(4000, 2)
    prior = fit("mixture", means, torch.full((4000, 2), 0.5), components=1, generator=generator())
    torch.testing.assert_close(prior().stddev, torch.full((2,), 0.5), rtol=0.05, atol=0)


def test_a_more_flexible_prior_fits_a_mixture_better_and_none_beats_the_truth(monkeypatch):
    monkeypatch.setattr(fitted, "FLOW_STEPS", 300)
    rows, weights, means, scales = known_mixture(4000)
    train, held = rows[:3000].float(), rows[3000:].float()
    truth = MixtureSameFamily(torch.distributions.Categorical(probs=weights), Independent(Normal(means, scales), 1))
    best = float(truth.log_prob(held).mean())
    score = {
        kind: float(fit(kind, train, components=3, generator=generator())().log_prob(held).mean())
        for kind in ("gaussian", "mixture", "flow")
    }
    assert score["mixture"] == pytest.approx(best, abs=0.03)
    assert score["gaussian"] + 0.2 < score["flow"] < best + 0.05


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "flow"])
def test_a_fitted_prior_is_rebuilt_from_its_tensors_and_repeats_from_its_seed(kind, monkeypatch):
    monkeypatch.setattr(fitted, "FLOW_STEPS", 20)
    torch.manual_seed(0)
    means, scales = 5 + 0.01 * torch.randn(100, 4), torch.full((100, 4), 0.02)
    before = torch.random.get_rng_state()
    with torch.inference_mode():  # as in evaluation
        prior = fit(kind, means, scales, components=3, generator=generator(3))
    assert torch.equal(before, torch.random.get_rng_state())
    again = fit(kind, means, scales, components=3, generator=generator(3))
    rebuilt = restore(kind, prior.state_dict(), prior().event_shape[0])
    z = prior().sample(torch.Size([6]))
    assert (z.shape, z.dtype) == ((6, 4), torch.float32)
    assert (z - 5).abs().max() < 1
    for other in (again, rebuilt):
        torch.testing.assert_close(other().log_prob(z), prior().log_prob(z))
    assert not any(parameter.requires_grad for parameter in rebuilt.parameters())


def test_a_dimension_that_never_varies_leaves_every_fit_finite(monkeypatch):
    monkeypatch.setattr(fitted, "FLOW_STEPS", 20)
    means = torch.cat([torch.randn(60, 1), torch.zeros(60, 1)], -1)
    for kind in ("gaussian", "mixture", "flow"):
        prior = fit(kind, means, components=2, generator=generator())()
        assert prior.log_prob(means).isfinite().all()
        assert prior.sample(torch.Size([5])).isfinite().all()
    assert isinstance(fit("gaussian", means)(), MultivariateNormal)


@pytest.mark.parametrize("components", [0, -3, 2.5, "4"])
def test_a_mixture_has_components(components):
    with pytest.raises(UserError, match=f"components: got {components!r}; a mixture has 1 or more"):
        fit("mixture", torch.randn(50, 2), components=components)
    assert fit("gaussian", torch.randn(50, 2), components=components)  # which has none


@pytest.mark.parametrize(
    ("kind", "means", "match"),
    [
        ("gausian", torch.randn(50, 2), "Did you mean 'gaussian'"),
        ("mixture", torch.randn(5, 2), "10 sentences or more, and there are 5"),
        ("flow", torch.full((50, 2), math.nan), "not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(kind, means, match):
    with pytest.raises(UserError, match=match):
        fit(kind, means)
    with pytest.raises(UserError, match="no fitted prior"):
        restore("spline", {}, 2)
