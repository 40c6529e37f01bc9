"""Cached files of a corpus that were damaged are made anew, whichever and however; whole ones are read as they are."""

from pathlib import Path

import datasets
import pytest
from conftest import sentences

from textvae.recipe import Data
from textvae.text import corpora, tokenizers
from textvae.text.encoding import encode


def ids(data: Data):
    corpus = corpora.load(data)
    tokenizer = tokenizers.train({"kind": "word"}, sentences(50))
    encoded = encode(corpus, tokenizer, data)
    rows = {part: [list(row) for row in encoded.parts[part]["tokens"]] for part in encoded.parts}
    return rows, encoded.dropped


@pytest.fixture
def data(tmp_path, monkeypatch) -> Data:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "train.txt"
    path.write_text("".join(f"{text}\n" for text in sentences(3000)))
    return Data.model_validate({"files": {"train": str(path)}, "validation_fraction": 0.1})


def arrows(tmp_path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize("left", [0.0, 0.4, 0.999], ids="{:.1%} left".format)
def test_a_file_that_was_cut_off_is_made_anew(data, tmp_path, left):
    expected = ids(data)
    files = arrows(tmp_path)
    assert len(files) >= 4  # the lines, the cleaned ones, ids of both parts
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: int(left * len(whole))])
        assert ids(data) == expected, file
        assert file.stat().st_size == len(whole)


def test_whole_files_are_not_made_again(data, tmp_path):
    expected = ids(data)
    before = {file: file.stat().st_mtime_ns for file in arrows(tmp_path)}
    assert ids(data) == expected
    assert {file: file.stat().st_mtime_ns for file in arrows(tmp_path)} == before


def test_a_file_without_its_size_is_made_again_and_sealed(data, tmp_path):
    expected = ids(data)
    for seal in (tmp_path / "cache").rglob("*.json"):
        if seal.name.endswith((".arrow.json", ".read.json")):
            seal.write_text("{")
    assert ids(data) == expected
    before = {file: file.stat().st_mtime_ns for file in arrows(tmp_path)}
    assert ids(data) == expected
    assert {file: file.stat().st_mtime_ns for file in arrows(tmp_path)} == before
