"""What a GPU gives is what a CPU gives, up to rounding, and a training's steps do not wait for its answers.

Skipped where there is none; the CPU's figures are held to closed forms and enumerations by the other tests.
"""

import copy
import json
import threading
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, sentences, train_on_grammar

import textvae
from textvae import build, recipe_file
from textvae.cli import main
from textvae.generation import recorded, search
from textvae.generation.search import generate_scored
from textvae.nets.recording import Recorder
from textvae.recipe import Generation, Recipe
from textvae.text.batching import collate
from textvae.training import train
from textvae.types import Batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

METHODS = sorted(path.stem for path in (ROOT / "recipes").glob("grammar-*.yaml"))
# What starts from another run is trained from scratch here: what it starts from is no matter of the device.
SMALL = ["data.grammar={seed: 0, train: 160, validation: 60, test: 60}", "training.batch_size=16"]
SMALL += ["training.max_steps=30", "training.max_epochs=null", "training.evaluate_every=30", "training.threads=1"]
SMALL += ["training.start_from=null", "evaluation.iw_samples=20"]
# One's own draws make these, and two devices draw differently.
DRAWN = ("kl", "nll_iw", "mutual_information", "reconstruction", "nll_elbo")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small run that uses its latents, trained on the GPU."""
    return train_on_grammar(tmp_path_factory.mktemp("gpu") / "run", steps=300)


def on(device: str, run: Path) -> textvae.TextVAE:
    return textvae.load(run, device=device)


def over_seeds(vae: textvae.TextVAE, seeds: int = 10) -> dict[str, float | None]:
    """Figures of 60 sentences' draws, which are not the same on two devices, over several of them."""
    found = [vae.evaluate("validation", seed=seed) for seed in range(seeds)]
    means = {key: [figures.get(key) for figures in found] for key in (*DRAWN, "active_units", "ppl_elbo")}
    return {key: None if None in values else sum(values) / seeds for key, values in means.items()}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_it_and_its_figures_are_the_cpus(name, tmp_path):
    recipe = recipe_file.load(ROOT / "recipes" / f"{name}.yaml", SMALL)  # long enough for shapes to come again
    folder = train(recipe, tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["part"] == "validation"
    assert rows[-1]["reconstruction"] > 0
    mine, theirs = (over_seeds(on(device, folder)) for device in ("cuda", "cpu"))
    # Of two Gaussians the KL has a closed form; of others it is estimated by draws, and by draws some are refined.
    gaussian = not {"prior", "posterior"} & recipe.model.model_fields_set and recipe.training.semi_amortized is None
    exact = (*["kl"] * gaussian, "active_units") if recipe.model.latent_dim else ("nll_elbo", "ppl_elbo")
    for key in (*exact, *DRAWN):
        near = {"rel": 1e-3, "abs": 1e-3} if key in exact else {"rel": 0.05, "abs": 0.3}  # 3 standard deviations
        expected = None if theirs.get(key) is None else pytest.approx(theirs[key], **near)
        assert mine.get(key) == expected, key


def test_log_likelihoods_of_given_latents_and_their_gradients_are_the_cpus(run, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    texts = sentences(20)
    results = {}
    for device in ("cpu", "cuda"):
        vae = on(device, run)
        batch = Batch(*(part.to(device) for part in collate(vae.ids(texts), vae.tokenizer.pad_id)))
        z = torch.randn(3, len(texts), vae.latent_dim, generator=torch.Generator().manual_seed(1)).to(device)
        for way in (torch.inference_mode, torch.enable_grad):
            with way():
                found = vae.model.log_likelihood(batch, z)
            results[device, way] = [found.cpu()]
        vae.model.train()
        vae.model.log_likelihood(batch, z).sum().backward()
        results[device, "gradients"] = [p.grad.cpu() for p in vae.model.decoder.parameters()]
    for kind in (torch.inference_mode, torch.enable_grad, "gradients"):
        for mine, theirs in zip(results["cuda", kind], results["cpu", kind], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "greedy"},
        {"method": "beam", "beam_size": 4},
        {"method": "sample"},
        {"method": "sample", "top_p": 0.8, "temperature": 0.7},
        {"method": "sample", "top_k": 5},
    ],
    ids=str,
)
def test_sentences_are_the_cpus_draws_included(run, settings):
    found = {}
    for device in ("cpu", "cuda"):
        vae = on(device, run)
        z = torch.randn(200, vae.latent_dim, generator=torch.Generator().manual_seed(2)).to(device)
        found[device] = generate_scored(
            vae.model.eval(),
            z,
            settings=Generation.model_validate({**settings, "max_length": 25}),
            bos_id=vae.tokenizer.bos_id,
            eos_id=vae.tokenizer.eos_id,
            pad_id=vae.tokenizer.pad_id,
            unk_id=vae.tokenizer.unk_id,
            generator=torch.Generator().manual_seed(3),
        )
    same = [a == b for a, b in zip(found["cuda"].ids, found["cpu"].ids, strict=True)]
    assert sum(same) >= 190  # a draw or a maximum may fall between two words
    mine, theirs = (found[device].log_likelihood.cpu()[torch.tensor(same)] for device in ("cuda", "cpu"))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def decoded(vae, device, settings, count=300):
    z = torch.randn(count, vae.latent_dim, generator=torch.Generator().manual_seed(2)).to(device)
    ids = {f"{name}_id": getattr(vae.tokenizer, f"{name}_id") for name in ("bos", "eos", "pad", "unk")}
    draws = torch.Generator().manual_seed(3)
    chosen = Generation.model_validate({"max_length": 25, **settings})
    return generate_scored(vae.model.eval(), z, settings=chosen, generator=draws, **ids)


@pytest.mark.parametrize(
    "output",
    [
        {"kind": "softmax"},
        {"kind": "adaptive_softmax", "cutoffs": [5, 10]},
        {"kind": "sampled_softmax", "samples": 10},
        {"kind": "nearest_embedding", "distance": "cosine"},
    ],
    ids=lambda output: output["kind"],
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recorded_steps_of_generation_write_what_launched_ones_do(values, output, cell, tmp_path, monkeypatch):
    values["model"] |= {"output": output}
    if output["kind"] == "nearest_embedding":
        values["objective"]["reconstruction"] = {"kind": "cosine"}
    values["model"]["decoder"] = {"cell": cell, "layers": 2, "hidden_dim": 24}
    values["training"] |= {"max_steps": 30, "evaluate_every": 30}
    vae = on("cuda", train(Recipe.model_validate(values), tmp_path / "run", quiet=True))
    recordings, record = [], Recorder.record
    monkeypatch.setattr(Recorder, "record", lambda self, work: recordings.append(1) or record(self, work))
    monkeypatch.setattr(search, "DEVICE_ROWS", 128)
    monkeypatch.setattr(recorded, "WORTH", 0)
    for settings in ({"method": "greedy"}, {"method": "sample"}, {"method": "sample", "top_k": 5}):
        recordings.clear()
        mine = decoded(vae, "cuda", settings)
        assert recordings
        with monkeypatch.context() as without:
            without.setattr(search, "can_be_recorded", lambda *_: False)
            theirs = decoded(vae, "cuda", settings)
        same = [a == b for a, b in zip(mine.ids, theirs.ids, strict=True)]
        assert sum(same) >= 285  # a draw or a maximum may fall between two words
        chosen = torch.tensor(same)
        torch.testing.assert_close(
            mine.log_likelihood.cpu()[chosen], theirs.log_likelihood.cpu()[chosen], rtol=1e-3, atol=1e-3
        )


def test_another_threads_work_does_not_break_a_recording(run, monkeypatch):
    vae, stop, errors = on("cuda", run), threading.Event(), []
    recordings, record = [], Recorder.record
    monkeypatch.setattr(Recorder, "record", lambda self, work: recordings.append(1) or record(self, work))
    matrix = torch.randn(300, 300, device="cuda")

    def work() -> None:
        try:
            while not stop.is_set():
                float((matrix @ torch.linalg.inv(matrix)).sum())
        except Exception as error:
            errors.append(error)

    other = threading.Thread(target=work, daemon=True)
    other.start()
    try:
        first = decoded(vae, "cuda", {"method": "sample"})
        for _ in range(5):
            assert decoded(vae, "cuda", {"method": "sample"}).ids == first.ids
    finally:
        stop.set()
        other.join()
    assert not errors
    assert recordings


def test_threads_decode_beside_each_other(run):
    vae, found, errors = on("cuda", run), [], []
    expected = decoded(vae, "cuda", {"method": "sample"}).ids

    def work() -> None:
        try:
            for seed in range(5):
                vae.sample(20, seed=seed)
                found.append(decoded(vae, "cuda", {"method": "sample"}).ids)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found.append(decoded(vae, "cuda", {"method": "sample"}).ids)  # the main thread's own
    for thread in threads:
        thread.join()
    assert not errors
    same = [a == b for ids in found for a, b in zip(ids, expected, strict=True)]
    assert len(same) > 20 * 300
    assert sum(same) >= 0.95 * len(same)  # a draw may fall between two words


def test_the_whole_evaluation_is_the_cpus(run):
    asked = {"whole": True, "anneal": 4, "language": 50, "language_steps": 5, "samples": 50, "paths": 3, "seed": 0}
    mine, theirs = (on(device, run).evaluate("test", **asked) for device in ("cuda", "cpu"))
    assert mine.keys() == theirs.keys()
    assert (mine["settings"]["device"], theirs["settings"]["device"]) == ("cuda", "cpu")
    for key in ("kl", "active_units", "sentences", "target_tokens", "fingerprint"):
        assert mine[key] == pytest.approx(theirs[key], rel=1e-3) if key != "fingerprint" else mine[key] == theirs[key]
    assert mine["nll_iw"] == pytest.approx(theirs["nll_iw"], rel=0.03)


def test_the_shells_commands_take_a_device(run, capsysbinary, tmp_path):
    for command in (
        ["sample", str(run), "-n", "3", "--seed", "0"],
        ["interpolate", str(run), sentences(1)[0], sentences(2)[1], "--steps", "3"],
        ["fit-prior", str(run), "--kind", "gaussian"],
    ):
        assert main([*command, "--device", "cuda"]) == 0, command
        on_gpu = capsysbinary.readouterr().out
        assert main([*command, "--device", "cpu"]) == 0, command
        assert on_gpu.count(b"\n") == capsysbinary.readouterr().out.count(b"\n"), command
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(sentences(5)))
    for command in ("encode", "reconstruct", "score"):
        printed = []
        for device in ("cuda", "cpu"):
            assert main([command, str(run), str(lines), "--device", device, "--json"]) == 0
            printed.append([json.loads(line) for line in capsysbinary.readouterr().out.splitlines()])
        assert len(printed[0]) == len(printed[1]) == 5
        for mine, theirs in zip(*printed):
            assert mine.keys() == theirs.keys()
            if command == "encode":
                assert mine["mean"] == pytest.approx(theirs["mean"], rel=1e-2, abs=1e-2)
        if command == "reconstruct":
            assert sum(mine == theirs for mine, theirs in zip(*printed)) >= 4


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_precision_learns_and_goes_on_where_it_stopped(values, tmp_path, precision):
    values["training"] |= {"precision": precision, "max_steps": 60, "evaluate_every": 30, "save_every": 30}
    whole = train(Recipe.model_validate(values), tmp_path / "whole", quiet=True)
    short = copy.deepcopy(values)
    short["training"]["max_steps"] = 30
    # The weight's schedule has ended by then, so that a longer training goes the same way.
    train(Recipe.model_validate(short), tmp_path / "cut", quiet=True)
    again = train(Recipe.model_validate(values), tmp_path / "cut", quiet=True, resume=True)
    ends = []
    for folder in (whole, again):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        validation = [row["nll_elbo"] for row in rows if row["part"] == "validation"]
        assert validation[-1] < validation[0]
        ends.append(validation[-1])
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("latents", [4, 0])
def test_what_is_replayed_is_what_would_have_been_launched(values, tmp_path, monkeypatch, precision, latents):
    from textvae.training.replay import Replay

    recorded, record = [], Replay._record
    monkeypatch.setattr(Replay, "_record", lambda self, *given: recorded.append(1) or record(self, *given))
    values["model"] |= {"latent_dim": latents, "word_dropout": 0.1}
    values["model"]["decoder"] |= {"input_dropout": 0.2, "output_dropout": 0.2, "layers": 1, "recurrent_dropout": 0.1}
    values["objective"] = {"kl": {"kind": "kl", "weight": {"kind": "linear", "over": 20}} if latents else None}
    values["training"] |= {"precision": precision, "max_steps": 100, "evaluate_every": 50}
    found = {}
    for graphs in (False, True):
        values["training"]["cuda_graphs"] = graphs
        folder = train(Recipe.model_validate(values), tmp_path / f"run-{graphs}", quiet=True)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[graphs] = [row["loss"] for row in rows]
    assert recorded
    assert found[True] == pytest.approx(found[False], rel=1e-4 if precision == "fp32" else 1e-2)


def test_draws_of_an_objective_are_the_same_played_and_launched(tmp_path, monkeypatch):
    found = []
    for room in (True, False):
        monkeypatch.setattr(Recorder, "has_room", lambda self, room=room: room)
        recipe = recipe_file.load(ROOT / "recipes" / "grammar-mmd.yaml", SMALL)
        folder = train(recipe, tmp_path / f"run-{room}", quiet=True)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found.append(rows[-1]["loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_step_does_not_wait_for_the_device(values, tmp_path, monkeypatch):
    from textvae.training import loop

    waits: list[int] = []
    taken = loop.take_step

    def watched(*arguments):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = taken(*arguments)
        torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchronizing CUDA operation" in str(warning.message) for warning in caught))
        return result

    monkeypatch.setattr(loop, "take_step", watched)
    values["training"] |= {"log_every": 100, "max_steps": 60, "evaluate_every": 60, "optimizer": {"kind": "sgd"}}
    train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    assert waits[-10:] == [0] * 10  # by then each shape of batch has been recorded


def test_what_does_not_fit_is_said_in_one_line(values, tmp_path, capsys):
    values["model"]["decoder"]["hidden_dim"] = 3_000  # 430 MB of weights
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2e8 / torch.cuda.mem_get_info()[1])
    try:
        assert main(["train", str(path), "--out", str(tmp_path / "run"), "--quiet"]) != 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    said = capsys.readouterr().err
    assert "out of memory" in said
    assert "Traceback" not in said


def test_models_follow_to_the_device_in_all_their_parts(run):
    for name in METHODS:
        recipe = recipe_file.load(ROOT / "recipes" / f"{name}.yaml", SMALL)
        model = build.build_model(recipe, on("cpu", run).tokenizer).to("cuda")
        left = [key for key, value in [*model.named_parameters(), *model.named_buffers()] if not value.is_cuda]
        assert not left, (name, left)
        if model.prior is not None:
            assert model.prior().sample().is_cuda, name
