"""`textvae explore` from the shell: it says where the page is, ends when it is told to, and names what it cannot do."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from textvae.cli import main
from textvae.recipe import Recipe
from textvae.training import train

pytest.importorskip("gradio")


def explore(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "textvae", "explore", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def address_of(process) -> tuple[str, list[str]]:
    said = []
    for line in process.stderr:
        said.append(line)
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found:
            return found[0], said
    raise AssertionError("".join(said))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_it_serves_the_page_and_ends_quietly(run, number):
    process = explore(run, "--json")
    try:
        address, _ = address_of(process)
        assert json.loads(process.stdout.readline()) == {"url": address}
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert b"textvae" in answer.read()
        process.send_signal(number)
        _, rest = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode in (0, 130, -number)
    assert "Traceback" not in rest


def test_a_run_whose_corpus_is_gone_is_served_without_a_map_and_says_so(values, tmp_path):
    moved = train(Recipe.model_validate(values | {"training": values["training"] | {"max_steps": 1}}), tmp_path / "run")
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    process = explore(moved)
    try:
        _, said = address_of(process)
        assert any("no map: the run's corpus cannot be read" in line and "--corpus" in line for line in said)
    finally:
        process.kill()
        process.communicate()


def test_a_language_model_has_samples_alone(values, tmp_path):
    values["model"]["latent_dim"] = 0
    values["objective"] = {}
    values["training"] |= {"max_steps": 1}
    values["model"].pop("encoder")
    model = train(Recipe.model_validate(values), tmp_path / "run", quiet=True)
    process = explore(model)
    try:
        address, _ = address_of(process)
        with urllib.request.urlopen(address, timeout=30) as answer:
            page = answer.read().decode()
        assert "This run is a language model" in page
        assert "walk-go" not in page
        assert "sample-go" in page
    finally:
        process.kill()
        process.communicate()


def test_a_taken_port_a_label_file_of_one_label_and_wrong_numbers_are_each_one_line(run, tmp_path, capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["explore", str(run), "--port", str(port)]) == 2
        assert f"--port: {port} on 127.0.0.1 cannot be had" in capfd.readouterr().err
    labelled = tmp_path / "labelled.csv"
    labelled.write_text("text,label\nthe dog runs .,a\n")
    wrong = {
        ("--port", "70000"): "--port: got 70000",
        ("--sentences", "0"): "--sentences: got 0; it must be 1 or more",
        ("--corpus", "absent.txt"): "absent.txt",
        ("--corpus", "x", "--labelled", "y"): "keep one of them",
        ("--labelled", str(tmp_path / "absent.csv")): "absent.csv",
        ("--labelled", str(labelled), "--columns", "review", "label"): "has no column 'review'; known: label, text",
        ("--columns", "review", "label"): "--columns: are of a labelled file",
    }
    for arguments, message in wrong.items():
        assert main(["explore", str(run), *arguments]) == 2, arguments
        said = capfd.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    process = explore(run, "--labelled", labelled)
    try:
        _, said = address_of(process)
        assert any("one label alone" in line for line in said)
    finally:
        process.kill()
        process.communicate()


def test_two_runs_of_one_name_are_told_apart_by_their_folders(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    process = explore(run, other)
    try:
        address, _ = address_of(process)
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert str(other) in answer.read().decode()
    finally:
        process.kill()
        process.communicate()
