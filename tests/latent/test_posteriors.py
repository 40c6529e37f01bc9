"""Posteriors: the conditions that all of them keep, and what each of them promises."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from scipy import special
from torch.distributions import kl_divergence

from textvae import distributed
from textvae.latent import posteriors
from textvae.latent.divergences import kl
from textvae.latent.posteriors import (
    POSTERIORS,
    BatchNormPosterior,
    DeltaPosterior,
    GaussianPosterior,
    Point,
    PointPosterior,
    diagonal_gaussian,
    largest_scale,
    sample,
)
from textvae.latent.priors import PRIORS, StandardNormal

FEATURES, DIMENSIONS = 6, 4


def build(kind: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return POSTERIORS.build({"kind": kind, **options}, FEATURES, DIMENSIONS)


@pytest.mark.parametrize("kind", list(POSTERIORS))
def test_every_posterior_conforms(kind):
    """Shape, type, finite values, a gradient into the head, rows in their order, a state that rebuilds it."""
    head = build(kind)
    features = torch.randn(5, FEATURES)
    posterior = head(features)
    assert (posterior.batch_shape, posterior.event_shape) == ((5,), (DIMENSIONS,))
    z = sample(posterior, 3)
    assert z.shape == (3, 5, DIMENSIONS)
    for value in (z, posterior.mean, posterior.stddev):
        assert value.isfinite().all()
        assert value.dtype == torch.float32
    assert posterior.mean.shape == posterior.stddev.shape == (5, DIMENSIONS)
    (z * torch.randn_like(z)).sum().backward()
    assert float(head.head.weight.grad.abs().sum()) > 0
    assert head.head.weight.grad.isfinite().all()
    if kind != "point":
        assert posterior.log_prob(z).shape == (3, 5)
        assert posterior.log_prob(z).isfinite().all()
    head.eval()
    again = POSTERIORS.build({"kind": kind}, FEATURES, DIMENSIONS)
    again.load_state_dict(head.state_dict())
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(again.eval()(features[order]).mean, head(features).mean[order])


@pytest.mark.parametrize("kind", list(POSTERIORS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_every_distribution_is_float32(kind, dtype):
    head = build(kind)
    with torch.autocast("cpu", dtype):
        posterior = head(torch.randn(3, FEATURES))
        z = sample(posterior, 2)
    assert posterior.mean.dtype == posterior.stddev.dtype == z.dtype == torch.float32


@pytest.mark.parametrize("kind", list(POSTERIORS))
def test_in_float64_every_distribution_is_float64(kind):
    posterior = build(kind).double()(torch.randn(3, FEATURES, dtype=torch.float64))
    assert posterior.mean.dtype == sample(posterior, 2).dtype == torch.float64


@pytest.mark.parametrize("kind", [kind for kind in POSTERIORS if kind not in ("point", "von_mises_fisher")])
def test_every_density_in_one_dimension_integrates_to_one(kind):
    torch.manual_seed(0)
    posterior = POSTERIORS.build({"kind": kind}, FEATURES, 1).double()(torch.randn(3, FEATURES).double())
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None, None].expand(-1, 3, 1)
    with torch.no_grad():
        total = torch.trapezoid(posterior.log_prob(z).exp(), dx=1e-3, dim=0)
    torch.testing.assert_close(total, torch.ones(3).double(), atol=1e-6, rtol=0)


def test_given_noise_is_used_and_draws_have_the_posteriors_moments():
    torch.manual_seed(0)
    posterior = GaussianPosterior(6, 4).double()(torch.randn(3, 6, dtype=torch.float64))
    noise = torch.randn(2, 3, 4)
    torch.testing.assert_close(sample(posterior, 2, noise), posterior.mean + posterior.stddev * noise.double())
    draws = sample(posterior, 50_000)
    error = posterior.stddev / 50_000**0.5
    assert ((draws.mean(0) - posterior.mean).abs() < 5 * error).all()
    torch.testing.assert_close(draws.std(0), posterior.stddev, rtol=0.03, atol=0)


def test_a_point_is_where_it_is_and_has_neither_density_nor_kl():
    head = PointPosterior(6, 4)
    features = torch.randn(3, 6)
    posterior = head(features)
    torch.testing.assert_close(sample(posterior, 2), head.head(features).expand(2, 3, 4))
    torch.testing.assert_close(sample(posterior, 2, torch.randn(2, 3, 4)), posterior.mean.expand(2, 3, 4))
    assert posterior.stddev.eq(0).all()
    z = sample(posterior, 1)
    with pytest.raises(ValueError, match="no density"):
        posterior.log_prob(z)
    for kind in PRIORS:
        prior = PRIORS.build({"kind": kind}, 4)
        if kind == "vamp":
            prior.attach(GaussianPosterior(6, 4), 6)
        with pytest.raises(ValueError, match="Leave the KL out"):
            kl(posterior, prior(), z)
    with pytest.raises(ValueError, match="no density"):
        kl(diagonal_gaussian(torch.zeros(3, 4), torch.ones(3, 4)), Point(torch.zeros(4)), z)


@hypothesis.given(
    offset=st.floats(-50, 50),
    size=st.floats(1e-3, 100),
    seed=st.integers(0, 2**31),
    gamma=st.sampled_from([0.3, 0.6, 0.7, 1.5]),
)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_batch_norms_means_have_exactly_the_scale_and_their_kl_the_bound(offset, size, seed, gamma):
    torch.manual_seed(seed)
    head = BatchNormPosterior(6, 4, scale=gamma).double()
    with torch.no_grad():
        head.shift.copy_(torch.randn(4))
    posterior = head(offset + size * torch.randn(16, 6, dtype=torch.float64))
    deviation = posterior.mean.std(0, correction=0)
    torch.testing.assert_close(deviation, torch.full((4,), gamma).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(posterior.mean.mean(0), head.shift.detach())
    nats = float(kl_divergence(posterior, StandardNormal(4).double()()).detach().mean())
    bound = 0.5 * float((gamma**2 + head.shift.detach().square()).sum())
    assert nats >= bound * (1 - 2e-3)
    assert bound >= 4 * gamma**2 / 2


def test_batch_norm_in_evaluation_uses_running_statistics_which_find_the_true_ones():
    torch.manual_seed(0)
    head = BatchNormPosterior(6, 4, scale=0.7)
    for _ in range(100):
        head(3.0 + 2.0 * torch.randn(256, 6))
    head.eval()
    features = 3.0 + 2.0 * torch.randn(4000, 6)
    posterior = head(features)
    torch.testing.assert_close(posterior.mean.std(0), torch.full((4,), 0.7), rtol=0.05, atol=0)
    assert posterior.mean.mean(0).abs().max() < 0.05
    # And a sentence does not depend on its neighbours.
    torch.testing.assert_close(head(features[:1]).mean, posterior.mean[:1])


def test_batch_norm_takes_the_statistics_of_all_processes(monkeypatch):
    head = BatchNormPosterior(6, 4).double()
    features = torch.randn(8, 6, dtype=torch.float64)
    whole = head(features).mean
    elsewhere = head.head(features[3:])[:, :4]
    monkeypatch.setattr(posteriors, "gather_rows", lambda rows: torch.cat([rows, elsewhere]))
    torch.testing.assert_close(head(features[:3]).mean, whole[:3])
    assert distributed.gather_rows(elsewhere) is elsewhere


def test_batch_norms_learned_scale_starts_at_the_given_one_and_has_a_gradient():
    head = BatchNormPosterior(6, 4, scale=0.7, learned=True)
    posterior = head(torch.randn(64, 6))
    torch.testing.assert_close(posterior.mean.std(0, correction=0), torch.full((4,), 0.7), rtol=1e-3, atol=0)
    kl_divergence(posterior, StandardNormal(4)()).sum().backward()
    assert float(head.log_factor.grad.abs().min()) > 0
    one = BatchNormPosterior(6, 4)(torch.randn(1, 6))
    assert one.mean.eq(0).all()  # a batch of one has no variance; its mean is the shift


@pytest.mark.parametrize("nats", [1e-6, 0.01, 0.25, 1.0, 30.0])
def test_deltas_largest_scale_is_lamberts(nats):
    # s^2 - 1 - log s^2 = 2 nats below 1 is s^2 = -W0(-exp(-1 - 2 nats)).
    expected = math.sqrt(-float(special.lambertw(-math.exp(-1 - 2 * nats)).real))
    assert largest_scale(nats) == pytest.approx(expected, rel=1e-6)


@hypothesis.given(
    each=st.floats(1e-3, 35),
    dimensions=st.integers(1, 8),
    size=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
    seed=st.integers(0, 2**31),
)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_deltas_kl_is_never_below_its_floor(each, dimensions, size, seed):
    delta = each * dimensions
    torch.manual_seed(seed)
    head = DeltaPosterior(6, dimensions, delta=delta).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(float(torch.rand(())) * 10)
        if seed % 2:  # the worst case: all means 0
            head.head.weight[:dimensions] = 0
            head.head.bias[:dimensions] = 0
    posterior = head(size * torch.randn(16, 6, dtype=torch.float64))
    nats = kl_divergence(posterior, StandardNormal(dimensions).double()())
    assert nats.isfinite().all()
    assert float(nats.detach().min()) >= delta * (1 - 1e-9)


def test_delta_reaches_its_floor_and_refuses_one_that_float32_cannot_hold():
    head = DeltaPosterior(6, 4, delta=3.0)
    with torch.no_grad():
        head.head.weight.zero_()
        head.head.bias.copy_(torch.tensor([0.0] * 4 + [30.0] * 4))
    nats = kl_divergence(head(torch.randn(2, 6)), StandardNormal(4)())
    torch.testing.assert_close(nats, torch.full((2,), 3.0))
    with pytest.raises(ValueError, match="smaller delta"):
        DeltaPosterior(6, 4, delta=1000.0)
