"""The output layer and its loss, as a CPU and as a GPU makes them, against torch's cross entropy."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from textvae.nets import kept
from textvae.nets import output as output_module
from textvae.nets.output import SoftmaxOutput


@pytest.fixture(params=["in pieces", "kept whole"], autouse=True)
def form(request, monkeypatch):
    """Both forms of the layer, the second being a GPU's."""
    monkeypatch.setattr(output_module, "runs_ahead", lambda tensor: request.param == "kept whole")
    return request.param


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("even", [True, False], ids=["equal row gradients", "unequal row gradients"])
@pytest.mark.parametrize(("piece", "smoothing"), [(1, 0.0), (7, 0.0), (1000, 0.0), (7, 0.1)])
def test_log_probabilities_and_gradients_equal_cross_entropy(bias, even, piece, smoothing, monkeypatch):
    monkeypatch.setattr(output_module, "PIECE_ELEMENTS", 50 * piece)
    monkeypatch.setattr(output_module, "PIECE_ROWS", 1)
    monkeypatch.setattr(output_module, "BLOCK_ROWS", piece)
    monkeypatch.setattr(output_module, "BLOCK_WORDS", 16)
    torch.manual_seed(0)
    layer = SoftmaxOutput(6, 50, bias=bias, label_smoothing=smoothing).double()
    hidden = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (40,))
    upstream = torch.full((40,), 0.3, dtype=torch.float64) if even else torch.randn(40, dtype=torch.float64)
    inputs = [hidden, *layer.parameters()]
    logits = F.linear(hidden, layer.weight, layer.bias)
    reference = -F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    ours = layer(hidden, targets)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(reference, inputs, upstream)
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden, targets), reference)
        plain = -F.cross_entropy(logits, targets, reduction="none")
        torch.testing.assert_close(layer.eval()(hidden, targets), plain)


def test_extreme_logits_stay_finite_and_exact(form):
    layer = SoftmaxOutput(1, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [500.0], [-500.0]]))
    got = layer(torch.ones(3, 1), torch.tensor([0, 1, 2]))
    exact = torch.tensor([-500.0, 0.0, -1000.0])
    # A GPU's training has no pass for the largest logit, and counts what float32 has no number for as its least number.
    least = math.log(torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(got, exact.clamp(min=least) if form == "kept whole" else exact)
    with torch.no_grad():
        torch.testing.assert_close(layer(torch.ones(3, 1), torch.tensor([0, 1, 2])), exact)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_a_likely_words_small_gradient_is_not_lost_in_half_precision(kind, form):
    torch.manual_seed(0)
    targets, weight = torch.arange(40), torch.eye(50, dtype=kind)
    # Targets' probabilities go from 0.9 to nearly 1. With this weight hidden states are logits, their gradients too.
    hidden = torch.randn(40, 50) + F.one_hot(targets, 50) * torch.linspace(6, 14, 40)[:, None]
    hidden = hidden.to(kind).requires_grad_()
    if form == "kept whole":
        log_p = kept.log_probabilities(hidden, weight, None, targets)
    else:
        layer = SoftmaxOutput(50, 50, bias=False)
        layer.weight = torch.nn.Parameter(weight)
        log_p = layer(hidden, targets)
    (gradient,) = torch.autograd.grad(log_p.sum(), hidden)
    logits = hidden.detach().double().requires_grad_()
    exact = -F.cross_entropy(logits, targets, reduction="none")
    (expected,) = torch.autograd.grad(exact.sum(), logits)
    # A CPU's logits of bfloat16 are to base 2, and rounded there: of 20, by up to 0.06.
    digits = (8 if form == "in pieces" else 2) * torch.finfo(kind).eps
    torch.testing.assert_close(log_p.double(), exact, rtol=digits, atol=1e-7)
    own = torch.arange(40), targets  # 1 - p: most of these round to nothing where it is p that is rounded
    assert float(exact.detach().max()) > -1e-3
    torch.testing.assert_close(gradient.double()[own], expected[own], rtol=digits, atol=1e-7)


def test_a_graph_walked_twice_gives_both_gradients():
    torch.manual_seed(0)
    layer = SoftmaxOutput(6, 50).double()
    hidden, targets = torch.randn(9, 6, dtype=torch.float64), torch.randint(0, 50, (9,))
    log_p = layer(hidden, targets)
    log_p.sum().backward(retain_graph=True)
    once = layer.weight.grad.clone()
    (2 * log_p).sum().backward(retain_graph=True)
    torch.testing.assert_close(layer.weight.grad, 3 * once)
    (again,) = torch.autograd.grad(log_p.mean(), [layer.weight])
    torch.testing.assert_close(again, once / 9)


def test_a_second_derivative_that_it_does_not_have_is_refused():
    layer, hidden = SoftmaxOutput(4, 12), torch.randn(5, 4, requires_grad=True)
    log_p = layer(hidden, torch.tensor([1, 0, 11, 3, 3]))
    weights = torch.ones(5, requires_grad=True)
    (gradient,) = torch.autograd.grad((weights * log_p).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shift", [-500.0, -60.0, 60.0, 500.0])
def test_logits_beyond_the_range_of_powers_change_neither_value_nor_gradient(shift, smoothing):
    # A softmax does not see what all logits share; 2**-722 and 2**722 are no float32.
    torch.manual_seed(0)
    layer = SoftmaxOutput(6, 50, label_smoothing=smoothing)
    hidden, targets = torch.randn(40, 6, requires_grad=True), torch.randint(0, 50, (40,))
    with torch.no_grad():
        layer.bias.fill_(shift)
    reference = -F.cross_entropy(
        F.linear(hidden.double(), layer.weight.double()), targets, reduction="none", label_smoothing=smoothing
    )
    inputs = [hidden, layer.weight]
    close = {"rtol": 1e-4, "atol": 1e-4}  # float32 logits near 500 are that coarse
    ours = layer(hidden, targets)
    torch.testing.assert_close(ours.double(), reference, **close)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(reference.sum(), inputs), **close
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden, targets).double(), reference.detach(), **close)


def test_logits_that_are_not_numbers_give_no_number():
    layer = SoftmaxOutput(2, 5)
    hidden = torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])
    with torch.no_grad():
        log_p = layer(hidden, torch.tensor([0, 1]))
    assert log_p.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("vocabulary", [15, 16, 17, 33])
def test_logits_are_the_same_with_and_without_gradients_whatever_the_vocabulary(vocabulary):
    layer, hidden = SoftmaxOutput(6, vocabulary).double(), torch.randn(7, 6, dtype=torch.float64)
    with torch.no_grad():
        plain = layer.logits(hidden)
    assert plain.shape == (7, vocabulary)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(plain, F.linear(hidden, layer.weight, layer.bias).float())
    torch.testing.assert_close(layer.logits(hidden), plain)


def test_half_precision_stays_near_float32_and_keeps_float32_gradients():
    torch.manual_seed(0)
    layer = SoftmaxOutput(64, 300)
    hidden, targets = torch.randn(50, 64), torch.randint(0, 300, (50,))
    exact = layer(hidden, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rough = layer(hidden, targets)
    rough.sum().backward()
    assert rough.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.01)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shift", [0.0, 100.0])  # above a shift of 55 the powers would leave their range
def test_bfloat16_in_training_is_no_further_from_the_truth_than_torchs_own(bias, shift):
    torch.manual_seed(0)
    layer = SoftmaxOutput(64, 700, bias=bias)
    with torch.no_grad():
        layer.weight.mul_(4).copy_(layer.weight.bfloat16())
        if bias:
            layer.bias.normal_().add_(shift).copy_(layer.bias.bfloat16())
    hidden, targets = torch.randn(400, 64).bfloat16().float(), torch.randint(0, 700, (400,))
    inputs = [hidden.requires_grad_(), *layer.parameters()]

    def with_gradients(log_p):
        return [log_p.detach().double(), *(g.double() for g in torch.autograd.grad(log_p.sum(), inputs))]

    linear = functools.partial(F.linear, hidden, layer.weight, layer.bias)
    wide = F.linear(hidden.double(), layer.weight.double(), layer.bias.double() if bias else None)
    truth = with_gradients(-F.cross_entropy(wide, targets, reduction="none"))
    with torch.autocast("cpu", torch.bfloat16):
        plain = with_gradients(-F.cross_entropy(linear().float(), targets, reduction="none"))
        ours = with_gradients(layer(hidden, targets))
    for mine, torchs, exact in zip(ours, plain, truth, strict=True):
        error = (torchs - exact).square().mean().sqrt()
        rounding = 2**-9 * exact.square().mean().sqrt()  # of what a product in bfloat16 gives
        assert (mine - exact).square().mean().sqrt() < 1.25 * error + rounding
        assert (mine - torchs).mean().abs() < 0.2 * error
