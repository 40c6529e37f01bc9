"""Products by weights that are laid out once are those of float64, whoever makes them."""

import pytest
import torch

from textvae.nets import products
from textvae.nets.products import Product, by_onednn

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 2, 9, 300])
@pytest.mark.parametrize("words", [1, 3, 16, 999])
@pytest.mark.parametrize("laid_out", [pytest.param(True, marks=needs_onednn), False])
def test_products_are_those_of_float64(rows, words, laid_out, monkeypatch):
    if not laid_out:
        monkeypatch.setattr(products, "by_onednn", lambda weight: False)
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 20, dtype=torch.float64), torch.randn(words, 20, dtype=torch.float64)
    bias, other = torch.randn(words, dtype=torch.float64), torch.randn(rows, words, dtype=torch.float64)
    with torch.no_grad():
        made, plain = Product(weight.float(), bias.float()), Product(weight.float(), rows=rows)
        assert (made.ready is not None) == laid_out
        close(made(x.float()), x @ weight.T + bias)
        close(plain(x.float()), x @ weight.T)
        kept = other.float()
        close(made.added(x.float(), kept), x @ weight.T + other)
        assert torch.equal(kept, other.float())


@needs_onednn
def test_columns_of_a_larger_weight_and_rows_of_larger_numbers():
    torch.manual_seed(0)
    whole, wide = torch.randn(40, 30, dtype=torch.float64), torch.randn(7, 50, dtype=torch.float64)
    weight, x = whole[:, 10:25], wide[:, 20:35]
    with torch.no_grad():
        made = Product(whole.float()[:, 10:25])
        assert made.ready is not None
        close(made(wide.float()[:, 20:35]), x @ weight.T)


@needs_onednn
@pytest.mark.parametrize("at_once", [1, 100, 250])
def test_many_rows_are_made_in_pieces(at_once, monkeypatch):
    monkeypatch.setattr(products, "AT_ONCE", at_once)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(11, 6).double(), torch.randn(50, 6).double(), torch.randn(50).double()
    with torch.no_grad():
        close(Product(weight.float(), bias.float())(x.float()), x @ weight.T + bias)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_what_onednn_is_not_for_is_left_to_torch():
    weight = torch.randn(4, 3)
    assert not by_onednn(weight)  # there may be gradients
    with torch.no_grad():
        assert not by_onednn(weight.double())
        assert not by_onednn(weight[:0])
        with torch.autocast("cpu", torch.bfloat16):
            assert not by_onednn(weight)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not by_onednn(weight)


@needs_onednn
def test_autocast_that_begins_later_is_heeded():
    torch.manual_seed(0)
    weight, x = torch.randn(4, 3), torch.randn(2, 3)
    with torch.no_grad():
        made = Product(weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert made(x).dtype == torch.nn.functional.linear(x, weight).dtype == torch.bfloat16
