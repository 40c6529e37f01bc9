"""Runs a module as `python -m` would and prints nothing but its highest memory in MiB.

    python -m tests.benchmarks.peak textvae --help

Imports nothing that the module would have to share.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from pathlib import Path


def peak() -> float:
    """Returns this process's highest memory so far, MiB."""
    # Not getrusage's, which a child inherits from its parent on Linux.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("peak memory is read from /proc, which this system has not")


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    print(peak())
