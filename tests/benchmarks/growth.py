"""How cost grows: `python -m tests.benchmarks.growth [--axis corpus] [--picture FILE]`.

Each row is a training from the shell, as users start it, in a process of its own: tokens a second of its log rows,
seconds until the first of them, and the highest memory of its own (pages of files, which the system takes back when
it needs them, stand beside it). The corpora are written once, as Parquet shards, and kept while it runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.benchmarks.loading import ROOT
from textvae.text import grammar

SHARD = 1_000_000  # sentences a file
STEPS, LOG_EVERY = 100, 20
ROWS = 50_000  # sentences a row group
BATCH_TOKENS = 4_000  # of the axis `length`: so that each step has as much to do
AXES = ("corpus", "stream", "vocabulary", "length", "processes")
VALUES: dict[str, list[int]] = {
    "corpus": [10_000, 100_000, 1_000_000, 10_000_000],
    "stream": [10_000, 100_000, 1_000_000, 10_000_000],
    "vocabulary": [1_000, 10_000, 100_000],
    "length": [10, 50, 100, 500],
    "processes": [1, 2],
}
UNITS = {
    "corpus": "sentences, held",
    "stream": "sentences, streamed",
    "vocabulary": "words in the vocabulary",
    "length": "words a sentence",
    "processes": "processes, batch 128",
}


class Row(NamedTuple):
    """One training."""

    axis: str
    value: int
    tokens_per_s: float  # median over the log rows after the first
    spread: float  # their range over the median
    first_row_s: float  # from the shell's start to the first log row, its steps included
    own_mib: float  # highest anonymous memory, of all processes
    files_mib: float  # highest memory of mapped files, of all processes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__)
    parser.add_argument("--axis", action="append", choices=AXES, help="may be given again (all)")
    parser.add_argument("--most", type=int, default=10_000_000, help="leave out larger corpora (10000000)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each training ({STEPS})")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of all processes together")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--picture", type=Path, help="a PNG of the rows")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="textvae-growth-") as kept:
        if not options.json:
            print(f"{'axis':<12}{'value':>12}{'tokens/s':>10}{'spread':>8}{'first row':>12}{'own MiB':>9}{'files':>8}")
        for axis in options.axis or AXES:
            for value in VALUES[axis]:
                if axis in ("corpus", "stream") and value > options.most:
                    continue
                row = measure(axis, value, Path(kept), options.steps, options.threads)
                rows.append(row)
                print(json.dumps(row._asdict()) if options.json else _line(row), flush=True)
    if options.picture:
        draw(rows, options.picture)


def measure(axis: str, value: int, folder: Path, steps: int, threads: int) -> Row:
    """Trains once and returns what it took."""
    processes = value if axis == "processes" else 1
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    overrides = [*settings(axis, value, folder), f"training.max_steps={steps}", f"training.log_every={LOG_EVERY}"]
    overrides.append(f"training.threads={max(1, threads // processes)}")
    command = [sys.executable, "-m", "textvae", "train", str(ROOT / "recipes" / "quickstart.yaml"), "--quiet"]
    command += ["--out", str(run), *(["--processes", str(processes)] if processes > 1 else []), *overrides]
    # A cache of its own: every corpus is encoded anew.
    environment = {**os.environ, "HF_HOME": str(run.parent / "cache"), "PYTHONPATH": str(ROOT)}
    began = time.time()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watched = _Watched(process, run)
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"growth: {axis} {value}: exit code {process.returncode}: {said.decode()[-500:]}")
    highest, started = watched.ended()
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["tokens_per_s"] for row in found if row["part"] == "train"][1:]
    middle = statistics.median(speeds)
    spread = (max(speeds) - min(speeds)) / middle
    return Row(axis, value, middle, spread, started - began, *(size / 1024 for size in highest))


def settings(axis: str, value: int, folder: Path) -> list[str]:
    """Returns the overrides of the recipe quickstart, its corpus written if it is not yet there."""
    if axis == "processes":
        return ["training.batch_size=128"]
    count = value if axis in ("corpus", "stream") else max(20_000, value)  # of a vocabulary, each word in one
    name = f"{axis}-{value}" if axis in ("vocabulary", "length") else f"grammar-{count}"
    if not (folder / name).is_dir():
        (folder / name).mkdir()
        for shard, first in enumerate(range(0, count, SHARD)):
            write(folder / name / f"train-{shard:03}.parquet", texts(axis, value, shard, min(SHARD, count - first)))
        write(folder / name / "validation.parquet", texts(axis, value, SHARD, 200))
    shards = ", ".join(str(path) for path in sorted((folder / name).glob("train-*.parquet")))
    overrides = [f"data={{files: {{train: [{shards}], validation: {folder / name}/validation.parquet}}}}"]
    overrides += ["data.column=text", "data.tokenizer_sentences=100000", "objective.bag=null"]
    if axis == "length":
        overrides += [f"training.batch_size={max(1, BATCH_TOKENS // value)}", "data.max_length=null"]
    if axis == "stream":
        overrides += ["data.streaming=true", "objective.kl.weight=1.0"]
    return overrides


def texts(axis: str, value: int, seed: int, count: int) -> Iterator[str]:
    """Yields sentences of the grammar, or of made-up words by Zipf's law for the axes vocabulary and length."""
    if axis not in ("vocabulary", "length"):
        yield from grammar.sentences(seed, "train", count)
        return
    drawn = np.random.default_rng(seed)
    words = value if axis == "vocabulary" else 10_000
    length = value if axis == "length" else 20
    sums = np.cumsum(1.0 / (np.arange(words) + 2.7))
    for place in range(count):
        chosen = np.searchsorted(sums, drawn.random(length - 1) * sums[-1])
        # Each word stands somewhere, or the vocabulary would be smaller than it says.
        chosen[0] = place % words
        yield " ".join(f"w{word}" for word in chosen)


def write(path: Path, sentences: Iterator[str]) -> None:
    """Writes sentences as Parquet, a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(itertools.islice(sentences, ROWS)):
            writer.write_table(pa.table({"text": group}, schema=schema))


class _Watched:
    """A process and its children, looked at twice a second: their highest memory, and when the first log row came."""

    def __init__(self, process: subprocess.Popen[bytes], run: Path) -> None:
        self.process, self.metrics = process, run / "metrics.jsonl"
        self.highest, self.first_row = [0, 0], 0.0
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while self.process.poll() is None:
            found = [_memory(pid) for pid in _family(self.process.pid)]
            self.highest = [max(old, sum(new)) for old, new in zip(self.highest, zip(*found))]
            if not self.first_row and self.metrics.exists() and self.metrics.stat().st_size:
                self.first_row = time.time()
            time.sleep(0.5)

    def ended(self) -> tuple[list[int], float]:
        """Returns the highest memory in KiB, own and of files, and the time of the first log row."""
        self.thread.join()
        return self.highest, self.first_row or time.time()


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *itertools.chain.from_iterable(_family(int(child)) for child in children)]


def _memory(pid: int) -> tuple[int, int]:
    """KiB of its own and of mapped files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0  # it has ended
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return values.get("RssAnon", 0), values.get("RssFile", 0) + values.get("RssShmem", 0)


def draw(rows: list[Row], path: Path) -> None:
    """Writes a picture: tokens a second and memory over each axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(dict.fromkeys(row.axis for row in rows))
    figure, places = pyplot.subplots(2, len(axes), figsize=(3.2 * len(axes), 5), squeeze=False, sharex="col")
    for column, axis in enumerate(axes):
        chosen = [row for row in rows if row.axis == axis]
        values = [row.value for row in chosen]
        for place, heights, label in (
            (places[0][column], [row.tokens_per_s for row in chosen], "tokens a second"),
            (places[1][column], [row.own_mib for row in chosen], "own memory, MiB"),
        ):
            place.plot(values, heights, marker="o")
            place.set_ylim(0, 1.08 * max(heights))
            place.set_xscale("log")
            place.set_xticks(values, [f"{value:,}" for value in values], fontsize=7)
            place.minorticks_off()
            place.yaxis.set_major_formatter("{x:,.0f}")
            place.grid(alpha=0.3)
            if column == 0:
                place.set_ylabel(label)
        places[0][column].set_title(UNITS[axis])
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def _line(row: Row) -> str:
    return (
        f"{row.axis:<12}{row.value:>12,}{row.tokens_per_s:>10,.0f}{row.spread:>8.0%}{row.first_row_s:>10.1f} s"
        f"{row.own_mib:>9,.0f}{row.files_mib:>8,.0f}"
    )


if __name__ == "__main__":
    main()
