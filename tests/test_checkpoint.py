"""Run folders: what was saved comes back, what was damaged is refused, nothing in them is run."""

import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
from torch import nn

from textvae import checkpoint, folders
from textvae.checkpoint import save_weights
from textvae.errors import CheckpointError, TrainingError
from textvae.written import whole


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.output = nn.Linear(3, 7)
        self.output.weight = self.embedding.weight


def test_weights_come_back_and_tied_ones_stay_tied(tmp_path):
    model, other = Tied(), Tied()
    checkpoint.save_weights(model, tmp_path / "model.safetensors")
    checkpoint.load_weights(other, tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert other.output.weight is other.embedding.weight


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "pickle", "other model", "missing"])
def test_damaged_weights_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    checkpoint.save_weights(nn.Linear(4, 4) if damage == "other model" else Tied(), path)
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[:-5])
    elif damage == "flipped":
        data[-3] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    elif damage == "missing":
        path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.load_weights(Tied(), path)
    assert not (tmp_path / "ran").exists()


class Evil:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save(folder, step: int) -> None:
    checkpoint.save_checkpoint(folder, step, Tied(), {"optimizer": {"x": torch.ones(2)}}, {"step": step})


def test_checkpoints_come_back_and_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000000010", "step-000000100"]
    latest = checkpoint.latest_checkpoint(tmp_path)
    state, position = checkpoint.load_checkpoint(latest, Tied())
    assert torch.equal(state["optimizer"]["x"], torch.ones(2))
    assert position == {"step": 100}


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_offered(tmp_path, name, damage):
    for step in (5, 10):
        save(tmp_path, step)
    path = tmp_path / "checkpoints" / "step-000000010" / name
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        checkpoint.load_checkpoint(checkpoint.latest_checkpoint(tmp_path), Tied())
    assert "step-000000005" in str(caught.value)
    shutil.rmtree(path.parent)
    assert checkpoint.load_checkpoint(checkpoint.latest_checkpoint(tmp_path), Tied())[1] == {"step": 5}


def test_a_pickle_in_place_of_the_optimiser_is_not_run(tmp_path):
    save(tmp_path, 5)
    folder = checkpoint.latest_checkpoint(tmp_path)
    (folder / "training.pt").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    # Even with a matching checksum, as an attacker would write it.
    values = json.loads((folder / "state.json").read_text())
    values["sha256"]["training.pt"] = hashlib.sha256((folder / "training.pt").read_bytes()).hexdigest()
    (folder / "state.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"training\.pt"):
        checkpoint.load_checkpoint(folder, Tied())
    assert not (tmp_path / "ran").exists()


def test_two_programs_that_write_one_file_put_whole_ones_in_its_place(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    with whole(path) as one:
        one.write_text("1" * 100)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)  # another program, which is alive
            with whole(path) as two:
                two.write_text("2" * 100)
        assert path.read_text() == "2" * 100
    assert path.read_text() == "1" * 100
    (tmp_path / ".x.json.99999999.part").write_text("half")  # of one that was killed
    with whole(path) as three:
        three.write_text("3")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_weights_are_for_those_whom_the_mask_lets_read(tmp_path):
    before = os.umask(0o022)
    try:
        save_weights(torch.nn.Linear(2, 2), tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_half_written_checkpoint_is_never_found(tmp_path):
    save(tmp_path, 5)
    (tmp_path / "checkpoints" / ".step-000000010.part").mkdir()
    assert checkpoint.latest_checkpoint(tmp_path).name == "step-000000005"


def test_a_second_training_into_the_same_folder_is_refused(tmp_path):
    with (
        folders.locked(tmp_path),
        pytest.raises(TrainingError, match="another training"),
        folders.locked(tmp_path),
    ):
        pass
    with folders.locked(tmp_path):
        pass


def test_a_training_that_wrote_nothing_leaves_no_folder(tmp_path):
    def training(folder, wrote):
        with folders.locked(folder):
            if wrote:
                (folder / "recipe.yaml").write_text("name: run")
            raise ValueError("a broken corpus")

    for folder, wrote in ((tmp_path / "new", False), (tmp_path / "begun", True)):
        with pytest.raises(ValueError, match="a broken corpus"):
            training(folder, wrote)
        assert folder.exists() is wrote
    (tmp_path / "mine").mkdir()
    with folders.locked(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_lock_that_was_taken_away_holds_nothing(tmp_path, monkeypatch):
    import fcntl

    def late(file, flags):
        (tmp_path / "run" / ".lock").unlink()  # by the training that held it, in the meantime
        (tmp_path / "run" / ".lock").touch()

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(TrainingError, match="another training"), folders.locked(tmp_path / "run"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(TrainingError, match="cannot be written"), folders.locked(tmp_path / "run"):
        pass
