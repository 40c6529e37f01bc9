"""Recorded steps: what is played is what would have been launched, for every method; when they are made and given back.

On a CPU, by a recorder that does the work again in place of a GPU's graph; `test_gpu.py` has the real one.
"""

import contextlib

import pytest
import torch
from conftest import ROOT

from textvae import recipe_file
from textvae.folders import metrics
from textvae.recipe import Recipe
from textvae.training import replay, setup, train
from textvae.training.replay import Replay

METHODS = sorted(path.stem.removeprefix("grammar-") for path in (ROOT / "recipes").glob("grammar-*.yaml"))
SHORT = ("batch-norm", "iwae", "lm", "mmd", "word-dropout")
OVERRIDES = ["data.grammar={seed: 0, train: 96, validation: 16, test: 16}", "training.max_steps=18"]
OVERRIDES += ["training.max_epochs=null", "training.batch_size=16", "training.threads=1", "training.start_from=null"]
OVERRIDES += ["training.evaluate_every=9", "training.log_every=1", "model.embedding_dim=8"]
OVERRIDES += ["model.encoder.hidden_dim=8", "model.decoder.hidden_dim=8"]


class Again:
    """Records by keeping the work; it is done once more where a graph would be played."""

    def __init__(self, *, room: bool = True, waits: bool = False, short_of_memory_at: int | None = None) -> None:
        self.room, self.waiting, self.short_of_memory_at = room, waits, short_of_memory_at
        self.recorded = self.played = self.cleared = 0

    def has_room(self) -> bool:
        return self.room

    def at_hand(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    @contextlib.contextmanager
    def drawing_nothing(self):
        state = torch.get_rng_state()
        yield
        torch.set_rng_state(state)

    def waits(self, work) -> bool:
        work()
        return self.waiting

    def record(self, work):
        self.recorded += 1
        if self.recorded == self.short_of_memory_at:
            raise torch.OutOfMemoryError("no room for a recording")
        result = torch.zeros(0)

        def play() -> None:
            self.played += 1
            done = work()
            result.resize_(done.shape).copy_(done)

        return play, result

    def clear(self) -> None:
        self.cleared += 1


def trained(recipe: Recipe, folder, monkeypatch, recorder: Again):
    """The rows of a training whose steps are recorded by `recorder`, and its replay."""
    made: list[Replay] = []

    def replay_of(recipe, model, unwrapped, objective, processes):
        if not replay.can_be_recorded(recipe, unwrapped, objective, processes):
            return None
        parameters = [*unwrapped.parameters(), *objective.trained_with_the_model()]
        made.append(Replay(model, objective, parameters, recipe.training.samples, recorder))
        return made[0]

    monkeypatch.setattr(setup, "replay_of", replay_of)
    run = train(recipe, folder, quiet=True)
    unlike = ("part", "tokens_per_s", "elapsed_s")  # and null, where there is no such figure
    rows = [{k: v for k, v in row.items() if k not in unlike and v is not None} for row in metrics(run)]
    return rows, made


def recipe_of(method: str, *more: str) -> Recipe:
    return recipe_file.load(ROOT / "recipes" / f"grammar-{method}.yaml", [*OVERRIDES, *more])


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in METHODS]
)
def test_a_method_whose_steps_are_played_learns_what_it_would_have_learned(method, tmp_path, monkeypatch):
    never = Again(room=False)
    launched, made = trained(recipe_of(method), tmp_path / "launched", monkeypatch, never)
    always = Again()
    played, _ = trained(recipe_of(method), tmp_path / "played", monkeypatch, always)
    assert never.recorded == 0
    if not made:
        return  # a kind that is not recorded: critics, controllers, semi-amortised
    assert always.played > 5
    assert len(played) == len(launched)
    for mine, theirs in zip(played, launched):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4, nan_ok=True)


def test_kinds_that_cannot_be_recorded_are_not(tmp_path, monkeypatch):
    for method, more in (("critic", []), ("pid", []), ("vae", ["training.accumulation=2"])):
        _, made = trained(recipe_of(method, *more), tmp_path / method, monkeypatch, Again())
        assert not made, method


def test_what_waits_for_the_device_is_asked_once_a_shape_and_launched(tmp_path, monkeypatch):
    recorder = Again(waits=True)
    launched, _ = trained(recipe_of("vae"), tmp_path / "launched", monkeypatch, Again(room=False))
    rows, (made,) = trained(recipe_of("vae"), tmp_path / "run", monkeypatch, recorder)
    assert rows == launched
    assert recorder.recorded == recorder.played == 0
    assert made.refused
    assert all(count == replay.SEEN_BEFORE + 1 for key, count in made.seen.items() if key in made.refused)


@pytest.mark.parametrize("at", [1, 2])
def test_without_memory_for_a_recording_all_are_given_back_and_the_training_goes_on(tmp_path, monkeypatch, at):
    recorder = Again(short_of_memory_at=at)
    launched, _ = trained(recipe_of("vae"), tmp_path / "launched", monkeypatch, Again(room=False))
    rows, (made,) = trained(recipe_of("vae"), tmp_path / "run", monkeypatch, recorder)
    assert (recorder.recorded, recorder.cleared) == (at, 1)
    assert not made.recordings
    for mine, theirs in zip(rows, launched, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_a_step_without_memory_is_done_again_without_recordings_and_fails_without_any(tmp_path, monkeypatch):
    from textvae.model import SequenceVAE

    steps, forward = [], SequenceVAE.forward

    def short(self, batch, **options):
        if self.training:
            steps.append(batch)
            if len(steps) == failing:
                raise torch.OutOfMemoryError("no room for a step")
        return forward(self, batch, **options)

    failing = 0
    launched, _ = trained(recipe_of("vae"), tmp_path / "launched", monkeypatch, Again(room=False))
    monkeypatch.setattr(SequenceVAE, "forward", short)
    steps.clear()
    failing = 20  # a pass of a played step: the first ones have been recorded
    recorder = Again()
    rows, (made,) = trained(recipe_of("vae"), tmp_path / "run", monkeypatch, recorder)
    assert recorder.played
    assert made.off
    for mine, theirs in zip(rows, launched, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    steps.clear()
    failing = 2
    with pytest.raises(torch.OutOfMemoryError):
        trained(recipe_of("vae"), tmp_path / "fails", monkeypatch, Again(room=False))
