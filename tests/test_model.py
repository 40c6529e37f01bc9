"""The model's promises: rows stay in step, padding is invisible, no future is seen, the whole loss is right."""

import itertools
import math

import pytest
import torch
from torch import nn

from textvae import model as model_module
from textvae.generation.search import generate
from textvae.latent.divergences import KL
from textvae.latent.posteriors import GaussianPosterior, sample
from textvae.latent.priors import StandardNormal
from textvae.latent.wasserstein import MMD
from textvae.model import PreparedSteps, SequenceVAE
from textvae.nets.decoders import RecurrentDecoder
from textvae.nets.encoders import RecurrentEncoder
from textvae.nets.output import SoftmaxOutput
from textvae.objective import CrossEntropy, Objective
from textvae.recipe import Generation
from textvae.schedules import Constant, Horizon
from textvae.text.batching import collate
from textvae.text.noise import WordDropout

VOCABULARY = 11
SENTENCES = [[1, 5, 6, 7, 2], [1, 2], [1, 8, 9, 10, 4, 5, 2], [1, 6, 2]]


@pytest.fixture
def worth_preparing(monkeypatch):
    monkeypatch.setattr(model_module, "WORTH_NUMBERS", 1)


def small_model(latent_dim: int = 3, cell: str = "lstm", **decoder) -> SequenceVAE:
    torch.manual_seed(0)
    embedding = nn.Embedding(VOCABULARY, 4)
    parts = {}
    if latent_dim:
        encoder = RecurrentEncoder(4, cell=cell, hidden_dim=5, bidirectional=True)
        parts = {
            "encoder_embedding": nn.Embedding(VOCABULARY, 4),
            "encoder": encoder,
            "posterior": GaussianPosterior(encoder.feature_dim, latent_dim),
            "prior": StandardNormal(latent_dim),
            "draw": sample,
        }
    return SequenceVAE(
        latent_dim=latent_dim,
        decoder_embedding=embedding,
        decoder=RecurrentDecoder(4, latent_dim, cell=cell, hidden_dim=6, **decoder),
        output=SoftmaxOutput(6, VOCABULARY),
        word_dropout=WordDropout(0.0, 3),
        **parts,
    ).double()


def noise(samples: int = 2) -> torch.Tensor:
    return torch.randn(samples, 4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_permuting_the_batch_permutes_every_result():
    model, order = small_model().eval(), torch.tensor([2, 0, 3, 1])
    plain = model(collate(SENTENCES, 0), samples=2, noise=noise())
    permuted = model(collate([SENTENCES[i] for i in order], 0), samples=2, noise=noise()[:, order])
    torch.testing.assert_close(permuted.posterior.mean, plain.posterior.mean[order])
    torch.testing.assert_close(permuted.z, plain.z[:, order])
    torch.testing.assert_close(permuted.log_likelihood, plain.log_likelihood[:, order])


@pytest.mark.parametrize("latent_dim", [0, 3])
def test_a_sentence_alone_scores_as_it_does_in_a_padded_batch(latent_dim):
    model = small_model(latent_dim).eval()
    eps = noise(1)
    together = model(collate(SENTENCES, 0), noise=eps)
    for i, sentence in enumerate(SENTENCES):
        alone = model(collate([sentence], 0), noise=eps[:, i : i + 1])
        torch.testing.assert_close(alone.log_likelihood[:, 0], together.log_likelihood[:, i])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("z_to", [["state"], ["input"], ["state", "input"], ["layers", "output"]])
@pytest.mark.parametrize("padding", [0, 3])
def test_many_draws_score_as_each_alone_and_as_with_gradients(cell, z_to, padding):
    model = small_model(cell=cell, layers=2, z_to=z_to).eval()
    batch, z = collate(SENTENCES, 0), noise(5)
    batch = batch._replace(tokens=nn.functional.pad(batch.tokens, (0, padding)))
    expected = model.log_likelihood(batch, z)
    with torch.no_grad():
        together = model.log_likelihood(batch, z)
        alone = torch.cat([model.log_likelihood(batch, one) for one in z.split(1)])
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


def test_draws_of_a_language_model_are_all_the_same():
    model = small_model(latent_dim=0).eval()
    batch = collate(SENTENCES, 0)
    with torch.no_grad():
        three, one = (model.log_likelihood(batch, torch.zeros(n, 4, 0, dtype=torch.float64)) for n in (3, 1))
    torch.testing.assert_close(three, one.expand(3, -1), rtol=0, atol=1e-10)


def test_log_likelihood_is_the_sum_of_single_steps():
    model = small_model().eval()
    z = torch.randn(1, 1, 3, dtype=torch.float64)
    sentence = SENTENCES[2]
    state, total = model.start(z[0]), 0.0
    for now, then in itertools.pairwise(sentence):
        logits, state = model.step(torch.tensor([now]), z[0], state)
        total = total + torch.log_softmax(logits.double(), -1)[0, then]
    # Steps give float32 logits.
    torch.testing.assert_close(model.log_likelihood(collate([sentence], 0), z)[0, 0], total, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("latent_dim", [0, 3])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("rows", [1, 4, 5, 9, 33])
def test_prepared_steps_are_the_models_own_whatever_the_number_of_rows(latent_dim, cell, rows, worth_preparing):
    model = small_model(latent_dim, cell, layers=2).float().eval()
    z, words = torch.randn(rows, latent_dim), torch.randint(VOCABULARY, (4, rows))
    with torch.no_grad():
        prepared = model.prepared(rows, 20)
        assert isinstance(prepared, PreparedSteps)
        state, other = model.start(z), prepared.start(z)
        for tokens in words:
            (logits, state), (found, other) = model.step(tokens, z, state), prepared.step(tokens, z, other)
            assert found.shape == (rows, VOCABULARY)
            torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)
            torch.testing.assert_close(other, state, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_steps_are_not_prepared_where_something_would_be_lost(worth_preparing, monkeypatch):
    model = small_model(input_dropout=0.5).float().eval()

    def refused() -> bool:
        return model.prepared(9, 20) is model

    assert refused()  # there may be gradients
    with torch.no_grad():
        assert not refused()
        assert model.prepared(9, 15) is model  # too few steps
        monkeypatch.setattr(model_module, "WORTH_NUMBERS", 6 * VOCABULARY + 1)
        assert refused()  # too small
        monkeypatch.setattr(model_module, "WORTH_NUMBERS", 6 * VOCABULARY)
        with torch.autocast("cpu", torch.bfloat16):
            assert refused()
        for part in (model, model.decoder, model.decoder.input_dropout):
            part.train()
            assert refused()
            model.eval()
            assert not refused()
        hook = model.output.register_forward_hook(lambda module, inputs, output: None)
        assert refused()
        hook.remove()
        for part, name in ((model, "step"), (model.output, "logits"), (model.decoder, "forward")):
            setattr(part, name, getattr(part, name))
            assert refused()
            delattr(part, name)
            assert not refused()
        rnn = model.decoder.rnn
        model.decoder.rnn = nn.LSTM(7, 6, batch_first=True, bias=False)
        assert refused()
        model.decoder.rnn = rnn
        words = model.decoder_embedding
        model.decoder_embedding = nn.Sequential(nn.Embedding(VOCABULARY, 4))
        assert refused()
        model.decoder_embedding = words
        assert not refused()
        assert model.double().prepared(9, 20) is model


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_generation_takes_prepared_steps_and_a_wrapper_s_own(worth_preparing, monkeypatch):
    model, seen = small_model().float().eval(), []
    taken = PreparedSteps.step
    monkeypatch.setattr(PreparedSteps, "step", lambda *given: seen.append(len(given[1])) or taken(*given))
    settings = Generation(method="greedy", max_length=20)
    ids = {"settings": settings, "bos_id": 1, "eos_id": 2, "pad_id": 0, "unk_id": 3}
    z = torch.randn(6, 3)
    found = generate(model, z, **ids)
    assert seen[0] == 6

    class Wrapper:
        def __init__(self):
            self.steps = 0

        def __getattr__(self, name):
            return getattr(model, name)

        def step(self, *given):
            self.steps += 1
            return model.step(*given)

    wrapper = Wrapper()
    seen.clear()
    assert generate(wrapper, z, **ids) == found
    assert wrapper.steps
    assert not seen


def test_probabilities_of_all_short_sentences_and_their_rest_sum_to_one():
    model = small_model().eval()
    z = torch.randn(1, 1, 3, dtype=torch.float64)
    words = [i for i in range(VOCABULARY) if i != 2]
    ended = [[1, 2], *([1, a, 2] for a in words)]
    batch = collate(ended, 0)
    mass = model.log_likelihood(batch, z.expand(1, len(ended), 3))[0].exp().sum()
    open_ended = [[1, a, b] for a in words for b in words]
    batch = collate(open_ended, 0)
    mass = mass + model.log_likelihood(batch, z.expand(1, len(open_ended), 3))[0].exp().sum()
    assert float(mass.detach()) == pytest.approx(1.0, abs=1e-9)


def test_a_decoder_without_z_knows_nothing_of_the_sentence():
    model = small_model().eval()
    batch = collate(SENTENCES, 0)
    z = torch.randn(1, 4, 3, dtype=torch.float64)
    assert not torch.allclose(model.log_likelihood(batch, z), model.log_likelihood(batch, z + 1))
    # The encoder sees the words, the decoder only what came before: its score must not use the encoder.
    posterior = model.encode(batch)
    assert torch.autograd.grad(
        model.log_likelihood(batch, z).sum(), list(model.encoder.parameters()), allow_unused=True
    ) == tuple(None for _ in model.encoder.parameters())
    assert posterior.batch_shape == (4,)
    assert posterior.event_shape == (3,)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradient_of_the_whole_loss_equals_finite_differences(cell):
    model = small_model(cell=cell, layers=2).train()
    horizon = Horizon(10, 100)
    objective = Objective(
        CrossEntropy(),
        {"kl": (KL(), Constant(horizon, value=0.7)), "mmd": (MMD(), Constant(horizon, value=2.0))},
    )
    batch, eps = collate(SENTENCES, 0), noise(1)

    def loss() -> torch.Tensor:
        torch.manual_seed(3)  # the prior's draws in the MMD
        return objective(model(batch, noise=eps), 0).total

    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    generator = torch.Generator().manual_seed(1)
    for parameter, gradient in zip(parameters, gradients):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            parameter += step * direction
            above = loss()
            parameter -= 2 * step * direction
            below = loss()
            parameter += step * direction
        numeric = float((above - below).detach()) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("samples", [1, 3])
def test_what_a_gpu_computes_in_another_order_is_the_same(monkeypatch, samples, smoothing):
    """The forms that never look at the device's results, on the CPU: all positions scored, one plain cross entropy."""
    model, batch = small_model().train(), collate(SENTENCES, 0)
    model.output.label_smoothing = smoothing
    found = []
    for ahead in (False, True):
        for module in ("textvae.model", "textvae.nets.output"):
            monkeypatch.setattr(f"{module}.runs_ahead", lambda tensor, ahead=ahead: ahead)
        log_p = model(batch, samples=samples, noise=noise(samples)).log_likelihood
        found.append([log_p, *torch.autograd.grad(log_p.sum(), list(model.parameters()), allow_unused=True)])
    for one, other in zip(*found):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_word_dropout_touches_inputs_only_in_training_and_spares_the_first():
    dropout = WordDropout(0.5, 3)
    tokens = torch.full((200, 50), 7)
    tokens[:, 0] = 1
    torch.manual_seed(0)
    dropped = dropout.train()(tokens)
    assert dropped[:, 0].eq(1).all()
    share = float(dropped[:, 1:].eq(3).double().mean())
    assert share == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / (200 * 49)))
    assert dropout.eval()(tokens) is tokens
    assert tokens[:, 1:].eq(7).all()
