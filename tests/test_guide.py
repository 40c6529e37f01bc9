"""The guide of README and its notebook, run as they stand on a text of a few hundred lines."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request

import pytest
from conftest import ROOT

from textvae.text import grammar

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("## Ten minutes") : README.index("## On your own text")]
INSTALL, *COMMANDS = re.search(r"<!-- guide-commands -->\n```bash\n(.*?)```", SECTION, re.S)[1].splitlines()
# The notebook's settings in small.
SMALL = """
corpus = "my.txt"
recipe = "recipes/own-text.yaml"
folder = "runs/guide"
overrides = ["training.max_steps=20", "training.threads=1", "evaluation.iw_samples=5"]
sentences = 300
"""


@pytest.fixture
def folder(tmp_path):
    lines = grammar.sentences(0, "train", 350)
    (tmp_path / "my.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


@pytest.fixture
def environment():
    scripts = sysconfig.get_path("scripts")
    return {**os.environ, "PATH": os.pathsep.join((scripts, os.environ["PATH"])), "GRADIO_ANALYTICS_ENABLED": "False"}


def test_the_guides_installation_names_an_extra_and_a_file_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.search(r"'\.\[([a-z,]+)\]'", INSTALL)[1].split(",")
    assert set(named) <= set(extras)
    assert "explorer" in named
    words = shlex.split(INSTALL)
    assert (ROOT / words[words.index("--constraint") + 1]).is_file()


def test_each_command_of_the_guide_does_what_the_guide_says_as_it_is_written(folder, environment):
    *commands, last = COMMANDS
    said = {}
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, command + "\n" + done.stderr
        said[command.split()[1], "data" in command.split()] = done.stdout.splitlines()
    assert len(said["sample", False]) == 10
    straight, along = said["interpolate", False], said["interpolate", True]
    assert len(straight) == len(along) == 7
    assert (straight[0], straight[-1]) == (along[0], along[-1])
    for path in re.findall(r"`(runs/mine[^`]*)`", SECTION):
        assert (folder / path).exists(), path

    pytest.importorskip("gradio")
    assert last.split()[:2] == ["textvae", "explore"]
    page = subprocess.Popen(shlex.split(last), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        address = next(found[0] for line in page.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.status == 200
            assert b"gradio" in answer.read()
        page.send_signal(signal.SIGINT)
        assert page.wait(30) == 0
    finally:
        page.kill()
        page.communicate()


@pytest.mark.slow  # the guide says the same in the shell
def test_the_notebook_stands_without_outputs_and_runs_from_end_to_end(folder, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("gradio")
    notebook = nbformat.read(ROOT / "recipes" / "guide.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    settings = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(settings) == 1

    def names(source):
        return set(re.findall(r"^(\w+) =", source, re.M))

    assert names(settings[0].source) == names(SMALL)
    settings[0].source = SMALL
    # The kernel is this interpreter, whatever kernels the machine knows.
    kernels = folder / "kernels" / "kernels" / "guide"
    kernels.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernels / "kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "guide", "language": "python"}), encoding="utf-8"
    )
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "kernels"))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    client = nbclient.NotebookClient(
        notebook, timeout=400, kernel_name="guide", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    shown = [kind for cell in code for output in cell.outputs for kind in output.get("data", {})]
    assert shown.count("image/png") == 2  # the curves and the map
    assert (folder / "runs" / "guide" / "model.safetensors").is_file()
