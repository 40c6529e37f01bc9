"""Every figure of a run: likelihoods and latents of a part of its corpus, and what is asked for beside them."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from textvae.errors import UserError
from textvae.evaluation import annealing, bounds, labelled, report, suite
from textvae.evaluation.compare import fingerprint
from textvae.evaluation.correlation import pearson
from textvae.evaluation.language import LanguageModel
from textvae.evaluation.molecules import figures as molecule_figures
from textvae.evaluation.molecules import require as require_rdkit
from textvae.evaluation.part import BY_CHARACTER, Part, opened, spaced
from textvae.evaluation.progress import Stage
from textvae.evaluation.refined import Refining
from textvae.evaluation.suite import SEARCHED
from textvae.generation import given
from textvae.recipe import Recipe
from textvae.text import grammar
from textvae.text.batching import ListStore, collate, evaluation_batches

TRAIN_SENTENCES = 100_000  # of the training part that a language model learns
KNOWN = 1_000_000  # training sentences at most that samples may be copies of; a result says how many there were
REFERENCES = 10_000  # sentences of the part that samples' words and lengths are held against
SHOWN = 50  # reconstructions that are kept
CHAINS, TEMPERATURES, REFINING_STEPS = 8, 100, 200  # of the check by annealing, and of refined posteriors
ANNEALED_TOKENS = 2_500  # padded, of sentences annealed together
PICKING_SENTENCES = 2_000  # of the validation part that pick a language model's parameters
WALK = 7  # texts of a path, its ends counted

LabelledTexts = tuple[Sequence[str], Sequence[Hashable]]
ScoredPairs = tuple[Sequence[str], Sequence[str], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is wanted beside the likelihoods; see `textvae.api.TextVAE.evaluate`, which gives the defaults."""

    samples: int
    paths: int
    molecules: bool
    whole: bool
    anneal: int
    language: int
    language_steps: int
    probe: tuple[LabelledTexts, LabelledTexts] | None
    per_label: Sequence[int | None]
    pairs: ScoredPairs | None


def evaluate(vae: Any, split: str, *, recipe: Recipe, seed: int, asked: Asked, stage: Stage) -> dict[str, Any]:
    """Returns the figures of `textvae.api.TextVAE.evaluate`, whose work this is.

    Args:
        vae: a TextVAE.
        split: train, validation or test.
        recipe: gives the corpus and the evaluation's settings.
        seed: of all draws.
        asked: what is wanted beside the likelihoods.
        stage: shows that a long piece of work goes on.

    Raises:
        UserError: the corpus has no such part, or cannot be read, or what is asked for cannot be had.
    """
    vae = copy.copy(vae)  # the caller's keeps its own way of decoding
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe: got {recipe!r:.60}; textvae.load_recipe(path) reads one")
    vae.recipe = vae.recipe.model_copy(update={"generation": recipe.generation})
    _check(vae, asked)
    part = opened(vae, split, recipe, seed)
    if asked.paths and sum(bool(text.strip()) for text in part.references) < 2:
        raise UserError(f"paths: each goes from one sentence to another, and the part {split!r} has one alone")
    if asked.anneal:
        annealing.check(vae.model, vae.on_device(collate([part.store[0]], vae.tokenizer.pad_id)))
    encoder = _semi_amortised(part)
    figures, rebuilt = _report(part, asked.whole)
    result = {"split": split, "dropped": part.dropped, **figures, **encoder}
    if asked.anneal:
        result["annealed"] = _annealed(part, asked.anneal)
    if recipe.data.grammar is not None and not part.dropped and not figures["unknown_tokens"]:
        # What the best possible model reaches, in nats a sentence; of all sentences, whole and of known words.
        result["corpus_entropy"] = grammar.entropy()
    if rebuilt:
        result |= suite.of_reconstructions(
            rebuilt,
            part.references,
            tokens=part.tokens,
            spaced=functools.partial(spaced, kind=part.kind),
            tokenize=_bleu_tokenizer(part),
        )
        if asked.whole:
            result["reconstructions"] = list(zip(part.references[:SHOWN], rebuilt))
    if asked.samples or asked.molecules:
        result |= _samples(part, asked)
    corpus: LanguageModel | None = None
    if asked.language:
        result["language"], corpus = _language(part, asked, stage)
    if asked.paths:
        result["paths"] = _paths(part, asked.paths, corpus)
    whole: dict[str, Any] = _finite({**result, **_representation(part, asked, stage), "settings": _settings(part)})
    return whole


def _finite(value: Any) -> Any:
    """None for a number that no float64 holds (an untrained model's perplexity): JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def _check(vae: Any, asked: Asked) -> None:
    """Refuses, before anything is computed, what cannot be had."""
    for name in ("samples", "paths", "anneal"):
        given.count(getattr(asked, name), name)
    if not vae.latent_dim:
        lacking = {
            "paths": (asked.paths, "no latents to walk between"),
            "probe": (asked.probe, "no latents to probe"),
            "pairs": (asked.pairs, "no latents to compare"),
        }
        for name, (wanted, what) in lacking.items():
            if wanted:
                raise UserError(f"{name}: the run is a language model (model.latent_dim: 0), which has {what}")
    if asked.molecules:
        require_rdkit()
    if asked.language and (asked.language < 2 or asked.language_steps < 1):
        raise UserError(
            f"language: got {asked.language} samples and {asked.language_steps} steps; a language model needs 2 "
            "samples or more, thousands to learn much, and 1 step or more"
        )
    if asked.pairs:
        first, second, scores = asked.pairs
        if not len(first) == len(second) == len(scores):
            raise UserError(
                f"pairs: got {len(first)} and {len(second)} texts and {len(scores)} scores; a pair has each"
            )
        pearson(scores, scores)  # refuses scores that correlate with nothing
    if asked.probe:
        for texts, labels in asked.probe:
            if len(texts) != len(labels):
                raise UserError(f"probe: got {len(texts)} texts and {len(labels)} labels; each text has one")
        (_, learned), (_, tested) = asked.probe
        labelled.check(learned, tested)
        if not asked.per_label or any(size is not None and size < 1 for size in asked.per_label):
            raise UserError(f"per_label: got {list(asked.per_label)}; at least one is needed, and each above 0")


def _report(part: Part, whole: bool) -> tuple[dict[str, Any], list[str]]:
    """The report's figures, and the reconstructions where there are some."""
    rebuilt: list[str] = []

    def reconstruct() -> list[str]:
        rebuilt.extend(part.vae.reconstruct(part.references))
        return spaced(rebuilt, part.kind)

    settings = part.recipe.evaluation
    figures = report.evaluate(
        part.vae.model,
        part.batches,
        iw_samples=settings.iw_samples,
        batch_tokens=settings.batch_tokens,
        generator=part.vae.generator(part.seed),
        references=spaced(part.references, part.kind),
        reconstruct=reconstruct,
        whole=whole,
        fitted=part.vae.fitted_prior() if whole and part.vae.fitted_prior is not None else None,
        together=part.vae.together,
        bleu_tokenize=_bleu_tokenizer(part),
    )
    _add_units(figures, part)
    if whole:
        _add_whole(figures, part)
    return figures, rebuilt


def _semi_amortised(part: Part) -> dict[str, Any]:
    """Gives a semi-amortised run its refined posteriors from here on, and returns what its encoder's alone have."""
    settings = part.vae.recipe.training.semi_amortized
    if settings is None or not part.vae.latent_dim:
        return {}
    alone = report.quick(
        part.vae.model, part.batches(), generator=part.vae.generator(part.seed), together=part.vae.together
    )
    part.vae.model = Refining(part.vae.model, settings, part.seed)
    names = ("reconstruction", "kl", "nll_elbo", "ppl_elbo", "mutual_information", "active_units")
    return {"encoder_alone": {name: alone[name] for name in names}}


def _bleu_tokenizer(part: Part) -> str:
    return "none" if part.kind in ("word", *BY_CHARACTER) else "13a"


def _add_units(result: dict[str, Any], part: Part) -> None:
    """Figures that no tokenizer changes: of the corpus's own text, and None where the model cannot spell all of it."""
    result["unknown_tokens"] = unknown = part.unknown_share()
    words, characters = bounds.counts(part.own_texts)
    one_word = all(len(text.split()) < 2 for text in part.own_texts)  # SMILES, or a script without spaces
    for name in ("nll_elbo", "nll_iw"):
        whole = result[name] is not None and not unknown
        total = result[name] * len(part.store) if whole else 0.0
        result[f"bits_per_character_{name[4:]}"] = bounds.bits_per_character(total, characters) if whole else None
        perplexity = bounds.word_perplexity(total, words) if whole and not one_word else math.inf
        result[f"ppl_word_{name[4:]}"] = perplexity if math.isfinite(perplexity) else None


def _add_whole(result: dict[str, Any], part: Part) -> None:
    order = np.concatenate([rows for rows, _ in evaluation_batches(part.store, part.vae.tokenizer.pad_id)])
    back = np.argsort(order)
    # Batches stand in order of length; another run's tokenizer may sort otherwise.
    result["per_sentence"] = {name: [values[row] for row in back] for name, values in result["per_sentence"].items()}
    result["fingerprint"] = fingerprint(part.own_texts)


def _settings(part: Part) -> dict[str, Any]:
    """What these figures hang on beside the weights and the sentences."""
    from textvae import __version__

    vae, generation = part.vae, part.recipe.generation
    fitted = getattr(vae.fitted_prior, "kind", None)
    posterior = "refined by the recipe's own steps" if isinstance(vae.model, Refining) else "the encoder's"
    return {
        "seed": part.seed,
        "device": vae.device.type,
        "textvae": __version__,
        "torch": torch.__version__,
        "prior": vae.recipe.model.prior.kind if vae.latent_dim else None,
        "samples_prior": (f"fitted: {fitted}" if fitted else "the model's") if vae.latent_dim else None,
        "posterior": posterior if vae.latent_dim else None,
        "samples_by": generation.model_dump(exclude_none=True),
        "reconstructions_by": "greedy",
        "paths_by": "linear" if vae.latent_dim else None,
    }


def _annealed(part: Part, count: int) -> dict[str, Any]:
    """The bound's check on the same sentences, means over them, and how far the encoder is from its best."""
    vae, seed, settings = part.vae, part.seed, part.recipe.evaluation
    first = ListStore([part.store[row].tolist() for row in range(min(count, len(part.store)))])
    # An annealed chain keeps what its gradient needs: one sentence's samples at a time where they are long. Of the same
    # size whatever else has room, for what is drawn goes by batches.
    together = max(1, min(ANNEALED_TOKENS, settings.batch_tokens // CHAINS))
    sized = evaluation_batches(first, vae.tokenizer.pad_id, batch_tokens=together)
    batches = [vae.on_device(batch) for _, batch in sized]
    options: dict[str, Any] = {"batch_tokens": settings.batch_tokens, "generator": vae.generator(seed)}
    checked = annealing.ais_nll(vae.model, batches, samples=CHAINS, temperatures=TEMPERATURES, **options)
    options["generator"] = vae.generator(seed)
    weighted = bounds.iw_nll(vae.model, batches, samples=settings.iw_samples, **options)
    options["generator"] = vae.generator(seed)
    refined = [annealing.refine(vae.model, batch, steps=REFINING_STEPS, **options) for batch in batches]
    gap, gap_error, refined_nll = (
        torch.cat([getattr(found, name) for found in refined]) for name in ("gap", "standard_error", "nll")
    )
    return {
        "sentences": len(checked.nll),
        "chains": CHAINS,
        "temperatures": TEMPERATURES,
        "nll_ais": float(checked.nll.mean()),
        "nll_ais_standard_error": _error_of_mean(checked.standard_error),
        "ais_ess": float(checked.effective_samples.mean()),
        "acceptance": float(checked.acceptance.mean()),
        "nll_iw": float(weighted.nll.mean()),
        "nll_iw_standard_error": _error_of_mean(weighted.standard_error),
        "iw_samples": settings.iw_samples,
        "refining_steps": REFINING_STEPS,
        "nll_refined": float(refined_nll.mean()),
        "amortisation_gap": float(gap.mean()),
        "amortisation_gap_standard_error": _error_of_mean(gap_error),
    }


def _error_of_mean(errors: torch.Tensor) -> float | None:
    """Of sentences' errors, which are independent; None where one sample shows none."""
    error = float(errors.square().sum().sqrt()) / len(errors)
    return error if math.isfinite(error) else None


def _samples(part: Part, asked: Asked) -> dict[str, Any]:
    drawn = part.vae.sample(asked.samples or 1000, seed=part.seed)
    train = part.texts("train", SEARCHED if part.corpus.streaming else KNOWN)
    compared = (drawn, train, part.texts(part.split, REFERENCES))
    result = {"samples": suite.of_samples(*compared, tokens=part.tokens, seed=part.seed)}
    return {**result, "molecules": molecule_figures(*compared)} if asked.molecules else result


def _language(part: Part, asked: Asked, stage: Stage) -> tuple[dict[str, Any], LanguageModel]:
    # What is judged must not pick the parameters of its judge.
    picking = part.texts("validation", PICKING_SENTENCES) if part.split != "validation" else None
    return suite.of_language(
        part.vae.sample(asked.language, seed=part.seed),
        train=part.texts("train", TRAIN_SENTENCES),
        validation=picking,
        test=part.texts(part.split, TRAIN_SENTENCES),
        tokenizer=part.vae.tokenizer,
        steps=asked.language_steps,
        seed=part.seed,
        device=part.vae.device,
        stage=stage,
    )


def _paths(part: Part, count: int, corpus: LanguageModel | None) -> dict[str, Any]:
    references = [text for text in part.references if text.strip()]  # a stranger's tokenizer may read one as nothing
    ends = itertools.islice(itertools.pairwise(references), count)
    walks = [part.vae.interpolate(a, b, WALK) for a, b in ends]
    figures = suite.of_paths(walks, tokens=part.tokens)
    return figures if corpus is None else {**figures, **suite.of_paths_perplexity(walks, corpus)}


def _representation(part: Part, asked: Asked, stage: Stage) -> dict[str, Any]:
    def encode(texts: Sequence[str]) -> torch.Tensor:
        latents: torch.Tensor = part.vae.encode(texts)
        return latents

    result: dict[str, Any] = {}
    if asked.probe:
        (train, labels), (test, test_labels) = asked.probe
        options: dict[str, Any] = {"per_label": asked.per_label, "seed": part.seed, "stage": stage}
        result["probe"] = suite.of_probes(encode(train), labels, encode(test), test_labels, **options)
    if asked.pairs:
        first, second, scores = asked.pairs
        result["similarity"] = suite.of_pairs(encode(first), encode(second), scores)
    return result
