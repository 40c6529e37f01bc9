"""Several processes are one: the same numbers, also after a resume with others, and an end that says why."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, has_rows
from safetensors.torch import load_file

from textvae.checkpoint import latest_checkpoint
from textvae.latent.divergences import DIVERGENCES
from textvae.recipe import Recipe
from textvae.training import train

# What a kind needs beside its name; and the forms of it that look at the whole batch.
OPTIONS = {"kl": {"free_nats": 2.0}, "w2": {"over": "aggregate"}, "rate_floor": {"nats": 3.0}}


@pytest.fixture
def small(values):
    """No dropout: its draws belong to the process. SGD: Adam would blow rounding up where a gradient is near 0."""
    values["training"].update(
        optimizer={"kind": "sgd", "lr": 0.05}, accumulation=1, batch_size=15, max_steps=8, evaluate_every=4, log_every=1
    )
    return values


def command(values, folder: Path, run: Path, *arguments: str) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))  # terms draw in their order
    return [sys.executable, "-m", "textvae", "train", str(path), "--out", str(run), "--quiet", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def trained(values, folder: Path, run: Path, processes: int, *arguments: str) -> Path:
    done = subprocess.run(
        command(values, folder, run, "--processes", str(processes), *arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return run


def tokens_of(run: Path) -> int:
    """Target tokens of all steps, as the run's speed goes by them."""
    return json.loads((latest_checkpoint(run) / "state.json").read_text())["position"]["tokens"]


def state_of(run: Path) -> dict:
    """What controllers and critics hold."""
    return torch.load(latest_checkpoint(run) / "training.pt", weights_only=True)["objective"]


def assert_same(run: Path, other: Path) -> None:
    (one, two) = (load_file(latest_checkpoint(folder) / "model.safetensors") for folder in (run, other))
    assert one.keys() == two.keys()
    assert tokens_of(run) == tokens_of(other)
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, atol=2e-5, rtol=1e-3, msg=lambda said, name=name: f"{name}: {said}"
        )
    for name, tensor in state_of(run).items():
        # A controller's weight is float64; a critic goes by Adam, which blows rounding up where a gradient is near 0.
        atol = 0.0 if tensor.dtype == torch.float64 else 5e-4
        torch.testing.assert_close(state_of(other)[name], tensor, atol=atol, rtol=1e-5)
    others = rows_of(other)  # and one more, where it was stopped in between
    for place, mine in rows_of(run).items():
        theirs = others[place]
        # The best direction is sought: from other rounding, to another end of much the same height.
        sought = "term_max_sliced_wasserstein"
        assert mine.pop(sought, 0.0) == pytest.approx(theirs.pop(sought, 0.0), rel=0.05)
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def rows_of(run: Path) -> dict[tuple[int, str], dict]:
    """What was written of a training, by step and part, less what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left = ("part", "tokens_per_s", "elapsed_s")
    return {(row["step"], row["part"]): {key: row[key] for key in row if key not in left} for row in rows}


def controlled(values) -> None:
    values["training"]["batch_size"] = 5  # of uneven shares
    values["objective"] = {"kl": {"kind": "kl", "weight": {"kind": "pid", "target": 0.3, "kp": 0.5, "ki": 0.2}}}


def of_the_batch(values) -> None:
    # One step: where the best of several directions is sought, rounding may find another after a few.
    values["training"] |= {"max_steps": 1, "evaluate_every": 1}
    values["model"]["posterior"] = {"kind": "batch_norm", "scale": 0.6}
    values["objective"] = {
        kind: {"kind": kind, "weight": 0.1, **OPTIONS.get(kind, {})} for kind in DIVERGENCES if kind != "renyi"
    }


def with_idle_parts(values) -> None:
    """A mixture that no term's gradient reaches, and a head whose weight is 0 in the first and the last steps.

    Weight decay: a parameter that had a gradient of 0 for none would move.
    """
    values["training"]["optimizer"] |= {"weight_decay": 0.1}
    values["model"]["prior"] = {"kind": "mixture", "components": 3}
    weight = {"kind": "cyclical", "cycles": 1, "ramp": 0.5, "start": 0.0, "end": 1.0, "over": 4}
    values["objective"] = {"mmd": {"kind": "mmd"}, "bag": {"kind": "bag_of_words", "weight": weight}}


@pytest.mark.parametrize(
    ("change", "processes"),
    [
        *((of_the_batch, 2), (controlled, 2), (with_idle_parts, 2)),
        pytest.param(of_the_batch, 4, marks=pytest.mark.slow),
        pytest.param(controlled, 4, marks=pytest.mark.slow),
        pytest.param(with_idle_parts, 4, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_several_processes_give_the_parameters_of_one(small, tmp_path, change, processes):
    change(small)
    one = train(Recipe.model_validate(small), tmp_path / "one", quiet=True)
    assert_same(one, trained(small, tmp_path, tmp_path / "many", processes))


@pytest.mark.parametrize(
    ("before", "after"), [(2, 1), *(pytest.param(*counts, marks=pytest.mark.slow) for counts in ((1, 2), (2, 4)))]
)
def test_a_run_goes_on_with_another_number_of_processes_as_if_nothing_had_been(small, tmp_path, before, after):
    controlled(small)
    whole = train(Recipe.model_validate(small), tmp_path / "whole", quiet=True)
    run = tmp_path / "run"
    small["training"]["max_steps"] = 5
    trained(small, tmp_path, run, before)
    small["training"]["max_steps"] = 8
    trained(small, tmp_path, run, after, "--resume")
    assert_same(whole, run)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [*map(int, found), *(child for one in found for child in children(int(one)))]


def ranks_of(started: subprocess.Popen) -> dict[int, int]:
    """The training processes of a launched command: rank and process number."""
    return {
        int(found[1]): pid
        for pid in children(started.pid)
        if (found := re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes()))
    }


def wait_for(started: subprocess.Popen, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert started.poll() is None, started.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_dies_ends_the_run_with_its_reason_and_it_can_be_resumed(small, tmp_path, rank):
    small["training"].update(max_steps=10**6, max_epochs=None, evaluate_every=10**6, save_every=5)
    run = tmp_path / "run"
    started = subprocess.Popen(
        command(small, tmp_path, run, "--processes", "2"), env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(started, lambda: (run / "checkpoints").exists() and latest_checkpoint(run) is not None)
        os.kill(ranks_of(started)[rank], signal.SIGKILL)
        _, said = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 2
    assert "SIGKILL" in said.splitlines()[-1]
    assert "--resume" in said.splitlines()[-1]
    reached = int(latest_checkpoint(run).name.split("-")[1])
    small["training"]["max_steps"] = reached + 2
    trained(small, tmp_path, run, 2, "--resume")
    assert int(latest_checkpoint(run).name.split("-")[1]) == reached + 2


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
def test_processes_save_and_end_when_their_launcher_is_killed_and_run_nothing_of_the_folder(small, tmp_path):
    small["training"].update(max_steps=10**6, max_epochs=None, evaluate_every=10**6, save_every=10**6)
    run, here = tmp_path / "run", tmp_path / "here"
    here.mkdir()
    (here / "torch.py").write_text("raise SystemExit('a file of the current folder was run')\n")
    python, *rest = command(small, tmp_path, run, "--processes", "2")
    started = subprocess.Popen(
        [python, "-P", *rest], env=environment(), cwd=here, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_for(started, lambda: has_rows(run))
        processes = ranks_of(started).values()
        assert len(processes) == 2
        started.kill()
        started.wait(timeout=10)
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in processes):
            assert time.monotonic() < deadline, "they train on, and nobody could tell them to end"
            time.sleep(0.1)
    finally:
        started.kill()
    assert latest_checkpoint(run) is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_stopped_politely_several_processes_save_together_and_say_so_in_one_line(small, tmp_path, number):
    small["training"].update(max_steps=10**6, max_epochs=None, evaluate_every=10**6, save_every=10**6)
    run = tmp_path / "run"
    started = subprocess.Popen(
        command(small, tmp_path, run, "--processes", "2"), env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(started, lambda: has_rows(run))
        started.send_signal(number)
        _, said = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 130
    where, last = said.splitlines()  # one says where it stands, and the command why it ended
    assert where.startswith("textvae: stopped at step ")
    assert last.startswith(f"textvae: stopped by {number.name}. ")
    assert latest_checkpoint(run) is not None


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
def test_a_signal_to_one_process_stops_all_at_the_same_step(small, tmp_path):
    small["training"].update(max_steps=10**6, max_epochs=None, evaluate_every=10**6, save_every=10**6)
    run = tmp_path / "run"
    started = subprocess.Popen(
        command(small, tmp_path, run, "--processes", "2"), env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(started, lambda: has_rows(run))
        os.kill(ranks_of(started)[1], signal.SIGTERM)
        _, said = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("textvae: stopped in process ")
    assert latest_checkpoint(run) is not None


@pytest.fixture
def machines():
    """Two network namespaces that see each other as two machines: their names, and the first one's address."""
    names = [f"textvae{uuid.uuid4().hex[:6]}" for _ in range(2)]
    cables = [f"tv{name[-6:]}" for name in names]
    steps = [["ip", "netns", "add", name] for name in names]
    steps += [["ip", "link", "add", cables[0], "type", "veth", "peer", "name", cables[1]]]
    for number, (name, cable) in enumerate(zip(names, cables), 1):
        steps += [
            ["ip", "link", "set", cable, "netns", name],
            ["ip", "-n", name, "addr", "add", f"10.213.7.{number}/24", "dev", cable],
            ["ip", "-n", name, "link", "set", cable, "up"],
            ["ip", "-n", name, "link", "set", "lo", "up"],
        ]
    try:
        if shutil.which("ip") is None:
            pytest.skip("two machines are two network namespaces, and there is no ip command")
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"two machines are two network namespaces, and {' '.join(step)} failed: {done.stderr}")
        yield names, cables, "10.213.7.1"
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.slow
def test_two_machines_give_the_parameters_of_one_process(small, tmp_path, machines):
    names, cables, address = machines
    of_the_batch(small)
    one = train(Recipe.model_validate(small), tmp_path / "one", quiet=True)
    run = tmp_path / "run"  # a folder that both machines see
    started = []
    for rank, (name, cable) in enumerate(zip(names, cables)):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        launch += ["--node-rank", str(rank), "--master-addr", address, "--master-port", "29871"]
        launch += ["--module", *command(small, tmp_path, run)[2:]]
        # Without this gloo asks for the host's name, which no other machine here knows.
        settings = {**environment(), "GLOO_SOCKET_IFNAME": cable, "ACCELERATE_USE_CPU": "true"}
        started.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *launch],
                env=settings,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=180)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)[-3000:]
    assert_same(one, run)
