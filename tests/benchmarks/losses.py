"""Output layer and loss, and who does them fastest: `python -m tests.benchmarks.losses [--device cuda]`.

Forward and backward pass of sum log p(target) from hidden states, by turns: cross entropy over logits that are kept, as
most write it, torch's own `linear_cross_entropy` where this torch has it, liger-kernel's where it is installed (on a
GPU), and ours. Milliseconds, the ratio to the first, peak memory on a GPU, and the largest difference of a gradient
from those of float64, over the largest gradient. On a GPU also as a training plays them, recorded as a CUDA graph,
which liger-kernel's cannot be: it waits for the number of targets.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.limit import timed
from textvae.nets.output import SoftmaxOutput

SHAPES = ((700, 256, 10_000), (700, 1024, 10_000), (11_000, 1024, 10_000), (5_500, 256, 50_000))  # N, H, V
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # hidden, weight, bias, targets -> their sum, nats


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")


def ours(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    layer = SoftmaxOutput.__new__(SoftmaxOutput)
    torch.nn.Module.__init__(layer)
    layer.label_smoothing = 0.0
    # Parameters of the layer as it is trained, which the others are given as well.
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return -layer(hidden, targets).sum()


def losses() -> dict[str, Loss]:
    """Those that this machine has, by name."""
    found: dict[str, Loss] = {"cross_entropy": plain}
    if (torchs := getattr(F, "linear_cross_entropy", None)) is not None:
        found["torch's linear_cross_entropy"] = lambda h, w, b, t: torchs(h, w, t, linear_bias=b, reduction="sum")
    try:
        from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as Liger
    except ImportError:
        pass
    else:

        def liger(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
            # In the weights' type, as autocast would hand them over; sums of the weights' gradient in float32.
            kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
            given: tuple[Any, ...] = (hidden.to(kind), weight.to(kind), targets, bias.to(kind))
            result = Liger.apply(*given, None, -100, 0.0, 0.0, "sum", None, False, torch.float32)
            return result[0] if isinstance(result, tuple) else result

        found["liger-kernel"] = liger
    return found | {"ours": ours}


def main() -> None:
    """Prints a row for each shape and loss."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--calls", type=int, default=1, help="passes a repeat (1)")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"{'N, H, V':<22}{'':<30}{'ms':>9}{'ratio':>8}{'MiB':>8}{'error':>10}")
    for shape in SHAPES:
        for line in of_shape(*shape, device, options):
            print(line, flush=True)


def recorded(work: Callable[[], object]) -> Callable[[], object]:
    """Returns what does the work again, as a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        work()  # what is made ready at first is no part of it
    torch.cuda.current_stream().wait_stream(aside)
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay  # type: ignore[no-any-return]


def of_shape(count: int, width: int, words: int, device: torch.device, options: argparse.Namespace) -> Iterator[str]:
    """A row for each loss."""
    made = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(count, width, device=device, generator=made).tanh_().requires_grad_()
    weight = torch.nn.Parameter(torch.randn(words, width, device=device, generator=made) * width**-0.5)
    bias = torch.nn.Parameter(torch.zeros(words, device=device))
    targets = torch.randint(words, (count,), device=device, generator=made)
    asked = (hidden, weight, bias)
    few = slice(0, 200)  # in float64 the whole would take as long as the rest
    exact = torch.autograd.grad(plain(*(t.double() for t in (hidden[few], weight, bias)), targets[few]), asked)

    def both(loss: Loss, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            value = loss(hidden[rows], weight, bias, targets[rows])
        return torch.autograd.grad(value, asked)

    def calls(work: Callable[[], object]) -> None:
        for _ in range(options.calls):
            work()

    works: dict[str, Callable[[], object]] = {name: functools.partial(both, loss) for name, loss in losses().items()}
    if device.type == "cuda":
        works |= {f"{name}, recorded": recorded(works[name]) for name in ("cross_entropy", "ours")}
    times: dict[str, list[float]] = {}
    memory, errors = {}, {}
    for repeat in range(options.repeats + 1):
        for name, work in works.items():
            if not repeat and name in losses():
                found = both(losses()[name], few)
                errors[name] = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact))
            if not repeat and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            taken = timed(functools.partial(calls, work), device) / options.calls
            if repeat:
                times.setdefault(name, []).append(taken)
            elif device.type == "cuda" and name in losses():
                memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    first = statistics.median(times["cross_entropy"])
    for name, each in times.items():
        middle = statistics.median(each)
        held = f"{memory[name]:,.0f}" if name in memory else ""
        cells = f"{f'{count:,} {width:,} {words:,}':<22}{name:<30}{middle * 1e3:>9.3f}{first / middle:>8.2f}"
        yield f"{cells}{held:>8}{format(errors[name], '.1e') if name in errors else '':>10}"


if __name__ == "__main__":
    main()
