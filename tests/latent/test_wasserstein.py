"""Sample and moment distances against POT, closed forms and double loops."""

import math

import numpy as np
import ot
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from textvae.latent.vmf import UniformSphere
from textvae.latent.wasserstein import (
    MMD,
    GaussianW2,
    MaxSlicedWasserstein,
    Sinkhorn,
    SlicedWasserstein,
    gaussian_w2,
    mmd,
    sinkhorn,
    sliced,
    total_variance,
)


def gaussian(mean, scale) -> Independent:
    return Independent(Normal(torch.as_tensor(mean).double(), torch.as_tensor(scale).double()), 1)


def standard(dimensions: int) -> Independent:
    return gaussian([0.0] * dimensions, [1.0] * dimensions)


class Fixed:
    """A prior whose draws are given."""

    has_rsample = False

    def __init__(self, rows):
        self.rows, self.event_shape = rows, rows.shape[1:]

    def sample(self, size):
        assert size == self.rows.shape[:1]
        return self.rows


def two_clouds(count=40, dimensions=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, dimensions, generator=generator, dtype=torch.float64) * 0.7 + 0.5
    return z, torch.randn(count, dimensions, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kernel", ["imq", "gaussian", "mixed"])
def test_mmd_of_equal_distributions_is_zero_on_average_and_of_distant_ones_is_not(kernel):
    torch.manual_seed(0)
    prior, divergence = standard(4), MMD(kernel=kernel)
    posterior = gaussian(torch.zeros(64, 4), torch.ones(64, 4))
    draws = torch.stack([divergence(posterior, prior, posterior.sample(torch.Size([1]))) for _ in range(300)])
    assert abs(float(draws.mean())) < 4 * float(draws.std()) / math.sqrt(300)
    shifted = gaussian(torch.full((64, 4), 2.0), torch.ones(64, 4))
    assert float(divergence(shifted, prior, shifted.sample(torch.Size([1])))) > 50 * float(draws.std())


@pytest.mark.parametrize(("kernel", "scales"), [("gaussian", None), ("mixed", [0.5, 1.0, 4.0])])
def test_mmd_with_a_gaussian_kernel_approaches_its_closed_form(kernel, scales):
    # E exp(-|x-y|^2/c) for x-y ~ N(m, v) in one dimension is (1 + 2v/c)^(-1/2) exp(-m^2 / (c + 2v)).
    torch.manual_seed(0)
    shift = 1.0

    def expected(mean: float, variance: float) -> float:
        constants = [2.0 * scale for scale in scales or [1.0]]
        return sum((1 + 2 * variance / c) ** -0.5 * math.exp(-(mean**2) / (c + 2 * variance)) for c in constants)

    exact = 2 * expected(0, 2) - 2 * expected(shift, 2)
    divergence = MMD(kernel=kernel, scales=scales)
    draws = torch.stack(
        [divergence(None, standard(1), torch.randn(1, 100, 1, dtype=torch.float64) + shift) for _ in range(400)]
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
    assert float(mmd(z, p, kernel, 3.0)) == pytest.approx(within - 2 * between, abs=1e-12)


def test_kernels_and_blurs_go_by_distances_on_the_sphere_where_the_prior_is_there():
    """Squared distances of uniform points are 2 in the mean, and by a scale of 2 D all of them are small."""
    torch.manual_seed(0)
    prior = UniformSphere(torch.zeros(32))
    flat = torch.nn.functional.normalize(torch.randn(200, 3), dim=-1)  # in 3 of 32 dimensions
    flat = torch.cat([flat, torch.zeros(200, 29)], -1)[None]
    for kind in (MMD(), Sinkhorn()):
        even = torch.stack([kind(None, prior, prior.rsample(torch.Size([1, 200]))) for _ in range(10)])
        assert float(kind(None, prior, flat)) > float(even.mean()) + 20 * float(even.std())
    assert total_variance(prior) == 1
    assert total_variance(standard(32)) == 32


def test_mmd_of_one_sentence_has_no_pairs_and_is_zero():
    z = torch.zeros(1, 1, 2, requires_grad=True)
    value = MMD()(None, standard(2), z)
    value.backward()
    assert float(value.detach()) == 0.0
    assert z.grad.eq(0).all()


@pytest.mark.parametrize("power", [1, 2])
def test_sliced_wasserstein_equals_pot_along_the_same_projections(power):
    z, p = two_clouds()
    directions = torch.nn.functional.normalize(torch.randn(3, 17, dtype=torch.float64), dim=0)
    got = sliced(z, p, directions, power).mean()
    expected = ot.sliced_wasserstein_distance(z.numpy(), p.numpy(), p=power, projections=directions.numpy())
    assert float(got) == pytest.approx(float(expected) ** power, rel=1e-9)


def test_sliced_wasserstein_of_a_shift_is_its_square_over_the_dimension():
    torch.manual_seed(0)
    rows = torch.randn(50, 3, dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0, 0.5]).double()
    # The same rows, shifted: along theta the distance is (theta . shift)^2 exactly.
    got = SlicedWasserstein(projections=5000)(None, Fixed(rows), (rows + shift)[None])
    error = 4 * math.sqrt(2) * float(shift.square().sum()) / 3 / math.sqrt(5000)
    assert float(got) == pytest.approx(float(shift.square().sum()) / 3, abs=error)


@pytest.mark.parametrize("power", [1, 2])
def test_max_sliced_wasserstein_finds_the_best_of_all_directions(power):
    torch.manual_seed(0)
    angles = torch.linspace(0, math.pi, 5001, dtype=torch.float64)
    grid = torch.stack([angles.cos(), angles.sin()]).numpy()
    for seed in range(5):
        z, p = two_clouds(dimensions=2, seed=seed)
        z = z * torch.tensor([1.0, 2.0])
        got = float(MaxSlicedWasserstein(p=power)(None, Fixed(p), z[None]))
        best = float(ot.max_sliced_wasserstein_distance(z.numpy(), p.numpy(), p=power, projections=grid)) ** power
        assert 0.98 * best <= got <= best * (1 + 1e-4)


def test_max_sliced_wasserstein_climbs_in_many_dimensions():
    # Of a shift in 32 dimensions random directions see a 32nd on average; the best one sees all of it.
    torch.manual_seed(0)
    rows, shift = torch.randn(200, 32), torch.zeros(32)
    shift[3] = 2.0
    assert float(MaxSlicedWasserstein()(None, Fixed(rows), (rows + shift)[None])) > 0.95 * 4.0
    assert float(SlicedWasserstein()(None, Fixed(rows), (rows + shift)[None])) < 0.1 * 4.0


def test_w2_of_each_sentence_equals_pot():
    means, scales = torch.randn(4, 3).double(), torch.rand(4, 3).double() + 0.1
    prior = gaussian([0.1, 0.0, -0.4], [1.0, 2.0, 0.7])
    got = GaussianW2()(gaussian(means, scales), prior, means[None])
    for i in range(4):
        expected = ot.gaussian.bures_wasserstein_distance(
            means[i], prior.mean, scales[i].square().diag(), prior.variance.diag()
        )
        assert float(got[i]) == pytest.approx(float(expected) ** 2, rel=1e-8)


@pytest.mark.parametrize("full", [False, True])
def test_w2_of_the_aggregate_equals_pot_on_its_moments(full):
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(6, 3, generator=generator).double() * 1.5
    scales = torch.rand(6, 3, generator=generator).double() + 0.1
    target = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]]).double()
    prior = MultivariateNormal(torch.ones(3).double(), target) if full else gaussian([1.0, 0, 0], [1.0, 2.0, 0.7])
    got = GaussianW2(over="aggregate")(gaussian(means, scales), prior, means[None])
    covariance = np.cov(means.numpy().T) + np.diag(scales.square().mean(0).numpy())
    other = target if full else prior.variance.diag()
    expected = ot.gaussian.bures_wasserstein_distance(means.mean(0), prior.mean, torch.as_tensor(covariance), other)
    assert float(got) == pytest.approx(float(expected) ** 2, rel=1e-8)


def test_w2_of_the_aggregate_sees_spread_means_that_imitate_the_prior():
    # Means from N(0, 0.8^2) and scales 0.6 aggregate to the prior, though no sentence's posterior does.
    torch.manual_seed(0)
    means = torch.randn(20_000, 2).double() * 0.8
    posterior = gaussian(means, torch.full_like(means, 0.6))
    assert float(GaussianW2(over="aggregate")(posterior, standard(2), means[None])) < 1e-3
    assert float(GaussianW2()(posterior, standard(2), means[None]).mean()) > 1.0


def test_w2_gradient_equals_finite_differences_where_eigenvalues_repeat():
    a = torch.eye(3).double().requires_grad_()
    zero = torch.zeros(3).double()
    assert torch.autograd.gradcheck(lambda c: gaussian_w2(zero, (c + c.T) / 2, zero, 2 * torch.eye(3).double()), (a,))


@pytest.mark.parametrize("over", ["sentence", "aggregate"])
def test_w2_names_the_distribution_that_is_not_gaussian(over):
    components = Independent(Normal(torch.zeros(2, 3), torch.ones(2, 3)), 1)
    mixture = MixtureSameFamily(Categorical(logits=torch.zeros(2)), components)
    posterior = gaussian(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"the prior is MixtureSameFamily\. Use kind: sliced_wasserstein"):
        GaussianW2(over=over)(posterior, mixture, torch.zeros(1, 2, 3))


def entropic_cost(x, y, blur):
    """min E|x - y|^2 + blur KL(plan || product), from POT's plan."""
    x, y = x.numpy(), y.numpy()
    a, b = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    cost = ot.dist(x, y)
    plan = ot.sinkhorn(a, b, cost, blur, method="sinkhorn_log", numItermax=5000, stopThr=1e-9, warn=False)
    return (plan * cost).sum() + blur * (plan * np.log(np.maximum(plan, 1e-300) / np.outer(a, b))).sum()


def test_sinkhorn_divergence_equals_pot_s_plans():
    # POT's empirical_sinkhorn_divergence leaves out the entropic part of each cost (its own note says so).
    z, p = two_clouds()
    for epsilon in (0.05, 0.5):
        blur = epsilon * 2 * 3
        expected = entropic_cost(z, p, blur) - (entropic_cost(z, z, blur) + entropic_cost(p, p, blur)) / 2
        got = float(Sinkhorn(epsilon=epsilon, iterations=500)(None, Fixed(p), z[None]))
        assert got == pytest.approx(expected, rel=1e-4)


def test_sinkhorn_with_little_blur_agrees_with_pot_s_divergence_and_with_the_exact_cost():
    z, p = two_clouds()
    blur = 0.02
    got = float(sinkhorn(z, p, blur, 1000))
    theirs = ot.bregman.empirical_sinkhorn_divergence(z.numpy(), p.numpy(), blur, warn=False)
    assert got == pytest.approx(float(theirs), rel=0.03)
    assert got == pytest.approx(ot.emd2([], [], ot.dist(z.numpy(), p.numpy())), rel=0.03)


def test_sinkhorn_gradient_equals_finite_differences():
    z, p = two_clouds(count=8)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn(z, p, 0.3, 1000), z)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        step = 1e-5
        above, below = (sinkhorn(z + sign * step * direction, p, 0.3, 1000) for sign in (1, -1))
    numeric = (above - below) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=1e-4)


def test_sinkhorn_of_a_cloud_with_itself_is_zero_and_flat():
    z, _ = two_clouds()
    x = z.clone().requires_grad_()
    value = sinkhorn(x, z, 0.3, 100)
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-9)
    assert float(x.grad.abs().max()) < 1e-9


@pytest.mark.parametrize("dimensions", [2, 32])
@pytest.mark.parametrize("options", [{}, {"epsilon": 0.05, "iterations": 50}])
def test_stated_iterations_leave_less_than_a_thousandth(dimensions, options):
    z, p = two_clouds(count=128, dimensions=dimensions)
    enough = Sinkhorn(**options | {"iterations": 400})(None, Fixed(p), z[None])
    assert float(Sinkhorn(**options)(None, Fixed(p), z[None])) == pytest.approx(float(enough), rel=1e-3)


@pytest.mark.parametrize("divergence", [MMD(), SlicedWasserstein(), MaxSlicedWasserstein(), Sinkhorn()])
def test_learned_prior_with_reparameterised_draws_gets_a_gradient(divergence):
    torch.manual_seed(0)
    mean = torch.zeros(3, requires_grad=True)
    prior = Independent(Normal(mean, torch.ones(3)), 1)
    divergence(None, prior, torch.randn(1, 64, 3) + torch.tensor([3.0, 0.0, 0.0])).backward()
    # Downhill is towards the posterior.
    assert float(-mean.grad[0]) > 3 * float(mean.grad[1:].abs().max()) > 0
