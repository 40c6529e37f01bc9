"""SIGKILL at any moment: the run goes on and ends as if nothing had been, and nothing half-written is believed."""

import json
import random
import shutil

import pytest
import torch
import yaml
from conftest import sentences
from faults import killing
from safetensors.torch import load_file

from textvae import checkpoint, recipe_file
from textvae.training import loop

# What is waited for before the random delay: the moment of the kill lies in one of these.
STAGES = ("tokenising", "first save", "training")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A recipe that saves after every step, and its weights, state and figures undisturbed."""
    folder = tmp_path_factory.mktemp("killed")
    for seed, (part, count) in enumerate({"train": 800, "validation": 60, "test": 30}.items()):
        (folder / f"{part}.txt").write_text("".join(line + "\n" for line in sentences(count, seed)))
    values = {
        "data": {"files": {part: f"{part}.txt" for part in ("train", "validation", "test")}},
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "model": {
            "latent_dim": 4,
            "embedding_dim": 8,
            "word_dropout": 0.2,
            "encoder": {"hidden_dim": 8},
            "decoder": {"hidden_dim": 8, "output_dropout": 0.2},
        },
        "objective": {"kl": {"kind": "kl", "weight": {"kind": "pid", "target": 1.0}}},
        "training": {"batch_size": 16, "max_steps": 40, "evaluate_every": 15, "save_every": 1, "threads": 1},
        "generation": {"max_length": 10},
        "evaluation": {"iw_samples": 10},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    whole = folder / "whole"
    assert killing.run(folder / "cache", train(folder, whole)) == 0
    return folder, whole


def train(folder, run) -> list[str]:
    return ["train", str(folder / "recipe.yaml"), "--out", str(run), "--resume", "--quiet"]


def end_of(run) -> tuple[dict, dict, list]:
    """All that a training leaves that is no time: tensors, the rest of its state, its figures."""
    last = checkpoint.latest_checkpoint(run)
    tensors = {**load_file(last / "model.safetensors"), **load_file(run / "model.safetensors")}
    state = torch.load(last / "training.pt", weights_only=True)
    moments = {
        f"{i}.{name}": value for i, values in state["optimizer"]["state"].items() for name, value in values.items()
    }
    rows = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.append({k: v for k, v in row.items() if k not in ("elapsed_s", "tokens_per_s")})
    position = json.loads((last / "state.json").read_text())["position"]
    position.pop("elapsed_s")
    return {**tensors, **moments, **state["objective"]}, position, [row for row in rows if row["part"] == "validation"]


def assert_as_undisturbed(run, whole) -> None:
    (tensors, *rest), (expected, *expected_rest) = end_of(run), end_of(whole)
    assert rest == expected_rest
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def assert_nothing_half_written(run) -> None:
    """Every checkpoint that is seen is whole."""
    for folder in (run / "checkpoints").glob("step-*"):
        saved = json.loads((folder / "state.json").read_text())
        for name, digest in saved["sha256"].items():
            assert checkpoint._file_digest(folder / name) == digest


def killed_and_resumed(experiment, folder, seed: int) -> int:
    """A training killed up to three times, then left to end; how many kills came in time."""
    source, whole = experiment
    draw = random.Random(seed)
    run, cache = folder / f"run-{seed}", folder / f"cache-{seed}"
    kills = 0
    for _ in range(draw.randint(1, 3)):
        stage = STAGES[draw.randrange(len(STAGES))]
        when = {
            "tokenising": lambda: (run / ".lock").exists(),
            "first save": lambda: (run / "checkpoints").exists(),
            "training": lambda: checkpoint.latest_checkpoint(run) is not None,
        }[stage]
        kills += killing.kill(cache, train(source, run), when, draw.uniform(0, 1.0))
        assert_nothing_half_written(run)
    assert killing.run(cache, train(source, run)) == 0
    assert_as_undisturbed(run, whole)
    assert not list((run / "checkpoints").glob(".*"))  # nothing is left behind either
    shutil.rmtree(cache)
    return kills


def test_a_training_killed_anywhere_resumes_and_ends_bit_identical(experiment, tmp_path):
    assert sum(killed_and_resumed(experiment, tmp_path, seed) for seed in range(3)) > 0


@pytest.mark.slow
def test_fifty_trainings_killed_anywhere_end_bit_identical(experiment, tmp_path):
    kills = sum(killed_and_resumed(experiment, tmp_path, seed) for seed in range(100, 150))
    print(f"{kills} kills in 50 trainings")
    assert kills >= 50


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 152), marks=pytest.mark.slow)], ids=["few", "many"])
def test_killed_while_it_generates_or_evaluates_a_run_stays_as_it_was(experiment, tmp_path, seeds):
    source, whole = experiment
    run, cache = tmp_path / "run", source / "cache"
    shutil.copytree(whole, run)
    before = {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    commands = [["sample", str(run), "-n", "3000"], ["evaluate", str(run), "--save"], ["fit-prior", str(run)]]
    for seed in seeds:
        draw = random.Random(seed)
        killing.kill(cache, commands[seed % len(commands)], lambda: True, draw.uniform(0.05, 1.5))
        for path, content in before.items():
            assert (run / path).read_bytes() == content
        for path in run.glob("evaluation-*.json"):
            assert json.loads(path.read_text())["per_sentence"]
        # A prior that was fitted is whole, or is not there.
        checkpoint.load_prior(run)
    assert killing.run(cache, ["sample", str(run), "-n", "2", "--seed", "0"]) == 0


def test_ended_between_its_last_evaluation_and_its_last_save_no_row_stands_twice(experiment, tmp_path, monkeypatch):
    source, whole = experiment
    run, saves = tmp_path / "run", []
    original = loop._save

    def ends_at_the_last(experiment, accelerator, position, folder):
        saves.append(position.step)
        if saves.count(40) == 2:  # the one after the last step is done, this comes after the last evaluation
            raise KeyboardInterrupt
        original(experiment, accelerator, position, folder)

    monkeypatch.setattr(loop, "_save", ends_at_the_last)
    recipe = recipe_file.load(source / "recipe.yaml")
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, run, quiet=True)
    monkeypatch.setattr(loop, "_save", original)
    loop.train(recipe, run, resume=True, quiet=True)
    assert_as_undisturbed(run, whole)
