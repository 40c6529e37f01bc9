"""Run folders that hold what no training put there: nothing of it is lost, written through, waited for or believed."""

import json
import os
import shutil

import pytest
import torch
from torch import nn

import textvae
from textvae import checkpoint, folders
from textvae.checkpoint import latest_checkpoint
from textvae.cli import main
from textvae.errors import CheckpointError
from textvae.recipe import Recipe
from textvae.training import train


@pytest.fixture
def go_on(values, tmp_path):
    """Trains four steps, and returns what goes on from there to six."""
    values["training"] |= {"max_steps": 4, "max_epochs": None, "save_every": 2, "log_every": 1}

    def resume(steps=6):
        values["training"]["max_steps"] = steps
        return train(Recipe.model_validate(values), tmp_path / "run", resume=True, quiet=True)

    train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    return resume


@pytest.fixture
def run(go_on, tmp_path):
    return tmp_path / "run"


def test_what_others_keep_beside_the_checkpoints_stays(run, go_on):
    kept = [run / "checkpoints" / name / "x" for name in (".git", ".step-3.part", "step-mine", ".step-000000002")]
    for path in kept:
        path.parent.mkdir()
        path.write_text("mine")
    left = run / "checkpoints" / ".step-000000003.part"
    left.mkdir()
    go_on()
    assert [path.read_text() for path in kept] == ["mine"] * 4
    assert not left.exists()  # of a killed training
    assert latest_checkpoint(run).name == "step-000000006"


@pytest.mark.parametrize("name", ["checkpoints", "tokenizer", "metrics.jsonl", "curves.png", ".lock"])
def test_nothing_is_written_through_a_link(run, go_on, tmp_path, name):
    (tmp_path / "theirs").mkdir()
    moved = (run / name).rename(tmp_path / "theirs" / name)
    before = {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*") if path.is_file()}
    (run / name).symlink_to(moved)
    with pytest.raises(CheckpointError, match=rf"{name}: is a link"):
        go_on()
    assert {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "curves.png", "recipe.yaml", "model.safetensors"])
def test_a_pipe_is_not_waited_for(run, go_on, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(CheckpointError, match=rf"{name}: is no plain file"):
        go_on()


def test_a_links_loop_and_a_pipe_within_a_checkpoint_are_named(run, go_on):
    state = latest_checkpoint(run) / "state.json"
    state.rename(state.with_name("kept"))
    os.mkfifo(state)
    with pytest.raises(CheckpointError, match=r"state\.json: is missing or damaged"):
        go_on()
    (run / "recipe.yaml").unlink()
    (run / "recipe.yaml").symlink_to(run / "recipe.yaml")
    with pytest.raises(CheckpointError, match=r"recipe\.yaml: "):
        go_on()


def test_weights_are_not_replaced_by_a_training_that_begins_again(run, go_on):
    go_on(8)
    rows = folders.metrics(run)
    assert sum(row["part"] == "validation" for row in rows) > 1
    before = (run / "model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints")
    for gone in (None, ".lock", "metrics.jsonl"):  # neither is in a download
        if gone:
            (run / gone).unlink()
        with pytest.raises(CheckpointError, match=r"no checkpoint to go on from.*start_from: \{run: "):
            go_on(10)
    assert (run / "model.safetensors").read_bytes() == before
    (run / "recipe.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"recipe\.yaml: is missing"):
        go_on(10)
    assert (run / "model.safetensors").read_bytes() == before


BAD_POSITIONS = {
    "step": ["abc", None, [1], -1, 10**15, True, 2],
    "epoch": ["x", -1, 1.5, 5],
    "step_in_epoch": [-1, 10**9],
    "best": ["x", [1]],
    "skipped": ["x", None],
    "elapsed_s": ["x", None, [1]],
    "stopped": ["x", 1, None],
    "numbers": [[1], {"kl": "x"}, None],
}


@pytest.mark.parametrize("name", BAD_POSITIONS)
def test_a_position_that_no_training_wrote_is_refused(run, go_on, name):
    path = latest_checkpoint(run) / "state.json"
    good = json.loads(path.read_text())
    for value in BAD_POSITIONS[name]:
        path.write_text(json.dumps({**good, "position": {**good["position"], name: value}}))
        with pytest.raises(CheckpointError, match=r"state\.json: (position\.|is of step|has more epochs)"):
            go_on()
    path.write_text(json.dumps(good))
    assert latest_checkpoint(go_on()).name == "step-000000006"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"sha256": [1], "position": {}}', '{"position": 1}', "null", "\xff"])
def test_a_broken_state_is_named_and_the_checkpoint_before_offered(run, go_on, text):
    (latest_checkpoint(run) / "state.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"state\.json: is missing or damaged.*go on from .*step-000000002"):
        go_on()


def test_lines_that_are_no_metrics_are_left_out(run, go_on):
    good = folders.metrics(run)
    assert [row["step"] for row in good if row["part"] == "train"] == [1, 2, 3, 4]
    bad = [
        b'{"step": 5, "part"', b"\xff\xfe", b"[" * 100_000, b"[1]", b"null", b'{"part": "train"}', b'{"step": "1"}',
        b'{"step": -' + b"9" * 4000 + b', "part": "train"}', b'{"step": true, "part": "train"}',
        b'{"step": 1, "part": "other"}', b'{"step": 3, "part": "train", "loss": "x", "kl": [1], "a": 1e999}',
    ]  # fmt: skip
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"\n".join(bad) + b"\n")
    assert folders.metrics(run) == [*good, {"step": 3, "part": "train"}]
    go_on()
    text = (run / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines() if '"train"' in line] == [1, 2, 3, 4, 3, 5, 6]
    assert (run / "curves.png").stat().st_size > 1000


def test_a_diverged_training_keeps_no_weights_and_a_model_of_nan_says_nothing(values, tmp_path, capfd):
    values["training"] |= {"max_steps": 30, "max_epochs": None, "evaluate_every": 1, "optimizer": {"lr": 1e300}}
    values["training"]["optimizer"]["kind"] = "sgd"
    values["training"]["gradient_clip"] = None
    with pytest.raises(textvae.errors.TrainingError, match="without a finite gradient"):
        train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    model = nn.Linear(2, 2)
    checkpoint.save_weights(model, tmp_path / "good.safetensors")
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    checkpoint.save_weights(model, tmp_path / "bad.safetensors")
    checkpoint.load_weights(model, tmp_path / "good.safetensors")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: holds NaN \(weight\)"):
        checkpoint.load_weights(model, tmp_path / "bad.safetensors")
    assert model.weight.isfinite().all()
    assert main(["sample", str(tmp_path / "run"), "-n", "1"]) == 2
    assert "the run has no weights yet" in capfd.readouterr().err
