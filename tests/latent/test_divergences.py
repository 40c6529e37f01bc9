"""Divergences against quadrature, sampling and closed forms."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from textvae.latent.divergences import DIVERGENCES, KL, MMD, kl, kl_by_dimension, mmd
from textvae.latent.posteriors import GaussianPosterior, sample
from textvae.latent.priors import StandardNormal


def gaussian(mean, scale) -> Independent:
    return Independent(Normal(torch.as_tensor(mean).double(), torch.as_tensor(scale).double()), 1)


MEANS = [[0.3, -1.2, 0.0], [2.0, 0.0, 0.5]]
SCALES = [[0.5, 1.5, 1.0], [0.2, 1.0, 3.0]]


def standard(dimensions: int) -> Independent:
    return gaussian([0.0] * dimensions, [1.0] * dimensions)


def test_kl_by_dimension_equals_quadrature():
    got = kl_by_dimension(gaussian(MEANS, SCALES), gaussian([0.1, 0.0, -0.4], [1.0, 2.0, 0.7]))
    for row, (means, scales) in enumerate(zip(MEANS, SCALES)):
        for d, (mean, scale) in enumerate(zip(means, scales)):
            q, p = stats.norm(mean, scale), stats.norm([0.1, 0.0, -0.4][d], [1.0, 2.0, 0.7][d])
            reach = (mean - 12 * scale, mean + 12 * scale)
            expected, _ = integrate.quad(lambda x, q=q, p=p: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), *reach)
            assert float(got[row, d]) == pytest.approx(expected, rel=1e-6)


def test_sampled_kl_stands_in_for_a_mixture_and_agrees_with_the_closed_form():
    # A mixture of two equal components is a Gaussian, which torch does not know.
    torch.manual_seed(0)
    posterior = gaussian(MEANS, SCALES)
    components = Independent(Normal(torch.zeros(2, 3).double(), torch.ones(2, 3).double()), 1)
    mixture = MixtureSameFamily(Categorical(logits=torch.zeros(2).double()), components)
    z = posterior.rsample(torch.Size([40_000]))
    exact = kl(posterior, standard(3), z)
    terms = posterior.log_prob(z) - mixture.log_prob(z)
    error = terms.std(0) / math.sqrt(len(z))
    assert ((kl(posterior, mixture, z) - exact).abs() < 4 * error).all()


def test_free_bits_by_dimension_floor_the_batch_mean_and_stop_its_gradient():
    posterior = gaussian([[0.1, 3.0], [-0.1, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
    mean = posterior.base_dist.loc.requires_grad_()
    z = posterior.rsample(torch.Size([1]))
    value = KL(free_nats=4.0, free_per="dimension")(posterior, standard(2), z)
    # KL of N(m, 1) is m^2 / 2: dimension 0 has mean 0.005, under 4 / 2; dimension 1 has (4.5 + 0.5) / 2.
    assert float(value.detach()) == pytest.approx(2.0 + 2.5)
    (gradient,) = torch.autograd.grad(value, mean)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 1.5], [0.0, 0.5]]).double())


def test_free_bits_by_sentence_floor_each_sentence():
    posterior = gaussian([[0.1, 0.0], [3.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
    value = KL(free_nats=2.0, free_per="sentence")(posterior, standard(2), posterior.sample(torch.Size([1])))
    torch.testing.assert_close(value, torch.tensor([2.0, 5.0]).double())


@pytest.mark.parametrize("kernel", ["imq", "gaussian"])
def test_mmd_of_equal_distributions_is_zero_on_average_and_of_distant_ones_is_not(kernel):
    torch.manual_seed(0)
    prior, divergence = standard(4), MMD(kernel=kernel)
    posterior = gaussian(torch.zeros(64, 4), torch.ones(64, 4))
    draws = torch.stack([divergence(posterior, prior, posterior.sample(torch.Size([1]))) for _ in range(300)])
    assert abs(float(draws.mean())) < 4 * float(draws.std()) / math.sqrt(300)
    shifted = gaussian(torch.full((64, 4), 2.0), torch.ones(64, 4))
    assert float(divergence(shifted, prior, shifted.sample(torch.Size([1])))) > 50 * float(draws.std())


def test_mmd_with_a_gaussian_kernel_approaches_its_closed_form():
    # E exp(-|x-y|^2/c) for x-y ~ N(m, v) in one dimension is (1 + 2v/c)^(-1/2) exp(-m^2 / (c + 2v)).
    torch.manual_seed(0)
    c, shift = 2.0, 1.0

    def expected(mean: float, variance: float) -> float:
        return (1 + 2 * variance / c) ** -0.5 * math.exp(-(mean**2) / (c + 2 * variance))

    exact = 2 * expected(0, 2) - 2 * expected(shift, 2)
    draws = torch.stack(
        [
            MMD(kernel="gaussian", scales=[1.0])(None, standard(1), torch.randn(1, 100, 1, dtype=torch.float64) + shift)
            for _ in range(400)
        ]
    )
    assert float(draws.mean()) == pytest.approx(exact, abs=4 * float(draws.std()) / math.sqrt(400))


def test_mmd_equals_a_double_loop_over_pairs():
    torch.manual_seed(0)
    z, p = torch.randn(5, 3).double(), torch.randn(5, 3).double()

    def kernel(squared, dimensions):
        return dimensions / (dimensions + squared)

    def one(x, y):
        return 3 / (3 + float((x - y).square().sum()))

    pairs = [(i, j) for i in range(5) for j in range(5)]
    within = sum(one(z[i], z[j]) + one(p[i], p[j]) for i, j in pairs if i != j) / 20
    between = sum(one(z[i], p[j]) for i, j in pairs) / 25
    assert float(mmd(z, p, kernel)) == pytest.approx(within - 2 * between, abs=1e-12)


def test_mmd_of_one_sentence_has_no_pairs_and_is_zero():
    z = torch.zeros(1, 1, 2, requires_grad=True)
    value = MMD()(None, standard(2), z)
    value.backward()
    assert float(value.detach()) == 0.0
    assert z.grad.eq(0).all()


@pytest.mark.parametrize("kind", list(DIVERGENCES))
def test_every_divergence_conforms(kind):
    """Shape, unit, a finite value, zero at q = p within its error, a gradient into the encoder."""
    torch.manual_seed(0)
    divergence = DIVERGENCES.build({"kind": kind})
    head, prior = GaussianPosterior(6, 4), StandardNormal(4)
    posterior = head(torch.randn(8, 6))
    z = sample(posterior, 2)
    value = divergence(posterior, prior(), z)
    assert value.shape in (torch.Size([]), torch.Size([8]))
    assert torch.isfinite(value).all()
    assert isinstance(divergence.unit, str)
    value.sum().backward()
    assert float(head.head.weight.grad.abs().sum()) > 0
    equal = gaussian(torch.zeros(8, 4), torch.ones(8, 4))
    values = [divergence(equal, prior(), equal.sample(torch.Size([1])).float()).mean() for _ in range(200)]
    draws = torch.stack(values).float()
    assert abs(float(draws.mean())) <= 4 * float(draws.std()) / math.sqrt(200) + 1e-6
