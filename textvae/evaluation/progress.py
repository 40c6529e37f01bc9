"""That something is going on, on standard error: a bar on a terminal, lines of text elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from tqdm import tqdm

EVERY_S = 20.0  # between lines, where there is no terminal

Stage = Callable[[str, int], AbstractContextManager[Callable[[], object]]]


def silent(what: str, total: int) -> AbstractContextManager[Callable[[], object]]:
    """A stage that shows nothing."""
    return contextlib.nullcontext(lambda: None)


@contextlib.contextmanager
def shown(what: str, total: int) -> Iterator[Callable[[], object]]:
    """Says what begins, and gives what is to be called after each of its `total` steps."""
    tqdm.write(f"textvae: {what}", file=sys.stderr)
    bar = tqdm(total=total, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True, leave=False)
    started = last = time.monotonic()
    done = 0

    def step() -> None:
        nonlocal done, last
        done += 1
        bar.update()
        now = time.monotonic()
        if bar.disable and now - last > EVERY_S:
            last = now
            tqdm.write(f"textvae:   {done:,} of {total:,}, {(now - started) / 60:.1f} min", file=sys.stderr)

    with contextlib.closing(bar):
        yield step
