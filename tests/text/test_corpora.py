import bz2
import gzip
import json
import lzma
import sys
import types
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from textvae.errors import CorpusError
from textvae.recipe import Data
from textvae.text.corpora import load

SENTENCES = ["a dog runs", "the cat sleeps", "no bird sings"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, content):
    """Writes text, compressed as the name says."""
    raw = content if isinstance(content, bytes) else content.encode()
    packers = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
    if path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(pyarrow.OSFile(str(path), "wb"), "zstd") as out:
            out.write(content if isinstance(content, bytes) else content.encode())
    else:
        path.write_bytes(packers.get(path.suffix, bytes)(raw))
    return str(path)


def text_of(corpus, part="train"):
    return [row["text"] for row in corpus.parts[part]]


def from_text(tmp_path, content, *, name="train.txt", **options):
    valid = write(tmp_path / "valid.txt", "a valid line\n")
    return load(Data(files={"train": write(tmp_path / name, content), "validation": valid}, **options))


def parquet_bytes(rows, tmp_path):
    path = tmp_path / "raw"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.read_bytes()


@pytest.mark.parametrize("compression", ["", ".gz", ".xz", ".zst", ".bz2"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_format_compressed_or_not_gives_the_same_sentences(tmp_path, suffix, compression):
    rows = [{"text": text, "label": i} for i, text in enumerate(SENTENCES)]
    separator = {".csv": ",", ".tsv": "\t"}.get(suffix, "")
    content = {
        ".txt": "".join(f"{text}\n" for text in SENTENCES),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".json": json.dumps(rows, indent=1),
        ".parquet": parquet_bytes(rows, tmp_path),
    }.get(suffix, f"text{separator}label\n" + "".join(f"{r['text']}{separator}{r['label']}\n" for r in rows))
    corpus = from_text(tmp_path, content, name=f"train{suffix}{compression}")
    assert text_of(corpus) == SENTENCES
    assert corpus.parts["train"].column_names == ["text"]


def test_only_a_newline_ends_a_line_of_text(tmp_path):
    lines = ["a\u2028b", "c\u2029d", "e\x85f", "g\x0bh", "i\x0cj", "k\rl", "m\x1cn\x1do\x1ep", " spaced "]
    assert text_of(from_text(tmp_path, "\n".join(lines))) == lines


def test_the_carriage_return_of_a_windows_line_is_no_text(tmp_path):
    assert text_of(from_text(tmp_path, b"\xef\xbb\xbfone\r\ntwo\r\n")) == ["one", "two"]


def test_empty_lines_are_dropped_and_counted(tmp_path):
    corpus = from_text(tmp_path, "one\n\n   \ntwo\n\u3000\n")
    assert text_of(corpus) == ["one", "two"]
    assert corpus.dropped == {"train": {"empty": 3}, "validation": {}}


def test_nulls_are_dropped_and_counted_apart_from_empty_ones(tmp_path):
    rows = [{"text": "one"}, {"text": None}, {"other": 1}, {"text": " "}]
    corpus = from_text(tmp_path, "\n".join(map(json.dumps, rows)), name="train.jsonl")
    assert text_of(corpus) == ["one"]
    assert corpus.dropped["train"] == {"null": 2, "empty": 1}


def test_counts_and_sentences_come_again_from_the_cache(tmp_path):
    first = from_text(tmp_path, "one\n\ntwo\n")
    again = from_text(tmp_path, "one\n\ntwo\n")
    assert (text_of(first), first.dropped, first.fingerprint) == (text_of(again), again.dropped, again.fingerprint)


def test_words_like_null_and_na_of_a_csv_are_sentences(tmp_path):
    corpus = from_text(tmp_path, 'label,text\n1,null\n2,NA\n3,"a, ""quoted"" one"\n4,12\n', name="train.csv")
    assert text_of(corpus) == ["null", "NA", 'a, "quoted" one', "12"]


def test_quotes_of_a_tsv_are_text(tmp_path):
    corpus = from_text(tmp_path, 'label\ttext\n1\t"open\n2\tshut"\n', name="train.tsv")
    assert text_of(corpus) == ['"open', 'shut"']


def test_case_and_normal_form_follow_the_recipe(tmp_path):
    text = "E\u0301COLE \ufb01n\n"
    assert text_of(from_text(tmp_path, text)) == ["E\u0301COLE \ufb01n"]
    assert text_of(from_text(tmp_path, text, lowercase=True, normalize="NFC")) == ["\xe9cole \ufb01n"]
    assert text_of(from_text(tmp_path, text, normalize="NFKC")) == ["\xc9COLE fin"]


@pytest.mark.parametrize(
    "options", [{"lowercase": True}, {"normalize": "NFC"}, {"limit": {"train": 1}}, {"content": "one\nthree\n"}]
)
def test_the_fingerprint_changes_with_content_and_cleaning(tmp_path, options):
    content = options.pop("content", "one\ntwo\n")
    before = from_text(tmp_path, "one\ntwo\n").fingerprint
    assert from_text(tmp_path, content, **options).fingerprint != before


def test_a_limit_counts_sentences_that_are_kept(tmp_path):
    assert text_of(from_text(tmp_path, "\none\n\ntwo\nthree\n", limit={"train": 2})) == ["one", "two"]


def test_a_missing_validation_part_is_cut_from_train_the_same_way_each_time(tmp_path):
    lines = [f"line {i}" for i in range(200)]
    path = write(tmp_path / "train.txt", "\n".join(lines))
    first, again = (load(Data(files={"train": path})) for _ in range(2))
    assert len(text_of(first, "validation")) == 10
    assert sorted(text_of(first) + text_of(first, "validation")) == sorted(lines)
    assert text_of(first, "validation") == text_of(again, "validation")
    assert "10 sentences cut from train" in first.notes[0]
    half = load(Data(files={"train": path}, validation_fraction=0.5, limit={"train": 100, "validation": 20}))
    assert (len(text_of(half)), len(text_of(half, "validation"))) == (50, 20)


def test_several_files_are_one_part_in_the_order_given(tmp_path):
    paths = [write(tmp_path / f"{name}.txt", f"{name}\n") for name in "ba"]
    valid = write(tmp_path / "v.txt", "v")
    assert text_of(load(Data(files={"train": paths, "validation": valid}))) == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("x.txt", b"good\nbad \xff here\n", {}, r"x\.txt: line 2, byte 9 .*0xff"),
        ("x.csv", 'text,n\n"a" b,1\n', {}, r"x\.csv: the row of line 2: .*in quotes"),
        ("x.csv", 'text,n\na,1\n"open,2\n', {}, r"x\.csv: the row of line 3: .*in quotes"),
        ("x.csv", "text,n\na,1,2\n", {}, r"x\.csv: line 2 has 3 cells, and the first line names 2"),
        ("x.csv", "n,m\n1,2\n", {}, r"data\.column: say which .*n \(number\), m \(number\)"),
        ("x.csv", "left,right\na,b\n", {}, r"data\.column: say which .*first line.*left \(string\)"),
        ("x.csv", "sentence,n\na,1\n", {"column": "sentense"}, r"data\.column: .*Did you mean 'sentence'"),
        ("x.csv", "sentence,n\na,1\n", {"column": "n"}, r"data\.column: 'n' of .* holds number"),
        ("x.jsonl", '{"text": ["a"]}\n', {"column": "text"}, r"data\.column: 'text' of .* holds list"),
        ("x.jsonl", '{"text": "a"}\n{"text": \n', {}, r"x\.jsonl: line 2: no JSON"),
        ("x.jsonl", '"a"\n', {}, r"x\.jsonl: line 1 is a string; needed is an object a line"),
        ("x.jsonl", '{"text": "\\ud800"}\n', {}, r"x\.jsonl: line 1: .*surrogate"),
        ("x.parquet", b"no parquet", {}, r"x\.parquet: cannot be read"),
        ("x.txt.gz.txt", b"", {}, r"data\.files: the train part holds no sentence; dropped: none"),
        ("x.txt", b"\n \n", {}, r"data\.files: the train part holds no sentence; dropped: 2 empty"),
        ("x.log", b"a\n", {}, r"x\.log: its name does not tell its format; known: \.txt.*data\.format"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(tmp_path, name, content, options, message):
    with pytest.raises(CorpusError, match=message):
        from_text(tmp_path, content, name=name, **options)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_a_damaged_archive_is_named(tmp_path, suffix):
    (tmp_path / f"train.txt{suffix}").write_bytes(b"this is no archive")
    with pytest.raises(CorpusError, match=r"train\.txt.*cannot be read, or is damaged"):
        load(Data(files={"train": str(tmp_path / f"train.txt{suffix}")}))


def test_a_declared_format_stands_above_the_name(tmp_path):
    assert text_of(from_text(tmp_path, "a\tb\nc\td\n", name="x.csv", format="text")) == ["a\tb", "c\td"]


def test_a_missing_file_is_named_with_its_key(tmp_path):
    with pytest.raises(CorpusError, match=r"data\.files\.train: .*absent\.txt is no file"):
        load(Data(files={"train": str(tmp_path / "absent.txt")}))


def saved(tmp_path, **splits):
    made = {name: datasets.Dataset.from_dict({"text": lines, "n": [0] * len(lines)}) for name, lines in splits.items()}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_a_saved_folder_is_read_by_its_conventional_splits_and_left_as_it_was(tmp_path):
    folder = saved(tmp_path, train=["a", "", "b"], dev=["c"], test=["d"])
    before = sorted(path.name for path in Path(folder).rglob("*"))
    corpus = load(Data(folder=folder))
    assert [text_of(corpus, part) for part in ("train", "validation", "test")] == [["a", "b"], ["c"], ["d"]]
    assert corpus.dropped["train"] == {"empty": 1}
    assert sorted(path.name for path in Path(folder).rglob("*")) == before


def test_a_saved_data_set_without_splits_is_the_train_part(tmp_path):
    datasets.Dataset.from_dict({"text": SENTENCES}).save_to_disk(tmp_path / "one")
    corpus = load(Data(folder=str(tmp_path / "one"), validation_fraction=0.34))
    assert sorted(text_of(corpus) + text_of(corpus, "validation")) == sorted(SENTENCES)


def test_a_split_that_does_not_exist_is_named_with_the_nearest(tmp_path):
    folder = saved(tmp_path, train=["a"], holdout=["b"])
    with pytest.raises(CorpusError, match=r"data\.splits\.validation: .*'holdut'.*Did you mean 'holdout'"):
        load(Data(folder=folder, splits={"validation": "holdut"}))
    assert text_of(load(Data(folder=folder, splits={"validation": "holdout"})), "validation") == ["b"]


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"data\.folder: .*save_to_disk"):
        load(Data(folder=str(tmp_path / "absent")))
    with pytest.raises(CorpusError, match=r"data\.folder: .*cannot be read"):
        load(Data(folder=str(tmp_path)))


def hub_folder(tmp_path, **splits):
    folder = tmp_path / "hub"
    folder.mkdir()
    for name, lines in splits.items():
        write(folder / f"{name}.jsonl", "".join(json.dumps({"sentence": line, "label": 1}) + "\n" for line in lines))
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_is_loaded_by_name(tmp_path, streaming):
    name = hub_folder(tmp_path, train=["a", " ", "b"], validation=["c"], test=["d"])
    corpus = load(Data(hub={"name": name}, streaming=streaming))
    assert [text_of(corpus, part) for part in ("train", "validation", "test")] == [["a", "b"], ["c"], ["d"]]
    assert isinstance(corpus.parts["train"], datasets.IterableDataset) == corpus.streaming == streaming
    assert isinstance(corpus.parts["validation"], datasets.Dataset)
    assert corpus.dropped["train"] == {"empty": 1}


def test_name_config_and_revision_reach_the_hub(monkeypatch):
    seen = {}

    def load_dataset(*args, **options):
        seen.update(args=args, **options)
        return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": SENTENCES})})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load(Data(hub={"name": "some/set", "config": "small", "revision": "abc"}))
    assert seen == {"args": ("some/set", "small"), "revision": "abc", "streaming": False}


def test_a_hub_that_does_not_answer_is_an_error_for_a_person(monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("Couldn't reach 'some/set' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        CorpusError, match=r"data\.hub: data set 'some/set' cannot be loaded: Couldn't reach.*Without the Hub"
    ):
        load(Data(hub={"name": "some/set"}))


def test_a_column_of_labels_is_no_column_of_sentences(monkeypatch):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
    rows = datasets.Dataset.from_dict({"text": ["a"], "label": [0]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: datasets.DatasetDict({"train": rows}))
    with pytest.raises(CorpusError, match=r"'label' .* holds ClassLabel"):
        load(Data(hub={"name": "some/set"}, column="label"))


def test_the_grammar_gives_the_counts_asked_for(monkeypatch):
    def sentences(seed, part, count):
        return [f"{part} {seed} {i}" for i in range(count)]

    monkeypatch.setitem(sys.modules, "textvae.text.grammar", types.SimpleNamespace(sentences=sentences))
    corpus = load(Data(grammar={"seed": 3, "train": 4, "validation": 2, "test": 1}))
    assert text_of(corpus) == [f"train 3 {i}" for i in range(4)]
    assert {part: len(rows) for part, rows in corpus.parts.items()} == {"train": 4, "validation": 2, "test": 1}
    assert load(Data(grammar={"seed": 4, "train": 4})).fingerprint != corpus.fingerprint


def test_a_stream_gives_the_sentences_of_the_held_corpus(tmp_path):
    content = "One\n\nTwo\n \nThree\nFour\n"
    held = from_text(tmp_path, content, lowercase=True, limit={"train": 3})
    stream = from_text(tmp_path, content, lowercase=True, limit={"train": 3}, streaming=True)
    assert stream.streaming
    assert text_of(stream) == text_of(held) == ["one", "two", "three"]
    assert text_of(stream) == text_of(held)


def test_a_stream_is_read_only_as_far_as_it_is_asked_and_counts_what_it_drops(tmp_path):
    lines = "one\n\ntwo\n" + "\n" * 50 + "three\n"
    corpus = from_text(tmp_path, lines, streaming=True)
    assert corpus.dropped["train"] == {}
    stream = iter(corpus.parts["train"])
    assert [next(stream)["text"], next(stream)["text"]] == ["one", "two"]
    assert corpus.dropped["train"] == {"empty": 1}
    assert next(stream)["text"] == "three"
    assert corpus.dropped["train"] == {"empty": 51}


def test_a_stream_without_validation_part_is_an_error(tmp_path):
    path = write(tmp_path / "train.txt", "a\nb\n")
    with pytest.raises(ValueError, match=r"files\.validation: is missing, and a stream cannot be cut"):
        Data(files={"train": path}, streaming=True)


@pytest.mark.parametrize("before", [{"id": 1}, {"id": 1, "said": None}])
def test_a_json_column_may_begin_late(tmp_path, before):
    """Rows of JSON without a key have none of it; that the first thousand have none says nothing of the next."""
    rows = [before] * 1500 + [{"id": 2, "said": "at last"}]
    path = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
    corpus = load(Data(files={"train": path, "validation": path}, column="said"))
    assert list(corpus.parts["train"]["text"]) == ["at last"]
    assert corpus.dropped["train"] == {"null": 1500}


def test_a_json_array_is_not_streamed(tmp_path):
    with pytest.raises(CorpusError, match=r"one JSON array, which cannot be streamed"):
        from_text(tmp_path, '[{"text": "a"}]', name="x.json", streaming=True)


def test_progress_bars_are_as_they_were(tmp_path):
    was = datasets.are_progress_bars_disabled()
    from_text(tmp_path, "one\n")
    assert datasets.are_progress_bars_disabled() == was


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_named_and_text_with_some_nuls_is_text(tmp_path, encoding):
    path = tmp_path / "text.txt"
    path.write_bytes("Ein Satz mit Übermut\nund noch einer\n".encode(encoding))
    with pytest.raises(CorpusError, match=r"text.txt: every other byte is 0, as in UTF-16; save the file as UTF-8"):
        load(Data(files={"train": str(path), "validation": str(path)}))
    path.write_bytes(b"a\0b \0 c\0\0\nd\0e\0f\n\n")
    corpus = load(Data(files={"train": str(path), "validation": str(path)}))
    assert corpus.parts["train"]["text"] == ["a\0b \0 c\0\0", "d\0e\0f"]


def test_a_csv_that_names_the_column_twice_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("text,label,text\na,1,b\n")
    with pytest.raises(CorpusError, match=r"table.csv: the first line names 2 columns 'text'; rename all but one"):
        load(Data(files={"train": str(path), "validation": str(path)}, column="text"))
