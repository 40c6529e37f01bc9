"""Latents as Parquet: rows in step with the file, in constant memory, whole or not at all."""

import gzip
import json

import pyarrow.parquet as pq
import pytest
import torch

from textvae.errors import CorpusError, UserError
from textvae.toolbox import rows_of, write_latents


def test_the_file_holds_text_label_and_latents_row_for_row(vae, unseen, tmp_path):
    labels = [len(text) if i % 3 else None for i, text in enumerate(unseen[:50])]
    out = tmp_path / "latents.parquet"
    assert write_latents(vae, zip(unseen[:50], labels), out, chunk=16) == 50
    table = pq.read_table(out)
    assert table.column_names == ["text", "label", "mean", "scale"]
    assert table["text"].to_pylist() == unseen[:50]
    assert table["label"].to_pylist() == [None if label is None else str(label) for label in labels]
    means, scales = vae.encode_distribution(unseen[:50])
    torch.testing.assert_close(torch.tensor(table["mean"].to_pylist()), means, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(table["scale"].to_pylist()), scales, atol=1e-5, rtol=1e-5)
    assert pq.ParquetFile(out).num_row_groups == 4
    assert list(tmp_path.iterdir()) == [out]


def test_no_more_than_a_chunk_is_held(vae, tmp_path, monkeypatch):
    """Of each chunk the last row is read before it is encoded, and none of the next."""
    read, encoded = 0, []
    encode = type(vae).encode_distribution

    def counted(self, texts):
        encoded.append((len(texts), read))
        return encode(self, texts)

    def rows():
        nonlocal read
        for i in range(105):
            read += 1
            yield f"the cook likes the soup {i}", None

    monkeypatch.setattr(type(vae), "encode_distribution", counted)
    assert write_latents(vae, rows(), tmp_path / "z.parquet", chunk=20) == 105
    assert encoded == [(20, 20), (20, 40), (20, 60), (20, 80), (20, 100), (5, 105)]


def test_an_error_in_the_middle_leaves_the_old_file_and_no_other(vae, tmp_path):
    out = tmp_path / "z.parquet"
    write_latents(vae, [("a", None)], out)
    before = out.read_bytes()

    def rows():
        yield from [("the cook", None)] * 5
        raise CorpusError("line 6 is broken")

    with pytest.raises(CorpusError):
        write_latents(vae, rows(), out, chunk=2)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(UserError, match="no sentence"):
        write_latents(vae, [], out)
    with pytest.raises(UserError, match="chunk: got 0"):
        write_latents(vae, [], out, chunk=0)


def test_what_cannot_be_written_is_named_as_it_was_asked_for(vae, tmp_path, monkeypatch):
    def refused(path, schema):
        raise PermissionError(13, f"Failed to open local file '{path}'")

    for out, message in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "no" / "x.parquet", "cannot be written; .*no is no folder"),
        (tmp_path / f"{'x' * 240}.parquet", "cannot be written \\(File name too long\\)"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            write_latents(vae, [("the cook", None)], out)
        assert str(caught.value).startswith(f"{out}: ")
    monkeypatch.setattr(pq, "ParquetWriter", refused)
    with pytest.raises(UserError, match=r"/x\.parquet: cannot be written \(Permission denied\)$"):
        write_latents(vae, [("the cook", None)], tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_rows_come_out_of_every_format(tmp_path):
    expected = [("good soup", "1"), ("bad soup", "0")]
    rows = [{"text": text, "label": int(label)} for text, label in expected]
    for name, content in (
        ("a.csv", "text,label\ngood soup,1\nbad soup,0\n"),
        ("a.tsv", "label\ttext\n1\tgood soup\n0\tbad soup\n"),
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        ("a.json", json.dumps(rows)),
    ):
        path = tmp_path / name
        path.write_text(content)
        assert list(rows_of(str(path))) == expected, name
    (tmp_path / "b.csv").write_text("text,label\ngood soup,1\nbad soup,0\n\n")
    assert list(rows_of(str(tmp_path / "b.csv"))) == expected  # the blank line is no row
    (tmp_path / "lines.txt").write_text("good soup\nbad soup\n")
    assert list(rows_of(str(tmp_path / "lines.txt"))) == [("good soup", None), ("bad soup", None)]
    (tmp_path / "gap.txt").write_text("good soup\n\nbad soup\n")  # row i is line i
    assert list(rows_of(str(tmp_path / "gap.txt"))) == [("good soup", None), ("", None), ("bad soup", None)]
    late = [{"text": "good soup"}] * 1200 + rows
    (tmp_path / "late.jsonl").write_text("".join(json.dumps(row) + "\n" for row in late))
    assert list(rows_of(str(tmp_path / "late.jsonl")))[1200:] == expected
    (tmp_path / "lines.label").write_text("1\n0\n")
    assert list(rows_of(str(tmp_path / "lines.txt"))) == expected
    with gzip.open(tmp_path / "lines.txt.gz", "wt") as file:
        file.write("good soup\nbad soup\n")
    assert list(rows_of(str(tmp_path / "lines.txt.gz"))) == expected


def test_columns_by_other_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("review,stars\ngood soup,5\n")
    assert list(rows_of(str(path), column="review")) == [("good soup", None)]
    assert list(rows_of(str(path), column="review", label_column="stars")) == [("good soup", "5")]


def test_what_is_not_there_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("review,stars\ngood soup,5\n")
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    (tmp_path / "b.label").write_text("1\n")
    for arguments, message in (
        ({"path": str(tmp_path / "none.txt")}, "is no file"),
        ({"path": str(path)}, "has no column 'text'"),
        ({"path": str(path), "column": "reviews"}, "Did you mean 'review'"),
        ({"path": str(path), "column": "review", "label_column": "star"}, "Did you mean 'stars'"),
        ({"path": str(path), "file_format": "tvs"}, "no format 'tvs'"),
        ({"path": str(tmp_path / "b.txt")}, r"b\.label: ends at line 1, and .*b\.txt goes on"),
    ):
        with pytest.raises(CorpusError, match=message):
            list(rows_of(**arguments))
