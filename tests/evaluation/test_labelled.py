"""Labelled files as users have them: five formats, with and without a line of names, and errors that say where."""

from __future__ import annotations

import gzip
import json

import pytest

from textvae.errors import CorpusError
from textvae.evaluation.labelled import load, load_pairs, load_probe

TEXTS, LABELS = ["a b", 'he said "no", twice', "c"], ["x", "y", "x"]


@pytest.fixture
def write(tmp_path):
    def written(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return written


CSV = 'a b,x\n"he said ""no"", twice",y\nc,x\n'
TSV = 'a b\tx\nhe said "no", twice\ty\nc\tx\n'


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("d.csv", "text,label\n" + CSV, ("text", "label")),
        ("d.csv.gz", "text,label\n" + CSV, ("text", "label")),
        ("d.tsv", "text\tlabel\r\n" + TSV, ("text", "label")),
        ("d.csv", CSV + "\n", ("1", "2")),
        ("d.tsv.gz", TSV + "\n", ("1", "2")),
        ("d.tsv", "".join("\t".join(reversed(row.split("\t"))) + "\n" for row in TSV.splitlines()), ("2", "1")),
        ("d.jsonl", "\n".join(json.dumps({"s": s, "is": x}) for s, x in zip(TEXTS, LABELS)), ("s", "is")),
        ("d.json", json.dumps([{"s": s, "is": x} for s, x in zip(TEXTS, LABELS)]), ("s", "is")),
    ],
)
def test_every_format_gives_the_same_rows(write, name, content, columns):
    assert load(write(name, content), columns) == (TEXTS, LABELS)


def test_parquet_and_json_give_numbers_as_labels_of_their_text(tmp_path, write):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "label": [0, 1, 0]}), path)
    rows = "\n\n".join(json.dumps({"text": s, "label": x}) for s, x in zip(TEXTS, [0, 1, 0]))
    assert load(str(path)) == load(write("d.jsonl", rows)) == (TEXTS, ["0", "1", "0"])


def test_a_text_files_labels_lie_beside_it(write):
    path = write("reviews.txt.gz", "good\nbad\n\n")
    write("reviews.label", "1\n0\n1\n")
    assert load(path) == (["good", "bad", ""], ["1", "0", "1"])


def test_pairs_and_their_scores(write):
    expected = (["a", "b"], ["A", 'B "b"'], [0.5, 5.0])
    rows = '0.5\ta\tA\n5\tb\tB "b"\tmore\n\n'
    assert load_pairs(write("p.csv", rows), ("2", "3", "1"), file_format="tsv") == expected
    named = "score\tsentence1\tsentence2\n" + rows.replace("\tmore", "")
    assert load_pairs(write("p.tsv", named)) == expected
    items = [{"sentence1": a, "sentence2": b, "score": s} for a, b, s in zip(*expected)]
    assert load_pairs(write("p.json", json.dumps(items))) == expected


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("d.csv", "text,lable\na,b\n", {}, r"d\.csv: has no column 'label'; known: lable, text. Did you mean 'lable'"),
        ("d.tsv", "1\ta\n", {}, "number them from 1 if its first line names none"),
        ("d.tsv", "1\ta\n", {"columns": ("3", "1")}, r"read as tsv: row 1 has 2 columns, and no column 3"),
        ("d.tsv", "1\ta\n", {"columns": ("0", "1")}, "all by number from 1"),
        ("d.tsv", "1\ta\n", {"columns": ("text", "1")}, "all by number from 1"),
        ("d.jsonl", '{"text": "a"}', {"columns": ("2", "1")}, "read as json: columns: got 2 1"),
        ("d.csv", "text,label\na,x\nb,\n", {}, "row 2: column 'label': got ''"),
        ("d.csv", "text,label\n", {}, "holds no row"),
        ("d.csv", 'a,"b\n', {"columns": ("1", "2")}, r"d\.csv: row 1: "),
        ("d.jsonl", '{"text": null, "label": 1}', {}, "row 1: column 'text': got None"),
        ("d.jsonl", '{"text": 5, "label": 1}', {}, "'text' is a number, and sentences are strings"),
        ("d.jsonl", '{"text": "a", "label": [1]}', {}, r"row 1: column 'label': got \[1\]"),
        ("d.jsonl", '{"text": "a", "label": 1}\n{"text"', {}, "line 2: no JSON"),
        ("d.txt", "a\n", {}, r"there is no .*d\.label"),
        ("d.xyz", "a\n", {}, "does not tell its format.*--labelled-format"),
        ("d.csv", "a\n", {"file_format": "cvs"}, "no format 'cvs'.*Did you mean 'csv'"),
        ("d.csv.gz", None, {}, "is no file"),
    ],
)
def test_an_error_says_where_what_was_found_and_what_is_allowed(write, tmp_path, name, content, options, message):
    path = str(tmp_path / name) if content is None else write(name, content)
    with pytest.raises(CorpusError, match=message):
        load(path, **options)


def test_a_label_file_of_other_length_is_refused(write):
    path = write("d.txt", "a\nb\n")
    write("d.label", "1\n")
    with pytest.raises(CorpusError, match=r"d\.label: has 1 lines, and .*d\.txt 2"):
        load(path)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("a\tx\nb\tx\n", "a\tx\n", r"train\.tsv: a classifier needs 2 labels or more; found 'x' alone"),
        ("a\tx\nb\ty\nc\tz\n", "a\tx\n", r"train\.tsv: each of its 3 rows has a label of its own, as 'x', 'y', 'z'"),
        ("a\tx\nb\ty\nc\ty\n", "a\tX\n", r"test\.tsv: has labels 'X', and none of .*train\.tsv, as 'x', 'y'"),
    ],
)
def test_labels_that_no_probe_can_learn_are_refused(write, train, test, message):
    with pytest.raises(CorpusError, match=message):
        load_probe(write("train.tsv", train), write("test.tsv", test), ("1", "2"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("high\ta\tb\n", "row 2: column '1': got 'high'; it must be a number"),
        ("nan\ta\tb\n", "row 2: column '1': got 'nan'"),
        ("", "all 1 are 3"),
    ],
)
def test_scores_that_nothing_correlates_with_are_refused(write, row, message):
    with pytest.raises(CorpusError, match=message):
        load_pairs(write("p.tsv", "3\ta\tb\n" + row), ("2", "3", "1"))


@pytest.mark.parametrize(
    ("corpus", "train", "test", "rows", "labels", "columns"),
    [
        ("trec", "train.tsv.gz", "test.tsv.gz", (5452, 500), 6, ("2", "1")),
        ("sst2", "train.tsv.gz", "test.tsv.gz", (6920, 1821), 2, ("2", "1")),
        ("yelp", "train.txt.gz", "test.txt.gz", (126670, 10000), 2, ("text", "label")),
    ],
)
def test_the_labelled_corpora_are_read_whole(shared, corpus, train, test, rows, labels, columns):
    folder = shared(corpus)
    found = load_probe(str(folder / train), str(folder / test), columns)
    assert tuple(len(part.texts) for part in found) == tuple(len(part.labels) for part in found) == rows
    assert len(set(found[0].labels)) == len(set(found[1].labels)) == labels


def test_the_sts_benchmark_is_read_whole_though_it_calls_its_tsv_csv(shared):
    pairs = load_pairs(str(shared("stsb") / "sts-test.csv.gz"), ("6", "7", "5"), file_format="tsv")
    assert len(pairs.first) == len(pairs.second) == 1379
    assert (min(pairs.scores), max(pairs.scores)) == (0, 5)
    assert pairs.first[0] == "A girl is styling her hair."
