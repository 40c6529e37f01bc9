"""CUDA graphs: kernels that are the same each time, recorded once and started together from then on."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

MEMORY_LEFT = 0.25  # share of the GPU's that stays free of recordings
STAGED = 2**15  # bytes that a driver copies aside by itself; with more it may wait until what was started is done
KNOWN = ("textvae", "torch", "zuko")  # whose modules do nothing in Python that a recording would leave out
ONE_AT_A_TIME = threading.Lock()  # a program can hold one recording open
_STREAMS: dict[
    torch.device, Any
] = {}  # a GPU's, that its recordings are made on: cuBLAS keeps memory for each it has seen


def are_known(parts: Iterable[object]) -> bool:
    """Returns whether none of the parts is a user's own, which may do in Python what a recording would leave out.

    A hook that was hung on a module is one as well.
    """
    return all(
        type(part).__module__.partition(".")[0] in KNOWN
        and not getattr(part, "_forward_hooks", None)
        and not getattr(part, "_forward_pre_hooks", None)
        for part in parts
    )


class Recorder:
    """What a recording asks of a GPU.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None

    def has_room(self) -> bool:
        """Returns whether there is memory for another recording."""
        free, total = torch.cuda.mem_get_info(self.device)
        return free > MEMORY_LEFT * total

    def at_hand(self, tensor: Tensor) -> Tensor:
        """Returns a CPU's tensor where the GPU copies it from without keeping the program."""
        return tensor.pin_memory() if tensor.nbytes > STAGED else tensor

    @contextlib.contextmanager
    def drawing_nothing(self) -> Iterator[None]:
        """A context after which the device's random state is as it was."""
        with torch.cuda.device(self.device):
            state = torch.cuda.get_rng_state(self.device)
            try:
                yield
            finally:
                torch.cuda.set_rng_state(state, self.device)

    def waits(self, work: Callable[[], object]) -> bool:
        """Does work, and returns whether a part of it waits for the device's answer, which no recording can hold.

        It is asked beforehand, because a recording that breaks off leaves the device's random state unusable.
        """
        before = torch.cuda.get_sync_debug_mode()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that the mode is a prototype
                torch.cuda.set_sync_debug_mode("error")
                work()
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return True
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return False

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Returns what does the work again, and the work's result, which is written anew each time."""
        # torch records on the current GPU unless it is told otherwise, and would record nothing of another's work.
        with ONE_AT_A_TIME, torch.cuda.device(self.device):
            if self.pool is None:
                self.pool = torch.cuda.graph_pool_handle()
            if (stream := _STREAMS.get(self.device)) is None:
                stream = _STREAMS[self.device] = torch.cuda.Stream(self.device)
            graph: Any = torch.cuda.CUDAGraph()
            # All share their memory: a step has done with one before the next begins. What other threads ask of the GPU
            # in the meantime is no part of it.
            with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
                result = work()
        return graph.replay, result

    def clear(self) -> None:
        """Gives back what recordings held that are no more."""
        self.pool = None
        torch.cuda.empty_cache()
