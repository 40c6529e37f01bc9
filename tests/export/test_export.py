"""An exported run is the run: onnxruntime and torch.export against PyTorch, on a thousand sentences."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import sentences
from torch import nn

import textvae
from textvae import build
from textvae.errors import CheckpointError, MissingExtraError, UserError
from textvae.export import export, graphs, load, onnx_format, torch_format
from textvae.recipe import Recipe
from textvae.text import tokenizers

MISSING = "the extra export is not installed"
GRU = {
    "latent_dim": 4,
    "embedding_dim": 8,
    "encoder": {"cell": "gru", "hidden_dim": 12, "bidirectional": True},
    "decoder": {"cell": "gru", "hidden_dim": 14},
    "initialization": {"kind": "uniform", "scale": 0.7, "embedding_scale": 1.0},
}
LSTM = {
    **GRU,
    "encoder": {"cell": "lstm", "hidden_dim": 12, "layers": 2, "summary": "mean"},
    "decoder": {"cell": "lstm", "hidden_dim": 14, "layers": 2, "z_to": ["layers", "output", "state"]},
    "tie_output": False,
}


def made(values, model, **generation):
    """A run whose parameters are drawn so wide that its sentences are many and long."""
    values = {**values, "model": model, "generation": {"max_length": 25, **generation}}
    if model["latent_dim"]:
        values["objective"] = {"kl": {"kind": "kl"}}
    recipe = Recipe.model_validate(values)
    tokenizer = tokenizers.train({"kind": "word"}, sentences(300))
    torch.manual_seed(3)
    return textvae.TextVAE(build.build_model(recipe, tokenizer), tokenizer, recipe)


PLAIN = {"data": {"grammar": {}}, "training": {"max_steps": 1}}


@pytest.fixture(scope="module", params=[GRU, LSTM], ids=["gru", "lstm"])
def pair(request, tmp_path_factory):
    """A run, and its folders in ONNX and int8."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason=MISSING)
    vae, folder = made(PLAIN, request.param), tmp_path_factory.mktemp("export")
    traced = onnx_format.traced(vae.model, vae.tokenizer)
    for form in ("onnx", "int8"):
        export(vae, folder / form, format=form, traced=traced)
    return vae, folder


@pytest.fixture(scope="module")
def thousand():
    return [*sentences(999, seed=8), ""]


def test_latents_and_greedy_words_are_pytorchs_on_a_thousand_sentences(pair, thousand):
    vae, folder = pair
    exported = load(folder / "onnx", threads=1)
    for ours, theirs in zip(vae.encode_distribution(thousand), exported.encode_distribution(thousand)):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    # Drawn apart: the encoder of a run that nobody trained says nearly the same of all.
    means = vae.encode(thousand)
    z = 2 * (means - means.mean(0)) / means.std(0)
    assert len(set(vae.decode(z, method="greedy"))) > 50  # or this would show little
    assert exported.decode(z, method="greedy") == vae.decode(z, method="greedy")
    # The documented loop in Python over decoder_step.onnx.
    by_step = textvae.TextVAE.decode(exported, z, method="greedy")
    assert by_step == vae.decode(z, method="greedy")
    assert exported.reconstruct(thousand[:20]) == vae.reconstruct(thousand[:20])


def test_the_files_work_without_textvae(pair):
    """As in another language: onnxruntime, the ids of export.json, nothing else."""
    import onnxruntime

    vae, folder = pair
    told = json.loads((folder / "onnx" / "export.json").read_text())
    ids = told["special_ids"]
    texts = ["the cat sees the dog", "the bird"]
    rows = vae.tokenizer.encode(texts)
    tokens = np.full((2, max(map(len, rows))), ids["pad"])
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    session = {name: onnxruntime.InferenceSession(folder / "onnx" / file) for name, file in told["files"].items()}
    lengths = np.array([len(row) - 1 for row in rows])
    mean, _scale = session["encoder"].run(["mean", "scale"], {"tokens": tokens, "lengths": lengths})
    np.testing.assert_allclose(mean, vae.encode(texts).numpy(), atol=1e-5)
    (words,) = session["greedy"].run(["ids"], {"z": mean})  # max_length is the recipe's
    assert words.shape[1] <= told["generation"]["max_length"]
    assert vae.tokenizer.decode(words.tolist()) == vae.reconstruct(texts)
    (few,) = session["greedy"].run(["ids"], {"z": mean, "max_length": np.array(2)})
    np.testing.assert_array_equal(few, words[:, :2])
    state = session["start"].run(None, {"z": mean})
    given = {"word": np.full(2, ids["bos"]), "z": mean} | {f"state_{i}": part for i, part in enumerate(state)}
    logits, *_ = session["step"].run(None, given)
    assert logits.shape == (2, told["vocabulary"])
    model_logits, _ = vae.model.step(
        torch.full((2,), ids["bos"]), torch.from_numpy(mean), tuple(map(torch.from_numpy, state))
    )
    np.testing.assert_allclose(logits, model_logits.detach().numpy(), atol=1e-4)


def test_every_method_of_decoding_and_scores_run_on_the_step(pair):
    vae, folder = pair
    exported = load(folder / "onnx", threads=1)
    z = vae.encode(sentences(30, seed=5))
    assert exported.decode(z, method="beam", beam_size=3) == vae.decode(z, method="beam", beam_size=3)
    assert exported.decode(z, method="greedy", ban_unk=True) == vae.decode(z, method="greedy", ban_unk=True)
    assert exported.decode(z, method="greedy", max_length=3) == vae.decode(z, method="greedy", max_length=3)
    drawn = zip(exported.decode(z, method="sample", seed=4), vae.decode(z, method="sample", seed=4))
    assert sum(a == b for a, b in drawn) >= 28  # a draw at a boundary may fall to the other side
    assert exported.sample_latents(3, seed=1).shape == (3, 4)
    with pytest.raises(UserError, match="holds no prior"):
        exported.score(["the cat"])
    exported.model.prior = vae.model.prior
    texts = sentences(10, seed=6)
    for ours, theirs in zip(vae.score(texts, seed=2), exported.score(texts, seed=2)):
        assert theirs == pytest.approx(ours, rel=1e-4)
    for z in (torch.zeros(2, 5), torch.zeros(4)):
        with pytest.raises(UserError, match=r"\(N, 4\)"):
            exported.decode(z, method="greedy")
    with pytest.raises(UserError, match="cannot be saved as a run"):
        exported.save_pretrained(folder / "again")


def test_int8_weights_are_int8_and_as_near_as_their_steps_allow(pair):
    import onnx
    from onnx import numpy_helper

    vae, folder = pair
    step = onnx.load(folder / "int8" / "decoder_step.onnx")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in step.graph.initializer}
    weights = {name: array for name, array in tensors.items() if array.dtype == np.int8 and array.ndim == 2}
    whole = onnx.load(folder / "onnx" / "decoder_step.onnx")
    originals = [numpy_helper.to_array(tensor) for tensor in whole.graph.initializer]
    assert len(weights) >= 3
    found = 0
    for name, array in weights.items():
        scale = tensors[name.replace("_quantized", "_scale")]
        zero = tensors[name.replace("_quantized", "_zero_point")]
        assert np.abs(array.astype(int)).max() <= 64  # seven bits
        restored = (array.astype(np.float32) - zero) * scale
        near = [
            matrix
            for original in originals
            for matrix in (original, original.T)
            if matrix.shape == restored.shape and np.all(np.abs(matrix - restored) <= 0.51 * scale)
        ]
        found += bool(near)
    assert found == len(weights)
    kinds = {node.op_type for node in onnx.load(folder / "int8" / "encoder.onnx").graph.node}
    assert kinds & {"GRU", "LSTM", "DynamicQuantizeLSTM"} == (
        {"GRU"} if vae.recipe.model.encoder.as_dict()["cell"] == "gru" else {"DynamicQuantizeLSTM"}
    )
    exported = load(folder / "int8", threads=1)
    texts = sentences(50, seed=2)
    difference = (exported.encode(texts) - vae.encode(texts)).abs()
    assert 0 < difference.mean() < 0.1 * vae.encode(texts).std()


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
def test_a_step_in_matrix_products_is_torchs_layer(cell):
    torch.manual_seed(0)
    rnn = cell(5, 7, 3, batch_first=True).double()
    state = torch.randn(3, 4, 7).double()
    state = state if cell is nn.GRU else (state, torch.randn(3, 4, 7).double())
    inputs = torch.randn(4, 1, 5).double()
    ours, after = graphs.StepLayers(rnn)(inputs, state)
    theirs, expected = rnn(inputs, state)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    torch.testing.assert_close(after, expected, atol=1e-12, rtol=0)


def test_torch_export_gives_pytorchs_own_numbers_for_any_number_and_length(tmp_path):
    pytest.importorskip("torch.export._patches", reason="this torch exports a recurrence of one length alone")
    vae = made(PLAIN, {**GRU, "decoder": LSTM["decoder"]})
    before = {name: id(tensor) for name, tensor in vae.model.named_parameters()}
    folder = export(vae, tmp_path / "pt2", format="torch")
    assert before == {name: id(tensor) for name, tensor in vae.model.named_parameters()}
    with pytest.raises(UserError, match="trust_code"):
        load(folder)
    exported = load(folder, trust_code=True)
    texts = [*sentences(40, seed=1), "", " ".join(["the"] * 60)]
    torch.testing.assert_close(exported.encode(texts), vae.encode(texts), atol=1e-6, rtol=0)
    torch.testing.assert_close(exported.encode(texts[:1]), vae.encode(texts[:1]), atol=1e-6, rtol=0)
    assert exported.reconstruct(texts) == vae.reconstruct(texts)


def test_what_cannot_be_exported_is_said(tmp_path):
    with pytest.raises(UserError, match=r"--format: got 'onx'.*Did you mean 'onnx'"):
        export(made(PLAIN, GRU), tmp_path / "out", format="onx")
    with pytest.raises(UserError, match="language model"):
        export(made(PLAIN, {**GRU, "latent_dim": 0}), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(UserError, match="exists and is no export"):
        export(made(PLAIN, GRU), tmp_path / "mine", format="torch")
    assert not (tmp_path / "out").exists()


def test_a_fitted_prior_goes_along_and_goes_away(tmp_path):
    vae = made(PLAIN, GRU)
    vae.fit_prior(sentences(300), kind="mixture", components=2)
    back = load(export(vae, tmp_path / "out", format="torch"), trust_code=True)
    assert torch.equal(back.sample_latents(5, seed=1), vae.sample_latents(5, seed=1))
    vae.fitted_prior = None
    again = load(export(vae, tmp_path / "out", format="torch"), trust_code=True)
    assert again.fitted_prior is None
    assert not torch.equal(again.sample_latents(5, seed=1), back.sample_latents(5, seed=1))


def test_a_flow_that_cannot_be_read_is_missed_when_it_is_drawn_from(tmp_path, monkeypatch):
    vae = made(PLAIN, GRU)
    vae.fit_prior(sentences(300), kind="flow")
    place = export(vae, tmp_path / "out", format="torch")
    for name in [name for name in sys.modules if name.partition(".")[0] == "zuko"]:
        monkeypatch.setitem(sys.modules, name, None)
    back = load(place, trust_code=True)
    assert torch.allclose(back.encode(sentences(5)), vae.encode(sentences(5)), atol=1e-5)
    with pytest.raises(MissingExtraError, match="zuko"):
        back.sample(3)


def test_a_folder_holds_one_format(pair, tmp_path):
    import shutil

    vae, folder = pair
    place = shutil.copytree(folder / "onnx", tmp_path / "place")
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    for other in ("torch", "int8"):
        with pytest.raises(UserError, match=f"holds an export of the format onnx; name another folder for {other}"):
            export(vae, place, format=other)
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before
    (place / "encoder.onnx").write_bytes(b"")
    export(vae, place, format="onnx")  # the same again is written anew
    assert load(place).reconstruct(["the cat"]) == vae.reconstruct(["the cat"])
    (place / "export.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"export\.json: is damaged"):
        export(vae, place, format="torch")


def test_an_export_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    vae, place = made(PLAIN, GRU), tmp_path / "mine"
    place.mkdir()

    def breaks(model, tokenizer, folder):
        (folder / "encoder.pt2").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    written = {"encoder.pt2": b"whole", "tokenizer.json": b"of another tokenizer"}
    monkeypatch.setattr(torch_format, "write", breaks)
    for target in (tmp_path / "new", place):
        with pytest.raises(OSError, match="No space"):
            export(vae, target, format="torch")
    assert not (tmp_path / "new").exists()
    assert list(place.iterdir()) == []
    for name, content in written.items():
        (place / name).write_bytes(content)
    (place / "export.json").write_text('{"format": "torch", "latent_dim": 1}')
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(OSError, match="No space"):
        export(vae, place, format="torch")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before

    # One that was killed is gone over; what the new export has not does not stay.
    (place / ".export.part").mkdir()
    monkeypatch.setattr(torch_format, "write", lambda model, tokenizer, folder: None)
    monkeypatch.setattr("textvae.hub.tokenizer.save_for_transformers", lambda *_: False)
    export(vae, place, format="torch")
    assert not {"tokenizer.json", ".export.part"} & {path.name for path in place.iterdir()}
    assert json.loads((place / "export.json").read_text())["latent_dim"] == vae.latent_dim


def test_an_export_is_told_from_a_run(pair):
    _, folder = pair
    for read in (textvae.load, textvae.TextVAE.from_pretrained):
        with pytest.raises(CheckpointError, match=r"onnx: is an export and no run; .* textvae\.export\.load"):
            read(folder / "onnx")
    exported = load(folder / "onnx", threads=1)
    for call, message in (
        (lambda: exported.evaluate("test"), "evaluate: an export holds no prior"),
        (lambda: exported.evaluate(samples=5, progress=True), "evaluate: an export holds no prior"),
        (lambda: exported.encode("the cat"), "texts: got the single text"),
        (lambda: exported.decode(torch.full((2, 4), torch.nan), method="greedy"), "z: row 0 holds nan"),
        (lambda: exported.sample(2.5), "n: got 2.5"),
        (lambda: exported.interpolate("the cat", ""), "b: is empty"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'textvae\[export\]'"):
        export(made(PLAIN, GRU), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_exports_are_named(pair, tmp_path):
    import shutil

    _, folder = pair
    with pytest.raises(CheckpointError, match="holds no export"):
        load(tmp_path)
    moved = shutil.copytree(folder / "onnx", tmp_path / "moved")
    assert load(moved).reconstruct(["the cat"])
    (moved / "greedy.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"greedy\.onnx: is damaged"):
        load(moved)
    (moved / "greedy.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"greedy\.onnx: is missing"):
        load(moved)
    (moved / "export.json").write_text('{"format": 3}')
    with pytest.raises(CheckpointError, match=r"export\.json: is damaged"):
        load(moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"output": {"kind": "nearest_embedding"}},
        {"tie_output": True, "decoder": {"hidden_dim": 8}},
        {"posterior": {"kind": "point"}},
        {"posterior": {"kind": "batch_norm"}},
        {"posterior": {"kind": "delta"}},
        {"posterior": {"kind": "von_mises_fisher"}, "prior": {"kind": "uniform_sphere"}},
        {"decoder": {"z_to": ["state"]}},
        {"decoder": {"z_to": ["input"], "cell": "gru", "layers": 2}},
        # Of narrower parameters: with the others float32 itself, PyTorch's own, is 7e-5 away from float64.
        {
            "encoder": {"summary": "max", "layers": 2, "bidirectional": True},
            "share_embeddings": True,
            "initialization": {"kind": "uniform", "scale": 0.4, "embedding_scale": 1.0},
        },
        {"noise": [{"kind": "delete"}], "word_dropout": 0.3},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_kind_of_part_can_be_exported(change, tmp_path, thousand):
    pytest.importorskip("onnxruntime", reason=MISSING)
    vae = made(PLAIN, {**GRU, **change})
    exported = load(export(vae, tmp_path / "onnx"))
    texts = thousand[:200]
    for ours, theirs in zip(vae.encode_distribution(texts), exported.encode_distribution(texts)):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert exported.reconstruct(texts) == vae.reconstruct(texts)
    quantized = load(export(vae, tmp_path / "int8", format="int8"))
    assert len(quantized.reconstruct(texts)) == len(texts)
