"""Full disks, damaged files, folders that are taken, memory that is not there: one line, and nothing is lost."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
import torch
import yaml
from conftest import sentences
from faults import killing
from safetensors.torch import load_file
from torch import nn

from textvae import checkpoint
from textvae.cli import main
from textvae.errors import CheckpointError
from textvae.recipe import Recipe
from textvae.training import train


def net(width: int = 4) -> nn.Module:
    return nn.Linear(width, width)


def save(folder, step: int, width: int = 4) -> None:
    state = {"optimizer": {"moments": torch.ones(width * width)}}
    checkpoint.save_checkpoint(folder, step, net(width), state, {"step": step})


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; skips where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("filled", range(0, 700, 50))
def test_on_a_full_disk_the_last_good_checkpoint_stays_and_is_named(small_disk, filled):
    save(small_disk / "run", 5, width=100)  # 40 kB of weights, 40 kB of moments
    before = {p: p.read_bytes() for p in (small_disk / "run" / "checkpoints").rglob("*") if p.is_file()}
    (small_disk / "ballast").write_bytes(bytes(filled * 1024))
    with pytest.raises(CheckpointError) as caught:
        save(small_disk / "run", 10, width=400)  # 640 kB of weights, and as much again
    message = str(caught.value)
    assert "step-000000010" in message
    assert "No space left on device" in message
    assert "step-000000005" in message
    assert "--resume" in message
    assert {p: p.read_bytes() for p in (small_disk / "run" / "checkpoints").rglob("*") if p.is_file()} == before
    last = checkpoint.latest_checkpoint(small_disk / "run")
    assert checkpoint.load_checkpoint(last, net(100))[1] == {"step": 5}
    (small_disk / "ballast").unlink()
    save(small_disk / "run", 11, width=100)  # what was half-written is no longer in the way


@pytest.mark.parametrize("number", range(2, 16))
def test_wherever_the_disk_says_it_is_full_nothing_whole_is_lost(tmp_path, monkeypatch, number):
    # The same without a disk of one's own: the n-th call that reaches the disk says so. (The first makes a folder
    # that is there.)
    save(tmp_path, 5)
    calls = iter(range(1, 1000))

    def failing(function):
        def call(*args, **kwargs):
            if next(calls) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        for name in ("fsync", "replace", "mkdir"):
            patched.setattr(os, name, failing(getattr(os, name)))
        patched.setattr(torch, "save", failing(torch.save))
        patched.setattr(checkpoint, "save_file", failing(checkpoint.save_file))
        said = None
        try:
            save(tmp_path, 10)
        except CheckpointError as error:
            said = str(error)
    assert said is None or "No space left on device" in said
    last = checkpoint.latest_checkpoint(tmp_path)
    assert checkpoint.load_checkpoint(last, net())[1] in ({"step": 5}, {"step": 10})
    assert (said is None) == (next(calls) <= number)  # every call there is has failed once


class Killed(BaseException):
    """What no handler of errors catches, as no handler catches SIGKILL."""


@pytest.mark.parametrize("step", [10, 15], ids=["the same step again", "one more than are kept"])
def test_killed_before_any_call_that_reaches_the_disk_no_half_checkpoint_is_seen(tmp_path, monkeypatch, step):
    ended = False
    number = 0
    while not ended:
        number += 1
        folder = tmp_path / str(number)
        save(folder, 5)
        save(folder, 10)
        calls = iter(range(1, 1000))

        def killing_at(function, calls=calls, number=number):
            def call(*args, **kwargs):
                if next(calls) == number:
                    raise Killed
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patched:
            for name in ("fsync", "replace", "mkdir", "unlink", "rmdir"):
                patched.setattr(os, name, killing_at(getattr(os, name)))
            try:
                save(folder, step)
                ended = True
            except Killed:
                pass
        seen = sorted((folder / "checkpoints").glob("step-*"))
        assert seen
        for place in seen:
            assert f"step-{checkpoint.load_checkpoint(place, net())[1]['step']:09d}" == place.name
        save(folder, 20)
        assert [p.name for p in sorted((folder / "checkpoints").iterdir())][1:] == ["step-000000020"]
    assert number > 15


def test_a_training_on_a_full_disk_is_one_line_and_can_go_on(values, tmp_path, small_disk, capfd):
    values["training"].update(max_steps=20, save_every=1, evaluate_every=20)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--out", str(small_disk / "run"), "--quiet", "--resume"]
    ballast = small_disk / "ballast"
    assert main([*arguments, "training.max_steps=3"]) == 0
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(bytes(max(0, free - 40_000)))
    capfd.readouterr()
    assert main(arguments) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "No space left on device" in said
    ballast.unlink()
    assert main(arguments) == 0
    assert_same(small_disk / "run", train(Recipe.model_validate(values), tmp_path / "whole", quiet=True))


def test_no_flipped_bit_gives_other_numbers(tmp_path):
    model = net(3)
    path = tmp_path / "model.safetensors"
    checkpoint.save_weights(model, path)
    good = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for place in range(len(good)):  # each byte, in one bit
        damaged = bytearray(good)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        other = net(3)
        try:
            checkpoint.load_weights(other, path)
        except CheckpointError as error:
            refused += "model.safetensors" in str(error)
        else:  # the header's padding and its note of the format hold no number
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert refused > 0.8 * len(good)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recipe, its run of 20 steps and its run of 30 steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "train.txt").write_text("".join(line + "\n" for line in sentences(100)))
    values = {
        "data": {"files": {"train": str(folder / "train.txt")}},
        "model": {"latent_dim": 4, "embedding_dim": 8, "encoder": {"hidden_dim": 8}, "decoder": {"hidden_dim": 8}},
        "training": {"batch_size": 16, "max_steps": 30, "evaluate_every": 10, "threads": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    train(Recipe.model_validate(values), folder / "whole", quiet=True)
    values["training"]["max_steps"] = 20
    train(Recipe.model_validate(values), folder / "run", quiet=True)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A run with two checkpoints, to be spoiled, and the shell's arguments that resume it."""
    shutil.copytree(trained / "run", tmp_path / "run")
    recipe = str(trained / "recipe.yaml")
    return tmp_path / "run", ["train", recipe, "--out", str(tmp_path / "run"), "--quiet", "--resume"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda data: data[:-7]),
        ("model.safetensors", lambda data: data[:-7] + bytes([data[-7] ^ 4]) + data[-6:]),
        ("training.pt", lambda data: b""),
        ("training.pt", lambda data: data[: len(data) // 2]),
        ("state.json", lambda data: data[: len(data) // 2]),
    ],
    ids=["cut weights", "flipped weights", "emptied optimiser", "cut optimiser", "cut position"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_offered(run, name, damage, capfd):
    folder, resume = run
    last = checkpoint.latest_checkpoint(folder)
    assert last.name == "step-000000020"
    (last / name).write_bytes(damage((last / name).read_bytes()))
    assert main(resume) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert str(last / name) in said
    assert f"remove {last} to go on from {last.with_name('step-000000010')}" in said


def test_the_checkpoint_before_goes_on_to_the_same_end(run, trained):
    folder, resume = run
    shutil.rmtree(checkpoint.latest_checkpoint(folder))
    assert main(resume) == 0
    assert_same(folder, trained / "whole")


def assert_same(run, whole) -> None:
    first, second = (load_file(checkpoint.latest_checkpoint(r) / "model.safetensors") for r in (run, whole))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_a_position_of_another_program_is_refused(run, capfd):
    folder, resume = run
    path = checkpoint.latest_checkpoint(folder) / "state.json"
    path.write_text(path.read_text().replace('"step"', '"stop"'))
    assert main(resume) == 2
    assert str(path) in capfd.readouterr().err


def test_an_optimiser_of_nothing_with_a_good_checksum_is_refused(run, capfd):
    folder, resume = run
    last = checkpoint.latest_checkpoint(folder)
    torch.save({}, last / "training.pt")
    saved = json.loads((last / "state.json").read_text())
    saved["sha256"]["training.pt"] = checkpoint._file_digest(last / "training.pt")
    (last / "state.json").write_text(json.dumps(saved))
    assert main(resume) == 2
    assert "training.pt" in capfd.readouterr().err


def test_a_recipe_changed_under_a_run_is_refused_with_key_and_file(run, capfd):
    folder, resume = run
    assert main([*resume, "model.latent_dim=5"]) == 2
    said = capfd.readouterr().err
    assert str(folder / "recipe.yaml") in said
    assert "model.latent_dim was 4, is 5" in said


def test_a_second_training_into_a_folder_is_refused_while_the_first_goes_on(values, tmp_path, capfd):
    values["training"].update(max_steps=100_000, evaluate_every=100_000)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    first = killing.start(tmp_path / "cache", arguments)
    try:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert first.is_alive()
            time.sleep(0.05)
        assert main([*arguments, "--resume"]) == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        assert "another training is writing into it" in said
        assert first.is_alive()
    finally:
        first.kill()
        first.join()


def limited(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the shell in a process that is first limited by `code`."""
    script = f"import os, resource, sys\n{code}\nfrom textvae.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


def test_memory_that_is_not_there_is_one_line(values, tmp_path):
    values["model"].update(embedding_dim=65_536, encoder={"hidden_dim": 65_536})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    limit = "resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))"
    ended = limited(limit, "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"))
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("textvae: out of memory")
    assert ended.stderr.count("\n") == 1
    assert "batch_size" in ended.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 2),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), 2),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), 2),
        (RuntimeError("some other trouble"), None),
    ],
    ids=["python", "cpu", "gpu", "another error"],
)
def test_out_of_memory_is_told_from_other_errors(monkeypatch, capfd, error, code):
    from textvae import cli

    def fail(options):
        raise error

    monkeypatch.setattr(cli, "COMMANDS", {**cli.COMMANDS, "schema": fail})
    if code is None:
        with pytest.raises(RuntimeError):
            main(["recipe", "schema"])
    else:
        assert main(["recipe", "schema"]) == code
        assert capfd.readouterr().err.startswith("textvae: out of memory")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(run, capfd):
    folder, _ = run
    capfd.readouterr()
    assert main(["sample", str(folder), "--device", "cuda"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "'cuda'" in said


def test_a_disk_that_may_only_be_read_is_one_line(values, tmp_path, small_disk, capfd):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main(["train", str(tmp_path / "recipe.yaml"), "--out", str(small_disk / "run")]) == 2
    assert capfd.readouterr().err == f"textvae: {small_disk / 'run'}: cannot be written (Read-only file system)\n"


def test_a_folder_that_may_not_be_written_is_one_line(values, tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o555)
    for path in (tmp_path, *tmp_path.parents[:3]):
        if path.owner() == "root" and os.geteuid() == 0:
            path.chmod(path.stat().st_mode | 0o055)  # root is let in everywhere, so another user tries
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    drop = f"os.environ['HF_HOME'] = {str(tmp_path / 'cache')!r}\n"
    if os.geteuid() == 0:
        drop = "os.setuid(65534)\n" + drop.replace(str(tmp_path / "cache"), "/nonexistent")
    ended = limited(drop, "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "closed" / "run"))
    if "ModuleNotFoundError" in ended.stderr or "PermissionError" in ended.stderr.split("textvae:")[0]:
        pytest.skip("another user may not read this installation")
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "cannot be written (Permission denied)" in ended.stderr
