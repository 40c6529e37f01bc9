"""`python -m textvae` is `textvae`."""

import os
import sys

from textvae.cli import main


def run() -> int:
    """Runs the command line; returns its exit code, or ends the process where it is one of several."""
    code = main()
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        from textvae.launch import end

        end(code)
    return code


if __name__ == "__main__":
    sys.exit(run())
