"""Children that are killed: started by a server that has torch loaded already, so that fifty of them take minutes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["textvae.training", "textvae.api"])


def _child(cache: str, arguments: list[str]) -> None:
    # datasets reads it when it is imported, which no preloaded module does.
    os.environ["HF_HOME"] = cache
    from textvae.cli import main

    os._exit(main(arguments))


def start(cache: Path, arguments: list[str]) -> BaseProcess:
    """Starts `textvae ARGUMENTS` with a cache of its own."""
    process = _CONTEXT.Process(target=_child, args=(str(cache), arguments))
    process.start()
    return process


def run(cache: Path, arguments: list[str]) -> int:
    """Runs `textvae ARGUMENTS` to its end; its exit code."""
    process = start(cache, arguments)
    process.join(300)
    assert not process.is_alive(), "it does not end"
    assert process.exitcode is not None
    return process.exitcode


def kill(cache: Path, arguments: list[str], when: Callable[[], bool], after_s: float) -> bool:
    """Runs `textvae ARGUMENTS` and kills it `after_s` seconds after `when` first holds; whether it came in time."""
    process = start(cache, arguments)
    while process.is_alive() and not when():
        time.sleep(0.001)
    process.join(after_s)
    killed = process.is_alive()
    process.kill()
    process.join()
    return killed
