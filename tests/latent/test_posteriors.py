import pytest
import torch

from textvae.latent.posteriors import GaussianPosterior, sample


def test_given_noise_is_used_and_draws_have_the_posteriors_moments():
    torch.manual_seed(0)
    posterior = GaussianPosterior(6, 4).double()(torch.randn(3, 6, dtype=torch.float64))
    noise = torch.randn(2, 3, 4)
    torch.testing.assert_close(sample(posterior, 2, noise), posterior.mean + posterior.stddev * noise.double())
    draws = sample(posterior, 50_000)
    error = posterior.stddev / 50_000**0.5
    assert ((draws.mean(0) - posterior.mean).abs() < 5 * error).all()
    torch.testing.assert_close(draws.std(0), posterior.stddev, rtol=0.03, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_distribution_is_float32(dtype):
    head = GaussianPosterior(6, 4)
    with torch.autocast("cpu", dtype):
        posterior = head(torch.randn(3, 6))
    assert posterior.mean.dtype == torch.float32
