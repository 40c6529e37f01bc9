"""One table of speeds: `python -m tests.benchmarks [--only CASE] [--json]`; see README.md in this folder."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.cases import CASES, Case, Done, Options
from tests.benchmarks.limit import Operations, timed

START = "start-help"  # a case without a model: how long the shell takes to say what it can


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=[*CASES, START], help="a case; may be given again")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs of each side (5)")
    parser.add_argument("--quick", action="store_true", help="smaller work, for a look")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", choices=["ours", "textbook"], help=argparse.SUPPRESS)  # a memory case's child
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    chosen = Options(torch.device(options.device), quick=options.quick)
    if options.side:
        print(json.dumps(_memory_of_one(CASES[options.only[0]](chosen), options.side)))
        return
    if not options.json:
        print(f"torch {torch.__version__}, {options.threads} threads, {options.device}, {options.repeats} repeats")
        print(f"{'case':<16}{'per second':>22}{'textbook':>12}{'ratio':>8}{'of limit':>10}{'peak MiB':>10}  agreement")
    for name in options.only or [*CASES, START]:
        row = _start() if name == START else measure(name, CASES[name](chosen), options)
        print(json.dumps(row) if options.json else _line(row), flush=True)


def measure(name: str, case: Case, options: argparse.Namespace) -> dict[str, object]:
    """Runs both sides by turns, the first alternating; medians, and the spread of ours as its range over its median."""
    row: dict[str, object] = {"case": name, "unit": case.unit}
    sides = {side: _child(name, side, options) for side in ("ours", "textbook")}
    row |= {"peak_mib": sides["ours"], "peak_mib_textbook": sides["textbook"]}
    if case.memory_only:
        return row | {"per_second": None, "ratio_to_textbook": None, "share_of_limit": None}
    row["agreement"] = case.check() if case.check else ""
    runs = {"ours": case.ours(), "textbook": case.textbook()}
    speeds: dict[str, list[float]] = {"ours": [], "textbook": []}
    shares: list[float] = []
    for repeat in range(options.repeats + 1):
        machine = case.machine() if case.machine else None
        rates = machine.rates() if machine else None
        for side, run in list(runs.items())[:: 1 if repeat % 2 else -1]:
            made: list[Done] = []
            seconds = timed(lambda run=run, made=made: made.append(run()), torch.device(options.device))
            done = made[0]
            if repeat == 0:
                continue  # the first run pays for what later ones find ready
            speeds[side].append(done.units / seconds)
            if side == "ours" and rates is not None and case.operations is not None:
                shares.append(done.rows * _floor(case.operations, rates) / seconds)
    ours, theirs = (statistics.median(speeds[side]) for side in ("ours", "textbook"))
    return row | {
        "per_second": ours,
        "spread": (max(speeds["ours"]) - min(speeds["ours"])) / ours,
        "textbook_per_second": theirs,
        "ratio_to_textbook": ours / theirs,
        "share_of_limit": statistics.median(shares) if shares else None,
    }


def _floor(operations: Operations, rates: Operations) -> float:
    """Seconds a token that the products alone would take."""
    return sum(work / rate for work, rate in zip(operations, rates))


def _child(name: str, side: str, options: argparse.Namespace) -> float | None:
    """Peak memory of one run in a process of its own, MiB above an idle one with the same imports."""
    command = [sys.executable, "-m", "tests.benchmarks", "--only", name, "--side", side]
    command += ["--threads", str(options.threads), "--device", options.device, *["--quick"] * options.quick]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed)


def _memory_of_one(case: Case, side: str) -> float:
    before = _peak()
    make: Callable[[], object] = case.ours if side == "ours" else case.textbook
    make()()  # type: ignore[operator]
    return _peak() - before


def _peak() -> float:
    # Not getrusage's, which a child inherits from its parent on Linux.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("peak memory is read from /proc, which this system has not")


def _start() -> dict[str, object]:
    command = [sys.executable, "-m", "textvae", "--help"]

    def start() -> None:
        subprocess.run(command, check=True, capture_output=True)

    seconds = statistics.median(timed(start, torch.device("cpu")) for _ in range(5))
    return {"case": START, "unit": "starts", "per_second": 1 / seconds}


def _line(row: dict[str, object]) -> str:
    def shown(key: str, form: str) -> str:
        value = row.get(key)
        return "" if value is None else format(value, form)

    speed = f"{shown('per_second', ',.1f')} {row['unit']}"
    cells = (
        f"{row['case']:<16}{speed:>22}{shown('textbook_per_second', ',.0f'):>12}{shown('ratio_to_textbook', '.2f'):>8}"
    )
    memory = shown("peak_mib", ",.0f")
    if row.get("peak_mib_textbook") is not None:
        memory += f"/{shown('peak_mib_textbook', ',.0f')}"
    return f"{cells}{shown('share_of_limit', '.0%'):>10}{memory:>12}  {row.get('agreement', '')}"


if __name__ == "__main__":
    main()
