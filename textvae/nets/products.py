"""Products with the same weights many times over, without gradients: on a CPU the weights are laid out for it once.

torch gives a product in float32 to MKL, which lays out the weights anew each time; for a few rows that is most of what
it does. oneDNN takes weights that are laid out already, by operators that torch's compiler writes down for linear
layers. What comes out is the same to rounding.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from textvae.nets.devices import traced

# Numbers that oneDNN returns at once: it takes memory of its own for them, and malloc hands back to the system what is
# above 32 MiB, to have it mapped afresh, page by page, at the next product.
AT_ONCE = 2**23 - 2**12
# Rows a product from which on it pays to lay out the weights: of fewer they are read once in any case.
ROWS = 4


def by_onednn(weight: Tensor) -> bool:
    """Returns whether a weight's products are oneDNN's: without gradients, in float32, on a CPU torch has it for."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not weight.numel() or traced():
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    own: Any = torch.backends.mkldnn
    operators: Any = torch.ops.mkldnn
    if not (own.is_available() and own.enabled):
        return False
    if not all(hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight")):
        return False
    # Arm's library, where oneDNN has it, takes no product with something added.
    return not (hasattr(operators, "_is_mkldnn_acl_supported") and operators._is_mkldnn_acl_supported())


class Product:
    """x W^T + b, for many x.

    Args:
        weight: W (V, H); must not change while this is in use.
        bias: b (V,) or None.
        rows: of the largest product, or so; of few the weights stay as they are.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, rows: int = ROWS) -> None:
        self.weight, self.bias = weight, bias
        self.ready: Tensor | None = None
        if by_onednn(weight):
            self.ready = weight.detach().contiguous()
            if rows >= ROWS:
                self.ready = torch.ops.mkldnn._reorder_linear_weight(self.ready)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns x W^T + b, (N, V), for x (N, H)."""
        if self.ready is None or torch.is_autocast_enabled("cpu") or not len(x):
            return F.linear(x, self.weight, self.bias)
        rows = max(1, AT_ONCE // len(self.weight))
        if len(x) <= rows:
            return self._by_onednn(x, self.ready)
        out = x.new_empty(len(x), len(self.weight))
        for into, part in zip(out.split(rows), x.split(rows)):
            into.copy_(self._by_onednn(part, self.ready))
        return out

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        """Returns x W^T + other, (N, V), for x (N, H) and other (N, V); without b."""
        if self.ready is None or torch.is_autocast_enabled("cpu") or not len(x):
            return torch.addmm(other, x, self.weight.T)
        made = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.ready, None, "add")
        return cast(Tensor, made)

    def _by_onednn(self, x: Tensor, weight: Tensor) -> Tensor:
        made = torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")
        return cast(Tensor, made)
