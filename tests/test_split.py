"""Evaluation and generation by several processes: what one gives, from each."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, sentences

import textvae
from textvae.cli import main
from textvae.recipe import Recipe
from textvae.training import train

KINDS = {
    "gaussian": {},
    "vmf": {"posterior": {"kind": "von_mises_fisher", "kappa": 5.0}, "prior": {"kind": "uniform_sphere"}},
    "language model": {"latent_dim": 0},
}
MANY = 1100  # texts: three parts of 512

CALLS = """
import atexit, json, os, sys
from accelerate import PartialState
import textvae
from textvae.distributed import rank
from textvae.launch import end, leave

PartialState(cpu=True)
atexit.register(leave)
vae = textvae.load(sys.argv[1], together=True)
lines = open(sys.argv[2]).read().splitlines()
results = {
    "sample": vae.sample(int(sys.argv[3]), seed=3),
    "unseeded": vae.sample(4),
    "reconstruct": vae.reconstruct(lines),
    "encode": vae.encode(lines).tolist(),
    "score": vae.score(lines, iw_samples=3, seed=1),
    "interpolate": vae.interpolate(lines[0], lines[1], 3),
    "none": [vae.score([]), vae.encode([]).tolist(), vae.sample(0)],
}
json.dump(results, open(f"{sys.argv[4]}-{rank()}.json", "w"))
end(0)  # the connections are closed by then
"""

# A thread in torch's C++ code whenever python ends; there python's own end aborts (SIGABRT) on every try.
BUSY = """
import atexit, sys, threading, time
import torch
from textvae.__main__ import run

def work():
    a = torch.randn(300, 300, requires_grad=True)
    while True:
        (a @ a).sum().backward()

torch.set_num_threads(1)
threading.Thread(target=work, daemon=True).start()
atexit.register(print, "closed")
time.sleep(0.5)
sys.exit(run())
"""


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def run(values, tmp_path):
    def trained(**model):
        test = tmp_path / "many.txt"
        test.write_text("".join(f"{line}\n" for line in sentences(150, 9)))
        values["data"]["files"]["test"] = str(test)
        values["model"] |= model
        if model.get("latent_dim") == 0:
            values["objective"] = {"kl": None}
        values["training"]["max_steps"] = 10
        return train(Recipe.model_validate(values), tmp_path / "run", quiet=True)

    return trained


def in_processes(count: int, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "textvae", *arguments, "--processes", str(count)]
    around = environment() | variables
    return subprocess.run(command, env=around, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("kind", ["vmf", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "vmf")])
def test_an_evaluation_by_two_processes_gives_the_figures_of_one(run, tmp_path, capfd, kind):
    folder = run(**KINDS[kind])
    # Of many small batches, and with everything that is drawn or decoded.
    arguments = ["evaluate", str(folder), "--json", "--save", "--samples", "20"]
    if kind != "language model":
        arguments += ["--paths", "2"]
    assert main(arguments) == 0
    alone = json.loads(capfd.readouterr().out)
    kept = json.loads((folder / "evaluation-test.json").read_text())
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = in_processes(2, *arguments, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert not list(temporary.glob("torchelastic*"))  # the launcher's folder goes with it
    assert json.loads(done.stdout) == approximately(alone)  # printed once
    assert json.loads((folder / "evaluation-test.json").read_text()) == approximately(kept)


def approximately(value):
    """The value, its numbers to rounding: of a sum, the order may differ."""
    if isinstance(value, dict):
        return {name: approximately(item) for name, item in value.items()}
    if isinstance(value, list):
        return [approximately(item) for item in value]
    return pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value


@pytest.mark.slow
def test_calls_shared_by_three_processes_give_on_each_what_one_gives(run, tmp_path):
    folder = run()
    script, lines = tmp_path / "calls.py", tmp_path / "lines.txt"
    script.write_text(CALLS)
    texts = sentences(80, 4)
    lines.write_text("".join(f"{line}\n" for line in texts))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    command = [*launch, str(script), str(folder), str(lines), str(MANY), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    each = [json.loads((tmp_path / f"out-{rank}.json").read_text()) for rank in range(3)]
    assert each[0] == each[1] == each[2]
    vae = textvae.load(folder)
    assert each[0]["sample"] == vae.sample(MANY, seed=3)
    assert len(set(each[0]["sample"])) > MANY / 2  # parts that drew alike would repeat themselves
    assert each[0]["reconstruct"] == vae.reconstruct(texts)
    torch.testing.assert_close(torch.tensor(each[0]["encode"]), vae.encode(texts))
    assert each[0]["score"] == approximately(vae.score(texts, iw_samples=3, seed=1))
    assert each[0]["interpolate"] == vae.interpolate(texts[0], texts[1], 3)
    assert each[0]["none"] == [[], [], []]


@pytest.mark.slow
def test_the_shell_prints_once_what_several_processes_drew(run, capfd):
    folder = run()
    arguments = ["sample", str(folder), "-n", str(MANY), "--seed", "1"]
    assert main(arguments) == 0
    alone = capfd.readouterr().out
    done = in_processes(2, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone


@pytest.mark.slow
def test_a_mistake_that_all_processes_find_is_said_once(run):
    done = in_processes(2, "evaluate", str(run()), "--split", "tset")
    assert done.returncode == 2
    said, last = done.stderr.splitlines()
    assert said == "textvae: split: the corpus has no part 'tset'; known: test, train, validation. Did you mean 'test'?"
    assert last == "textvae: process 0 of 2 ended with exit code 2; its message is above."


def test_what_several_processes_cannot_do_is_one_line(run, capfd):
    folder = run()
    wrong = {
        ("score", str(folder), "--processes", "2"): "--processes: several cannot share standard input; name a file",
        ("sample", str(folder), "--processes", "0"): "--processes: got 0; it must be 1 or more",
        ("sample", str(folder), "--processes", "2", "--device", "cuda:1"): "--device: got cuda:1; several processes",
        ("sample", str(folder / "absent"), "--processes", "2"): "absent: holds no run",
    }
    for arguments, message in wrong.items():
        assert main(list(arguments)) == 2
        said = capfd.readouterr().err
        assert message in said
        assert said.count("\n") == 1


@pytest.mark.parametrize(("arguments", "code"), [(["parts", "posterior"], 0), (["recipe", "check", "nowhere"], 2)])
def test_a_process_of_several_ends_with_its_code_whatever_torch_still_does(tmp_path, arguments, code):
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    several = {**environment(), "WORLD_SIZE": "2", "RANK": "0"}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=several, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("closed\n")  # what was to happen at its end has, and is written out
    assert ("nowhere" in done.stderr) == (code == 2)


@pytest.mark.parametrize(("size", "says"), [("2", "MASTER_ADDR"), ("two", "how many processes")])
def test_an_environment_that_speaks_of_others_and_not_where_is_one_line(run, tmp_path, size, says):
    command = [sys.executable, "-m", "textvae", "score", str(run()), str(tmp_path / "many.txt")]
    alone = {name: value for name, value in environment().items() if name not in ("RANK", "LOCAL_RANK", "MASTER_ADDR")}
    alone["WORLD_SIZE"] = size
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("textvae: environment: WORLD_SIZE")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
