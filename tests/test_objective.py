import pytest
import torch
from torch.distributions import Independent, Normal

from textvae.latent.divergences import KL
from textvae.objective import CrossEntropy, HeadTerm, Objective
from textvae.schedules import Constant, Horizon, Linear
from textvae.types import VAEOutput

HORIZON = Horizon(10, 100)


def output() -> VAEOutput:
    torch.manual_seed(0)
    posterior = Independent(Normal(torch.randn(4, 3), torch.rand(4, 3) + 0.5), 1)
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    return VAEOutput(posterior, prior, posterior.rsample(torch.Size([2])), -torch.rand(2, 4))


def test_total_is_reconstruction_plus_weighted_terms_and_weight_one_is_the_negative_elbo():
    out = output()
    rate = torch.distributions.kl_divergence(out.posterior, out.prior).mean()
    reconstruction = -out.log_likelihood.mean()
    objective = Objective(CrossEntropy(), {"kl": (KL(), Linear(HORIZON, over=10))})
    for step, weight in ((0, 0.0), (5, 0.5), (10, 1.0)):
        losses = objective(out, step)
        torch.testing.assert_close(losses.total, reconstruction + weight * rate)
        torch.testing.assert_close(losses.terms["kl"], rate)
        assert losses.weights == {"reconstruction": 1.0, "kl": pytest.approx(weight)}


def test_weights_that_are_given_stand_for_the_schedules():
    out = output()
    objective = Objective(CrossEntropy(), {"kl": (KL(), Linear(HORIZON, over=10))})
    for weight in (0.0, 0.3, torch.tensor(0.3)):
        given = objective(out, 10, weights={"kl": weight})
        torch.testing.assert_close(given.total, given.terms["reconstruction"] + weight * given.terms["kl"])
    assert float(objective(out, 10).total) != pytest.approx(float(given.total))


def test_shares_of_pieces_average_to_the_mean_over_sentences():
    out = output()
    objective = Objective(CrossEntropy(), {"kl": (KL(), Constant(HORIZON, value=2.0))})
    whole = objective(out, 0).total

    def piece(rows: slice) -> VAEOutput:
        base = out.posterior.base_dist
        posterior = Independent(Normal(base.loc[rows], base.scale[rows]), 1)
        return VAEOutput(posterior, out.prior, out.z[:, rows], out.log_likelihood[:, rows])

    first, second = objective(piece(slice(0, 1)), 0, share=0.5), objective(piece(slice(1, 4)), 0, share=1.5)
    torch.testing.assert_close((first.total + second.total) / 2, whole)


def test_a_language_model_has_reconstruction_only():
    out = VAEOutput(None, None, torch.zeros(1, 4, 0), -torch.rand(1, 4))
    losses = Objective(CrossEntropy(), {})(out, 0)
    torch.testing.assert_close(losses.total, -out.log_likelihood.mean())
    assert list(losses.terms) == ["reconstruction"]


def test_a_heads_loss_is_a_weighted_term_of_training_and_no_part_of_an_evaluation():
    out = output()._replace(heads={"bag": torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 0.0]])})
    terms = {"kl": (KL(), Constant(HORIZON)), "bag": (HeadTerm("bag", "nats"), Constant(HORIZON, value=0.5))}
    objective = Objective(CrossEntropy(), terms)
    losses = objective(out, 0)
    torch.testing.assert_close(losses.terms["bag"], torch.tensor(2.0))
    torch.testing.assert_close(losses.total - losses.terms["reconstruction"] - losses.terms["kl"], torch.tensor(1.0))
    measured = objective.measure([out.posterior], out.prior, out.z)
    assert set(measured) == {"term_kl"}
    numbers = {"reconstruction": 10.0, **measured}
    assert objective.final(numbers, objective.weights(0)) == pytest.approx(10.0 + measured["term_kl"])
