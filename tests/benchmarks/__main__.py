"""One table of speeds: `python -m tests.benchmarks [--only CASE] [--json]`; see README.md in this folder."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys

import torch

from tests.benchmarks.case import Case, Done, Options
from tests.benchmarks.cases import CASES, OF_A_GPU
from tests.benchmarks.limit import Operations, timed
from tests.benchmarks.peak import peak
from tests.benchmarks.textbook_training import RATE


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(CASES), help="a case; may be given again")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs of each side (5)")
    parser.add_argument("--quick", action="store_true", help="smaller work, for a look")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32", help="of training, both sides")
    parser.add_argument("--optimizer", choices=list(RATE), default="sgd", help="of the training cases, on both sides")
    parser.add_argument("--side", choices=["ours", "textbook"], help=argparse.SUPPRESS)  # a memory case's child
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    # Both ways a GPU multiplies float32: by cuBLAS and by cuDNN, whose default is TF32.
    torch.set_float32_matmul_precision("high" if options.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = options.precision == "tf32"
    chosen = _chosen(options)
    if options.side:
        print(json.dumps(_memory_of_one(CASES[options.only[0]](chosen), options.side)))
        return
    if not options.json:
        print(f"torch {torch.__version__}, {options.threads} threads, {options.device}, {options.repeats} repeats")
        print(f"{'case':<16}{'per second':>22}{'textbook':>12}{'ratio':>8}{'of limit':>10}{'peak MiB':>10}  agreement")
    every = [name for name in CASES if chosen.device.type == "cuda" or name not in OF_A_GPU]
    for name in options.only or every:
        row = measure(name, CASES[name](chosen), options)
        print(json.dumps(row) if options.json else _line(row), flush=True)


def measure(name: str, case: Case, options: argparse.Namespace) -> dict[str, object]:
    """Runs both sides by turns, the first alternating; medians, and the spread of ours as its range over its median."""
    row: dict[str, object] = {"case": name, "unit": case.unit}
    names = ["ours"] if case.textbook is None else ["ours", "textbook"]
    measured = _memory_on_gpu if torch.device(options.device).type == "cuda" else _child
    memory = {side: case.peak(side) if case.peak else measured(name, side, options) for side in names}
    row |= {"peak_mib": memory["ours"], "peak_mib_textbook": memory.get("textbook")}
    if case.memory_only:
        return row | {"per_second": None, "ratio_to_textbook": None, "share_of_limit": None}
    row["agreement"] = case.check() if case.check else ""
    runs = {"ours": case.ours(), **({} if case.textbook is None else {"textbook": case.textbook()})}
    speeds: dict[str, list[float]] = {side: [] for side in names}
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
    medians = {side: statistics.median(speeds[side]) for side in names}
    ours, theirs = medians["ours"], medians.get("textbook")
    return row | {
        "per_second": ours,
        "spread": (max(speeds["ours"]) - min(speeds["ours"])) / ours,
        "textbook_per_second": theirs,
        "ratio_to_textbook": None if theirs is None else ours / theirs,
        "share_of_limit": statistics.median(shares) if shares else None,
    }


def _floor(operations: Operations, rates: Operations) -> float:
    """Seconds a token that the products alone would take."""
    return sum(work / rate for work, rate in zip(operations, rates))


def _child(name: str, side: str, options: argparse.Namespace) -> float | None:
    """Peak memory of one run in a process of its own, MiB above an idle one with the same imports."""
    command = [sys.executable, "-m", "tests.benchmarks", "--only", name, "--side", side]
    command += ["--threads", str(options.threads), "--device", options.device, "--optimizer", options.optimizer]
    command += ["--precision", options.precision] + ["--quick"] * options.quick
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed)


def _memory_on_gpu(name: str, side: str, options: argparse.Namespace) -> float:
    """Peak memory of one run on a GPU, MiB above what lies there already: it can be told without a process for it."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(options.device)
    before = torch.cuda.memory_allocated(options.device)
    _run_once(CASES[name](_chosen(options)), side)
    return (torch.cuda.max_memory_allocated(options.device) - before) / 2**20


def _memory_of_one(case: Case, side: str) -> float:
    before = peak()
    _run_once(case, side)
    return peak() - before


def _run_once(case: Case, side: str) -> None:
    make = case.ours if side == "ours" else case.textbook
    assert make is not None
    make()()


def _chosen(options: argparse.Namespace) -> Options:
    return Options(torch.device(options.device), options.optimizer, options.quick, options.precision)


def _line(row: dict[str, object]) -> str:
    def shown(key: str, form: str) -> str:
        value = row.get(key)
        return "" if value is None else format(value, form)

    def rate(key: str) -> str:
        value = row.get(key)
        return shown(key, ",.3g" if isinstance(value, float) and value < 100 else ",.0f")

    speed = f"{rate('per_second')} {row['unit']}"
    cells = f"{row['case']:<16}{speed:>22}{rate('textbook_per_second'):>12}{shown('ratio_to_textbook', '.2f'):>8}"
    memory = shown("peak_mib", ",.0f")
    if row.get("peak_mib_textbook") is not None:
        memory += f"/{shown('peak_mib_textbook', ',.0f')}"
    return f"{cells}{shown('share_of_limit', '.0%'):>10}{memory:>12}  {row.get('agreement', '')}"


if __name__ == "__main__":
    main()
