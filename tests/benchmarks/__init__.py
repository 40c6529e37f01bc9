"""How fast: against a textbook model and against the machine. `python -m tests.benchmarks`; see README.md."""
