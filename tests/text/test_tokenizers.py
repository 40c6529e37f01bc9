import copy
import gzip
import json
import pickle
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
import tokenizers as library
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from textvae.errors import TokenizerError, UserError
from textvae.registry import UntrustedCodeError
from textvae.text.codecs import LibraryCodec
from textvae.text.tokenizers import TOKENIZERS, load, train
from textvae.types import Tokenizer

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TEXTS = [
    "the cat sat on the mat .",
    "a dog ran ; the cat ran , too .",
    " spaced  out ",
    "na\xefve caf\xe9 \u4e2d\u6587",
] * 3
NASTY = [
    *("", " ", "  a  b ", "tab\tnewline\nnul\0return\r\n", "\u2581", "a\u2581 \u2581\u2581b", "\u2585", "<0xE2>"),
    *("\ufeffx", "</s> <s> <pad> <unk>", "<s></s><pad><unk>", "\u2028\u2029\x85\x1c", "e\u0301 \xe9 \ufb01"),
    "\U0001f469\u200d\U0001f680",
]
SECTIONS = {
    "word": {"kind": "word"},
    "character": {"kind": "character"},
    "byte": {"kind": "byte"},
    "bpe": {"kind": "bpe", "vocab_size": 300},
    "unigram": {"kind": "unigram", "vocab_size": 300},
    "sentencepiece": {"kind": "sentencepiece", "vocab_size": 320},
    "sentencepiece-bpe": {"kind": "sentencepiece", "model_type": "bpe", "vocab_size": 320},
}
EXACT = {name: SECTIONS[name] for name in ("byte", "bpe", "unigram", "sentencepiece", "sentencepiece-bpe")}


@pytest.fixture(scope="module")
def trained():
    return {name: train(section, TEXTS) for name, section in SECTIONS.items()}


def corpus_lines(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the shared corpus {name} is not here")
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return raw.decode("utf-8").removesuffix("\n").split("\n")


@pytest.mark.parametrize("name", SECTIONS)
def test_sentences_stand_between_the_fixed_special_ids(trained, name):
    tokenizer = trained[name]
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    for row in tokenizer.encode(TEXTS + NASTY):
        assert (row[0], row[-1]) == (1, 2)
        assert not {0, 1, 2} & set(row[1:-1])
        assert max(row) < len(tokenizer)


@pytest.mark.parametrize("name", EXACT)
def test_text_comes_back_exactly_from_tokenizers_that_fall_back_to_bytes(trained, name):
    tokenizer = trained[name]
    assert tokenizer.decode(tokenizer.encode(TEXTS + NASTY)) == TEXTS + NASTY
    assert all(3 not in row for row in tokenizer.encode(TEXTS + NASTY))


@pytest.mark.parametrize("name", EXACT)
def test_any_text_comes_back_exactly(trained, name):
    tokenizer = trained[name]

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.text() | st.text(alphabet="\u2581\u2585 \t\n\0<s/>padunk"))
    def holds(text):
        assert tokenizer.decode(tokenizer.encode([text])) == [text]

    holds()


@given(st.text(alphabet=st.characters()), st.lists(st.integers(0, 259)))
@settings(max_examples=200, deadline=None)
def test_bytes_are_exact_for_any_string_and_decode_any_ids(text, ids):
    tokenizer = train({"kind": "byte"}, [])
    assert len(tokenizer) == 260
    assert tokenizer.decode(tokenizer.encode([text])) == [text]
    assert tokenizer.encode([text])[0][1:-1] == [4 + byte for byte in text.encode("utf-8", "surrogatepass")]
    assert isinstance(tokenizer.decode([ids])[0], str)


@pytest.mark.parametrize("name", SECTIONS)
def test_any_ids_of_the_vocabulary_decode(trained, name):
    tokenizer = trained[name]
    draw = random.Random(0)
    rows = [[draw.randrange(len(tokenizer)) for _ in range(20)] for _ in range(200)]
    assert all(isinstance(text, str) for text in tokenizer.decode([*rows, [], [2], [1, 2, 0, 0]]))


@pytest.mark.parametrize("name", SECTIONS)
def test_decoding_stops_at_the_end_of_a_sentence_and_drops_padding(trained, name):
    tokenizer = trained[name]
    (row,) = tokenizer.encode(["the cat"])
    assert tokenizer.decode([[*row, *row, 0, 0], row[:-1]]) == ["the cat", "the cat"]


@pytest.mark.parametrize("name", SECTIONS)
def test_a_saved_tokenizer_gives_equal_ids_after_it_moved(trained, name, tmp_path):
    tokenizer = trained[name]
    tokenizer.save(str(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    again = load(str(tmp_path / "there"))
    assert again.encode(TEXTS + NASTY) == tokenizer.encode(TEXTS + NASTY)
    assert again.decode(again.encode(TEXTS)) == tokenizer.decode(tokenizer.encode(TEXTS))
    assert len(again) == len(tokenizer)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_pickled_tokenizer_gives_equal_ids(trained, name):
    again = pickle.loads(pickle.dumps(trained[name]))
    assert again.encode(TEXTS + NASTY) == trained[name].encode(TEXTS + NASTY)


@pytest.mark.parametrize("name", SECTIONS)
def test_training_twice_gives_the_same_files(trained, name, tmp_path):
    for run in ("first", "second"):
        train(SECTIONS[name], iter(TEXTS)).save(str(tmp_path / run))
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_words_are_those_of_split_at_every_white_space():
    text = " ".join(f"a{chr(i)}b" for i in range(sys.maxunicode + 1) if chr(i).isspace()) + " \x1c c\u200bd e\u2060f "
    tokenizer = train({"kind": "word"}, [text])
    assert set(text.split()) == set(tokenizer.codec.names()) - {"<pad>", "<s>", "</s>", "<unk>"}
    assert tokenizer.decode(tokenizer.encode([text])) == [" ".join(text.split())]


WORDS = train({"kind": "word"}, ["a </s> <s> b b.c A", *TEXTS])


@given(st.lists(st.text() | st.sampled_from(["a </s>b", "<s> <unk>", "a\x1cb\u2028c", "b\u00a0a"]), max_size=5))
def test_words_looked_up_are_those_the_library_finds(texts):
    codec = WORDS.codec
    assert codec._words is not None
    found = [row.ids for row in codec.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    assert codec.encode(texts) == found


@pytest.mark.parametrize("change", ["normalizer", "splitter", "token"])
def test_a_word_tokenizer_that_does_more_is_left_to_the_library(change):
    other = copy.deepcopy(WORDS.codec.tokenizer)
    if change == "normalizer":
        other.normalizer = normalizers.Lowercase()
    elif change == "splitter":
        other.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        other.add_tokens(["a b"])
    codec = LibraryCodec(other)
    text = "A a b.c"
    expected = [other.encode(text, add_special_tokens=False).ids]
    assert codec.encode([text]) == expected
    assert expected != WORDS.codec.encode([text])


def test_words_are_numbered_by_frequency_and_cut_by_size_and_frequency():
    texts = ["b a c a", "b a d"]
    assert train({"kind": "word"}, texts).encode(["a b c d"]) == [[1, 4, 5, 6, 7, 2]]
    assert len(train({"kind": "word", "vocab_size": 5}, texts)) == 5
    assert train({"kind": "word", "min_frequency": 2}, texts).encode(["a b c d"]) == [[1, 4, 5, 3, 3, 2]]


def test_a_word_spelled_as_a_special_token_is_unknown():
    tokenizer = train({"kind": "word"}, ["a </s> <s> <pad> <unk> a<s> b"] * 2)
    assert tokenizer.encode(["a </s> <s> <pad> <unk> new"]) == [[1, 4, 3, 3, 3, 3, 3, 2]]
    assert tokenizer.decode(tokenizer.encode(["a <unk> a<s>"])) == ["a <unk> a<s>"]


def test_characters_that_were_not_seen_are_unknown():
    tokenizer = train({"kind": "character"}, ["ab\n c\u4e2d\U0001f680"])
    assert len(tokenizer) == 4 + 7
    assert tokenizer.encode(["a\U0001f680z\n"])[0][2:] == [tokenizer.encode(["\U0001f680"])[0][1], 3, 4, 2]
    assert tokenizer.decode(tokenizer.encode(["az"])) == ["a<unk>"]


def test_penn_treebank_has_the_published_counts():
    lines = corpus_lines("ptb/test.txt.gz")
    tokenizer = train({"kind": "word"}, corpus_lines("ptb/train.txt.gz"))
    rows = tokenizer.encode(lines)
    assert [len(row) - 1 for row in rows] == [len(line.split()) + 1 for line in lines]
    assert (len(rows), max(len(row) - 2 for row in rows)) == (3761, 77)
    assert round(sum(len(row) - 1 for row in rows) / len(rows), 3) == 21.917
    # The vocabulary is 10,000 words with <unk> and with </s>, and has <pad> and <s> besides.
    assert len(tokenizer) == 10_002
    assert Counter(i for row in rows for i in row)[3] == sum(line.split().count("<unk>") for line in lines)


@pytest.mark.parametrize(
    "section",
    [
        {"kind": "character"},
        {"kind": "byte"},
        {"kind": "sentencepiece", "vocab_size": 8_000},
        {"kind": "sentencepiece", "vocab_size": 8_000, "model_type": "bpe"},
    ],
    ids=str,
)
def test_every_line_of_387_languages_and_of_naughty_strings_comes_back(section):
    lines = [line.split("\t", 1)[1] for line in corpus_lines("udhr/udhr.tsv.gz")]
    lines += corpus_lines("blns/blns.txt")
    sample = lines if section["kind"] != "sentencepiece" else lines[::7] + lines[-500:]
    tokenizer = train(section, sample)
    for start in range(0, len(lines), 5_000):
        chunk = lines[start : start + 5_000]
        assert tokenizer.decode(tokenizer.encode(chunk)) == chunk


@pytest.mark.parametrize("kind", ["word", "character", "bpe", "unigram", "sentencepiece"])
def test_an_empty_corpus_cannot_train(kind):
    with pytest.raises(TokenizerError, match="corpus"):
        train({"kind": kind}, [])


@pytest.mark.parametrize("name", SECTIONS)
def test_a_corpus_of_one_word_trains(name):
    tokenizer = train(SECTIONS[name], ["word"])
    assert tokenizer.decode(tokenizer.encode(["word"])) == ["word"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "bpe", "vocab_size": 100}, r"tokenizer\.vocab_size: got 100; .*260"),
        ({"kind": "word", "vocab_size": 4}, r"tokenizer\.vocab_size: got 4"),
        ({"kind": "sentencepiece", "model_type": "word"}, r"tokenizer\.model_type: got 'word'"),
        ({"kind": "sentencepiece", "vocab_size": 265}, r"tokenizer\.vocab_size: got 265; .*alone need \d+"),
        ({"kind": "word", "min_frequency": 100}, r"stands in it 100 times \(tokenizer\.min_frequency\)"),
        ({"kind": "byte", "vocab_size": 9}, r"tokenizer\.vocab_size: unknown key"),
        ({"kind": "wrod"}, r"tokenizer\.kind: got 'wrod'.*Did you mean 'word'"),
    ],
)
def test_a_section_that_cannot_be_met_says_why(section, message):
    with pytest.raises(UserError, match=message):
        train(section, TEXTS)


def test_a_vocabulary_larger_than_the_corpus_allows_is_as_large_as_it_allows():
    for section in SECTIONS.values():
        tokenizer = train({**section, "vocab_size": 50_000} if section["kind"] != "byte" else section, TEXTS)
        assert len(tokenizer) < 1_000


def test_half_a_surrogate_pair_is_an_error_for_a_person(trained):
    for name in set(SECTIONS) - {"byte"}:
        with pytest.raises(TokenizerError, match="text 2 holds half of a surrogate pair at character 2"):
            trained[name].encode(["fine", "a\ud800"])


def library_file(path, *specials):
    tokenizer = library.Tokenizer(library.models.BPE(unk_token=specials[0] if specials else None))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(specials), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.enable_padding()
    tokenizer.enable_truncation(3)
    tokenizer.save(str(path))
    return tokenizer


def test_an_existing_tokenizer_json_keeps_its_ids_and_its_special_tokens(tmp_path):
    path = tmp_path / "bert.json"
    original = library_file(path, "[UNK]", "[CLS]", "[SEP]", "[PAD]")
    original.no_padding()
    original.no_truncation()
    tokenizer = train({"kind": "file", "path": str(path)}, [])
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 3)
    assert len(tokenizer) == original.get_vocab_size()
    assert [row[1:-1] for row in tokenizer.encode(TEXTS)] == [original.encode(text).ids for text in TEXTS]
    assert tokenizer.decode(tokenizer.encode([*TEXTS, "[SEP] [PAD]"])) == [*TEXTS, "[SEP] [PAD]"]
    assert not {1, 2, 3} & set(tokenizer.encode(["[SEP] [CLS][PAD]"])[0][1:-1])
    path.rename(tmp_path / "gone.json")
    tokenizer.save(str(tmp_path / "run"))
    assert load(str(tmp_path / "run")).encode(TEXTS) == tokenizer.encode(TEXTS)


def test_special_tokens_that_a_file_lacks_are_added_behind_its_vocabulary(tmp_path):
    path = tmp_path / "gpt.json"
    size = library_file(path, "<|endoftext|>").get_vocab_size()
    tokenizer = train({"kind": "file", "path": str(path)}, [])
    assert tokenizer.eos_id == 0
    assert sorted([tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id]) == [size, size + 1, size + 2]
    assert len(tokenizer) == size + 3
    assert tokenizer.decode([[*tokenizer.encode(["the cat"])[0][:-1], tokenizer.unk_id, tokenizer.pad_id]]) == [
        "the cat"
    ]


def test_special_tokens_of_a_file_can_be_named(tmp_path):
    path = tmp_path / "own.json"
    library_file(path, "<none>", "<begin>", "<end>")
    section = {"kind": "file", "path": str(path), "bos": "<begin>", "eos": "<end>", "unk": "<none>"}
    tokenizer = train(section, [])
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    with pytest.raises(TokenizerError, match=r"tokenizer\.eos: .*'<ent>'.*Did you mean '<end>'"):
        train({**section, "eos": "<ent>"}, [])
    with pytest.raises(TokenizerError, match=r"each needs its own token"):
        train({**section, "eos": "<begin>"}, [])


def test_an_existing_sentencepiece_model_keeps_its_ids(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "m"), vocab_size=30, minloglevel=2
    )
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    tokenizer = train({"kind": "file", "path": str(tmp_path / "m.model")}, [])
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 30)
    assert [row[1:-1] for row in tokenizer.encode(TEXTS)] == original.encode(TEXTS)
    assert tokenizer.decode(tokenizer.encode(["the cat sat"])) == ["the cat sat"]
    tokenizer.save(str(tmp_path / "run"))
    assert load(str(tmp_path / "run")).encode(TEXTS) == tokenizer.encode(TEXTS)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe garbage" * 5])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"{name}: is damaged"):
        train({"kind": "file", "path": str(tmp_path / name)}, [])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.path: .*absent\.json is no file"):
        train({"kind": "file", "path": str(tmp_path / "absent.json")}, [])
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: cannot be read"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"special_ids": {"pad": 0, "bos": 0, "eos": 2, "unk": 3}},
        {"special_ids": {"pad": 0}},
        {"special_ids": {"pad": "0", "bos": 1, "eos": 2, "unk": 3}},
        {"model": "../../etc/passwd"},
        {"kind": None, "special_ids": None},
    ],
)
def test_a_damaged_configuration_is_named(trained, tmp_path, change):
    trained["word"].save(str(tmp_path))
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: is damaged"):
        load(str(tmp_path))
    path.write_text("[]")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: is damaged"):
        load(str(tmp_path))


def test_a_users_own_tokenizer_is_loaded_only_where_its_code_is_trusted(tmp_path, monkeypatch):
    module = tmp_path / "their_tokens.py"
    module.write_text("class Tokens:\n    @classmethod\n    def load(cls, folder):\n        return folder\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UntrustedCodeError):
        load("folder", kind="their_tokens.Tokens")
    assert load("folder", kind="their_tokens.Tokens", trust_code=True) == "folder"


def test_word_level_is_the_default_kind():
    assert type(TOKENIZERS.build({})).__name__ == "Word"
