"""The machine's limit: what the products of matrices alone would take.

A product of (n, a) and (a, b) is 2 n a b operations. Per token, with E embedding, H hidden, D latent dimensions and
V words, an LSTM-VAE with one layer each multiplies by

    encoder   4H (E + H)          four gates: the word, the state before
    decoder   4H (E + D + H)      the word and z, the state before
    output    H V

so that forward is 2 x (their sum), and training is 3 x 2 x (encoder + decoder + output): forward, gradient by input,
gradient by weight. Scoring, and a step of generation, is 2 x (decoder + output), the forward third without the
encoder, whose share is nothing with 500 samples a sentence. Encoding is 2 x encoder. Beam search does 2 x (decoder +
output) a hypothesis and step; its hypotheses are counted while it runs. Nothing else is counted (embedding, softmax,
gates, optimiser, z's first state), though some must be done, so that 100 % cannot be reached. The count is of the
model as it is written down: code that finds a product twice and does it once is rewarded.

On a GPU the steps of whole sentences count as what cuDNN's LSTM needs for them, gates included: a product of a few rows
waits for the one before, and no library does those of a recurrence at a matrix product's rate. Steps of generation,
which are taken one by one, are products there too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from tests.benchmarks.sizes import Sizes

BLOCK_S, BLOCKS = 0.04, 3
RESULTS, ON_A_GPU = 2**24, 2**28
STEPS, NARROW = 20, 8  # of the recurrence that is measured on a GPU, and the width of its input, which costs nothing


class Operations(NamedTuple):
    """Per token, by the shape of the product they stand in."""

    at_once: float  # of the input, for all steps of all sentences
    by_step: float  # of the state, one step of all sentences
    output: float

    @property
    def total(self) -> float:
        return sum(self)


def training(sizes: Sizes) -> Operations:
    _, embedding, hidden, latent = sizes
    words = 4 * hidden * (2 * embedding + latent)
    states = 2 * 4 * hidden * hidden
    # The states' gradient by weight needs no step to wait for another.
    return Operations(3 * 2 * words + 2 * states, 2 * 2 * states, 3 * 2 * hidden * sizes.vocabulary)


def scoring(sizes: Sizes) -> Operations:
    vocabulary, embedding, hidden, latent = sizes
    return Operations(2 * 4 * hidden * (embedding + latent), 2 * 4 * hidden * hidden, 2 * hidden * vocabulary)


def encoding(sizes: Sizes) -> Operations:
    return Operations(2 * 4 * sizes.hidden * sizes.embedding, 2 * 4 * sizes.hidden * sizes.hidden, 0)


class Machine:
    """Measures products at the sizes of a model's work.

    Args:
        sizes: the model's.
        tokens: real tokens worked on at once (rows of the input and output products).
        rows: sentences worked on at once (rows of the products of a step).
        device: cpu or cuda.
        dtype: of the products.
        reads: whether whole sentences are read, and not a step at a time.
        learns: whether there is a backward pass.
    """

    def __init__(
        self,
        sizes: Sizes,
        tokens: int,
        rows: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        reads: bool = True,
        learns: bool = False,
    ) -> None:
        self.options = {"device": device, "dtype": dtype}
        self.device, self.learns = device, learns
        self.recurrence = (rows, sizes.hidden) if reads and device.type == "cuda" else None
        self.shapes = {
            "at_once": (tokens, sizes.embedding, 4 * sizes.hidden),
            "by_step": (rows, sizes.hidden, 4 * sizes.hidden),
            "output": (tokens, sizes.hidden, sizes.vocabulary),
        }

    def rates(self) -> Operations:
        """Returns operations/s of each kind of product."""
        rates = Operations(**{name: self._rate(*shape) for name, shape in self.shapes.items()})
        return rates if self.recurrence is None else rates._replace(by_step=self._recurrent(*self.recurrence))

    def _recurrent(self, rows: int, hidden: int) -> float:
        """cuDNN's LSTM over all steps, and back where there is learning: by the states alone, as `by_step` counts."""
        # Autocast gives cuDNN's cells float16, and so does this.
        half = self.options["dtype"] in (torch.bfloat16, torch.float16)
        options = {"device": self.device, "dtype": torch.float16 if half else self.options["dtype"]}
        cell = nn.LSTM(NARROW, hidden, **options).requires_grad_(False)
        read = torch.randn(STEPS, rows, NARROW, **options).requires_grad_(self.learns)
        back = torch.randn(STEPS, rows, hidden, **options)

        def walk() -> None:
            with torch.set_grad_enabled(self.learns):
                states, _ = cell(read)
                if self.learns:
                    torch.autograd.grad(states, read, back)

        walk()
        graph: Any = torch.cuda.CUDAGraph()  # what the kernels take, not what it takes to start them
        with torch.cuda.graph(graph):
            walk()
        products = 2 if self.learns else 1
        return products * 2.0 * rows * STEPS * 4 * hidden * hidden / self._seconds(graph.replay)

    def _rate(self, rows: int, inner: int, columns: int) -> float:
        # So many results at most that it is the product that is measured and not the memory behind it.
        rows = max(1, min(rows, (ON_A_GPU if self.device.type == "cuda" else RESULTS) // columns))
        a, b = torch.randn(rows, inner, **self.options), torch.randn(inner, columns, **self.options)
        out = torch.empty(rows, columns, **self.options)

        def product() -> None:
            torch.mm(a, b, out=out)

        return 2.0 * rows * inner * columns / self._seconds(product)

    def _seconds(self, work: Callable[[], object]) -> float:
        timed(work, self.device)
        count = max(1, int(BLOCK_S / max(timed(work, self.device), 1e-9)))

        def block() -> None:
            for _ in range(count):
                work()

        return min(timed(block, self.device) for _ in range(BLOCKS)) / count


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Returns seconds, the device's work included."""
    _wait(device)
    begin = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
