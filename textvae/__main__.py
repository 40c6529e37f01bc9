"""`python -m textvae` is `textvae`."""

import os
import sys

from textvae.cli import main

SPINS = "3000"  # some tens of microseconds; libgomp's own 300,000 are milliseconds


def run() -> int:
    """Runs the command line; returns its exit code, or ends the process where it is one of several."""
    # A thread of torch's that waits for another spins, and holds the core that the other needs where a second program
    # is at work: tests/benchmarks/README.md, "Beside other work". Read once, when torch is loaded, and not before.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    code = main()
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        from textvae.launch import end

        end(code)
    return code


if __name__ == "__main__":
    sys.exit(run())
