import importlib.util
import linecache
import sys

import datasets
import pyarrow
import pytest

from textvae.errors import CorpusError
from textvae.recipe import Data
from textvae.text import corpora, tokenizers
from textvae.text.encoding import encode, tokenizer_digest

LINES = ["a b c", "a", "c c c c c", "b a"]  # target tokens: 4, 2, 6, 3


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def data(tmp_path, lines=LINES, **options):
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "valid.txt").write_text("b\n")
    files = {"train": str(tmp_path / "train.txt"), "validation": str(tmp_path / "valid.txt")}
    return Data(files=files, **options)


def word():
    return tokenizers.train({"kind": "word"}, LINES)


class Counting:
    """A tokenizer that counts the texts it encodes."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.eos_id = tokenizer.eos_id
        self.texts = 0

    def encode(self, texts):
        self.texts += len(texts)
        return self.tokenizer.encode(texts)

    def save(self, folder):
        self.tokenizer.save(folder)


def run(recipe, tokenizer, **options):
    return encode(corpora.load(recipe), tokenizer, recipe, **options)


def test_rows_are_the_tokenizers_ids_and_their_target_lengths(tmp_path):
    tokenizer = word()
    encoded = run(data(tmp_path), tokenizer)
    train = encoded.parts["train"]
    assert train["tokens"][:] == tokenizer.encode(LINES)
    assert train["length"][:] == [len(line.split()) + 1 for line in LINES]
    assert train.column_names == ["tokens", "length"]
    assert train.data.column("tokens").type.value_type == pyarrow.int32()
    assert train.data.column("length").type == pyarrow.int32()
    assert encoded.dropped == {"train": {}, "validation": {}}


def test_the_same_corpus_and_tokenizer_are_read_from_the_cache_and_another_tokenizer_is_not(tmp_path):
    first, again, other = (
        Counting(word()),
        Counting(word()),
        Counting(tokenizers.train({"kind": "word"}, ["a", *LINES, "new"])),
    )
    recipe = data(tmp_path)
    held = run(recipe, first)
    cached = run(recipe, again)
    assert (first.texts, again.texts) == (5, 0)
    assert cached.parts["train"]["tokens"][:] == held.parts["train"]["tokens"][:]
    assert cached.fingerprint == held.fingerprint
    assert run(recipe, other).fingerprint != held.fingerprint
    assert other.texts == 5


def test_another_corpus_another_length_and_another_folder_are_encoded_anew(tmp_path):
    recipe = data(tmp_path)
    run(recipe, word())
    for changed, options in (
        (data(tmp_path, max_length=3), {}),
        (data(tmp_path, max_length=3, too_long="truncate"), {}),
        (data(tmp_path, [*LINES, "c"]), {}),
        (data(tmp_path, [*LINES, "c"]), {"cache_dir": str(tmp_path / "elsewhere")}),
    ):
        tokenizer = Counting(word())
        run(changed, tokenizer, **options)
        assert tokenizer.texts > 0
    assert len(list((tmp_path / "elsewhere").glob("*.arrow"))) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_sentences_beyond_max_length_are_dropped_and_counted(tmp_path, streaming):
    recipe = data(tmp_path, ["", *LINES], max_length=3, streaming=streaming)
    for _ in range(1 if streaming else 2):  # the second time from the cache
        encoded = run(recipe, word())
        assert [row["length"] for row in encoded.parts["train"]] == [2, 3]
        assert encoded.dropped["train"] == {"empty": 1, "too_long": 2}


@pytest.mark.parametrize("streaming", [False, True])
def test_truncated_sentences_keep_their_end_and_are_counted(tmp_path, streaming):
    recipe = data(tmp_path, max_length=3, too_long="truncate", streaming=streaming)
    tokenizer = word()
    for _ in range(1 if streaming else 2):
        encoded = run(recipe, tokenizer)
        rows = [row["tokens"] for row in encoded.parts["train"]]
        assert rows == tokenizer.encode(["a b", "a", "c c", "b a"])
        assert encoded.dropped["train"] == {"truncated": 2}


def test_a_stream_is_encoded_as_it_is_read(tmp_path):
    tokenizer = Counting(word())
    encoded = run(data(tmp_path, LINES * 2_000, streaming=True), tokenizer)
    assert encoded.streaming
    assert tokenizer.texts == 1  # the validation part
    stream = iter(encoded.parts["train"])
    assert next(stream) == {"tokens": word().encode(LINES)[0], "length": 4}
    assert tokenizer.texts <= 1_001
    assert sum(1 for _ in encoded.parts["train"]) == 8_000


def test_a_max_length_that_leaves_nothing_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match=r"data\.max_length: no sentence of the train part has 1 tokens"):
        run(data(tmp_path, max_length=1), word())


def test_ones_own_tokenizer_edited_is_another(tmp_path):
    # What it saves is the same, what it gives is not.
    digests = []
    for shift in (0, 5):
        path = tmp_path / f"own_{shift}.py"
        path.write_text(f"class Own:\n    def encode(self, texts): return [[{shift}] for _ in texts]\n")
        path.write_text(path.read_text() + "    def save(self, folder): pass\n")
        spec = importlib.util.spec_from_file_location("own", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["own"] = module
        spec.loader.exec_module(module)
        digests.append(tokenizer_digest(module.Own()))
        linecache.clearcache()
    assert digests[0] != digests[1]


def test_equal_tokenizers_have_equal_digests_and_others_do_not():
    assert tokenizer_digest(word()) == tokenizer_digest(word())
    digests = {
        tokenizer_digest(tokenizers.train({"kind": kind}, LINES)) for kind in ("word", "character", "byte", "bpe")
    }
    assert len(digests) == 4
