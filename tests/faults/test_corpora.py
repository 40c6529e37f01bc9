"""Bad corpora end in a run or in one clear line: the file, the column or line, what was found; counts are printed."""

import contextlib
import io
import itertools
import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from conftest import sentences

import textvae
from textvae.cli import main
from textvae.text import tokenizers

GOOD = "".join(line + "\n" for line in sentences(40))
SMALL = {"latent_dim": 2, "embedding_dim": 4, "encoder": {"hidden_dim": 4}, "decoder": {"hidden_dim": 4}}


def parquet(column) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), buffer)
    return buffer.getvalue()


def run(folder, name: str, content: str | bytes, *, validation: str = GOOD, **values) -> tuple[int, str]:
    """Trains two steps on a file through the shell; the exit code and what was said."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "validation.txt").write_text(validation, encoding="utf-8")
    data = {"files": {"train": str(folder / name), "validation": str(folder / "validation.txt")}}
    recipe = {
        "data": {**data, **values.pop("data", {})},
        "model": SMALL,
        "training": {"batch_size": 4, "batch_tokens": 2000, "max_steps": 2, "threads": 1},
        **values,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(["train", str(folder / "recipe.yaml"), "--out", str(folder / "run")])
    return code, said.getvalue()


@pytest.mark.parametrize("streaming", [False, True], ids=["held", "streamed"])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "\n\n  \n" + GOOD + "\n\n", "train: left out or cut: 5 empty"),
        ("a.jsonl", '{"text": null}\n' * 3 + '{"text": "the cat"}\n{"text": " "}\n', "3 null, 1 empty"),
        ("a.parquet", parquet([None, "the cat sees", None, "a dog"]), "2 null"),
        ("a.txt", "the cat\n", "corpus: train"),  # one sentence
        ("a.txt", "the cat\n" * 100, "corpus: train"),
    ],
    ids=["empty lines", "null and empty cells", "nulls of Parquet", "one sentence", "one repeated"],
)
def test_what_can_be_trained_on_is_and_what_was_dropped_is_counted(tmp_path, name, content, expected, streaming):
    code, said = run(tmp_path, name, content, data={"streaming": streaming})
    assert code == 0, said
    # A stream is counted while it is read, up to the first evaluation.
    assert (expected.replace("train:", "train, so far:") if streaming else expected) in said


@pytest.mark.parametrize("streaming", [False, True], ids=["held", "streamed"])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", GOOD.encode() + b"bro\xffken\n", ["a.txt", "line 41", "0xff", "UTF-8"]),
        ("a.txt", "", ["train part holds no sentence"]),
        ("a.txt", "\n\n", ["train part holds no sentence", "2 empty"]),
        ("a.csv", "x,y\na,b\n", ["a.csv", "x (string), y (string)", "data.column"]),
        ("a.csv", "x\n1\n2\n", ["a.csv", "x (number)"]),
        ("a.jsonl", '{"text": 1}\n', ["a.jsonl", "text (number)"]),
        ("a.jsonl", '{"text": "a b"}\n' * 1500 + '{"text": 3}\n', ["a.jsonl", "line 1501", "is a number"]),
        ("a.jsonl", '{"text": ["a"]}\n', ["a.jsonl", "text (list)"]),
        ("a.jsonl", '{"text": null}\n' * 5, ["a.jsonl", "text (null)"]),
        ("a.jsonl", '{"text": ' + "[" * 100_000 + "\n", ["a.jsonl", "line 1", "cannot be read"]),
        ("a.jsonl", '{"text": "a", "n": ' + "1" * 10_000 + "}\n", ["a.jsonl", "line 1", "digits"]),
        ("a.json", "[" * 100_000, ["a.json", "cannot be read"]),
        ("a.jsonl", '{"text": "\\ud800"}\n', ["a.jsonl", "line 1", "surrogate"]),
        ("a.parquet", parquet([1, 2]), ["a.parquet", "text (int64)"]),
        ("a.parquet", parquet([["a"], ["b"]]), ["a.parquet", "text (list<"]),
        ("a.parquet", parquet([None, None]), ["a.parquet", "text (null)"]),
        ("a.parquet", parquet([b"ab", b"\xff"]), ["a.parquet", "text (binary)"]),
        ("a.parquet", parquet(["a", "b"])[:-20], ["a.parquet"]),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_what_cannot_is_named_in_one_line(tmp_path, name, content, expected, streaming):
    code, said = run(tmp_path, name, content, data={"streaming": streaming})
    assert code == 2, said
    assert said.startswith("textvae: ")
    assert said.count("\n") == 1, said
    for part in expected:
        assert part in said


def test_a_column_that_is_missing_is_named_with_those_there(tmp_path):
    code, said = run(tmp_path, "a.csv", "text,label\na,b\n", data={"column": "txet"})
    assert code == 2
    assert "no column 'txet'; known: label, text. Did you mean 'text'?" in said


def test_nul_and_other_breaks_stay_in_their_sentence(tmp_path):
    odd = ["a\0b c", "d\u2028e", "f\x85g", "h\x0bi", "j\x0ck", "l\rm"]
    code, said = run(tmp_path, "a.txt", "".join(f"{line}\n" for line in odd), tokenizer={"kind": "character"})
    assert code == 0, said
    assert "train 6, validation 40" in said
    vae = textvae.load(tmp_path / "run")
    assert vae.tokenizer.decode(vae.tokenizer.encode(odd)) == odd


def test_validation_larger_than_training_is_no_fault(tmp_path):
    code, said = run(tmp_path, "a.txt", GOOD, validation=GOOD * 20)
    assert code == 0, said
    assert "train 40, validation 800" in said


@pytest.mark.parametrize("kind", ["word", "character", "byte", "bpe", "unigram", "sentencepiece"])
@pytest.mark.parametrize(
    "line",
    [
        "x" * 10**6,
        pytest.param("word " * 200_000, marks=pytest.mark.slow),
        pytest.param("ab" * 500_000, marks=pytest.mark.slow),
    ],
    ids=["unbroken", "words", "pairs"],
)
def test_a_line_of_a_megabyte_trains_a_tokenizer_and_is_counted(tmp_path, kind, line):
    # In seconds: the trainers of subwords take time that grows with the square of an unbroken text.
    options = {"vocab_size": 300} if kind in ("bpe", "unigram", "sentencepiece") else {}
    tokenizer = tokenizers.train({"kind": kind, **options}, [line, *sentences(20)])
    (ids,) = tokenizer.encode([line])
    expected = line if kind != "word" else " ".join(line.split())
    assert tokenizer.decode([ids]) == [expected]


def test_a_line_of_a_megabyte_is_left_out_by_length_and_counted(tmp_path):
    content = "text\n" + "word " * 200_000 + "\n" + GOOD
    code, said = run(tmp_path, "a.csv", content, data={"max_length": 500})
    assert code == 0, said
    assert "train: left out or cut: 1 too_long" in said


@pytest.fixture(scope="module")
def naughty(shared) -> list[str]:
    # Split on \n alone: the file holds U+2028, U+0085 and other breaks within its lines.
    return (shared("blns") / "blns.txt").read_bytes().decode("utf-8").split("\n")[:-1]


@pytest.fixture(scope="module")
def naughty_run(naughty, tmp_path_factory):
    folder = tmp_path_factory.mktemp("naughty")
    content = "".join(line + "\n" for line in naughty)
    code, said = run(folder, "a.txt", content, tokenizer={"kind": "bpe"}, generation={"max_length": 20})
    assert code == 0, said
    empty = sum(not line.strip() for line in naughty)
    assert f"train {len(naughty) - empty:,}, " in said
    assert f"{empty} empty" in said
    return folder / "run"


def test_every_naughty_string_is_encoded_reconstructed_and_scored(naughty, naughty_run, tmp_path, capfdbinary):
    vae = textvae.load(naughty_run)
    assert vae.tokenizer.decode(vae.tokenizer.encode(naughty)) == naughty
    means = vae.encode(naughty)
    assert means.shape == (len(naughty), 2)
    assert means.isfinite().all()
    (tmp_path / "lines.txt").write_bytes("".join(line + "\n" for line in naughty).encode())
    for command in ("encode", "reconstruct", "score"):
        assert main([command, str(naughty_run), str(tmp_path / "lines.txt"), "--json"]) == 0
        rows = [json.loads(line) for line in capfdbinary.readouterr().out.decode().split("\n")[:-1]]
        # A carriage return before the newline is a Windows line's end and no text.
        assert [row["text"] for row in rows] == [line.removesuffix("\r") for line in naughty]


@pytest.mark.parametrize("kind", ["word", "character", "unigram", "sentencepiece"])
def test_every_naughty_string_trains_each_tokenizer(naughty, kind):
    options = {"vocab_size": 2000} if kind in ("unigram", "sentencepiece") else {}
    tokenizer = tokenizers.train({"kind": kind, **options}, naughty)
    back = tokenizer.decode(tokenizer.encode(naughty))
    assert back == [" ".join(line.split()) if kind == "word" else line for line in naughty]


def test_naughty_strings_are_arguments_of_the_shell_like_any_other(naughty, naughty_run):
    # The shell itself cannot pass NUL; what begins with a dash is an option without `--`.
    chosen = [line for line in naughty if line.strip() and "\0" not in line][::70]
    assert len(chosen) > 5
    for first, second in itertools.pairwise(chosen):
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as out:
            assert main(["interpolate", str(naughty_run), "--steps", "3", "--", first, second]) == 0
            out.flush()
            assert out.buffer.getvalue().count(b"\n") == 3
    command = [sys.executable, "-m", "textvae", "interpolate", str(naughty_run), "--steps", "2", "--", *chosen[:2]]
    finished = subprocess.run(command, capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert b"Traceback" not in finished.stderr
