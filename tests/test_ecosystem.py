"""Latents in other libraries' hands: a column of a `datasets` table, the files of TensorBoard's projector."""

import numpy as np
import pytest
import torch
from conftest import sentences

import textvae
from textvae import build
from textvae.ecosystem import projector
from textvae.errors import UserError
from textvae.recipe import Recipe
from textvae.text import tokenizers


@pytest.fixture
def vae(values):
    recipe = Recipe.model_validate(values)
    tokenizer = tokenizers.train({"kind": "word"}, sentences(200))
    torch.manual_seed(2)
    return textvae.TextVAE(build.build_model(recipe, tokenizer), tokenizer, recipe)


def test_a_table_gets_a_latent_column_row_for_row_and_the_cache_knows_it_again(vae, tmp_path):
    import datasets

    texts = sentences(50, seed=5)
    table = datasets.Dataset.from_dict({"said": texts, "label": list(range(50))})
    datasets.disable_progress_bars()
    mapped = table.map(textvae.latent_column(vae, "said", name="z"), batched=True, batch_size=16)
    assert mapped["label"] == list(range(50))
    np.testing.assert_allclose(np.asarray(mapped["z"]), vae.encode(texts).numpy(), atol=1e-6)
    assert mapped.features["z"].feature.dtype == "float32"
    again = table.map(textvae.latent_column(vae, "said", name="z"), batched=True, batch_size=16)
    assert again._fingerprint == mapped._fingerprint


def test_columns_that_cannot_be_are_refused(vae, values):
    with pytest.raises(UserError, match=r"column: got 'txet'; known: text\. Did you mean 'text'"):
        textvae.latent_column(vae, "txet")({"text": ["a"]})
    with pytest.raises(UserError, match="batched=True"):
        textvae.latent_column(vae)({"text": "a"})
    with pytest.raises(UserError, match="holds None"):
        textvae.latent_column(vae)({"text": ["a", None]})
    values["model"]["latent_dim"], values["objective"] = 0, {}
    recipe = Recipe.model_validate(values)
    lm = textvae.TextVAE(build.build_model(recipe, vae.tokenizer), vae.tokenizer, recipe)
    with pytest.raises(UserError, match="language model"):
        textvae.latent_column(lm)


def test_tensorboards_own_reader_reads_the_projectors_files(vae, tmp_path):
    plugin = pytest.importorskip(
        "tensorboard.plugins.projector.projector_plugin", reason="tensorboard is not installed"
    )
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    texts = ["the cat sees the dog", "", "a\ttab and\na line"]
    folder = projector(vae, texts, tmp_path / "shown", columns={"label": ["x", "y y", 3]})
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    read = plugin._read_tensor_tsv_file(str(folder / embedding.tensor_path))
    np.testing.assert_allclose(read, vae.encode(texts).numpy(), rtol=1e-6)
    lines = (folder / embedding.metadata_path).read_text().splitlines()
    assert lines == ["text\tlabel", "the cat sees the dog\tx", " \ty y", "a tab and a line\t3"]


def test_a_single_column_of_metadata_has_no_heading(vae, tmp_path):
    folder = projector(vae, ["the cat", "the dog"], tmp_path / "shown")
    assert (folder / "metadata.tsv").read_text() == "the cat\nthe dog\n"
    with pytest.raises(UserError, match="'label' has 1 values for 2 texts"):
        projector(vae, ["a", "b"], tmp_path / "other", columns={"label": ["x"]})
    with pytest.raises(UserError, match="no text"):
        projector(vae, [], tmp_path / "other")


def test_one_bare_text_is_no_list_of_its_characters(vae, tmp_path):
    with pytest.raises(UserError, match="single text 'the dog'"):
        projector(vae, "the dog", tmp_path / "points")
