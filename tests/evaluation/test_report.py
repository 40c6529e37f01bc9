"""The report: every figure there, the same however the sentences are batched, and never a number that is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from conftest import sentences
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from textvae.build import build_model
from textvae.errors import UserError
from textvae.evaluation import bounds, latents, text
from textvae.evaluation.report import evaluate, quick
from textvae.model import SequenceVAE
from textvae.recipe import Recipe
from textvae.text.batching import ListStore, collate, evaluation_batches
from textvae.text.tokenizers import train
from textvae.types import Batch, Tokenizer

TEXTS = [*sentences(25), "", "the cat"]
TOKENIZER = train({"kind": "word"}, TEXTS)
ROWS = TOKENIZER.encode(TEXTS)
PAD, BOS, EOS, UNK = TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.unk_id
QUICK = {"reconstruction", "kl", "nll_elbo", "ppl_elbo", "mutual_information", "active_units"}
PARTS = {"kl_part_mutual_information", "kl_part_total_correlation", "kl_part_dimensions"}
LATENT = {"mutual_information", "mutual_information_ceiling", "active_units", "kl_by_dimension"}
WEIGHTED = {"nll_iw", "ppl_iw", "iw_standard_error", "iw_samples", "iw_ess", "iw_ess_low", "nll_iw_interval"}
WEIGHTED |= {"ppl_iw_interval"}
TEXT = {"bleu", "token_accuracy", "exact_match"}
EVERY = QUICK | LATENT | WEIGHTED | TEXT | {"sentences", "target_tokens"}


def build(tokenizer: Tokenizer = TOKENIZER, *, latent_dim: int = 3) -> SequenceVAE:
    torch.manual_seed(0)
    recipe = Recipe.model_validate(
        {
            "data": {"grammar": {}},
            "model": {
                "latent_dim": latent_dim,
                "embedding_dim": 6,
                "encoder": {"cell": "gru", "hidden_dim": 7, "bidirectional": True},
                "decoder": {"cell": "lstm", "hidden_dim": 8},
            },
            "training": {"max_steps": 1},
        }
    )
    model = build_model(recipe, tokenizer).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2.5
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batched(rows: list[list[int]] = ROWS, size: int = 10, extra_padding: int = 0) -> Callable[[], Iterator[Batch]]:
    def batches() -> Iterator[Batch]:
        for begin in range(0, len(rows), size):
            batch = collate(rows[begin : begin + size], PAD)
            padding = torch.full((len(batch.lengths), extra_padding), PAD)
            yield Batch(torch.cat([batch.tokens, padding], 1), batch.lengths)

    return batches


def report(model: nn.Module, batches: Callable[[], Iterable[Batch]] | None = None, **options) -> dict:
    return evaluate(model, batches or batched(), iw_samples=options.pop("iw_samples", 20), **options)


def numbers(figures: dict) -> list[float]:
    flat = [value if isinstance(value, list) else [value] for value in figures.values() if value is not None]
    return [float(value) for values in flat for value in values]


@pytest.fixture
def draws_of_the_sentences_own(monkeypatch) -> None:
    """Draws that depend on the sentence and the draw's number alone: batches can then be compared to rounding."""
    latest: list = [None, 0]

    def draw(posterior: Distribution, samples: int, generator: torch.Generator | None) -> Tensor:
        if latest[0] is not posterior:
            latest[:] = [posterior, 0]
        number = torch.arange(latest[1] + 1, latest[1] + 1 + samples, dtype=torch.float64)[:, None, None]
        latest[1] += samples
        mean, scale = posterior.base_dist.loc, posterior.base_dist.scale
        return mean + scale * 1.5 * torch.sin(40 * mean + 7 * number)

    monkeypatch.setattr(bounds, "draw", draw)


# ---- what is in it


def test_every_figure_is_there_and_finite():
    figures = report(build(), generator=seeded(), references=TEXTS, reconstruct=lambda: TEXTS[::-1])
    assert set(figures) == EVERY
    assert all(map(math.isfinite, numbers(figures)))
    assert None not in figures.values()
    assert figures["sentences"] == len(TEXTS)
    assert figures["target_tokens"] == sum(len(line.split()) + 1 for line in TEXTS)
    assert figures["iw_samples"] == 20
    assert 1 < figures["iw_ess"] < 20
    assert figures["mutual_information_ceiling"] == pytest.approx(math.log(len(TEXTS)))
    assert len(figures["kl_by_dimension"]) == 3


def test_the_parts_of_the_kl_are_of_sentences_that_lie_evenly(monkeypatch):
    """Batches stand in order of length; the first of two is no sample of both."""
    monkeypatch.setattr("textvae.evaluation.report.DECOMPOSED", len(ROWS) - 1)
    seen = []
    decompose = latents.decompose
    monkeypatch.setattr(latents, "decompose", lambda q, p, z: seen.append((q, z)) or decompose(q, p, z))
    model, generator = build(), seeded()
    quick(model, batched(size=len(ROWS) // 2)(), generator=generator)
    ((posterior,), z) = seen[0]
    everyone = torch.cat([model.encode(batch).mean for batch in batched()()])
    torch.testing.assert_close(posterior.mean, everyone[::2])
    assert z.shape[1] == len(everyone[::2])


def test_the_figures_agree_with_each_other_and_with_what_they_are_made_of():
    model = build()
    figures = report(model, generator=seeded())
    assert figures["nll_elbo"] == pytest.approx(figures["reconstruction"] + figures["kl"])
    assert sum(figures["kl_by_dimension"]) == pytest.approx(figures["kl"], abs=3 * 5e-5)
    for name in ("elbo", "iw"):  # corpus level: total nats over total tokens
        total = figures[f"nll_{name}"] * figures["sentences"]
        assert figures[f"ppl_{name}"] == pytest.approx(math.exp(total / figures["target_tokens"]))
    generator = seeded()
    bound = bounds.elbo(model, batched()(), generator=generator)
    weighted = bounds.iw_nll(model, batched()(), samples=20, generator=generator)
    assert figures["nll_elbo"] == pytest.approx(float(bound.nll.mean()))
    assert figures["nll_iw"] == pytest.approx(float(weighted.nll.mean()))
    assert figures["iw_ess"] == pytest.approx(float(weighted.effective_samples.mean()))


def test_the_importance_weighted_nll_varies_from_seed_to_seed_as_its_standard_error_says():
    model = build()
    with torch.no_grad():
        model.posterior.head.bias[3:] += 1.5  # wider than the exact posterior, so that the weights have a variance
    found = [report(model, batched(ROWS[:8]), generator=seeded(seed), iw_samples=100) for seed in range(60)]
    values = torch.tensor([figures["nll_iw"] for figures in found])
    error = torch.tensor([figures["iw_standard_error"] for figures in found]).mean()
    # The spread of 60 values is known to 1 in sqrt(2 * 60), and the error is one of first order.
    assert float(values.std() / error) == pytest.approx(1, abs=4 / math.sqrt(120))


def test_the_scores_of_reconstructions_are_those_of_the_texts_in_their_order():
    reconstructions = [line.replace("cat", "dog").removesuffix(" at home") for line in TEXTS]
    figures = report(build(), references=TEXTS, reconstruct=lambda: reconstructions)
    for name in TEXT:
        assert figures[name] == getattr(text, name)(reconstructions, TEXTS)
    assert figures["bleu"] != text.bleu(TEXTS, reconstructions)
    assert 0 < figures["exact_match"] < figures["token_accuracy"] < 1
    characters = report(build(), references=TEXTS, reconstruct=lambda: reconstructions, bleu_tokenize="char")
    assert characters["bleu"] == text.bleu(reconstructions, TEXTS, tokenize="char") != figures["bleu"]


def test_without_texts_to_reconstruct_their_scores_are_none():
    for options in ({}, {"references": TEXTS}, {"reconstruct": lambda: pytest.fail("asked for nothing")}):
        figures = report(build(), **options)
        assert set(figures) == EVERY
        assert all(figures[name] is None for name in TEXT)


def test_a_language_model_has_one_exact_nll_and_no_latents():
    model = build(latent_dim=0)
    figures = report(model, references=TEXTS, reconstruct=lambda: pytest.fail("there is nothing to encode into"))
    assert set(figures) == EVERY
    with torch.no_grad():
        batch = collate(ROWS, PAD)
        exact = -model.log_likelihood(batch, torch.zeros(1, len(ROWS), 0, dtype=torch.float64)).mean()
    assert figures["nll_iw"] == figures["nll_elbo"] == figures["reconstruction"] == pytest.approx(float(exact))
    assert figures["ppl_iw"] == figures["ppl_elbo"]
    for name in ("kl", "mutual_information", "active_units", "iw_samples", "iw_ess", "iw_standard_error"):
        assert figures[name] == 0
    assert figures["kl_by_dimension"] == []
    assert all(figures[name] is None for name in TEXT)


def test_one_importance_sample_shows_no_standard_error():
    figures = report(build(), iw_samples=1)
    assert figures["iw_standard_error"] is None
    assert figures["iw_ess"] == pytest.approx(1)
    assert set(figures) == EVERY


def test_a_quick_report_has_the_same_figures_as_the_full_one():
    model = build()
    full = report(model, generator=seeded())
    found = quick(model, batched()(), generator=seeded())
    assert set(found) == QUICK | PARTS
    assert {name: found[name] for name in QUICK} == pytest.approx({name: full[name] for name in QUICK})
    whole = report(model, generator=seeded(), whole=True)["aggregate"]
    assert {name: found[name] for name in PARTS} == pytest.approx({name: whole[name] for name in PARTS})
    assert set(quick(build(latent_dim=0), batched()())) == QUICK


def test_further_figures_of_a_quick_report_see_all_posteriors_and_draws():
    def measure(posteriors, prior, z):
        assert [posterior.batch_shape[0] for posterior in posteriors] == [10, 10, 7]
        assert z.shape == (1, 27, 3)
        assert prior.event_shape == (3,)
        return {"own": 3.5, "kl": -1.0}

    found = quick(build(), batched()(), measure=measure)
    assert found["own"] == 3.5
    assert found["kl"] > 0  # a further figure hides none
    assert "own" not in quick(build(latent_dim=0), batched()(), measure=measure)


# ---- how it is computed changes nothing


@pytest.mark.parametrize("how", ["one by one", "all at once", "last first", "by length", "padded", "small chunks"])
def test_no_figure_depends_on_batches_order_padding_or_chunks(how, draws_of_the_sentences_own):
    model = build()
    expected = report(model, references=TEXTS, reconstruct=lambda: TEXTS)
    options, batches = {}, batched()
    if how == "one by one":
        batches = batched(size=1)
    elif how == "all at once":
        batches = batched(size=100)
    elif how == "last first":
        batches = batched(ROWS[::-1])
    elif how == "by length":
        batches = lambda: (batch for _, batch in evaluation_batches(ListStore(ROWS), PAD, batch_tokens=40))  # noqa: E731
    elif how == "padded":
        batches = batched(extra_padding=6)
    else:
        options = {"batch_tokens": 300}
    found = report(model, batches, references=TEXTS, reconstruct=lambda: TEXTS, **options)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    assert expected["mutual_information"] > 0.1


def test_an_average_over_some_sentences_is_near_that_over_all():
    rows = TOKENIZER.encode(sentences(400, seed=3))
    whole = report(build(), batched(rows, 100), generator=seeded(), iw_samples=1)
    some = report(build(), batched(rows, 100), generator=seeded(), iw_samples=1, mutual_information_sentences=200)
    assert some["mutual_information"] != whole["mutual_information"]
    assert some["mutual_information"] == pytest.approx(whole["mutual_information"], abs=4 / math.sqrt(200))
    assert {**some, "mutual_information": 0} == {**whole, "mutual_information": 0}


def test_a_seed_repeats_the_report():
    model = build()
    assert report(model, generator=seeded(1)) == report(model, generator=seeded(1))
    assert report(model, generator=seeded(1))["nll_iw"] != report(model, generator=seeded(2))["nll_iw"]


# ---- the edges


@pytest.mark.parametrize("latent_dim", [0, 3])
@pytest.mark.parametrize(
    "rows",
    [[ROWS[0]], [ROWS[0]] * 9, [[BOS, UNK, UNK, EOS], [BOS, UNK, EOS]], [[BOS, EOS]], [[BOS, EOS], ROWS[0]]],
    ids=["one", "equal", "unknown", "empty", "empty and one"],
)
def test_odd_sets_of_sentences_give_finite_figures(rows, latent_dim):
    figures = report(build(latent_dim=latent_dim), batched(rows), references=["a"], reconstruct=lambda: [""])
    assert set(figures) == EVERY
    assert all(map(math.isfinite, numbers(figures)))
    if all(row == rows[0] for row in rows):
        assert figures["mutual_information"] == pytest.approx(0, abs=1e-9)
        assert figures["active_units"] == 0


@pytest.mark.parametrize("latent_dim", [0, 3])
def test_no_sentence_is_an_error(latent_dim):
    for found in (report, lambda model, batches: quick(model, batches())):
        with pytest.raises(UserError, match="there is no sentence to evaluate"):
            found(build(latent_dim=latent_dim), lambda: iter([]))


def broken(part: str, value: float) -> SequenceVAE:
    model = build()
    with torch.no_grad():
        model.get_parameter(part).fill_(value)
    return model


@pytest.mark.parametrize(
    ("part", "value", "figure"),
    [
        ("output.weight", math.nan, "reconstruction is nan"),
        ("decoder_embedding.weight", math.nan, "reconstruction is nan"),
        ("posterior.head.weight", math.nan, "reconstruction is nan"),
        ("posterior.head.bias", 1000.0, "kl is (nan|inf)"),
    ],
)
def test_weights_that_are_not_finite_are_an_error_that_names_the_figure(part, value, figure):
    with pytest.raises(UserError, match=f"^{figure}, not a finite number: .*training.optimizer.lr"):
        report(broken(part, value))


def test_a_perplexity_beyond_all_numbers_is_an_error_that_names_it():
    model = build()
    with torch.no_grad():
        model.output.bias.fill_(0.0)[UNK] = 1e6
    with pytest.raises(UserError, match=r"^ppl_elbo is inf, not a finite number"):
        report(model)
    assert quick(model, batched()())["ppl_elbo"] == math.inf  # a line while training goes on


class LearnedPrior(nn.Module):
    """A prior whose distribution holds the parameters themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.ones(3).double()), nn.Parameter(2 * torch.ones(3).double())

    def forward(self) -> Distribution:
        return Independent(Normal(self.loc, self.scale), 1)


def test_a_learned_prior_is_reported_as_a_fixed_one_and_keeps_no_gradient():
    model = build()
    model.prior = LearnedPrior()
    figures = report(model, generator=seeded())
    assert sum(figures["kl_by_dimension"]) == pytest.approx(figures["kl"], abs=3 * 5e-5)
    assert all(map(math.isfinite, numbers(figures)))
    quick(model, batched()())
    assert all(parameter.grad is None for parameter in model.parameters())
