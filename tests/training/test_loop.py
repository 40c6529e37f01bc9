"""The loop: it learns, it resumes to the bit, and machines and pieces change memory and time, never numbers."""

import copy
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import has_rows
from safetensors.torch import load_file

import textvae
from textvae.checkpoint import latest_checkpoint
from textvae.cli import main
from textvae.errors import CheckpointError, UserError
from textvae.folders import metrics
from textvae.latent.divergences import DIVERGENCES
from textvae.recipe import Recipe
from textvae.training import loop, train


def recipe(values: dict, **training) -> Recipe:
    values = copy.deepcopy(values)
    values["training"].update(training)
    return Recipe.model_validate(values)


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(latest_checkpoint(run) / "model.safetensors")


def rows(run: Path, part: str) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["part"] == part]


def command(values: dict, folder: Path, *arguments: str) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return [sys.executable, "-m", "textvae", "train", str(path), "--quiet", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_training_learns_and_leaves_a_whole_run_folder(values, tmp_path):
    run = train(recipe(values, max_steps=150, evaluate_every=75), tmp_path / "run", quiet=True)
    validation = rows(run, "validation")
    assert [row["step"] for row in validation] == [75, 150]
    assert validation[-1]["nll_elbo"] < 14 < rows(run, "train")[0]["loss"]
    assert {p.name for p in run.iterdir()} >= {"recipe.yaml", "tokenizer", "model.safetensors", "curves.png"}
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_resolved_recipe_repeats_the_run_to_the_bit(values, tmp_path):
    from textvae import recipe_file

    first = train(recipe(values), tmp_path / "first", quiet=True)
    second = train(recipe_file.load(first / "recipe.yaml"), tmp_path / "second", quiet=True)
    assert_same(last_weights(first), last_weights(second))


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_nothing_of_a_step_is_kept_but_its_numbers(values, tmp_path, monkeypatch):
    from textvae.training.telemetry import Telemetry

    seen, step = [], Telemetry.step

    def spied(self, number, epoch, tokens, figures, weights, norm, rate):
        step(self, number, epoch, tokens, figures, weights, norm, rate)
        seen.append((figures, self.mean, self.steps))

    monkeypatch.setattr(Telemetry, "step", spied)
    run = train(recipe(values, max_steps=10, log_every=4), tmp_path / "run", quiet=True)
    assert [count for *_, count in seen] == [1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
    assert all(figures.grad_fn is None for figures, *_ in seen)
    for end, row in zip((4, 8), rows(run, "train")):
        losses = [float(figures[0]) for figures, *_ in seen[end - 4 : end]]
        assert row["loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)


def test_pieces_draw_by_process_and_their_terms_do_not(values, tmp_path, monkeypatch):
    from textvae.training import steps

    keys, mix = [], steps.mix
    monkeypatch.setattr(steps, "mix", lambda *key: keys.append(key) or mix(*key))
    train(recipe(values, max_steps=1, accumulation=3), tmp_path / "run", quiet=True)
    seed, step, process = keys[0]
    assert (step, process) == (0, 0)
    of_terms = [(seed, 0, piece, 7) for piece in range(3)]
    assert keys == [
        (seed, 0, process), of_terms[0], (seed, 0, process, 1), of_terms[1], (seed, 0, process, 2), of_terms[2]
    ]  # fmt: skip


def test_under_a_controller_the_best_is_weighed_by_its_weight_of_now(values, tmp_path, monkeypatch):
    figures = iter([(12.0, 3.0), (11.9, 2.9), (11.8, 2.8), (11.9, 2.9)])  # better in both twice, then worse in both

    def measured(*args, **kwargs):
        reconstruction, kl = next(figures)
        return {
            **{"reconstruction": reconstruction, "kl": kl, "term_kl": kl, "nll_elbo": reconstruction + kl},
            **{"ppl_elbo": 9.0, "mutual_information": 1.0, "active_units": 4.0},
        }

    monkeypatch.setattr("textvae.training.loop.quick", measured)
    values["objective"] = {"kl": {"kind": "kl", "weight": {"kind": "pid", "target": 0.05, "kp": 0.1, "ki": 0.1}}}
    run = train(recipe(values, max_steps=40, evaluate_every=10), tmp_path / "run", quiet=True)
    found = rows(run, "validation")
    assert found[0]["loss"] < min(row["loss"] for row in found[1:])  # by the weights that were then
    position = json.loads((latest_checkpoint(run) / "state.json").read_text())["position"]
    assert position["best_step"] == 30
    assert position["stalled"] == 1
    assert position["best_numbers"]["kl"] == 2.8


def test_a_semi_amortised_run_is_measured_refined(values, tmp_path):
    from textvae.evaluation.refined import Refining
    from textvae.evaluation.report import quick
    from textvae.seeds import generator
    from textvae.text.batching import ListStore, evaluation_batches
    from textvae.training.loop import EVALUATED_TOGETHER

    values["training"]["semi_amortized"] = {"steps": 4, "lr": 0.5}
    made = recipe(values, max_steps=4, evaluate_every=4)
    run = train(made, tmp_path / "run", quiet=True)
    vae = textvae.load(run)
    texts = Path(values["data"]["files"]["validation"]).read_text().splitlines()
    store = ListStore(vae.tokenizer.encode(texts))
    found = {
        name: quick(
            model,
            (batch for _, batch in evaluation_batches(store, vae.tokenizer.pad_id, at_most=EVALUATED_TOGETHER)),
            generator=generator(made.seed, 0),
        )
        for name, model in (("encoder", vae.model), ("refined", Refining(vae.model, made.training.semi_amortized, 0)))
    }
    row = rows(run, "validation")[-1]
    assert row["nll_elbo"] == pytest.approx(found["refined"]["nll_elbo"], rel=1e-5)
    assert abs(found["encoder"]["nll_elbo"] - found["refined"]["nll_elbo"]) > 0.01


@pytest.mark.slow  # faults/test_killed.py kills anywhere
def test_killed_in_the_middle_of_an_epoch_and_resumed_ends_bit_identical(values, tmp_path):
    values["model"]["word_dropout"] = 0.2
    values["model"]["decoder"]["output_dropout"] = 0.3
    values["training"].update(max_steps=400, evaluate_every=130, save_every=17)
    undisturbed = train(Recipe.model_validate(values), tmp_path / "whole", quiet=True)

    run = tmp_path / "killed"
    process = subprocess.Popen(command(values, tmp_path, "--out", str(run)), env=environment())
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "step-000000034").exists():
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped_at = int(latest_checkpoint(run).name.split("-")[1])
    assert stopped_at < 400
    assert stopped_at % 13 != 0  # 200 sentences in batches of 16 are 13 steps an epoch

    train(Recipe.model_validate(values), run, resume=True, quiet=True)
    assert_same(last_weights(run), last_weights(undisturbed))
    keys = ("step", "nll_elbo")
    assert [[r[k] for k in keys] for r in rows(run, "validation")] == [
        [r[k] for k in keys] for r in rows(undisturbed, "validation")
    ]


def test_rows_of_a_resumed_run_are_the_undisturbed_ones_also_where_it_stopped_between_two(values, tmp_path):
    values["training"].update(log_every=5, evaluate_every=100)
    whole = train(recipe(values, max_steps=11), tmp_path / "whole", quiet=True)
    run = train(recipe(values, max_steps=11, save_every=3), tmp_path / "run", quiet=True)
    for later in ("step-000000009", "step-000000011"):  # as one that was killed after step 6 has left it
        shutil.rmtree(run / "checkpoints" / later, ignore_errors=True)
    train(recipe(values, max_steps=11, save_every=3), run, resume=True, quiet=True)
    for resumed, straight in zip(rows(run, "train"), rows(whole, "train"), strict=True):
        assert {**resumed, "tokens_per_s": 0} == {**straight, "tokens_per_s": 0}


def test_terminated_politely_it_saves_and_can_be_resumed(values, tmp_path):
    values["training"].update(max_steps=4000, evaluate_every=4000)
    run = tmp_path / "run"
    process = subprocess.Popen(command(values, tmp_path, "--out", str(run)), env=environment(), stderr=subprocess.PIPE)
    while not has_rows(run):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    message = process.communicate()[1].decode()
    assert process.returncode == 130
    assert "--resume" in message
    assert "Traceback" not in message
    assert latest_checkpoint(run) is not None


def test_a_second_signal_acts_as_usual_and_an_echo_of_the_first_does_not(monkeypatch):
    with loop._stop_signals() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
        monkeypatch.setattr(loop, "ECHO_S", 0.0)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("accumulation", [2, 3])
def test_accumulation_changes_nothing_beyond_rounding(values, tmp_path, accumulation):
    whole = train(recipe(values), tmp_path / "whole", quiet=True)
    pieces = train(recipe(values, accumulation=accumulation), tmp_path / "pieces", quiet=True)
    for name, tensor in last_weights(whole).items():
        torch.testing.assert_close(last_weights(pieces)[name], tensor, atol=2e-4, rtol=1e-3, msg=name)
    (one, *_), (other, *_) = ([row for row in metrics(run) if row["part"] == "train"] for run in (whole, pieces))
    for name in ("loss", "reconstruction", "kl", "gradient_norm"):
        assert other[name] == pytest.approx(one[name], rel=1e-3), name  # of all pieces, not the last one


@pytest.mark.slow  # test_processes.py has more of it
def test_two_processes_give_the_parameters_of_one_with_the_batches_joined(values, tmp_path):
    # SGD: Adam would blow rounding up where a gradient is near 0. Terms of the batch see all processes' rows.
    values["objective"] = {
        "kl": {"kind": "kl", "free_nats": 2.0, "weight": 0.5},
        "mmd": {"kind": "mmd", "weight": 3.0},
    }
    values["training"].update(optimizer={"kind": "sgd", "lr": 0.5}, accumulation=1, batch_size=15)
    one = train(Recipe.model_validate(values), tmp_path / "one", quiet=True)
    two = tmp_path / "two"
    finished = subprocess.run(
        command(values, tmp_path, "--out", str(two), "--processes", "2"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    for name, tensor in last_weights(one).items():
        torch.testing.assert_close(last_weights(two)[name], tensor, atol=2e-5, rtol=1e-4, msg=name)


def test_early_stopping_ends_after_evaluations_without_gain(values, tmp_path):
    steps = recipe(values, max_steps=500, early_stopping=2, optimizer={"kind": "sgd", "lr": 1e-9})
    run = train(steps, tmp_path / "run", quiet=True)
    assert rows(run, "validation")[-1]["step"] < 500


def test_plateau_halves_the_rate_reloads_the_best_and_stops(values, tmp_path):
    # A rate far too low: after the first evaluation nothing is gained.
    values["training"].update(
        max_steps=2000,
        evaluate_every=5,
        log_every=1,
        optimizer={"kind": "sgd", "lr": 8e-12},
        decay={"kind": "plateau", "factor": 0.5, "patience": 1, "decays": 3},
    )
    run = train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    rates = [row["learning_rate"] for row in rows(run, "train")]
    assert rates[0] == 8e-12
    assert rates == sorted(rates, reverse=True)
    assert set(rates) == {8e-12, 4e-12, 2e-12, 1e-12}
    assert len(rates) < 2000


def test_a_language_model_trains_with_the_same_code(values, tmp_path):
    values["model"]["latent_dim"] = 0
    del values["objective"]
    run = train(recipe(values), tmp_path / "run", quiet=True)
    last = rows(run, "validation")[-1]
    assert last["kl"] == 0
    assert last["nll_elbo"] == pytest.approx(last["reconstruction"])


def test_bfloat16_trains(values, tmp_path):
    run = train(recipe(values, precision="bf16", max_steps=100), tmp_path / "run", quiet=True)
    assert rows(run, "validation")[-1]["nll_elbo"] < 16
    assert all(tensor.dtype == torch.float32 for tensor in last_weights(run).values())


def test_a_stream_trains_and_resumes_to_the_bit(values, tmp_path):
    values["data"].update(streaming=True, shuffle_buffer=50)
    values["training"].update(max_steps=24, save_every=7)
    whole = train(Recipe.model_validate(values), tmp_path / "whole", quiet=True)
    run = tmp_path / "resumed"
    train(recipe(values, max_steps=9), run, quiet=True)
    train(Recipe.model_validate(values), run, resume=True, quiet=True)
    assert_same(last_weights(run), last_weights(whole))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text + "one more sentence\n", id="longer"),
        pytest.param(lambda text: "".join(reversed(text.splitlines(keepends=True))), id="reversed"),
        pytest.param(lambda text: text.replace("cat", "dog"), id="other words of the same lengths"),
    ],
)
def test_a_resumed_run_notices_that_its_corpus_is_another(values, tmp_path, change):
    run = train(recipe(values, max_steps=5), tmp_path / "run", quiet=True)
    path = Path(values["data"]["files"]["train"])
    text = path.read_text()
    path.write_text(change(text))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError, match=r"its corpus is not the one .*start_from"):
        train(recipe(values, max_steps=10), run, resume=True, quiet=True)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before  # its recipe, too


@pytest.mark.parametrize("kind", ["word", "byte", "sentencepiece"])
def test_what_a_changed_corpus_is_told_to_do_works(values, tmp_path, capsys, kind):
    """A tokenizer that is learned anew would have other words: the message says how to keep the run's own."""
    values["tokenizer"] = {"kind": kind} | ({"vocab_size": 300} if kind == "sentencepiece" else {})
    run = train(recipe(values, max_steps=2), tmp_path / "run", quiet=True)
    path = Path(values["data"]["files"]["train"])
    path.write_text(path.read_text() + "one more unseen zebra\n")
    plain = tmp_path / "again.yaml"
    plain.write_text(yaml.safe_dump(values))
    assert main(["train", str(plain), "--out", str(run), "--resume", "training.max_steps=4"]) == 2
    told = shlex.split(capsys.readouterr().err.strip().rpartition("begin with its parameters: ")[2])
    assert main(["train", str(plain), "--out", str(tmp_path / "next"), "--quiet", "training.max_steps=1", *told]) == 0
    assert len(textvae.load(tmp_path / "next").tokenizer) == len(textvae.load(run).tokenizer)


def test_a_run_that_ended_where_its_patience_did_can_be_made_longer(values, tmp_path, monkeypatch, capfd):
    """An evaluation that is only made because a training ends is none of those that its patience goes by."""
    values["training"] |= {"evaluate_every": 10, "early_stopping": 1, "monitor": "nll_elbo"}
    found, quick = iter([5.0, 9.0, 4.0, 6.0]), loop.quick  # after steps 10, 11, 20 and 30
    monkeypatch.setattr(loop, "quick", lambda *given, **named: {**quick(*given, **named), "nll_elbo": next(found)})
    run = train(recipe(values, max_steps=11), tmp_path / "run", quiet=True)
    train(recipe(values, max_steps=900), run, resume=True, quiet=True)
    assert [row["step"] for row in rows(run, "validation")] == [10, 11, 20, 30]
    capfd.readouterr()
    train(recipe(values, max_steps=1000), run, resume=True)
    assert latest_checkpoint(run).name == "step-000000030"
    assert "has stopped early" in capfd.readouterr().err


def left_by_two(values, tmp_path):
    """A run in the middle of an epoch as two processes would have left it, its state's file and what that holds."""
    run = train(recipe(values, max_steps=3), tmp_path / "run", quiet=True)
    state = latest_checkpoint(run) / "state.json"
    saved = json.loads(state.read_text())
    assert (saved["position"]["processes"], saved["position"]["step_in_epoch"]) == (1, 3)
    saved["position"]["processes"] = 2
    state.write_text(json.dumps(saved))
    return run, state, saved


def test_the_middle_of_an_epoch_in_shares_is_gone_on_with_by_as_many_processes(values, tmp_path):
    values["data"].update(streaming=True, stream_shares=True)
    run, state, saved = left_by_two(values, tmp_path)
    with pytest.raises(CheckpointError, match="--processes 2"):
        train(recipe(values, max_steps=6), run, resume=True, quiet=True)
    saved["position"] |= {"step_in_epoch": 0, "epoch": 1}
    state.write_text(json.dumps(saved))
    train(recipe(values, max_steps=6), run, resume=True, quiet=True)


@pytest.mark.parametrize("change", [{"batch_tokens": 25}, {}], ids=str)
def test_batches_that_are_others_for_other_processes_are_gone_on_with_by_as_many(values, tmp_path, change):
    values["training"].update(change)
    run, state, saved = left_by_two(values, tmp_path)
    if change:
        with pytest.raises(CheckpointError, match=r"batches are others for another number .* --processes 2"):
            train(recipe(values, max_steps=6), run, resume=True, quiet=True)
        saved["position"] |= {"step_in_epoch": 0, "epoch": 1}
        state.write_text(json.dumps(saved))
    train(recipe(values, max_steps=6), run, resume=True, quiet=True)


def test_saved_evaluations_go_with_the_weights_that_they_are_of(values, tmp_path):
    run = train(recipe(values, max_steps=10, evaluate_every=10), tmp_path / "run", quiet=True)
    assert main(["evaluate", str(run), "--save", "evaluation.iw_samples=2"]) == 0
    assert (run / "evaluation-test.json").exists()
    train(recipe(values, max_steps=60, evaluate_every=10), run, resume=True, quiet=True)
    assert not list(run.glob("evaluation-*"))


def test_a_recipe_made_in_python_is_read_again_from_its_runs_folder(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values["data"]["files"] = {part: os.path.relpath(path) for part, path in values["data"]["files"].items()}
    run = train(recipe(values, max_steps=2), Path("runs/one"), quiet=True)
    again = textvae.load_recipe(run / "recipe.yaml")
    assert again.data.files == {part: str(tmp_path / path) for part, path in values["data"]["files"].items()}
    assert textvae.load(run).evaluate("test")["sentences"] > 0
    with pytest.raises(UserError, match=r"recipe: got 'r\.yaml'; textvae\.load_recipe"):
        train("r.yaml", tmp_path / "two")


def test_a_training_goes_on_when_nobody_reads_what_it_says(values, tmp_path):
    values["training"].update(max_steps=60, evaluate_every=10)
    arguments = [word for word in command(values, tmp_path, "--out", str(tmp_path / "run")) if word != "--quiet"]
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE)
    process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert latest_checkpoint(tmp_path / "run").name == "step-000000060"


def test_a_stream_says_what_it_leaves_out_once_and_counts_it_once(values, tmp_path, capfd):
    path = Path(values["data"]["files"]["train"])
    path.write_text("\n\n\n" + "a sentence that is much too long for it\n" + path.read_text())
    values["data"].update(streaming=True, max_length=8)
    train(recipe(values, max_steps=None, max_epochs=3, evaluate_every="1 epoch"), tmp_path / "run")
    said = [line for line in capfd.readouterr().err.splitlines() if "left out or cut" in line and "train" in line]
    held = [line for line in path.read_text().splitlines() if len(line.split()) + 1 > 8]
    assert said == [f"train, in an epoch: left out or cut: 3 empty, {len(held)} too_long"]


@pytest.mark.parametrize(("data", "says"), [({}, True), ({"max_length": 8}, False)])
def test_the_lowest_nll_is_said_where_no_sentence_is_left_out(values, tmp_path, capfd, data, says):
    values["data"] = {"grammar": {"train": 4000, "validation": 20, "test": 20}, **data}
    run = train(recipe(values, max_steps=1), tmp_path / "run")
    assert ("lowest NLL" in capfd.readouterr().err) == says
    assert ("corpus_entropy" in textvae.load(run).evaluate("test")) == says


def test_collapse_is_said_with_the_keys_that_help(values, tmp_path, capfd):
    values["objective"] = {"kl": {"kind": "kl", "weight": 50.0}}
    run = train(recipe(values, max_steps=60, evaluate_every=30), tmp_path / "run", quiet=True)
    message = capfd.readouterr().err
    assert message.count("the posterior has collapsed") == 1
    assert f"(KL {rows(run, 'validation')[-1]['kl']:.3f} nats" in message  # as it is now, not as it was first found
    assert "objective.kl.free_nats" in message


def test_collapse_is_said_when_it_lasts_or_at_the_end(values, tmp_path, capfd):
    """After one evaluation the model may have hardly begun; what the last one found is said in any case."""
    values["objective"] = {"kl": {"kind": "kl", "weight": 50.0}}
    warnings = {}
    for every, steps in ((10, 30), (30, 30)):
        train(recipe(values, max_steps=steps, evaluate_every=every), tmp_path / str(every))
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("epoch", "warning", "done"))]
        warnings[every] = [line.split()[0] for line in lines]
    assert warnings[10] == ["epoch", "epoch", "warning:", "epoch", "done:"]
    assert warnings[30] == ["epoch", "warning:", "done:"]


@pytest.mark.parametrize("posterior", ["gaussian", "point"])
def test_an_autoencoder_that_has_not_begun_is_told_to_train_longer(values, tmp_path, capfd, posterior):
    values["model"]["posterior"] = {"kind": posterior}
    values["objective"] = {"kl": {"kind": "kl", "weight": 0.0}} if posterior == "gaussian" else {"kl": None}
    train(recipe(values, max_steps=2, evaluate_every=1), tmp_path / "run", quiet=True)
    said = capfd.readouterr().err
    assert "z says nothing of the sentence yet (0 active units)" in said
    assert "nan" not in said
    assert "free_nats" not in said


def test_a_run_is_not_overwritten_and_not_resumed_with_another_recipe(values, tmp_path):
    run = train(recipe(values), tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match="--resume"):
        train(recipe(values), run, quiet=True)
    with pytest.raises(CheckpointError, match=r"training\.batch_size was 16, is 8"):
        train(recipe(values, batch_size=8), run, resume=True, quiet=True)


def test_gradients_that_are_never_finite_end_the_training_with_advice(values, tmp_path):
    broken = recipe(values, optimizer={"kind": "sgd", "lr": 1e30}, gradient_clip=None)
    with pytest.raises(UserError, match=r"training\.optimizer\.lr"):
        train(broken, tmp_path / "run", quiet=True)


def test_an_encoder_of_another_run_starts_a_training_and_the_decoder_starts_anew(values, tmp_path):
    first = train(recipe(values, max_steps=10), tmp_path / "first", quiet=True)
    values["training"]["start_from"] = {"run": str(first)}
    second = train(recipe(values, max_steps=1, optimizer={"kind": "sgd", "lr": 1e-12}), tmp_path / "second", quiet=True)
    before, after = load_file(first / "model.safetensors"), last_weights(second)
    for name, tensor in after.items():
        same = torch.allclose(tensor, before[name], atol=1e-7)
        assert same == name.startswith(("encoder", "posterior")), name
    everything = recipe(values, start_from={"run": str(first), "part": "all"}, max_steps=1)
    third = train(everything, tmp_path / "third", quiet=True)
    assert rows(third, "validation")[-1]["nll_elbo"] < rows(first, "validation")[0]["nll_elbo"] + 0.5


def test_a_start_from_other_words_is_refused(values, tmp_path):
    first = train(recipe(values, max_steps=1), tmp_path / "first", quiet=True)
    values["tokenizer"] = {"kind": "character"}
    with pytest.raises(CheckpointError, match="another tokenizer"):
        train(recipe(values, start_from={"run": str(first)}), tmp_path / "second", quiet=True)
    with pytest.raises(CheckpointError, match="holds no run"):
        train(recipe(values, start_from={"run": str(tmp_path / "none")}), tmp_path / "third", quiet=True)


def test_aggressive_training_moves_the_encoder_more_and_resumes_to_the_bit(values, tmp_path):
    values["training"].update(optimizer={"kind": "sgd", "lr": 0.05}, max_steps=6, evaluate_every=4, save_every=1)
    values["objective"] = {"kl": {"kind": "kl"}}
    aggressive = {"steps": 9, "window": 3}
    plain = train(recipe(values), tmp_path / "plain", quiet=True)
    whole = train(recipe(values, aggressive=aggressive), tmp_path / "whole", quiet=True)
    run = tmp_path / "resumed"
    train(recipe(values, aggressive=aggressive, max_steps=4), run, quiet=True)
    train(recipe(values, aggressive=aggressive), run, resume=True, quiet=True)
    assert_same(last_weights(run), last_weights(whole))

    start = train(recipe(values, optimizer={"kind": "sgd", "lr": 1e-12}), tmp_path / "start", quiet=True)

    def moved(end: Path, prefix: str) -> float:
        before, after = last_weights(start), last_weights(end)
        return sum(float((after[n] - before[n]).square().sum()) for n in after if n.startswith(prefix)) ** 0.5

    assert moved(whole, "encoder.") > 1.5 * moved(plain, "encoder.")
    assert moved(whole, "decoder.") < 1.5 * moved(plain, "decoder.")


@pytest.mark.parametrize("kind", ["wasserstein_critic", "adversarial"])
def test_a_critic_learns_beside_the_model_and_resumes_to_the_bit(values, tmp_path, kind):
    values["objective"] = {"critic": {"kind": kind, "hidden_dim": 8, "weight": 1.0}}
    whole = train(recipe(values, max_steps=8), tmp_path / "whole", quiet=True)
    run = tmp_path / "resumed"
    train(recipe(values, max_steps=3), run, quiet=True)
    train(recipe(values, max_steps=8), run, resume=True, quiet=True)
    assert_same(last_weights(run), last_weights(whole))
    states = [torch.load(latest_checkpoint(r) / "training.pt", weights_only=True)["objective"] for r in (run, whole)]
    assert_same(states[0], states[1])
    assert any(name.startswith("stateful.divergence_critic") for name in states[0])


@pytest.mark.parametrize("kind", ["pid", "geco"])
def test_a_controller_drives_its_weight_and_resumes_to_the_bit(values, tmp_path, kind):
    values["objective"] = {"kl": {"kind": "kl", "weight": {"kind": kind, "target": 1.0}}}
    whole = train(recipe(values, max_steps=12), tmp_path / "whole", quiet=True)
    run = tmp_path / "resumed"
    train(recipe(values, max_steps=7), run, quiet=True)
    train(recipe(values, max_steps=12), run, resume=True, quiet=True)
    assert_same(last_weights(run), last_weights(whole))


def test_noise_on_the_encoders_words_trains_a_denoiser(values, tmp_path):
    values["model"]["noise"] = [{"kind": "delete", "rate": 0.2}, {"kind": "shuffle", "distance": 2}]
    run = train(recipe(values), tmp_path / "run", quiet=True)
    assert rows(run, "validation")[-1]["nll_elbo"] < rows(run, "validation")[0]["nll_elbo"]


@pytest.mark.parametrize(
    ("posterior", "prior", "terms"),
    [
        ({"kind": "point"}, {}, {"mmd": {"kind": "mmd", "weight": 5.0}}),
        ({"kind": "batch_norm"}, {}, {"kl": {"kind": "kl"}}),
        ({"kind": "delta", "delta": 2.0}, {}, {"kl": {"kind": "kl"}}),
        ({"kind": "von_mises_fisher"}, {"kind": "uniform_sphere"}, {"kl": {"kind": "kl"}}),
        ({"kind": "flow", "transform": "coupling", "hidden_dim": 8}, {}, {"kl": {"kind": "kl"}}),
        ({}, {"kind": "vamp", "components": 5}, {"kl": {"kind": "kl"}}),
        ({}, {"kind": "mixture", "components": 3}, {"kl": {"kind": "kl"}}),
        ({}, {"kind": "flow", "transforms": 1, "hidden_dim": 8}, {"kl": {"kind": "kl"}}),
        ({}, {"kind": "gaussian"}, {"kl": {"kind": "kl"}}),
    ],
    ids=str,
)
def test_every_posterior_and_prior_trains_evaluates_and_samples(values, tmp_path, posterior, prior, terms):
    values["model"].update(posterior=posterior, prior=prior)
    values["objective"] = terms
    run = train(recipe(values, max_steps=6, evaluate_every=3), tmp_path / "run", quiet=True)
    vae = textvae.load(run)
    figures = vae.evaluate("test")
    assert (figures["nll_iw"] is None) == (posterior.get("kind") == "point")
    assert len(vae.sample(3, seed=0)) == 3
    assert vae.sample(3, seed=0) == vae.sample(3, seed=0)
    assert len(vae.interpolate("the cat sees the dog", "the bird", 3)) == 3


@pytest.mark.parametrize("kind", list(DIVERGENCES))
def test_every_divergence_trains(values, tmp_path, kind):
    values["objective"] = {"kl": {"kind": "kl", "weight": 0.1}, "held": {"kind": kind, "weight": 0.1}}
    run = train(recipe(values, max_steps=4, evaluate_every=2, log_every=1), tmp_path / "run", quiet=True)
    assert all(row["gradient_norm"] > 0 for row in rows(run, "train"))
    last = rows(run, "validation")[-1]
    assert last["loss"] == pytest.approx(last["reconstruction"] + 0.1 * last["term_kl"] + 0.1 * last["term_held"])
    assert ("held_lipschitz" in last) == (kind in ("wasserstein_critic", "adversarial"))
