"""The von Mises-Fisher distribution against Bessel functions, quadrature and the moments of its draws."""

import itertools
import math

import pytest
import torch
from scipy import integrate, special, stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from textvae.errors import UserError
from textvae.latent.divergences import kl
from textvae.latent.posteriors import GaussianPosterior, Point
from textvae.latent.priors import StandardNormal, UniformSpherePrior
from textvae.latent.vmf import (
    UniformSphere,
    VonMisesFisher,
    VonMisesFisherPosterior,
    log_bessel,
    log_sphere_area,
    mean_resultant_length,
)

CASES = [(2, 0.1), (2, 50.0), (3, 1.0), (3, 2000.0), (8, 5.0), (32, 80.0), (200, 30.0)]


def directions(count: int, dimensions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, dimensions, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(noise, dim=-1)


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 15.5, 127.0])
@pytest.mark.parametrize("x", [1e-3, 0.7, 30.0, 1000.0, 1e5])
def test_log_bessel_equals_scipys(order, x):
    scaled = special.ive(order, x)
    small = order * math.log(x / 2) - special.gammaln(order + 1) + math.log1p(x**2 / 4 / (order + 1))
    expected = math.log(scaled) + x if scaled > 0 else small
    assert log_bessel(order, x) == pytest.approx(expected, rel=1e-12, abs=1e-9)


def by_rejection(distribution, count):
    return distribution.rsample(torch.Size([count]))


def by_noise(distribution, count):
    return distribution.from_noise(torch.randn(count, *distribution.loc.shape, dtype=torch.float64))


@pytest.mark.parametrize("drawn", [by_rejection, by_noise])
@pytest.mark.parametrize(("dimensions", "kappa"), CASES)
def test_draws_have_the_moments_of_theory_and_unit_length(dimensions, kappa, drawn):
    torch.manual_seed(0)
    count = 20_000
    distribution = VonMisesFisher(directions(2, dimensions), kappa)
    z = drawn(distribution, count)
    assert z.shape == (count, 2, dimensions)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(count, 2).double())
    length = special.ive(dimensions / 2, kappa) / special.ive(dimensions / 2 - 1, kappa)
    assert mean_resultant_length(dimensions, kappa) == pytest.approx(length, rel=1e-9)
    torch.testing.assert_close(distribution.mean, length * distribution.loc)
    error = distribution.stddev / math.sqrt(count)
    assert ((z.mean(0) - distribution.mean).abs() < 5 * error + 1e-12).all()
    torch.testing.assert_close(z.std(0), distribution.stddev, rtol=0.05, atol=0)


@pytest.mark.parametrize("drawn", [by_rejection, by_noise])
@pytest.mark.parametrize(("dimensions", "kappa"), [(2, 3.0), (3, 40.0), (16, 25.0)])
def test_the_cosine_to_mu_follows_its_law(dimensions, kappa, drawn):
    # The density of w = mu.z is proportional to exp(kappa w) (1 - w^2)^((D-3)/2).
    torch.manual_seed(0)
    distribution = VonMisesFisher(directions(1, dimensions), kappa)
    w = (drawn(distribution, 5000) * distribution.loc).sum(-1)[:, 0].clamp(-1, 1)

    # In the angle, the density has no singular ends.
    def density(angle):
        return math.exp(kappa * (math.cos(angle) - 1)) * math.sin(angle) ** (dimensions - 2)

    total = integrate.quad(density, 0, math.pi, epsabs=0)[0]
    edges = [math.pi * k / 2000 for k in range(2001)]
    steps = [integrate.quad(density, a, b)[0] / total for a, b in itertools.pairwise(edges)]
    cumulative = torch.tensor([0.0, *steps], dtype=torch.float64).cumsum(0)
    position = torch.acos(w) / math.pi * 2000
    below = position.floor().long().clamp(max=1999)
    share = cumulative[below] + (position - below) * (cumulative[below + 1] - cumulative[below])
    assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3


def test_what_noise_makes_is_the_same_whatever_stands_beside_it():
    distribution = VonMisesFisher(directions(5, 8).float(), 20.0)
    noise = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    whole = distribution.from_noise(noise)
    for row in range(5):
        alone = VonMisesFisher(distribution.loc[[row]], 20.0).from_noise(noise[:, [row]])
        torch.testing.assert_close(alone[:, 0], whole[:, row], rtol=0, atol=1e-6)


def test_log_prob_integrates_to_one_on_circle_and_sphere():
    circle = VonMisesFisher(directions(1, 2), 7.0)
    angle = torch.arange(4000).double() * (2 * math.pi / 4000)
    total = circle.log_prob(torch.stack([angle.cos(), angle.sin()], -1)).exp().sum() * (2 * math.pi / 4000)
    assert float(total) == pytest.approx(1.0, abs=1e-10)
    # Area of the sphere = height times angle (Archimedes).
    height = (torch.arange(2000).double() + 0.5) / 1000 - 1
    angle = torch.arange(200).double() * (2 * math.pi / 200)
    h, a = torch.meshgrid(height, angle, indexing="ij")
    radius = (1 - h.square()).sqrt()
    points = torch.stack([radius * a.cos(), radius * a.sin(), h], -1)
    density = VonMisesFisher(directions(1, 3), 4.0).log_prob(points).exp()
    assert float(density.sum() / 1000 * (2 * math.pi / 200)) == pytest.approx(1.0, abs=1e-5)
    assert math.exp(log_sphere_area(3)) == pytest.approx(4 * math.pi)


@pytest.mark.parametrize(("dimensions", "kappa"), CASES)
def test_kl_to_the_uniform_equals_quadrature_over_the_angle(dimensions, kappa):
    def weight(angle):
        return math.exp(kappa * (math.cos(angle) - 1)) * math.sin(angle) ** (dimensions - 2)

    ends = (0, min(math.pi, 60 * math.sqrt(max(dimensions, 2) / kappa)))
    flat = integrate.quad(lambda a: math.sin(a) ** (dimensions - 2), 0, math.pi, epsabs=0)[0]
    total = integrate.quad(weight, *ends, epsabs=0, limit=200)[0]
    moment = integrate.quad(lambda a: weight(a) * kappa * (math.cos(a) - 1), *ends, epsabs=0, limit=200)[0]
    expected = moment / total - math.log(total) + math.log(flat)
    q, p = VonMisesFisher(directions(3, dimensions), kappa), UniformSphere(torch.zeros(dimensions).double())
    torch.testing.assert_close(kl_divergence(q, p), torch.full((3,), expected).double(), rtol=1e-6, atol=1e-8)


def test_kl_between_two_and_the_sampled_one_to_their_mixture_agree_with_sampling():
    torch.manual_seed(0)
    q, p = VonMisesFisher(directions(2, 5), 20.0), VonMisesFisher(directions(2, 5).flip(0), 6.0)
    z = q.sample(torch.Size([40_000]))
    terms = q.log_prob(z) - p.log_prob(z)
    assert ((kl(q, p, z) - terms.mean(0)).abs() < 4 * terms.std(0) / 200).all()
    mixture = MixtureSameFamily(Categorical(logits=torch.zeros(2).double()), p, validate_args=False)
    torch.testing.assert_close(kl(q, mixture, z), (q.log_prob(z) - mixture.log_prob(z)).mean(0))


def test_the_gradient_of_a_mean_over_draws_is_that_of_the_mean():
    # E a.z = A a.mu: its gradient over directions orthogonal to mu is A a without its part along mu.
    torch.manual_seed(0)
    raw = directions(1, 6).requires_grad_()
    a = directions(2, 6)[1]
    mu = torch.nn.functional.normalize(raw, dim=-1)
    draws = VonMisesFisher(mu, 10.0).rsample(torch.Size([40_000]))
    (gradient,) = torch.autograd.grad((draws @ a).mean(), raw, retain_graph=True)
    (expected,) = torch.autograd.grad(mean_resultant_length(6, 10.0) * (mu @ a).sum(), raw)
    torch.testing.assert_close(gradient, expected, atol=0.01, rtol=0)


def test_draws_and_gradients_are_finite_at_every_pole_in_float32():
    torch.manual_seed(0)
    mu = torch.cat([torch.eye(4), -torch.eye(4)]).requires_grad_()
    for kappa in (1e-3, 1.0, 1e5):
        z = VonMisesFisher(mu, kappa).rsample(torch.Size([50]))
        (gradient,) = torch.autograd.grad(z.square().sum() + z[..., 0].sum(), mu)
        assert z.isfinite().all()
        assert gradient.isfinite().all()


def test_the_uniform_sphere_is_uniform():
    torch.manual_seed(0)
    prior = UniformSpherePrior(3)()
    z = prior.sample(torch.Size([20_000]))
    assert stats.kstest(z[:, 2].numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3  # Archimedes again
    torch.testing.assert_close(prior.log_prob(z[:2]).exp(), torch.full((2,), 1 / (4 * math.pi)))
    torch.testing.assert_close(z.var(0), prior.variance, rtol=0.05, atol=0)


def test_a_pair_without_a_common_space_is_refused_with_what_to_do():
    vmf = VonMisesFisherPosterior(6, 4)(torch.randn(3, 6))
    with pytest.raises(ValueError, match="uniform_sphere"):
        kl(vmf, StandardNormal(4)(), vmf.sample(torch.Size([1])))
    gaussian = GaussianPosterior(6, 4)(torch.randn(3, 6))
    for other in (gaussian, Point(torch.zeros(3, 4))):
        with pytest.raises(ValueError, match="posterior"):
            kl(other, UniformSpherePrior(4)(), other.sample(torch.Size([1])))
    for build in (lambda: VonMisesFisherPosterior(6, 1), lambda: UniformSpherePrior(1)):
        with pytest.raises(UserError, match="latent_dim: got 1"):
            build()


def test_the_reverse_kl_on_the_sphere_is_that_of_quadrature_and_off_it_refused():
    q = VonMisesFisher(torch.tensor([[1.0, 0.0]], dtype=torch.float64), 3.0)
    angle = torch.linspace(0, 2 * torch.pi, 20_001, dtype=torch.float64)[:-1]
    points = torch.stack([angle.cos(), angle.sin()], -1)
    density = q.log_prob(points[:, None]).squeeze(-1)
    exact = float((-torch.log(torch.tensor(2 * torch.pi)) - density).mean())
    uniform = UniformSphere(torch.zeros(2, dtype=torch.float64))
    assert float(kl_divergence(uniform, q)) == pytest.approx(exact, abs=1e-6)
    with pytest.raises(UserError, match="infinite"):
        kl_divergence(Independent(Normal(torch.zeros(1, 2), torch.ones(1, 2)), 1), q)


def test_draws_on_a_circle_are_of_unit_length():
    torch.manual_seed(0)
    mu = torch.nn.functional.normalize(torch.randn(2), dim=-1)
    drawn = VonMisesFisher(mu, 1.0).rsample((20_000,))
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(20_000), rtol=0, atol=1e-6)
