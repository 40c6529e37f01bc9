"""What other output layers save: `python -m tests.benchmarks.outputs [--vocabularies 10000,50000] [--repeats 3]`.

Training steps of the same model and batches with each layer by turns, tokens a second and their ratio to the full
softmax in the same run. What they cost in likelihood only a training shows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from tests.benchmarks.models import our_trainer
from tests.benchmarks.sizes import Sizes, sentences, training_batches

KINDS: dict[str, dict[str, Any]] = {
    "softmax": {"kind": "softmax"},
    "adaptive_softmax": {"kind": "adaptive_softmax"},
    "sampled_softmax, 1,000": {"kind": "sampled_softmax", "samples": 1_000},
    "sampled_softmax, 4,000": {"kind": "sampled_softmax", "samples": 4_000},
}


def main() -> None:
    """Prints a row for each vocabulary and layer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vocabularies", default="10000,50000,100000")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(f"{'vocabulary':>10}  {'output layer':<24}{'tokens/s':>10}{'ratio':>8}{'spread':>9}")
    for vocabulary in map(int, options.vocabularies.split(",")):
        sizes = Sizes(vocabulary, 256, 256, 32)
        batches = training_batches(sentences(vocabulary), options.batch_size, options.steps)
        tokens = sum(len(row) - 1 for rows in batches for row in rows)
        steps = {name: our_trainer(sizes, "sgd", device, output) for name, output in KINDS.items()}
        times: dict[str, list[float]] = {name: [] for name in KINDS}
        for repeat in range(options.repeats + 1):
            for name, step in steps.items():
                began = time.perf_counter()
                for rows in batches:
                    step(rows)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if repeat:  # the first one warms up
                    times[name].append(time.perf_counter() - began)
        full = statistics.median(times["softmax"])
        for name, taken in times.items():
            middle = statistics.median(taken)
            spread = (max(taken) - min(taken)) / middle
            print(
                f"{vocabulary:>10,}  {name:<24}{tokens / middle:>10,.0f}{full / middle:>8.2f}{spread:>9.0%}", flush=True
            )


if __name__ == "__main__":
    main()
