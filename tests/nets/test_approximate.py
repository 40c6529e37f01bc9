"""Adaptive and sampled softmax against sums over the whole vocabulary."""

import pytest
import torch
from conftest import sentences

import textvae
from textvae.errors import UserError
from textvae.nets.approximate import AdaptiveSoftmaxOutput, SampledSoftmaxOutput
from textvae.nets.output import SoftmaxOutput
from textvae.recipe import Recipe
from textvae.training import train


def hidden_and_targets(vocabulary: int, rows: int = 20):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 8, generator=draw, dtype=torch.float64)
    return hidden, torch.randint(0, vocabulary, (rows,), generator=draw)


def test_the_adaptive_softmax_is_a_distribution_made_in_two_steps():
    torch.manual_seed(0)
    layer = AdaptiveSoftmaxOutput(8, 30, cutoffs=[5, 12], factor=2.0).double()
    hidden, targets = hidden_and_targets(30)
    log_p = layer.logits(hidden).double()
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(20, dtype=torch.float64), atol=1e-6, rtol=0)
    # By hand: 5 words and 2 clusters at the head, the clusters' own words after a narrower projection.
    head = layer.layer.head(hidden).log_softmax(1)
    clusters = [head[:, 5 + i, None] + layer.layer.tail[i](hidden).log_softmax(1) for i in range(2)]
    expected = torch.cat([head[:, :5], *clusters], 1)
    torch.testing.assert_close(log_p, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer(hidden, targets), expected.gather(1, targets[:, None]).squeeze(1))
    assert [tail[0].out_features for tail in layer.layer.tail] == [4, 2]


def test_rows_and_steps_of_logits_keep_their_places():
    layer = AdaptiveSoftmaxOutput(8, 30)
    hidden = torch.randn(2, 3, 8)
    torch.testing.assert_close(layer.logits(hidden)[1, 2], layer.logits(hidden[1, 2:])[0])
    assert layer.logits(hidden[:0]).shape == (0, 3, 30)


@pytest.mark.parametrize(
    ("vocabulary", "cutoffs"), [(50_000, [2_000, 10_000]), (5_000, [2_000]), (3_000, [600]), (4, [1])]
)
def test_cutoffs_follow_the_vocabulary(vocabulary, cutoffs):
    assert AdaptiveSoftmaxOutput(16, vocabulary).layer.cutoffs == [*cutoffs, vocabulary]


def test_a_projection_to_nothing_is_refused():
    with pytest.raises(UserError, match=r"model\.output\.factor: got 4; 2 clusters leave the last none of 8"):
        AdaptiveSoftmaxOutput(8, 50_000)


@pytest.mark.parametrize("cutoffs", [[], [30], [10, 10], [20, 10]])
def test_cutoffs_that_do_not_rise_below_the_vocabulary_are_refused(cutoffs):
    with pytest.raises(UserError, match=r"model.output.cutoffs: got .* below the vocabulary's 30"):
        AdaptiveSoftmaxOutput(8, 30, cutoffs=cutoffs)


def test_sampled_tokens_come_as_often_as_q_says():
    torch.manual_seed(0)
    layer = SampledSoftmaxOutput(8, 40, samples=200_000)
    q = layer.log_q(torch.arange(40)).exp()
    assert float(q.sum()) == pytest.approx(1.0)
    found = torch.bincount(layer.draw(), minlength=40) / layer.samples
    error = (q * (1 - q) / layer.samples).sqrt()
    assert bool(((found - q).abs() < 5 * error).all())


@pytest.mark.parametrize("bias", [True, False])
def test_the_normaliser_of_a_sample_is_right_on_average(bias):
    """exp(s_y - log p) is the estimate of sum_v exp(s_v); its mean is compared with the sum."""
    torch.manual_seed(0)
    layer = SampledSoftmaxOutput(8, 40, samples=5, bias=bias).double()
    hidden, targets = hidden_and_targets(40)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        logits = layer.logits(hidden).double()
        chosen = logits.gather(1, targets[:, None]).squeeze(1)
        draws = torch.stack([(chosen - layer(hidden, targets)).exp() for _ in range(20_000)])
    exact = logits.exp().sum(1)
    error = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - exact).abs() < 5 * error).all())
    assert bool((error < 0.1 * exact).all())  # or the line above says nothing


def test_the_gradient_of_many_samples_is_the_softmaxs():
    torch.manual_seed(0)
    layer = SampledSoftmaxOutput(8, 300, samples=299).double()
    exact = SoftmaxOutput(8, 300).double()
    exact.load_state_dict(layer.state_dict())
    hidden, targets = hidden_and_targets(300)
    draws = [torch.autograd.grad(layer(hidden, targets).sum(), list(layer.parameters())) for _ in range(2_000)]
    reference = torch.autograd.grad(exact(hidden, targets).sum(), list(exact.parameters()))
    for mean, gradient in zip((torch.stack(column).mean(0) for column in zip(*draws)), reference):
        # Of the logarithm, so not unbiased: the rest is of the order of the normaliser's variance.
        assert float((mean - gradient).norm() / gradient.norm()) < 0.02


def test_a_target_among_the_sample_is_counted_once():
    layer = SampledSoftmaxOutput(2, 3, samples=2)
    layer.draw = lambda: torch.tensor([1, 1])
    hidden = torch.randn(4, 2)
    torch.testing.assert_close(layer(hidden, torch.full((4,), 1)), torch.zeros(4))


def test_evaluation_is_the_softmax_and_so_is_training_on_a_small_vocabulary():
    torch.manual_seed(0)
    layer = SampledSoftmaxOutput(8, 40, samples=5).double()
    hidden, targets = hidden_and_targets(40)
    expected = layer.logits(hidden).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(layer.eval()(hidden, targets), expected.double())
    layer.samples = 40
    torch.testing.assert_close(layer.train()(hidden, targets), expected.double())


@pytest.mark.parametrize("output", [{"kind": "adaptive_softmax"}, {"kind": "sampled_softmax", "samples": 8}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_with_it(values, tmp_path, output, precision):
    values["model"]["output"] = output
    values["training"] |= {"max_steps": 150, "precision": precision}
    folder = train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    vae = textvae.load(folder)
    assert vae.evaluate()["ppl_elbo"] < 6  # of 17 words
    assert len(vae.sample(5, seed=0)) == 5
    assert len(vae.reconstruct(sentences(3), method="beam")) == 3
