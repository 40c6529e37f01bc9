"""The shell: what scripts rely on, and one line instead of a traceback."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import sentences

import textvae
from textvae.cli import main
from textvae.evaluation import page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    for seed, (part, count) in enumerate({"train": 200, "validation": 30, "test": 20}.items()):
        (folder / f"{part}.txt").write_text("\n".join(sentences(count, seed)) + "\n")
    values = {
        "data": {"files": {part: f"{part}.txt" for part in ("train", "validation", "test")}},
        "model": {"latent_dim": 4, "embedding_dim": 8, "encoder": {"hidden_dim": 8}, "decoder": {"hidden_dim": 8}},
        "training": {"batch_size": 16, "max_steps": 20, "evaluate_every": 10},
        "evaluation": {"iw_samples": 10},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


def lines(capfdbinary) -> list[str]:
    return capfdbinary.readouterr().out.decode().splitlines()


def test_sample_prints_n_lines_and_the_seed_repeats_them(folder, capfdbinary):
    outputs = []
    for _ in range(2):
        assert main(["sample", str(folder / "run"), "-n", "10", "--seed", "0"]) == 0
        outputs.append(lines(capfdbinary))
    assert len(outputs[0]) == 10
    assert outputs[0] == outputs[1]


def test_json_gives_one_object_a_line(folder, capfdbinary):
    assert main(["sample", str(folder / "run"), "-n", "3", "--seed", "0", "--json"]) == 0
    assert [set(json.loads(line)) for line in lines(capfdbinary)] == [{"text"}] * 3
    assert main(["interpolate", str(folder / "run"), "the cat", "the dog", "--steps", "5", "--json"]) == 0
    assert [json.loads(line)["step"] for line in lines(capfdbinary)] == [0, 1, 2, 3, 4]
    text = str(folder / "test.txt")
    for command, keys in (
        ("reconstruct", {"text", "reconstruction"}),
        ("encode", {"text", "mean", "scale"}),
        ("score", {"text", "nll_elbo", "reconstruction", "kl", "tokens", "ppl_elbo"}),
    ):
        assert main([command, str(folder / "run"), text, "--json"]) == 0
        rows = [json.loads(line) for line in lines(capfdbinary)]
        assert [row["text"] for row in rows] == (folder / "test.txt").read_text().splitlines()
        assert all(set(row) == keys for row in rows)


def test_evaluate_prints_one_object_with_every_figure(folder, capfdbinary):
    assert main(["evaluate", str(folder / "run"), "--split", "test", "--json"]) == 0
    (line,) = lines(capfdbinary)
    figures = json.loads(line)
    expected = [
        "nll_elbo",
        "nll_iw",
        "ppl_elbo",
        "ppl_iw",
        "reconstruction",
        "kl",
        "mutual_information",
        "active_units",
        "bleu",
    ]
    assert set(expected) <= set(figures)


def test_evaluate_takes_another_corpus_by_override(folder, tmp_path, capfdbinary):
    (tmp_path / "other.txt").write_text("the cat sees the dog\n" * 5)
    train = folder / "train.txt"
    override = f"data.files={{train: {train}, test: {tmp_path / 'other.txt'}}}"
    assert main(["evaluate", str(folder / "run"), override, "--json"]) == 0
    assert json.loads(lines(capfdbinary)[0])["sentences"] == 5


def test_lines_come_from_standard_input_and_rows_stay_in_step(folder):
    text = "the cat\n\nthe dog sees\n"
    process = subprocess.run(
        [sys.executable, "-m", "textvae", "reconstruct", str(folder / "run")],
        input=text.encode(),
        capture_output=True,
        check=True,
    )
    assert len(process.stdout.decode().split("\n")) == 4  # three rows and the end of the last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "no/such/run"], "holds no run"),
        (["train", "no/such.yaml"], "no/such.yaml"),
        (["train", "{recipe}", "training.max_stps=3"], "Did you mean 'max_steps'"),
        (["train", "{recipe}", "model.latent_dim=-1"], "model.latent_dim"),
        (["train", "{recipe}", "generation.temperature=0"], "generation.temperature"),
        (["train", "{recipe}", "data.files={train: nowhere.txt}"], "nowhere.txt"),
        (["train", "{recipe}", "data.column=txet"], "txet"),
        (["train", "{recipe}", "objective.kl.kind=kll"], "objective.kl.kind"),
        (["train", "{recipe}", "objective.kl.kind=kll"], "set on the command line"),
        (["train", "{recipe}", "model.encoder.cell=lstn"], "model.encoder.cell"),
        (["train", "{recipe}", "--out", "{run}"], "--resume"),
        (["train", "{recipe}", "training.trackers=[tensorbord]"], "Did you mean 'tensorboard'"),
        (["train", "{recipe}", "training.trackers=[aim]"], "is not installed"),
        (["train", "{recipe}", "training.monitor=nll"], "Did you mean 'nll_elbo'"),
        (["sample", "{run}", "-n", "-1"], "must be 1 or more"),
        (["sample", "{run}", "--device", "gpu"], "cpu always works"),
        (["recipe", "check", "{recipe}", "a"], "key.path=value"),
        (["evaluate", "{run}", "--split", "dev"], "split: the corpus has no part"),
        (["interpolate", "{run}", "a", "b", "--steps", "1"], "steps"),
        (["sample", "{run}", "--temperature", "0"], "generation.temperature"),
        (["sample", "{run}", "-n", "-3"], "n: got -3"),
        (["encode", "{run}", "missing.txt"], "missing.txt"),
        (["train", "{recipe}", "--processes", "0"], "--processes"),
        (["frobnicate"], "invalid choice"),
        (["evaluate", "{run}", "--language", "1"], "language: got 1 samples"),
        (["evaluate", "{run}", "--language", "9", "--language-steps", "0"], "0 steps"),
        (["evaluate", "{run}", "--language-steps", "9"], "--language-steps: says nothing without --language"),
        (["evaluate", "{run}", "--labelled-format", "tsv"], "says nothing without --probe or --pairs"),
        (["evaluate", "{run}", "--probe", "no.tsv", "no.tsv"], "no.tsv: is no file"),
        (["evaluate", "{run}", "--probe", "{labelled}", "{labelled}"], "has no column 'text'; known: label, sentence"),
        (
            ["evaluate", "{run}", "--probe", "{labelled}", "{labelled}", "--probe-columns", "sentence", "label"],
            "row 2: column 'label': got ''",
        ),
        (
            ["evaluate", "{run}", "--probe", "{labelled}", "{labelled}", "--probe-columns", "3", "1"],
            "row 1 has 2 columns, and no column 3",
        ),
        (["evaluate", "{run}", "--probe", "{labelled}", "{labelled}", "--per-label", "0"], "numbers above 0 or 'all'"),
        (["evaluate", "{run}", "--pairs", "{labelled}"], "has no column 'sentence1'"),
    ],
)
def test_a_users_mistake_is_one_clear_message_and_exit_code_2(folder, arguments, message, tmp_path):
    (tmp_path / "labelled.csv").write_text("label,sentence\nx,the cat\n,the dog\n")
    places = {"{recipe}": folder / "recipe.yaml", "{run}": folder / "run", "{labelled}": tmp_path / "labelled.csv"}
    filled = list(arguments)
    for name, path in places.items():
        filled = [argument.replace(name, str(path)) for argument in filled]
    if arguments[0] == "train" and "--out" not in arguments:
        filled += ["--out", str(tmp_path / "run")]
    code, error = run_main(filled)
    assert code == 2
    assert message in error
    assert "Traceback" not in error


def run_main(arguments: list[str]) -> tuple[int, str]:
    import contextlib
    import io

    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        try:
            code = main(arguments)
        except SystemExit as exit_:  # argparse's own
            code = exit_.code
    return code, error.getvalue()


def test_broken_utf8_names_the_line(folder, tmp_path):
    (tmp_path / "broken.txt").write_bytes(b"fine\nbro\xffken\n")
    code, error = run_main(["encode", str(folder / "run"), str(tmp_path / "broken.txt")])
    assert code == 2
    assert "line 2" in error


def test_recipe_check_show_and_schema(folder, capfdbinary):
    assert main(["recipe", "check", str(folder / "recipe.yaml")]) == 0
    assert main(["recipe", "show", str(folder / "recipe.yaml")]) == 0
    shown = capfdbinary.readouterr().out.decode()
    assert "bucket_batches: 100" in shown
    assert main(["recipe", "schema"]) == 0
    schema = json.loads(capfdbinary.readouterr().out)
    assert schema["$schema"].startswith("https://json-schema.org/")


def test_a_reader_that_leaves_early_is_no_error(folder):
    process = subprocess.run(
        f"{sys.executable} -m textvae sample {folder / 'run'} -n 2000 --seed 0 | head -n 1",
        shell=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert b"Traceback" not in process.stderr
    assert b"Broken" not in process.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_stream_that_is_closed_is_no_traceback(folder, closed):
    command = f"{sys.executable} -m textvae sample {folder / 'run'} -n 1 --seed 0 {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_a_name_that_is_a_path_is_no_folder_of_runs(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("../../elsewhere", "/tmp/elsewhere", "..", "''"):
        assert main(["train", str(folder / "recipe.yaml"), f"name={name}"]) == 2
        assert "which names no folder within runs" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_lines_may_be_compressed(folder, tmp_path, capfdbinary):
    plain = (folder / "test.txt").read_bytes()
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(plain))
    printed = []
    for path in (folder / "test.txt", tmp_path / "x.txt.gz"):
        assert main(["reconstruct", str(folder / "run"), str(path), "--seed", "0"]) == 0
        printed.append(lines(capfdbinary))
    assert printed[0] == printed[1]
    assert len(printed[0]) == 20


def test_the_saved_pages_samples_are_decoded_as_it_was_asked(folder, tmp_path, monkeypatch):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    shown = []
    monkeypatch.setattr(page, "write", lambda result, run, samples: shown.append(samples) or ("a", "b"))
    assert main(["evaluate", str(run), "--save", "--seed", "5", "generation.method=greedy"]) == 0
    vae = textvae.load(run)
    assert shown == [vae.sample(20, seed=5, method="greedy")]
    assert shown != [vae.sample(20, seed=5)]


def test_extends_stands_beside_a_folder_of_tokenizers(folder, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "base.yaml").write_text((folder / "run" / "recipe.yaml").read_text())
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\n")
    assert main(["recipe", "check", str(tmp_path / "mine.yaml")]) == 0


def test_a_number_that_is_none_is_null_in_json(folder, monkeypatch, capfdbinary):
    monkeypatch.setattr(textvae.TextVAE, "score", lambda self, texts, **k: [{"nll_elbo": float("nan"), "kl": 1.0}])
    assert main(["score", str(folder / "run"), str(folder / "test.txt"), "--json"]) == 0
    first = json.loads(lines(capfdbinary)[0], parse_constant=lambda name: pytest.fail(name))
    assert (first["nll_elbo"], first["kl"]) == (None, 1.0)


def test_help_does_not_wait_for_torch():
    code = (
        "import sys, textvae.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)]
)
def test_threads_spin_briefly_before_torch_is_loaded(given, expected):
    code = (
        "import os, sys, textvae.__main__ as m\n"
        "m.main = lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)\nm.run()"
    )
    around = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=around | given, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(expected), "False"]


def test_saved_evaluations_are_compared_sentence_by_sentence(folder, capfdbinary):
    run, again = str(folder / "run"), str(folder / "again")
    train = ["train", str(folder / "recipe.yaml"), "--out", again, "--quiet"]
    assert main([*train, "training.max_steps=40", "seed=1"]) == 0
    assert run_main(["compare", run, again])[0] == 2  # nothing saved yet
    means = {}
    for name in (run, again):
        assert main(["evaluate", name, "--save", "--json"]) == 0
        figures = json.loads(lines(capfdbinary)[0])
        assert "per_sentence" not in figures
        assert figures["aggregate"]
        assert figures["nll_iw_interval"][0] <= figures["nll_iw"] <= figures["nll_iw_interval"][1]
        means[name] = figures["nll_iw"]
    assert (folder / "run" / "evaluation-test.html").stat().st_size > 1000
    assert main(["compare", run, again, "--json"]) == 0
    first, second, *figures = map(json.loads, lines(capfdbinary))
    assert all("figure" in row for row in figures)
    assert first["difference"] is None
    assert second["difference"] == pytest.approx(means[again] - means[run], abs=1e-9)
    assert main(["compare", run, again]) == 0
    assert "baseline" in capfdbinary.readouterr().out.decode()
    saved = folder / "again" / "evaluation-test.json"
    for text in ('{"per_sentence": 1}', '{"per_sentence": {"nll_iw": ["a"]}}', "[" * 100_000, "[]", "null"):
        saved.write_text(text)
        assert main(["compare", run, again]) == 2
        assert "evaluation-test.json: is damaged, or no evaluation" in capfdbinary.readouterr().err.decode()
