"""`python -m textvae` is `textvae`."""

import sys

from textvae.cli import main

if __name__ == "__main__":
    sys.exit(main())
