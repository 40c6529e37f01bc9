"""The output layer with its loss fused against torch's cross entropy."""

import pytest
import torch
import torch.nn.functional as F

from textvae.nets import output as output_module
from textvae.nets.output import SoftmaxOutput


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("even", [True, False], ids=["equal row gradients", "unequal row gradients"])
@pytest.mark.parametrize(("piece", "smoothing"), [(1, 0.0), (7, 0.0), (1000, 0.0), (7, 0.1)])
def test_log_probabilities_and_gradients_equal_cross_entropy(bias, even, piece, smoothing, monkeypatch):
    monkeypatch.setattr(output_module, "PIECE_ELEMENTS", 50 * piece)
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


def test_extreme_logits_stay_finite_and_exact():
    layer = SoftmaxOutput(1, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [500.0], [-500.0]]))
    got = layer(torch.ones(3, 1), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(got, torch.tensor([-500.0, 0.0, -1000.0]))


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
