"""Generation on models small enough to list every sentence they can write."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from textvae.errors import UserError
from textvae.generation import search
from textvae.generation.search import generate, generate_scored
from textvae.model import SequenceVAE
from textvae.nets.decoders import RecurrentDecoder
from textvae.nets.output import SoftmaxOutput
from textvae.recipe import Generation
from textvae.types import Batch

PAD, BOS, EOS, UNK = 0, 1, 2, 3
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD, "unk_id": UNK}
VOCABULARY, LENGTH, LATENT = 7, 4, 3


class Tiny:
    """A recurrent network in float64, so that a sum's order never decides between words.

    The second part of its state counts the words, and </s> grows likelier with them: else a network this small comes
    to rest at once, and a sentence of its most probable words is empty or has no end.
    """

    def __init__(self, *, vocabulary: int = VOCABULARY, sharpness: float = 3.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def weights(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.from_z, self.from_state, self.from_token = weights(LATENT, 8), weights(8, 8) / 3, weights(vocabulary, 8)
        self.to_logits, self.sharpness = weights(8, vocabulary), sharpness / 3
        self.rows: list[int] = []  # of each step

    def start(self, z: Tensor) -> tuple[Tensor, ...]:
        state = torch.tanh(z.double() @ self.from_z)[None]
        return state, state.new_zeros(2, len(z), 1)

    def step(self, tokens: Tensor, z: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert len(tokens) == len(z) == state[0].shape[1] == state[1].shape[1]
        self.rows.append(len(tokens))
        hidden = torch.tanh(state[0][0] @ self.from_state + self.from_token[tokens] + 0.5 * z.double() @ self.from_z)
        logits = hidden @ self.to_logits
        logits[:, EOS] += state[1].mean((0, 2)) - 2
        return self.sharpness * logits, (hidden[None], state[1] + 1)


def latents(rows: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, LATENT, generator=torch.Generator().manual_seed(seed))


def next_logits(model: Tiny, z: Tensor, words: tuple[int, ...]) -> Tensor:
    """The logits (V,) after some words, one step at a time and one sentence alone."""
    state = model.start(z[None])
    for token in (BOS, *words):
        logits, state = model.step(torch.tensor([token]), z[None], state)
    return logits[0]


def adjusted(logits: Tensor, settings: Generation) -> Tensor:
    """The probabilities (V,) that sampling should draw from, by sorting."""
    allowed = torch.tensor([i not in (PAD, BOS, UNK if settings.ban_unk else BOS) for i in range(len(logits))])
    p = torch.softmax(logits.masked_fill(~allowed, -math.inf) / settings.temperature, dim=-1)
    order = p.argsort(descending=True)
    if settings.top_k is not None:
        p[order[settings.top_k :]] = 0
        p /= p.sum()
    if settings.top_p is not None:
        ordered = p[order]
        p[order[ordered.cumsum(0) - ordered >= settings.top_p]] = 0
        p /= p.sum()
    return p


def every_sentence(model: Tiny, z: Tensor, settings: Generation | None = None) -> dict[tuple[int, ...], float]:
    """Each sentence that can be written and its probability; cut sentences, too, so that they sum to 1.

    Without settings the model's own log-probabilities of the sentences without <pad> and <s>.
    """
    found = {}
    words = [i for i in range(VOCABULARY) if i not in (PAD, BOS, EOS)]
    for length in range(LENGTH + 1):
        for sentence in itertools.product(words, repeat=length):
            total = 0.0 if settings is None else 1.0
            for i, word in enumerate((*sentence, EOS)[:LENGTH]):
                logits = next_logits(model, z, sentence[:i])
                if settings is None:
                    total += torch.log_softmax(logits, dim=-1)[word].item()
                else:
                    total *= adjusted(logits, settings)[word].item()
                    if total == 0:
                        break
            if total:
                found[sentence] = total
    return found


def settings_for(method: str, **options: object) -> Generation:
    return Generation.model_validate({"method": method, "max_length": LENGTH, **options})


def test_greedy_takes_the_most_probable_word_at_each_step():
    model, z = Tiny(), latents(30)
    found = generate(model, z, settings=settings_for("greedy", max_length=6), **IDS)
    for row, sentence in zip(z, found):
        expected: list[int] = []
        while len(expected) < 6:
            logits = next_logits(model, row, tuple(expected))
            logits[[PAD, BOS]] = -math.inf
            if (word := int(logits.argmax())) == EOS:
                break
            expected.append(word)
        assert sentence == expected
    assert len(set(map(len, found))) > 2


def test_a_wide_beam_finds_the_most_probable_of_all_sentences():
    # Sharp and flat models, so that the best is sometimes empty, sometimes cut, mostly between.
    lengths = set()
    for seed, sharpness in [(0, 1.0), (1, 3.0), (2, 6.0), (3, 6.0)]:
        model, z = Tiny(seed=seed, sharpness=sharpness), latents(4, seed)
        found = generate_scored(model, z, settings=settings_for("beam", beam_size=300), **IDS)
        for row, sentence, score in zip(z, found.ids, found.log_likelihood):
            probabilities = every_sentence(model, row)
            best = max(probabilities, key=probabilities.__getitem__)
            assert tuple(sentence) == best
            assert score.item() == pytest.approx(probabilities[best], abs=1e-9)
            lengths.add(len(sentence))
    assert {0, LENGTH} < lengths


def beam_of_one(model: Tiny, z: Tensor, width: int, length: int) -> list[int]:
    """Beam search by lists: all hypotheses of a step extended, those that end among the best `width` kept."""
    finished: list[tuple[float, tuple[int, ...]]] = []
    unfinished: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for _ in range(length):
        grown = []
        for score, sentence in unfinished:
            log_p = torch.log_softmax(next_logits(model, z, sentence), dim=-1)
            grown += [(score + log_p[i].item(), (*sentence, i)) for i in range(VOCABULARY) if i not in (PAD, BOS)]
        grown.sort(reverse=True)
        finished += [(score, sentence[:-1]) for score, sentence in grown[:width] if sentence[-1] == EOS]
        unfinished = [(score, sentence) for score, sentence in grown if sentence[-1] != EOS][:width]
    return list(max(finished + unfinished)[1])


@pytest.mark.parametrize("width", [1, 2, 3])
def test_beams_of_a_batch_are_the_beams_of_each_sentence(width):
    model, z = Tiny(sharpness=4.0), latents(40)
    found = generate(model, z, settings=settings_for("beam", beam_size=width, max_length=7), **IDS)
    assert found == [beam_of_one(model, row, width, 7) for row in z]


def test_a_beam_of_one_is_greedy():
    for seed, sharpness in [(0, 0.5), (1, 2.0), (2, 6.0)]:
        model, z = Tiny(seed=seed, sharpness=sharpness), latents(60, seed)
        greedy, beam = (
            generate_scored(model, z, settings=settings, **IDS)
            for settings in (settings_for("greedy"), settings_for("beam", beam_size=1))
        )
        assert beam.ids == greedy.ids
        torch.testing.assert_close(beam.log_likelihood, greedy.log_likelihood)


def test_an_end_that_is_not_among_the_best_words_ends_nothing():
    """Words of 1/100 each and an end of 1/200: the likeliest sentence is empty, and nobody means it."""

    class Flat:
        def start(self, z):
            return (z[None],)

        def step(self, tokens, z, state):
            logits = torch.zeros(len(tokens), 120)
            logits[:, EOS] = -math.log(2) if state[0].flatten()[0] < 3.5 else 5.0  # four words, and then the end
            return logits, (state[0] + 1,)

    found = generate(Flat(), torch.zeros(2, 1), settings=settings_for("beam", beam_size=3, max_length=20), **IDS)
    assert [len(ids) for ids in found] == [4, 4]


def test_hypotheses_that_cannot_win_leave_the_batch():
    model, z = Tiny(sharpness=4.0), latents(40)
    generate(model, z, settings=settings_for("beam", max_length=50), **IDS)
    assert model.rows[0] == 40
    assert max(model.rows) <= 200
    assert model.rows[-1] < 40
    assert len(model.rows) < 50


def test_finished_sentences_leave_the_batch():
    model, z = Tiny(), latents(200)
    found = generate(model, z, settings=settings_for("sample", max_length=30), **IDS)
    assert model.rows == [sum(len(sentence) >= step for sentence in found) for step in range(len(model.rows))]
    assert model.rows[-1] < 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_coldest_temperature_is_greedy_and_the_hottest_draws_alike_from_all_words(dtype):
    class Cast(Tiny):
        def step(self, tokens, z, state):
            logits, state = super().step(tokens, z, state)
            return logits.to(dtype), state

    model, z = Cast(), latents(50)
    greedy = generate(model, z, settings=settings_for("greedy"), **IDS)
    for coldest in (5e-324, 1e-320, 1e-30):
        assert generate(model, z, settings=settings_for("sample", temperature=coldest), **IDS) == greedy
    z = latents(1).expand(4000, -1)
    for hottest in (1e30, 1e308):
        settings = settings_for("sample", temperature=hottest, max_length=1, ban_unk=True)
        found = generate(model, z, settings=settings, generator=torch.Generator().manual_seed(3), **IDS)
        counts = Counter(tuple(sentence) for sentence in found)
        assert set(counts) == {(), (4,), (5,), (6,)}  # </s> and the words
        assert chisquare(list(counts.values())).pvalue > 1e-4


SAMPLING = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0, "ban_unk": True},
    {"top_k": 2},
    {"top_p": 0.6},
    {"temperature": 1.5, "top_k": 3, "top_p": 0.8},
]


@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_sentences_are_drawn_with_their_exact_probabilities(options):
    model, settings, draws = Tiny(seed=1), settings_for("sample", **options), 20_000
    z = latents(1)
    exact = every_sentence(model, z[0], settings)
    assert sum(exact.values()) == pytest.approx(1)
    generator = torch.Generator().manual_seed(5)
    found = generate(model, z.expand(draws, -1), settings=settings, generator=generator, **IDS)
    counts = Counter(map(tuple, found))
    assert counts.keys() <= exact.keys()
    common = [sentence for sentence, p in exact.items() if p * draws >= 10]
    observed = [counts[sentence] for sentence in common]
    expected = [exact[sentence] * draws for sentence in common]
    if draws - sum(expected) > 1:
        observed.append(draws - sum(observed))
        expected.append(draws - sum(expected))
    assert len(observed) > 5
    assert chisquare(observed, expected, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
@pytest.mark.parametrize("options", [{}, {"ban_unk": True}], ids=str)
def test_the_log_likelihood_is_the_models_own(method, options):
    model, z = Tiny(), latents(30)
    if method == "sample":
        options = {**options, "temperature": 0.7, "top_k": 3, "top_p": 0.9}
    arguments = {"settings": settings_for(method, **options), **IDS}
    found = generate_scored(model, z, generator=torch.Generator().manual_seed(0), **arguments)
    assert found.ids == generate(model, z, generator=torch.Generator().manual_seed(0), **arguments)
    for row, sentence, value in zip(z, found.ids, found.log_likelihood):
        assert value.item() == pytest.approx(every_sentence_cached(model, row)[tuple(sentence)], abs=1e-9)


_KNOWN: dict[tuple[float, ...], dict[tuple[int, ...], float]] = {}


def every_sentence_cached(model: Tiny, z: Tensor) -> dict[tuple[int, ...], float]:
    key = tuple(z.tolist())
    if key not in _KNOWN:
        _KNOWN[key] = every_sentence(model, z)
    return _KNOWN[key]


def test_the_log_likelihood_is_that_of_training():
    torch.manual_seed(0)
    vocabulary = 700
    model = SequenceVAE(
        latent_dim=LATENT,
        decoder_embedding=nn.Embedding(vocabulary, 8),
        decoder=RecurrentDecoder(8, LATENT, hidden_dim=16, layers=2),
        output=SoftmaxOutput(16, vocabulary),
        word_dropout=nn.Identity(),
    ).eval()
    nn.init.normal_(model.output.weight, std=3)
    with torch.no_grad():
        model.output.bias[EOS] += 6
    z = latents(60)
    for method in ("greedy", "sample", "beam"):
        settings = settings_for(method, max_length=8)
        found = generate_scored(model, z, settings=settings, generator=torch.Generator().manual_seed(0), **IDS)
        ended = [i for i, sentence in enumerate(found.ids) if len(sentence) < 8]
        assert ended
        tokens = torch.full((len(ended), 9), PAD)
        for row, i in enumerate(ended):
            sentence = [BOS, *found.ids[i], EOS]
            tokens[row, : len(sentence)] = torch.tensor(sentence)
        batch = Batch(tokens, torch.tensor([len(found.ids[i]) + 1 for i in ended]))
        with torch.no_grad():
            expected = model.log_likelihood(batch, z[ended][None])[0].double()
        torch.testing.assert_close(found.log_likelihood[ended], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_forbidden_words_never_appear_and_the_length_is_kept(method):
    model, z = Tiny(sharpness=2.0), latents(300)
    found = generate(model, z, settings=settings_for(method, ban_unk=True, max_length=5), **IDS)
    assert {word for sentence in found for word in sentence} <= {4, 5, 6}
    assert max(map(len, found)) <= 5
    allowed = generate(model, z, settings=settings_for(method, max_length=5), **IDS)
    assert UNK in {word for sentence in allowed for word in sentence}


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_a_sentence_of_one_token_has_at_most_one_word(method):
    found = generate(Tiny(), latents(50), settings=settings_for(method, max_length=1), **IDS)
    assert {len(sentence) for sentence in found} == {0, 1}


def test_a_vocabulary_without_unk_has_none_to_ban():
    ids = {**IDS, "unk_id": None}
    found = generate(Tiny(), latents(50), settings=settings_for("greedy", ban_unk=True), **ids)
    assert found == generate(Tiny(), latents(50), settings=settings_for("greedy"), **IDS)


def test_end_stays_possible_where_it_shares_its_id_with_padding():
    found = generate(Tiny(), latents(50), settings=settings_for("greedy"), **{**IDS, "pad_id": EOS, "bos_id": EOS})
    assert min(map(len, found)) < LENGTH


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_row_does_not_depend_on_the_others(method, monkeypatch):
    model, z, settings = Tiny(), latents(50), settings_for(method, max_length=8)
    whole = generate(model, z, settings=settings, **IDS)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert generate(model, z[order], settings=settings, **IDS) == [whole[i] for i in order]
    assert [generate(model, row[None], settings=settings, **IDS)[0] for row in z] == whole
    monkeypatch.setattr(search, "CPU_ROWS", 7)
    assert generate(model, z, settings=settings, **IDS) == whole


@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_a_seed_repeats_and_what_the_other_rows_do_changes_no_draw(options, monkeypatch):
    model, z, settings = Tiny(), latents(60), settings_for("sample", max_length=12, **options)

    def sample(rows: Tensor, generator: torch.Generator) -> list[list[int]]:
        return generate(model, rows, settings=settings, generator=generator, **IDS)

    whole = sample(z, torch.Generator().manual_seed(3))
    assert sample(z, torch.Generator().manual_seed(3)) == whole
    assert sample(z, torch.Generator().manual_seed(4)) != whole
    mixed = z.clone()
    mixed[::2] = latents(30, seed=9)
    assert sample(mixed, torch.Generator().manual_seed(3))[1::2] == whole[1::2]
    generator = torch.Generator().manual_seed(3)
    assert [sentence for part in z.split(13) for sentence in sample(part, generator)] == whole
    monkeypatch.setattr(search, "CPU_ROWS", 7)
    assert sample(z, torch.Generator().manual_seed(3)) == whole


def test_sampling_does_not_repeat_itself_without_a_generator():
    model, z, settings = Tiny(sharpness=1.0), latents(100), settings_for("sample")
    assert generate(model, z, settings=settings, **IDS) != generate(model, z, settings=settings, **IDS)


def test_rows_of_equal_latents_are_drawn_independently():
    found = generate(Tiny(sharpness=1.0), latents(1).expand(500, -1), settings=settings_for("sample"), **IDS)
    assert len(set(map(tuple, found))) > 50


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_no_latents_give_no_sentences(method):
    found = generate_scored(Tiny(), latents(0), settings=settings_for(method), **IDS)
    assert found.ids == []
    assert found.log_likelihood.shape == (0,)


@pytest.mark.parametrize("method", ["greedy", "beam"])
@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.9}], ids=str)
def test_an_option_of_sampling_is_refused_where_nothing_is_drawn(method, options):
    (name,) = options
    with pytest.raises(UserError, match=f"generation.{name}: got .* with method '{method}'.*set method: sample"):
        generate(Tiny(), latents(1), settings=settings_for(method, **options), **IDS)
