"""The whole report of a linear-Gaussian model, every figure of which has a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from textvae.evaluation.report import evaluate
from textvae.types import Batch

# z ~ N(0, I), x = W z + s e. The columns of W are orthogonal, so that the exact posterior is diagonal; the third says
# nothing, the second too little to be active: its mean varies by w^2 / (w^2 + s^2) = 0.005.
NOISE = 0.5
WIDTHS = torch.tensor([1.5, NOISE * math.sqrt(0.005 / 0.995), 0.0], dtype=torch.float64)
ROTATION = torch.linalg.qr(torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
LOADINGS = ROTATION * WIDTHS  # (P, D)
VARIANCES = 1 / (1 + WIDTHS**2 / NOISE**2)  # of the exact posterior
COUNT = 4000


class LinearGaussian(nn.Module):
    latent_dim = 3

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table  # row i is what token i says

    def prior(self) -> Distribution:
        return Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1)

    def encode(self, batch: Batch) -> Distribution:
        mean = self.table[batch.tokens[:, 1]] @ LOADINGS * VARIANCES / NOISE**2
        return Independent(Normal(mean, VARIANCES.sqrt().expand_as(mean)), 1)

    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        return Normal(z @ LOADINGS.T, NOISE).log_prob(self.table[batch.tokens[:, 1]]).sum(-1)


@pytest.fixture(scope="module")
def found():
    noise = torch.randn(COUNT, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = noise[:, :3] @ LOADINGS.T + NOISE * noise[:, 3:]
    tokens = torch.stack([torch.zeros(COUNT, dtype=torch.int64), torch.arange(COUNT)], 1)

    def batches():
        return (Batch(part, torch.ones(len(part), dtype=torch.int64)) for part in tokens.split(512))

    generator = torch.Generator().manual_seed(2)
    return x, evaluate(LinearGaussian(x), batches, iw_samples=20, generator=generator, whole=True)


def test_with_the_exact_posterior_the_weighted_nll_is_the_marginal_whatever_is_drawn(found):
    x, figures = found
    covariance = LOADINGS @ LOADINGS.T + NOISE**2 * torch.eye(4, dtype=torch.float64)
    exact = -MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(x)
    assert figures["nll_iw"] == pytest.approx(float(exact.mean()), rel=1e-9)
    assert figures["per_sentence"]["nll_iw"] == pytest.approx(exact.tolist(), rel=1e-9)
    assert figures["iw_ess"] == pytest.approx(20)
    assert figures["iw_standard_error"] == pytest.approx(0, abs=1e-9)
    # The ELBO of one draw differs from it by noise alone, of less than 3 nats a sentence.
    assert figures["nll_elbo"] == pytest.approx(float(exact.mean()), abs=4 * 3 / math.sqrt(COUNT))


def test_kl_and_mutual_information_are_the_channels_capacity(found):
    _, figures = found
    # ln(1 + w^2 / s^2) / 2 a dimension; E KL(q(z|x) || p) is the same, for the aggregate posterior is the prior.
    capacity = -0.5 * VARIANCES.log()
    error = 4 / math.sqrt(COUNT)
    assert figures["kl"] == pytest.approx(float(capacity.sum()), abs=error)
    assert figures["kl_by_dimension"] == pytest.approx(capacity.tolist(), abs=error)
    assert figures["mutual_information"] == pytest.approx(float(capacity.sum()), abs=error)
    assert figures["mutual_information_ceiling"] == pytest.approx(math.log(COUNT))
    assert 1 < float(capacity.sum()) < math.log(COUNT) - 3


def test_the_unit_that_varies_is_active_and_those_that_hardly_or_never_do_are_not(found):
    assert found[1]["active_units"] == 1


def test_the_aggregate_posterior_is_the_prior(found):
    aggregate = found[1]["aggregate"]
    expected = {"kl_part_mutual_information": -0.5 * float(VARIANCES.log().sum())}
    expected |= {"kl_part_total_correlation": 0.0, "kl_part_dimensions": 0.0}
    for name, value in expected.items():
        assert aggregate[name] == pytest.approx(value, abs=4 / math.sqrt(COUNT)), name
