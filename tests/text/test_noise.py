"""Noise on the encoder's tokens: what must hold of every sentence, and shares held against their standard error."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textvae.errors import UserError
from textvae.text.noise import NOISES, Chain, Vocabulary
from textvae.types import Batch

PAD, BOS, EOS, UNK = 0, 1, 2, 3
VOCABULARY = Vocabulary(size=40, pad_id=PAD, bos_id=BOS, eos_id=EOS, unk_id=UNK)
STRONG = {"delete": {"rate": 0.5}, "blank": {"rate": 0.5}, "substitute": {"rate": 0.5}, "shuffle": {"distance": 3}}
SENTENCES = st.lists(st.lists(st.integers(4, 39), max_size=12), min_size=1, max_size=6)


def collate(sentences, width=None):
    width = width or max(len(words) for words in sentences) + 2
    rows = [[BOS, *words, EOS] for words in sentences]
    tokens = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return Batch(tokens, torch.tensor([len(row) - 1 for row in rows]))


def words_of(batch):
    """The words of each row, which must be well-formed: <s> words </s> padding."""
    rows = []
    for row, length in zip(batch.tokens.tolist(), batch.lengths.tolist()):
        assert length >= 1
        assert row[0] == BOS
        assert row[length] == EOS
        assert set(row[length + 1 :]) <= {PAD}
        words = row[1:length]
        assert not {PAD, BOS, EOS} & set(words)
        rows.append(words)
    return rows


def flat(rows):
    return list(itertools.chain.from_iterable(rows))


def build(kind, seed=0, vocabulary=VOCABULARY, **options):
    noise = NOISES.build({"kind": kind, **options}, vocabulary)
    torch.manual_seed(seed)
    return noise


def close(count, of, share):
    assert count / of == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / of))


@settings(max_examples=60, deadline=None)
@given(sentences=SENTENCES, extra=st.integers(0, 3), seed=st.integers(0, 2**31), kind=st.sampled_from(list(NOISES)))
def test_sentences_stay_sentences_and_the_batch_given_stays_as_it_was(sentences, extra, seed, kind):
    batch = collate(sentences, max(len(words) for words in sentences) + 2 + extra)
    before = Batch(*(tensor.clone() for tensor in batch))
    noised = build(kind, seed, **STRONG[kind])(batch)
    assert noised.tokens.shape == batch.tokens.shape
    assert noised.tokens.dtype == noised.lengths.dtype == torch.int64
    for words, result in zip(sentences, words_of(noised), strict=True):
        if kind == "delete":
            left = iter(words)
            assert all(word in left for word in result)  # in their order
        elif kind == "shuffle":
            assert sorted(result) == sorted(words)
        else:
            assert len(result) == len(words)
        if kind == "blank":
            assert all(now in (word, UNK) for word, now in zip(words, result))
        if kind == "substitute":
            assert UNK not in result
    assert all(torch.equal(now, then) for now, then in zip(batch, before))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=8), distance=st.integers(0, 9), seed=st.integers(0, 2**31)
)
def test_no_word_is_shuffled_further_than_the_distance(lengths, distance, seed):
    batch = collate([list(range(4, 4 + length)) for length in lengths])
    noised = build("shuffle", seed, distance=distance)(batch)
    for length, words in zip(lengths, words_of(noised)):
        assert sorted(words) == list(range(4, 4 + length))
        assert all(abs(word - 4 - place) <= distance for place, word in enumerate(words))


def test_two_words_change_places_as_often_as_the_area_says():
    # Keys 1 + U(0, 2) and 2 + U'(0, 2): P(U > 1 + U') is a triangle of area 1/2 in a square of 4.
    batch = collate([[5, 6]] * 20_000)
    words = words_of(build("shuffle", distance=1)(batch))
    close(words.count([6, 5]), len(words), 1 / 8)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_the_share_of_words_deleted_is_the_rate(rate):
    batch = collate([[7] * n for n in (3, 10, 25)] * 600)
    noised = build("delete", rate=rate)(batch)
    close(int((batch.lengths - noised.lengths).sum()), int((batch.lengths - 1).sum()), rate)
    assert sum(map(len, words_of(noised))) == int((noised.lengths - 1).sum())


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_the_share_of_words_blanked_is_the_rate(rate):
    batch = collate([[7] * n for n in (3, 10, 25)] * 600)
    words = flat(words_of(build("blank", rate=rate)(batch)))
    close(words.count(UNK), len(words), rate)
    assert set(words) == {7, UNK}


def test_substitutes_are_drawn_alike_from_all_ordinary_words():
    batch = collate([[7] * 20] * 3000)
    words = torch.tensor(words_of(build("substitute", rate=0.5)(batch))).flatten()
    counts = torch.bincount(words, minlength=40)[4:].double()
    close(int(counts.sum() - counts[3]), len(words), 0.5 * 35 / 36)
    others = torch.cat([counts[:3], counts[4:]])
    expected = others.mean()
    chi_squared = float(((others - expected) ** 2 / expected).sum())
    assert abs(chi_squared - 34) < 4 * math.sqrt(2 * 34)


def test_where_there_is_no_unk_its_id_is_a_word_like_others():
    batch = collate([[7] * 20] * 500)
    words = words_of(build("substitute", vocabulary=VOCABULARY._replace(unk_id=None, size=5), rate=1.0)(batch))
    assert set(flat(words)) == {3, 4}


def test_at_a_rate_of_one_no_word_is_spared_and_an_empty_sentence_is_a_sentence():
    batch = collate([[7] * 5, [], [8]])
    deleted = build("delete", rate=1.0)(batch)
    assert deleted.tokens.tolist() == [[BOS, EOS, PAD, PAD, PAD, PAD, PAD]] * 3
    assert deleted.lengths.tolist() == [1, 1, 1]
    assert words_of(build("blank", rate=1.0)(batch)) == [[UNK] * 5, [], [UNK]]


@pytest.mark.parametrize("kind", list(NOISES))
def test_noise_acts_in_training_only_and_repeats_with_the_seed(kind):
    batch = collate([list(range(4, 34))] * 50)
    noise = build(kind)
    noised = noise(batch)
    assert not torch.equal(noised.tokens, batch.tokens)
    torch.manual_seed(0)
    assert all(torch.equal(first, second) for first, second in zip(noise(batch), noised))
    assert noise.eval()(batch) is batch
    assert noise.state_dict() == {}


@pytest.mark.parametrize(("kind", "option"), [(k, "distance" if k == "shuffle" else "rate") for k in NOISES])
def test_none_of_it_is_nothing_and_a_wrong_amount_is_refused(kind, option):
    batch = collate([[5, 6, 7]])
    assert build(kind, **{option: 0})(batch) is batch
    with pytest.raises(UserError, match=f"{option}: got -1"):
        build(kind, **{option: -1})


def test_a_chain_applies_its_noises_in_order_and_obeys_eval():
    batch = collate([[7] * 30] * 300)
    substitute, blank = build("substitute", rate=1.0), build("blank", rate=1.0)
    assert set(flat(words_of(Chain([substitute, blank])(batch)))) == {UNK}
    assert UNK not in flat(words_of(Chain([blank, substitute])(batch)))
    chain = Chain([build("delete", rate=0.5), build("blank", rate=0.5)])
    words = flat(words_of(chain(batch)))
    close(len(words), 9000, 0.5)
    close(words.count(UNK), len(words), 0.5)
    assert chain.eval()(batch) is batch
    assert Chain([])(batch) is batch


def test_noise_that_the_vocabulary_has_no_tokens_for_is_refused():
    with pytest.raises(UserError, match=r"blank puts <unk> .* use delete"):
        build("blank", vocabulary=VOCABULARY._replace(unk_id=None))
    with pytest.raises(UserError, match="only special tokens"):
        build("substitute", vocabulary=VOCABULARY._replace(size=4))
