"""README's examples: sentences that the quickstart's vocabulary has, and the section on exports run as it stands."""

import os
import re
import subprocess
import sysconfig

import pytest
from conftest import ROOT, train_on_grammar

from textvae.text import grammar

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("## Elsewhere") : README.index("## What the numbers mean")]


def test_every_sentence_of_an_example_is_one_of_the_quickstarts_corpus():
    blocks = "\n".join(re.findall(r"```(?:bash|python)\n(.*?)```", README, re.S))
    found = re.findall(r'"([^"\n]* [.?])"', blocks)
    assert len(found) > 6
    assert [sentence for sentence in found if grammar.parse(sentence) is None] == []


@pytest.mark.slow
def test_the_section_on_other_runtimes_does_what_it_says(tmp_path):
    for library in ("onnx", "onnxscript", "onnxruntime", "torch.export._patches"):
        pytest.importorskip(library, reason="exports of every format need the extra export and torch 2.13")
    train_on_grammar(tmp_path / "runs" / "quickstart", steps=20)
    (shell,) = re.findall(r"```bash\n(.*?)```", SECTION, re.S)
    (python,) = re.findall(r"```python\n(.*?)```", SECTION, re.S)
    *lines, pushed = python.splitlines()
    assert pushed.startswith("vae.push_to_hub(")  # which needs the Hub; its tests have one of their own
    scripts = sysconfig.get_path("scripts")
    environment = {**os.environ, "PATH": os.pathsep.join((scripts, os.environ["PATH"])), "OMP_NUM_THREADS": "1"}
    shell = shell.replace("RUN", "runs/quickstart").replace("textvae bench", "textvae bench --sentences 20 --rounds 1")
    for command in (["bash", "-ec", shell], ["python", "-c", "\n".join(lines)]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "points" / "tensors.tsv").is_file()
    assert (tmp_path / "saved" / "model.safetensors").is_file()
