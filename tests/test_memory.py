"""Memory stays where it is while shapes change."""

import ctypes
import os
import subprocess
import sys

import pytest
from conftest import ROOT

# A training in bf16 of sentences of ever other lengths; what malloc has given out, after 10 steps and at the end.
SCRIPT = """
import ctypes, torch
from textvae import build
from textvae.recipe import Recipe
from textvae.types import Batch

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena o s h mapped u f used free k".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info

class Ids:
    pad_id, bos_id, eos_id, unk_id = range(4)
    def __len__(self):
        return 50

torch.set_num_threads(1)
recipe = Recipe.model_validate({"data": {"grammar": {}}, "model": {
    "latent_dim": 8, "embedding_dim": 32, "encoder": {"hidden_dim": 64}, "decoder": {"hidden_dim": 64}},
    "training": {"max_steps": 1}})
model = build.build_model(recipe, Ids())
for length in range(2, 182):
    tokens = torch.full((16, length + 1), 5)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(Batch(tokens, torch.full((16,), length)))
    output.log_likelihood.sum().backward()
    model.zero_grad()
    if length == 12:
        print(libc.mallinfo2().used)
print(libc.mallinfo2().used)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks the C library's mallinfo2")
@pytest.mark.slow
def test_kernels_of_past_shapes_are_not_kept_for_ever():
    def growth(**wanted: str) -> float:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **wanted}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        first, last = map(int, done.stdout.split())
        return (last - first) / 2**20

    kept = growth(ONEDNN_PRIMITIVE_CACHE_CAPACITY="100000", LRU_CACHE_CAPACITY="100000")
    ours = growth()
    assert ours < kept / 2


NEIGHBOURS = """
import resource, torch
from textvae.evaluation.probes import knn_probe
torch.set_num_threads(1)
z, labels = torch.randn(40_000, 32), [row % 2 for row in range(40_000)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
knn_probe(z, labels, z[:10], labels[:10])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
@pytest.mark.slow
def test_neighbours_of_many_queries_take_the_memory_of_a_few_blocks_of_distances():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", NEIGHBOURS], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert float(done.stdout) < 400  # MiB; a block of distances is 16, and there are 62 of them
