"""Estimates of information against the closed forms of a linear Gaussian model, and on more than one process."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributions import Independent, MultivariateNormal, Normal

from textvae.latent.divergences import RateFloor
from textvae.latent.information import (
    Dispersion,
    LogVariancePenalty,
    MutualInformationReward,
    TotalCorrelation,
    _log_mixture,
    kl_decomposition,
)
from textvae.latent.wasserstein import GaussianW2, Sinkhorn


def gaussian(mean, scale) -> Independent:
    return Independent(Normal(torch.as_tensor(mean).double(), torch.as_tensor(scale).double()), 1)


def standard(dimensions: int) -> Independent:
    return gaussian([0.0] * dimensions, [1.0] * dimensions)


# x ~ N(0, X) and z|x ~ N(x, S2 I): the aggregate posterior is N(0, A), and all information has a closed form.
X = np.array([[1.0, 0.8], [0.8, 1.0]])
S2 = 0.25
A = X + S2 * np.eye(2)
TRUTH = {
    "mutual_information": 0.5 * math.log(np.linalg.det(A) / S2**2),
    "total_correlation": 0.5 * math.log(np.prod(np.diag(A)) / np.linalg.det(A)),
    "dimension_kl": 0.5 * float(np.sum(np.diag(A) - 1 - np.log(np.diag(A)))),
}


def linear_gaussian(count: int):
    x = MultivariateNormal(torch.zeros(2).double(), torch.as_tensor(X)).sample((count,))
    posterior = gaussian(x, torch.full_like(x, math.sqrt(S2)))
    return posterior, posterior.sample((1,))


def test_decomposition_finds_the_closed_forms_of_a_linear_gaussian_model():
    torch.manual_seed(0)
    parts = [kl_decomposition(*_with_prior(1000)) for _ in range(6)]
    for name, truth in TRUTH.items():
        values = torch.stack([part[name] for part in parts])
        # 0.02: the bias of the logarithm of an average over the about 1000 / e^I posteriors that cover a draw.
        assert float(values.mean()) == pytest.approx(truth, abs=4 * float(values.std()) / math.sqrt(6) + 0.02), name


def test_terms_are_the_parts_of_the_decomposition():
    torch.manual_seed(0)
    posterior, prior, z = _with_prior(30)
    for sentences in (None, 400):
        parts = kl_decomposition(posterior, prior, z, sentences=sentences)
        assert TotalCorrelation(sentences=sentences)(posterior, prior, z) == parts["total_correlation"]
        assert MutualInformationReward(sentences=sentences)(posterior, prior, z) == -parts["mutual_information"]
        sampled_kl = (posterior.log_prob(z[0]) - prior.log_prob(z[0])).mean()
        torch.testing.assert_close(sum(parts.values()), sampled_kl)


def test_mutual_information_of_far_posteriors_is_the_log_of_their_number():
    means = torch.arange(5.0)[:, None] * 100
    posterior = gaussian(means, torch.ones(5, 1))
    z = posterior.sample((1,))
    assert float(MutualInformationReward()(posterior, None, z)) == pytest.approx(-math.log(5))
    assert float(MutualInformationReward(sentences=1000)(posterior, None, z)) == pytest.approx(-math.log(1000))


def test_densities_are_unbiased_over_the_batches_of_a_data_set():
    # Sentence 0 in a batch with 2 of the 4 others, all 6 batches: their mean is the mixture over the 5.
    torch.manual_seed(0)
    log_density = torch.randn(5, dtype=torch.float64)  # log q(z_0|x_j)
    means = []
    for others in itertools.combinations(range(1, 5), 2):
        batch = log_density[[0, *others]]
        means.append(_log_mixture(batch[:, None].expand(3, 3), 5)[0].exp())
    assert float(torch.stack(means).mean()) == pytest.approx(float(log_density.exp().mean()), rel=1e-12)


def test_whole_batch_as_data_set_is_the_plain_mixture():
    torch.manual_seed(0)
    posterior, _, z = _with_prior(7)
    log_density = posterior.log_prob(z[0][:, None]).T  # (j, i)
    torch.testing.assert_close(_log_mixture(log_density, None), log_density.logsumexp(0) - math.log(7))
    torch.testing.assert_close(_log_mixture(log_density, 3), log_density.logsumexp(0) - math.log(7))


def test_total_correlation_refuses_a_posterior_of_dependent_dimensions():
    posterior = MultivariateNormal(torch.zeros(3, 2), torch.eye(2))
    with pytest.raises(ValueError, match="total_correlation needs the density of each dimension"):
        TotalCorrelation()(posterior, None, posterior.sample((1,)))
    # The mutual information needs the joint density alone.
    assert float(MutualInformationReward()(posterior, None, posterior.sample((1,)))) == pytest.approx(0, abs=1e-6)


def test_log_variance_penalty_sums_absolute_logarithms():
    posterior = gaussian([[0.0, 5.0], [1.0, 1.0]], [[math.e, math.exp(-0.5)], [1.0, 1.0]])
    got = LogVariancePenalty()(posterior, standard(2), torch.zeros(1, 2, 2))
    torch.testing.assert_close(got, torch.tensor([2.0 + 1.0, 0.0]).double())


def test_dispersion_counts_the_variance_that_is_missing():
    means = torch.tensor([[0.0, 1.0, 0.1], [2.0, 1.0, -0.1], [4.0, 1.0, 0.0]])
    posterior = gaussian(means, torch.ones(3, 3))
    variances = np.var(means.numpy().astype(float), axis=0, ddof=1)
    expected = np.maximum(0, 0.25 - variances).sum()
    assert float(Dispersion()(posterior, None, means[None])) == pytest.approx(expected, rel=1e-6)
    assert variances[0] > 0.25, "one dimension has enough"


def _with_prior(count: int):
    posterior, z = linear_gaussian(count)
    return posterior, standard(2), z


TERMS = {
    "total_correlation": TotalCorrelation(),
    "total_correlation of a data set": TotalCorrelation(sentences=50),
    "mutual_information": MutualInformationReward(),
    "dispersion": Dispersion(target=5.0),
    "rate_floor": RateFloor(),
    "w2": GaussianW2(over="aggregate"),
    "sinkhorn": Sinkhorn(),
}


def _gradients(rows: slice) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    means, eps = torch.randn(2, 5, 3, generator=generator).double()
    result = {}
    for name, term in TERMS.items():
        mean = means.clone().requires_grad_()
        posterior = gaussian(mean[rows], torch.full((5, 3), 0.7)[rows])
        torch.manual_seed(1)
        value = term(posterior, standard(3), (mean[rows] + 0.7 * eps[rows])[None])
        (gradient,) = torch.autograd.grad(value, mean)
        result[name] = torch.cat([value.detach()[None], gradient.flatten()])
    return result


def _process(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(_gradients((slice(0, 3), slice(3, 5))[rank]), f"{results}{rank}")
    dist.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_process, args=(r, str(tmp_path / "store"), str(tmp_path / "r"))) for r in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    parts = [torch.load(tmp_path / f"r{rank}") for rank in (0, 1)]
    for name, expected in _gradients(slice(0, 5)).items():
        # Equal values on both; the average of the gradients, as DistributedDataParallel takes it.
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, expected, msg=name)
