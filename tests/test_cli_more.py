"""The shell, where words stand in another order, a file is written otherwise, or a run is gone on with differently."""

import json
import shutil

import pytest
import yaml
from conftest import sentences, tiny_model

import textvae
from textvae.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe on text of one's own, without a test part, and its run."""
    folder = tmp_path_factory.mktemp("more")
    for seed, (part, count) in enumerate({"train": 200, "validation": 30}.items()):
        (folder / f"{part}.txt").write_text("\n".join(sentences(count, seed)) + "\n")
    values = {
        "data": {"files": {part: f"{part}.txt" for part in ("train", "validation")}},
        "model": tiny_model(),
        "objective": {"kl": {"kind": "kl"}},
        "training": {"batch_size": 16, "max_steps": 20, "evaluate_every": 10, "threads": 1},
        "evaluation": {"iw_samples": 5},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


@pytest.fixture
def run(folder, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(folder / "run", tmp_path / "run")


def printed(capfdbinary) -> list[str]:
    return capfdbinary.readouterr().out.decode().splitlines()


def refused(capfd, *arguments: str) -> str:
    """The one line that a mistake is."""
    assert main([*map(str, arguments)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    return said


def test_options_may_stand_before_what_may_be_left_out(folder, capfdbinary):
    run, text = str(folder / "run"), str(folder / "validation.txt")
    for command, option in (
        ("reconstruct", ["--method", "greedy"]),
        ("score", ["--seed", "1"]),
        ("encode", ["--json"]),
    ):
        assert main([command, run, *option, text]) == 0
        first = printed(capfdbinary)
        assert main([command, run, text, *option]) == 0
        assert first == printed(capfdbinary)
        assert len(first) == 30
    override = "data.limit={validation: 7}"
    for arguments in ([override, "--split", "validation"], ["--split", "validation", override]):
        assert main(["evaluate", run, "--json", *arguments]) == 0
        assert json.loads(printed(capfdbinary)[0])["sentences"] == 7
    assert main(["neighbours", run, text, "-k", "2", text]) == 0
    assert printed(capfdbinary)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "{recipe}", "--training.max_steps=3"], "an override has no dashes: training.max_steps=3"),
        (["reconstruct", "{run}", "--methd", "greedy"], "textvae reconstruct: error: unrecognized arguments: --methd"),
        (["recipe", "check", "{recipe}", "--strict"], "textvae recipe check: error: unrecognized arguments: --strict"),
        (["sample", "{run}", "more"], "textvae sample: error: unrecognized arguments: more"),
    ],
)
def test_what_no_command_takes_is_refused_by_that_command(folder, arguments, message, capfd):
    names = {"recipe": folder / "recipe.yaml", "run": folder / "run"}
    with pytest.raises(SystemExit):
        main([argument.format(**names) for argument in arguments])
    assert message in capfd.readouterr().err


def test_a_byte_order_mark_is_no_text(folder, tmp_path, capfdbinary):
    latents = []
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "text.txt").write_bytes(mark + b"the cat sees the dog .\r\nthe dog")
        assert main(["encode", str(folder / "run"), str(tmp_path / "text.txt"), "--json"]) == 0
        latents.append(printed(capfdbinary))
    assert latents[0] == latents[1]
    assert [json.loads(line)["text"] for line in latents[0]] == ["the cat sees the dog .", "the dog"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"the cat\nthe d\xf6g\n", "line 2, byte 13 of the file's text: 0xf6 is not UTF-8 here"),
        ("the cat\n".encode("utf-16-le"), "every other byte is 0, as in UTF-16"),
    ],
)
def test_another_encoding_is_named_as_in_a_corpus(folder, tmp_path, data, message, capfd):
    (tmp_path / "text.txt").write_bytes(data)
    assert message in refused(capfd, "encode", folder / "run", tmp_path / "text.txt")


@pytest.mark.parametrize("length", ["training.max_steps=7", "training.max_epochs=1"])
def test_a_resumed_training_is_not_made_shorter_than_it_is(run, length, capfd):
    before = (run / "recipe.yaml").read_bytes()
    said = refused(capfd, "train", run / "recipe.yaml", "--out", run, "--resume", "--quiet", length)
    assert "stands at step 20; a resumed training can be longer, not shorter" in said
    assert (run / "recipe.yaml").read_bytes() == before


def test_a_resumed_training_says_that_its_length_has_changed(run, capfd):
    arguments = ["train", str(run / "recipe.yaml"), "--out", str(run), "--resume"]
    assert main([*arguments, "training.max_steps=20"]) == 0
    assert "schedules over the whole" not in capfd.readouterr().err
    assert main([*arguments, "training.max_steps=24"]) == 0
    assert "the training had 20 steps and has 24 steps now: schedules over the whole" in capfd.readouterr().err
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"]["max_steps"] == 24


def test_resuming_what_is_not_there_says_that_it_is_new(folder, tmp_path, capfd):
    arguments = ["train", str(folder / "recipe.yaml"), "--out", str(tmp_path / "other"), "training.max_steps=2"]
    assert main([*arguments, "--resume"]) == 0
    assert f"nothing to go on from in {tmp_path / 'other'}: a new run" in capfd.readouterr().err


def test_a_run_without_a_test_part_is_measured_on_its_validation_part(folder, monkeypatch, capfdbinary):
    seen = []
    monkeypatch.setattr("textvae.bench.bench", lambda vae, texts, **options: seen.append(list(texts)) or [])
    monkeypatch.setattr("textvae.bench.table", lambda rows: "")
    assert main(["bench", str(folder / "run"), "--sentences", "8"]) == 0
    assert seen == [(folder / "validation.txt").read_text().splitlines()[:8]]


def test_a_run_that_samples_coldly_is_evaluated_by_another_method(run, capfd):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["generation"] |= {"temperature": 0.7, "top_k": 5}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["evaluate", str(run), "--split", "validation", "--samples", "5", "generation.method=beam"]
    assert main([*command, "--json"]) == 0
    decoding = json.loads(capfd.readouterr().out)["settings"]["samples_by"]
    assert (decoding["method"], decoding["temperature"]) == ("beam", 1.0)
    assert "generation.top_k: got 3 with method 'beam'" in refused(capfd, *command, "generation.top_k=3")


def test_a_comparison_says_the_same_again_and_of_every_figure(folder, run, capfdbinary):
    runs = [folder / "run", run]
    assert main(["train", str(run / "recipe.yaml"), "--out", str(run), "--resume", "training.max_steps=60"]) == 0
    for place in runs:
        arguments = ["evaluate", str(place), "--split", "validation", "--save", "--samples", "40"]
        assert main(arguments) == 0
    assert b"the part validation has 30 sentences, and samples are 40" in capfdbinary.readouterr().err
    outputs = []
    for _ in range(2):
        assert main(["compare", *map(str, runs), "--split", "validation", "--json"]) == 0
        outputs.append(printed(capfdbinary))
    assert outputs[0] == outputs[1]
    figures = {row["figure"]: row for row in map(json.loads, outputs[0]) if "figure" in row}
    assert {"nll_iw", "ppl_iw", "samples.distinct_2"} <= figures.keys()
    # A perplexity differs beyond noise where the mean that it is a function of does.
    assert figures["ppl_iw"]["beyond_noise"] == figures["nll_iw"]["beyond_noise"] == [str(run)]
    assert figures["samples.distinct_2"]["beyond_noise"] is None
    assert any(name.startswith("aggregate.") for name in figures)
    assert not [name for name in figures if name.startswith(("settings", "per_sentence"))]
    assert not [name for name in figures if name.endswith(("count", "_sentences", "_reference", "_ceiling", "_error"))]


def test_no_sample_is_asked_of_a_fitted_prior(run):
    vae = textvae.load(run)
    vae.fit_prior(sentences(50), kind="mixture", components=2)
    assert vae.sample(0) == []
    assert len(vae.sample(2)) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.streaming=true", "objective.kl.weight={kind: linear, over: 3 epochs}"],
            "objective.kl.weight: got '3 epochs', but a stream",
        ),
        (["data.streaming=true", "training.lr_schedule={kind: cosine, warmup: 1 epoch}"], "training.lr_schedule: "),
        (["training.trackers=[tensorbord]"], "Did you mean 'tensorboard'"),
        (["objective.mmd={kind: mmd, wieght: 10}"], "known: kernel, scales, weight. Did you mean 'weight'"),
        (["model.prior={kind: uniform_sphere}"], "the posterior Normal has no density"),
    ],
)
def test_the_check_says_what_a_training_would(folder, overrides, message, capfd):
    assert main(["recipe", "check", str(folder / "recipe.yaml"), *overrides]) == 2
    assert message in capfd.readouterr().err


def test_a_folder_for_a_file_and_the_other_way_round_are_named(folder, capfd):
    assert "is a file, and a run is a folder" in refused(capfd, "sample", folder / "run" / "recipe.yaml")
    assert "a run's own is its recipe.yaml" in refused(capfd, "recipe", "check", folder / "run")
