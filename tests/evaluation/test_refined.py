"""Refined posteriors of a semi-amortised run: one step by hand, the same at every call, better than the encoder's."""

from dataclasses import dataclass

import pytest
import torch
from conftest import sentences

import textvae
from textvae.evaluation.latents import gaussian_parameters
from textvae.evaluation.refined import Refining
from textvae.recipe import Recipe
from textvae.seeds import generator
from textvae.text.batching import collate
from textvae.training import train


@dataclass(frozen=True)
class Settings:
    steps: int = 1
    lr: float = 0.3
    momentum: float = 0.5
    clip: float | None = None


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refined")
    for part, count in (("train", 200), ("validation", 30), ("test", 30)):
        (folder / f"{part}.txt").write_text("".join(f"{text}\n" for text in sentences(count, count)))
    values = {
        "data": {"files": {part: str(folder / f"{part}.txt") for part in ("train", "validation", "test")}},
        "model": {
            "latent_dim": 4,
            "embedding_dim": 12,
            "encoder": {"cell": "gru", "hidden_dim": 12},
            "decoder": {"cell": "lstm", "hidden_dim": 12},
        },
        "objective": {"kl": {"kind": "kl", "weight": 0.3}},
        "training": {
            "batch_size": 16,
            "max_steps": 60,
            "evaluate_every": 60,
            "optimizer": {"kind": "adamw", "lr": 0.02},
            "semi_amortized": {"steps": 3, "lr": 0.2},
            "threads": 1,
        },
        "evaluation": {"iw_samples": 5},
    }
    return textvae.load(train(Recipe.model_validate(values), folder / "run", quiet=True))


@pytest.fixture
def batch(vae):
    return collate(vae.tokenizer.encode(sentences(5, 9)), vae.tokenizer.pad_id)


def parts(posterior):
    return [part.detach().clone() for part in gaussian_parameters(posterior)]


def test_no_step_is_the_encoders_posterior(vae, batch):
    for found, expected in zip(
        parts(Refining(vae.model, Settings(steps=0), 0).encode(batch)), parts(vae.model.encode(batch))
    ):
        torch.testing.assert_close(found, expected)


def test_one_step_goes_down_the_gradient_of_its_own_negative_elbo(vae, batch):
    mean, scale = parts(vae.model.encode(batch))
    rows = [row[: length + 1] for row, length in zip(batch.tokens.tolist(), batch.lengths.tolist())]
    noise = torch.stack([torch.randn(mean.shape[1], generator=generator(3, *ids)) for ids in rows])
    mean.requires_grad_()
    log_scale = scale.log().requires_grad_()
    q = torch.distributions.Normal(mean, log_scale.exp())
    rate = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    loss = rate - vae.model.log_likelihood(batch, (mean + log_scale.exp() * noise)[None])[0]
    of_mean, of_log_scale = torch.autograd.grad(loss.sum(), [mean, log_scale])
    found_mean, found_scale = parts(Refining(vae.model, Settings(), 3).encode(batch))
    torch.testing.assert_close(found_mean, mean.detach() - 0.3 * of_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_scale, (log_scale - 0.3 * of_log_scale).exp().detach(), rtol=1e-4, atol=1e-5)


def test_a_sentences_gradient_is_shortened_to_the_clip(vae, batch):
    lengths = []
    for clip in (None, 1e-3):
        mean, scale = parts(Refining(vae.model, Settings(clip=clip, lr=1.0), 0).encode(batch))
        start, first = parts(vae.model.encode(batch))
        lengths.append(torch.cat([mean - start, scale.log() - first.log()], -1).norm(dim=-1))
    assert bool((lengths[0] > 1e-2).all())
    torch.testing.assert_close(lengths[1], torch.full_like(lengths[1], 1e-3), rtol=1e-2, atol=1e-5)


def test_a_sentences_posterior_does_not_hang_on_its_company(vae, batch):
    model = Refining(vae.model, Settings(steps=4), 0)
    texts = sentences(5, 9)
    together = parts(model.encode(batch))
    turned = parts(model.encode(collate(vae.tokenizer.encode([*texts[::-1], "a much longer sentence " * 4]), 0)))
    for one, other in zip(together, turned):
        torch.testing.assert_close(other[:5].flip(0), one, rtol=1e-4, atol=1e-5)


def test_every_call_and_mode_gives_the_same_posterior(vae, batch):
    model = Refining(vae.model, Settings(steps=4), 0)
    first = parts(model.encode(batch))
    with torch.inference_mode():
        again = parts(model.encode(batch))
    for one, other in zip(first, again):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_an_evaluation_is_of_the_refined_posteriors_and_says_what_the_encoder_alone_has(vae):
    found = vae.evaluate("test")
    assert found["nll_elbo"] < found["encoder_alone"]["nll_elbo"]
    assert found["kl"] != found["encoder_alone"]["kl"]
    assert found["settings"]["posterior"].startswith("refined")
    assert not isinstance(vae.model, Refining)
    again = vae.evaluate("test")
    assert again["nll_iw"] == found["nll_iw"]
