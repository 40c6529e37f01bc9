"""Priors: the conditions that all of them keep, and what each of them promises."""

import copy
import math

import pytest
import torch
from torch.distributions import Independent, Normal

from textvae.latent.divergences import kl, kl_by_dimension
from textvae.latent.posteriors import POSTERIORS, GaussianPosterior, diagonal_gaussian
from textvae.latent.priors import PRIORS, GaussianPrior, MixturePrior, VampPrior
from textvae.nets.initialization import Uniform

FEATURES = 6
LEARNED = ["gaussian", "mixture", "vamp", "flow"]


def build(kind: str, dimensions: int = 4, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    prior = PRIORS.build({"kind": kind, **options}, dimensions)
    if kind == "vamp":
        prior.attach(GaussianPosterior(FEATURES, dimensions), FEATURES)
    return prior


@pytest.mark.parametrize("kind", list(PRIORS))
def test_every_prior_conforms(kind):
    """Shape, type, finite values, a gradient into its parameters and into z, a state that rebuilds it."""
    prior = build(kind)
    distribution = prior()
    assert (distribution.batch_shape, distribution.event_shape) == ((), (4,))
    z = distribution.sample(torch.Size([3, 5]))
    assert z.shape == (3, 5, 4)
    assert z.dtype == torch.float32
    assert distribution.mean.shape == distribution.stddev.shape == (4,)
    z.requires_grad_(kind != "uniform_sphere")
    density = distribution.log_prob(z)
    assert density.shape == (3, 5)
    assert density.isfinite().all()
    if kind != "uniform_sphere":
        density.sum().backward()
        assert float(z.grad.abs().sum()) > 0
    parameters = list(prior.parameters())
    assert bool(parameters) == (kind in LEARNED)
    assert sum(float(parameter.grad.abs().sum()) for parameter in parameters) > 0 or kind not in LEARNED
    torch.manual_seed(1)
    again = PRIORS.build({"kind": kind}, 4)
    if kind == "vamp":
        again.attach(prior._posterior[0], FEATURES)
    again.load_state_dict(prior.state_dict())
    torch.testing.assert_close(again().log_prob(z), density)


@pytest.mark.parametrize("kind", list(PRIORS))
def test_under_autocast_every_prior_is_float32(kind):
    prior = build(kind)
    with torch.autocast("cpu", torch.bfloat16):
        distribution = prior()
        z = distribution.sample(torch.Size([3]))
        assert z.dtype == distribution.log_prob(z).dtype == torch.float32


@pytest.mark.parametrize("kind", [kind for kind in PRIORS if kind != "uniform_sphere"])
def test_every_density_in_one_dimension_integrates_to_one_and_draws_follow_it(kind):
    prior = build(kind, 1).double()
    for posterior in getattr(prior, "_posterior", ()):
        posterior.double()
    distribution = prior()
    z = torch.linspace(-40, 40, 40_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        density = distribution.log_prob(z).exp()
        assert float(torch.trapezoid(density, dx=2e-3)) == pytest.approx(1.0, abs=1e-6)
        mean = torch.trapezoid(density * z[:, 0], dx=2e-3)
        deviation = torch.trapezoid(density * (z[:, 0] - mean).square(), dx=2e-3).sqrt()
        draws = distribution.sample(torch.Size([20_000]))
    assert abs(float(draws.mean() - mean)) < 5 * float(deviation) / math.sqrt(20_000)
    assert float(draws.std()) == pytest.approx(float(deviation), rel=0.05)


def test_the_gaussian_prior_has_the_closed_kl_and_maximum_likelihood_moves_it_to_the_aggregate():
    torch.manual_seed(0)
    prior = GaussianPrior(2)
    posterior = diagonal_gaussian(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.full((2, 2), 0.5))
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        kl_by_dimension(posterior, prior()).sum().backward()
        optimizer.step()
    # Means of the two, and the variance between plus within them.
    torch.testing.assert_close(prior.loc.detach(), torch.tensor([2.0, 0.0]), atol=1e-2, rtol=0)
    torch.testing.assert_close(prior().stddev.detach(), torch.tensor([1.25**0.5, 0.5]), atol=1e-2, rtol=0)


def test_the_mixtures_density_is_the_weighted_sum_and_its_sampled_kl_has_gradients():
    torch.manual_seed(0)
    prior = MixturePrior(3, components=4)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    z = torch.randn(7, 3)
    terms = [
        weight * Independent(Normal(mean, scale), 1).log_prob(z).exp()
        for weight, mean, scale in zip(prior.logits.softmax(0), prior.start + prior.offset, prior.log_scale.exp())
    ]
    torch.testing.assert_close(prior().log_prob(z).exp(), torch.stack(terms).sum(0))
    head = GaussianPosterior(FEATURES, 3)
    posterior = head(torch.randn(5, FEATURES))
    kl(posterior, prior(), posterior.rsample(torch.Size([8]))).sum().backward()
    for parameter in (*prior.parameters(), head.head.weight):
        assert float(parameter.grad.abs().min()) > 0


@pytest.mark.parametrize("kind", ["mixture", "vamp"])
def test_components_stay_apart_when_all_parameters_are_initialised_near_zero(kind):
    prior = build(kind)
    head = prior._posterior[0] if kind == "vamp" else None
    Uniform()(prior)
    means = prior().component_distribution.mean.detach()
    assert float(torch.pdist(means).min()) > 0.1 * float(means.std())
    assert head is None or float(means.std()) > 0


@pytest.mark.parametrize("kind", ["gaussian", "delta", "von_mises_fisher", "flow"])
def test_vamp_is_the_mixture_of_its_pseudo_posteriors(kind):
    torch.manual_seed(0)
    head = POSTERIORS.build({"kind": kind}, FEATURES, 4)
    prior = VampPrior(4, components=3)
    prior.attach(head, FEATURES)
    with torch.no_grad():
        prior.offset.copy_(torch.randn(3, FEATURES))
    z = head(torch.randn(7, FEATURES)).sample()
    each = [head((prior.start + prior.offset)[k : k + 1]).log_prob(z) for k in range(3)]
    torch.testing.assert_close(prior().log_prob(z), torch.stack(each).logsumexp(0) - math.log(3))
    assert prior().sample(torch.Size([9])).shape == (9, 4)
    posterior = head(torch.randn(5, FEATURES))
    value = kl(posterior, prior(), posterior.rsample(torch.Size([2])))
    assert value.shape == (5,)
    value.sum().backward()
    assert float(prior.offset.grad.abs().sum()) > 0
    assert float(head.head.weight.grad.abs().sum()) > 0


def test_vamp_unattached_says_what_to_call_and_refuses_what_it_cannot_mix():
    with pytest.raises(RuntimeError, match="attach"):
        VampPrior(4)()
    for kind in ("batch_norm", "point"):
        with pytest.raises(ValueError, match=kind):
            VampPrior(4).attach(POSTERIORS.build({"kind": kind}, FEATURES, 4), FEATURES)


def test_vamp_registers_the_posterior_once_and_a_copy_of_the_model_uses_the_copied_one():
    model = torch.nn.Module()
    model.prior = VampPrior(4, components=3)
    model.posterior = GaussianPosterior(FEATURES, 4)
    model.prior.attach(model.posterior, FEATURES)
    assert sorted(model.prior.state_dict()) == ["offset", "start"]
    assert len(model.state_dict()) == 4
    copied = copy.deepcopy(model)
    assert copied.prior._posterior[0] is copied.posterior
    assert copied.posterior is not model.posterior
