"""What a network has to know of the device that it runs on."""

from __future__ import annotations

import torch
from torch import Tensor


def traced() -> bool:
    """Returns whether this run only writes down a graph, which has no use for buffers to write in."""
    return bool(torch.jit.is_tracing()) or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]


def runs_ahead(tensor: Tensor) -> bool:
    """Returns whether a tensor is made by a device that the program runs ahead of: a look at it would stop both."""
    return tensor.is_cuda
