"""The semi-amortised step: its gradients are those of the whole procedure, steps on each posterior included."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from textvae.control import PID
from textvae.errors import UserError
from textvae.evaluation import bounds
from textvae.latent.critics import WassersteinCritic
from textvae.latent.divergences import KL
from textvae.latent.posteriors import GaussianPosterior, PointPosterior, diagonal_gaussian, sample
from textvae.latent.priors import GaussianPrior, StandardNormal, VampPrior
from textvae.latent.wasserstein import MMD
from textvae.model import SequenceVAE
from textvae.nets.decoders import RecurrentDecoder
from textvae.nets.encoders import RecurrentEncoder
from textvae.nets.output import SoftmaxOutput
from textvae.objective import CrossEntropy, HeadTerm, Objective
from textvae.schedules import Constant, Horizon, Linear
from textvae.text.batching import collate
from textvae.text.noise import WordDropout
from textvae.training import semi_amortized

VOCABULARY = 11
SENTENCES = [[1, 5, 6, 7, 2], [1, 2], [1, 8, 9, 10, 4, 5, 2], [1, 6, 2]]
HORIZON = Horizon(10, 100)
SEED = 17


@dataclass(frozen=True)
class Settings:
    steps: int = 4
    lr: float = 0.1  # a few times that, and the steps overshoot; no difference follows them then
    momentum: float = 0.5
    clip: float | None = None


class PlainOutput(SoftmaxOutput):
    """The same layer of torch's own operations, which can be differentiated twice."""

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight, self.bias).log_softmax(-1).gather(1, targets[:, None])[:, 0]


class Learned(nn.Module):
    """A term with a parameter of its own."""

    unit = "latent units squared"

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.full((3,), 0.3))

    def forward(self, posterior, prior, z):
        return (z - self.centre).square().sum(-1).mean(0)


class Length(nn.Linear):
    """A head that guesses a sentence's length from z. (That of words is float32: too few digits for these tests.)"""

    def forward(self, batch, z):
        return (super().forward(z).squeeze(-1) - batch.lengths).square()


def small_model(output=SoftmaxOutput, prior: str = "gaussian", *, shared=False, dropout=0.0) -> SequenceVAE:
    """A model whose posterior matters: weights large enough that a few steps change it."""
    torch.manual_seed(0)
    embedding = nn.Embedding(VOCABULARY, 6)
    encoder = RecurrentEncoder(6, cell="gru", hidden_dim=5, bidirectional=True, input_dropout=dropout)
    posterior = GaussianPosterior(encoder.feature_dim, 3)
    p = {"gaussian": GaussianPrior, "standard_normal": StandardNormal, "vamp": VampPrior}[prior](3)
    if prior == "vamp":
        p.attach(posterior, encoder.feature_dim)
    # On the CPU torch's LSTM is made of plain operations in float64, and one of oneDNN in float32.
    decoder = RecurrentDecoder(6, 3, hidden_dim=6, layers=2, layer_dropout=dropout, output_dropout=dropout)
    model = SequenceVAE(
        latent_dim=3,
        decoder_embedding=embedding,
        decoder=decoder,
        output=output(6, VOCABULARY),
        word_dropout=WordDropout(dropout, 3),
        encoder_embedding=embedding if shared else nn.Embedding(VOCABULARY, 6),
        encoder=encoder,
        posterior=posterior,
        prior=p,
        draw=sample,
        heads={"length": Length(3, 1)},
    )
    if shared:
        model.output.weight = embedding.weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0).add_(0.1 * torch.randn_like(parameter))
    return model.double().train()


def objective(**terms) -> Objective:
    linear = Linear(HORIZON, over=20)  # 0.5 at step 10
    return Objective(CrossEntropy(), {"kl": (KL(), linear)} | terms).double()


def whole() -> Objective:
    """An objective with everything in it: a head, a statistic of the batch that draws, a term that learns."""
    weights = [Constant(HORIZON, value=value) for value in (0.02, 2.0, 0.2)]
    return objective(
        length=(HeadTerm("length", "nats"), weights[0]), mmd=(MMD(), weights[1]), own=(Learned(), weights[2])
    )


def noise(samples: int = 1, sentences: int = 4) -> Tensor:
    return torch.randn(samples, sentences, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def parameters_of(model: nn.Module, target: nn.Module) -> dict[str, nn.Parameter]:
    return {**dict(model.named_parameters()), **{f"objective.{k}": v for k, v in target.named_parameters()}}


def noises(settings: Settings) -> list[Tensor]:
    """Draws of each step's own."""
    return list(torch.randn(settings.steps, 1, 4, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64))


def gradients(model, target, settings, *, batch=None, eps=None, share=1.0, **options) -> tuple[dict, object]:
    batch, eps = batch or collate(SENTENCES, 0), noise() if eps is None else eps
    parameters = parameters_of(model, target)
    for parameter in parameters.values():
        parameter.grad = None
    options = {"scale": 1.0, "seed": SEED} | options
    losses = semi_amortized.backward(model, target, batch, eps, 10, share, settings, **options)
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}, losses


def unrolled(model, target, settings, *, batch=None, eps=None, step_eps=None, exact=True) -> Tensor:
    """The loss at lambda_K, written out anew; with `exact` its graph goes through the steps."""
    batch, eps = batch or collate(SENTENCES, 0), noise() if eps is None else eps
    torch.manual_seed(SEED + 1)
    first = model.encode(batch).base_dist

    def loss(mean, log_scale, eps=eps):
        torch.manual_seed(SEED)
        q = diagonal_gaussian(mean, log_scale.exp())
        return target(model.describe(batch, q, mean + log_scale.exp() * eps), 10).total

    at = [first.loc, first.scale.log()]
    if not exact:
        at = [part.detach().requires_grad_() for part in at]
    velocity = [torch.zeros_like(part) for part in at]
    for k in range(settings.steps):
        slopes = torch.autograd.grad(
            loss(*at, *([step_eps[k]] if step_eps else [])) * len(batch.lengths), at, create_graph=exact
        )
        norm = sum(slope.square().sum(-1, keepdim=True) for slope in slopes).sqrt()
        shorter = 1.0 if settings.clip is None else torch.where(norm > settings.clip, settings.clip / norm, 1.0)
        velocity = [settings.momentum * v - slope * shorter for v, slope in zip(velocity, slopes)]
        at = [part + settings.lr * v for part, v in zip(at, velocity)]
    return loss(*at)


def exact_gradients(model, target, settings, step_eps=None) -> dict[str, Tensor]:
    parameters = parameters_of(model, target)
    found = torch.autograd.grad(
        unrolled(model, target, settings, step_eps=step_eps), list(parameters.values()), allow_unused=True
    )
    return {name: gradient for name, gradient in zip(parameters, found) if gradient is not None}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float) -> None:
    """Each parameter's error is small against the size of its own gradient."""
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        size = float(gradient.abs().max())
        torch.testing.assert_close(found[name].double(), gradient.double(), atol=rtol * size, rtol=0, msg=name)


CASES = {
    "plain": {},
    "momentum 0": {"settings": Settings(momentum=0.0)},
    "clipped": {"settings": Settings(clip=1.5)},
    "many steps": {"settings": Settings(steps=10, lr=0.05, momentum=0.8, clip=3.0)},
    "shared embeddings, tied output": {"shared": True},
    "dropout": {"dropout": 0.3, "shared": True},
    "a prior that shares the posterior's head": {"prior": "vamp"},
    "everything": {"dropout": 0.3, "shared": True, "settings": Settings(clip=1.5), "target": whole},
}


def test_each_step_may_have_draws_of_its_own():
    settings, target = Settings(clip=1.5), whole()
    wanted = exact_gradients(small_model(PlainOutput), target, settings, noises(settings))
    found, losses = gradients(small_model(), target, settings, step_noise=noises(settings))
    assert_close(found, wanted, rtol=1e-7)
    expected = unrolled(small_model(), target, settings, step_eps=noises(settings), exact=False).detach()
    torch.testing.assert_close(losses.total, expected)
    assert float(losses.total) != float(gradients(small_model(), target, settings)[1].total)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_gradient_is_that_of_the_unrolled_steps(case):
    case = {"settings": Settings(), "target": objective} | case
    settings, target = case.pop("settings"), case.pop("target")()
    wanted = exact_gradients(small_model(PlainOutput, **case), target, settings)
    # The output layer that has no second derivative.
    found, losses = gradients(small_model(SoftmaxOutput, **case), target, settings)
    assert_close(found, wanted, rtol=1e-7)
    torch.testing.assert_close(losses.total, unrolled(small_model(**case), target, settings, exact=False).detach())
    # The test sees what it is about: the way through the steps is a good part of the encoder's gradient.
    straight = exact_gradients(small_model(PlainOutput, **case), target, Settings(steps=0))
    name = "encoder.forward_layers.0.weight_ih_l0"
    assert float((straight[name] - wanted[name]).norm() / wanted[name].norm()) > 0.1


def test_the_gradient_is_the_slope_of_the_whole_procedure_along_random_directions():
    settings, target = Settings(clip=1.5), whole()
    model = small_model(dropout=0.3, shared=True)
    found, _ = gradients(model, target, settings)
    parameters = parameters_of(model, target)
    for seed in range(3):
        stream = torch.Generator().manual_seed(seed)
        steps = {n: 1e-5 * torch.randn(p.shape, generator=stream, dtype=torch.float64) for n, p in parameters.items()}
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter += sign * steps[name]
            values.append(unrolled(model, target, settings, exact=False).detach())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter += steps[name]
        slope = sum((found[name] * steps[name]).sum() for name in found)
        torch.testing.assert_close(slope, (values[0] - values[1]) / 2, rtol=1e-5, atol=0)


def test_float32_gives_the_same_gradients_to_three_digits():
    settings, case = Settings(clip=1.5), {"shared": True, "dropout": 0.3}
    wanted = exact_gradients(small_model(PlainOutput, **case), whole(), settings)
    found, _ = gradients(small_model(**case).float(), whole().float(), settings)
    assert_close(found, wanted, rtol=1e-3)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


def test_under_bfloat16_differences_are_still_taken_in_float32():
    settings = Settings(clip=1.5)
    wanted = exact_gradients(small_model(PlainOutput), objective(), settings)
    found, _ = gradients(
        small_model().float(), objective().float(), settings, autocast=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    assert_close(found, wanted, rtol=0.1)


@pytest.mark.parametrize("settings", [Settings(lr=0.0), Settings(steps=0)], ids=["lr 0", "no step"])
def test_without_a_move_it_is_the_ordinary_step(settings):
    model, target = small_model(shared=True), objective()
    found, losses = gradients(model, target, settings, share=0.7, scale=0.5)
    parameters = parameters_of(model, target)
    ordinary = target(model(collate(SENTENCES, 0), noise=noise()), 10, 0.7)
    wanted = torch.autograd.grad(0.5 * ordinary.total, list(parameters.values()), allow_unused=True)
    assert_close(found, {n: g for n, g in zip(parameters, wanted) if g is not None}, rtol=1e-13)
    torch.testing.assert_close(losses.total, ordinary.total.detach(), rtol=1e-13, atol=0)
    assert losses.terms.keys() == ordinary.terms.keys()
    assert losses.weights == ordinary.weights == {"reconstruction": 1.0, "kl": 0.5}


def test_more_steps_lower_the_loss_further():
    model, target = small_model(dropout=0.2), objective()
    totals = [float(gradients(model, target, Settings(steps, lr=0.05))[1].total) for steps in (0, 1, 3, 10)]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] - totals[-1] > 0.1


def test_sentences_alone_in_pieces_and_in_a_padded_batch_get_the_same_steps():
    model, target, settings, eps = small_model(shared=True), objective(), Settings(clip=1.5), noise(2)
    together, losses = gradients(model, target, settings, eps=eps)
    alone = [
        gradients(model, target, settings, batch=collate([sentence], 0), eps=eps[:, i : i + 1])
        for i, sentence in enumerate(SENTENCES)
    ]
    mean = {name: torch.stack([found[name] for found, _ in alone]).mean(0) for name in together}
    assert_close(mean, together, rtol=1e-7)
    torch.testing.assert_close(torch.stack([each.total for _, each in alone]).mean(), losses.total)
    # Pieces of 3 and 1 sentences: `share` weighs them.
    for rows in (slice(0, 3), slice(3, 4)):
        part = {"noise": eps[:, rows], "share": len(SENTENCES[rows]) * 2 / 4, "step": 10, "settings": settings}
        semi_amortized.backward(model, target, collate(SENTENCES[rows], 0), **part, scale=0.5, seed=SEED)
    # They are added to what the last sentence alone had left.
    pieces = {name: p.grad - alone[-1][0][name] for name, p in model.named_parameters() if name in together}
    assert_close(pieces, together, rtol=1e-7)


def test_padding_changes_nothing():
    model, target, batch = small_model(), objective(), collate(SENTENCES, 0)
    wider = batch._replace(tokens=nn.functional.pad(batch.tokens, (0, 3)))
    plain, padded = (gradients(model, target, Settings(), batch=b)[0] for b in (batch, wider))
    assert_close(padded, plain, rtol=1e-7)


def test_it_is_repeatable_to_the_bit_whatever_was_drawn_before():
    model, target = small_model(dropout=0.3).float(), whole().float()
    first, losses = gradients(model, target, Settings())
    torch.rand(7)
    second, again = gradients(model, target, Settings())
    assert torch.equal(losses.total, again.total)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other, _ = gradients(model, target, Settings(), seed=SEED + 5)
    assert not torch.equal(other["output.weight"], first["output.weight"])
    assert not losses.total.requires_grad


def test_the_objectives_draws_can_have_a_seed_of_their_own():
    target = whole()
    drawn = []
    target.divergences["own"].register_forward_hook(lambda *_: drawn.append(torch.rand(1).item()))
    gradients(small_model(dropout=0.3), target, Settings(steps=2), term_seed=4)
    first = len(drawn)
    gradients(small_model(), target, Settings(steps=2), term_seed=4, seed=SEED + 1)
    assert len(set(drawn)) == 1
    assert first == 3 * 2 + 1  # the passes that the docstring counts


def test_cudnns_own_dropout_is_not_used_and_its_flags_are_put_back(monkeypatch):
    seen = []
    describe = SequenceVAE.describe

    def spy(self, *args):
        flags = torch.backends.cudnn
        seen.append((flags.enabled, flags.allow_tf32, flags.deterministic))
        return describe(self, *args)

    monkeypatch.setattr(SequenceVAE, "describe", spy)
    monkeypatch.setattr(bounds, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    for dropout, enabled in ((0.3, False), (0.0, True)):
        seen.clear()
        gradients(small_model(dropout=dropout), objective(), Settings(steps=1))
        assert seen == [(enabled, True, True)] * 2 + [(enabled, False, True)] * 2
    assert torch.backends.cudnn.enabled
    assert torch.backends.cudnn.allow_tf32


def test_what_cannot_be_refined_is_refused():
    model = small_model()
    model.posterior = PointPosterior(10, 3).double()
    with pytest.raises(UserError, match=r"diagonal Gaussian; the posterior is Point\. Use model\.posterior"):
        gradients(model, objective(), Settings())
    constant = Constant(HORIZON, value=1.0)
    for term in (WassersteinCritic(3), constant), (KL(), PID(HORIZON, target=3.0)):
        with pytest.raises(AssertionError):
            gradients(small_model(), objective(other=term), Settings())
