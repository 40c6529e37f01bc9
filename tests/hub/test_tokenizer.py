"""A run's tokenizer in `transformers`: the same ids, by the library beneath it and by itself where it is installed."""

import json

import pytest
from conftest import sentences
from tokenizers import Tokenizer

from textvae.hub.tokenizer import save_for_transformers
from textvae.recipe import Data
from textvae.text import tokenizers
from textvae.text.corpora import cleaned

KINDS = [
    {"kind": "word"},
    {"kind": "word", "vocab_size": 12},
    {"kind": "bpe", "vocab_size": 300},
    {"kind": "unigram", "vocab_size": 290},
    {"kind": "character"},
    {"kind": "byte"},
]
TEXTS = [
    *sentences(40, seed=7),
    "",
    "  two  spaces ",
    "caf\u00e9 \u4e2d\u6587 \U0001f600",
    "tab\there, 3.5 \x1c \u2028 %",
    "UPPER",
]
SPELLED = ["say </s> now", "<pad>", "a<s>b"]


@pytest.fixture(params=KINDS, ids=lambda section: "-".join(map(str, section.values())))
def saved(request, tmp_path):
    tokenizer = tokenizers.train(request.param, sentences(200))
    assert save_for_transformers(tokenizer, tmp_path / "saved", Data(grammar={}))
    return tokenizer, tmp_path / "saved"


def test_the_tokenizers_library_reads_the_same_ids_from_the_file(saved):
    from tokenizers import Tokenizer

    tokenizer, folder = saved
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [row.ids for row in whole.encode_batch(TEXTS)] == tokenizer.encode(TEXTS)
    assert whole.get_vocab_size(with_added_tokens=True) == len(tokenizer)
    decoded = whole.decode_batch(tokenizer.encode(TEXTS), skip_special_tokens=True)
    if tokenizer.kind in ("bpe", "unigram", "byte"):
        assert decoded == TEXTS


def test_the_settings_name_the_special_tokens(saved):
    tokenizer, folder = saved
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    vocabulary = {
        token["content"]: token["id"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    }
    for role in ("pad", "bos", "eos", "unk"):
        assert vocabulary[settings[f"{role}_token"]] == getattr(tokenizer, f"{role}_id")


def test_transformers_reads_the_same_ids(saved):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; no extra brings it")
    tokenizer, folder = saved
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert fast(TEXTS)["input_ids"] == tokenizer.encode(TEXTS)
    loaded = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert loaded(TEXTS)["input_ids"] == tokenizer.encode(TEXTS)
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (
        tokenizer.pad_id,
        tokenizer.bos_id,
        tokenizer.eos_id,
    )
    padded = loaded(TEXTS[:5], padding=True, return_tensors="np")
    assert (padded["input_ids"][padded["attention_mask"] == 0] == tokenizer.pad_id).all()
    if tokenizer.kind != "word":  # whose vocabulary knows "</s>" as a word
        assert loaded(SPELLED)["input_ids"] == tokenizer.encode(SPELLED)


def test_a_file_without_special_tokens_gets_them_where_the_run_has_them(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    bare = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.save(str(tmp_path / "bare.json"))
    tokenizer = tokenizers.train({"kind": "file", "path": str(tmp_path / "bare.json")}, [])
    assert save_for_transformers(tokenizer, tmp_path / "saved", Data(grammar={}))
    whole = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert whole.encode("the cat saw").ids == tokenizer.encode(["the cat saw"])[0]
    assert whole.token_to_id("<pad>") == tokenizer.pad_id


@pytest.mark.parametrize("kind", ["word", "byte", "character"])
def test_a_greek_word_in_capitals_ends_in_its_own_small_letter(tmp_path, kind):
    tokenizer = tokenizers.train({"kind": kind}, ["της του ος οσα σας"] * 3)
    data = Data(grammar={}, lowercase=True)
    assert save_for_transformers(tokenizer, tmp_path, data)
    whole = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "ΤΗΣ ΟΣ ΣΑΣ, ΟΣΑ. ΤΗΣ"
    assert [whole.encode(text).ids] == tokenizer.encode([text.lower()])


def test_sentencepiece_has_no_such_form(tmp_path):
    tokenizer = tokenizers.train({"kind": "sentencepiece", "vocab_size": 300}, sentences(200))
    assert not save_for_transformers(tokenizer, tmp_path / "saved", Data(grammar={}))
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("kind", ["word", "bpe", "byte"])
def test_what_the_recipe_does_to_a_text_goes_into_the_file(tmp_path, kind):
    from tokenizers import Tokenizer

    data = Data(grammar={}, lowercase=True, normalize="NFKC")
    tokenizer = tokenizers.train({"kind": kind}, sentences(200))
    assert save_for_transformers(tokenizer, tmp_path / "saved", data)
    whole = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    texts = [*sentences(5), "The \uff23at SEES the \ufb01sh ."]
    assert [row.ids for row in whole.encode_batch(texts)] == tokenizer.encode([cleaned(text, data) for text in texts])
    assert whole.encode(texts[-1]).ids != tokenizer.encode(texts[-1:])[0]
