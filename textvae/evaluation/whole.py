"""Every figure of a run: likelihoods and latents of a part of its corpus, and what is asked for beside them."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from textvae.errors import UserError, suggest
from textvae.evaluation import annealing, bounds, labelled, report, suite
from textvae.evaluation.compare import fingerprint
from textvae.evaluation.language import LanguageModel
from textvae.evaluation.molecules import figures as molecule_figures
from textvae.evaluation.progress import Stage
from textvae.recipe import Recipe
from textvae.text import corpora, encoding, grammar
from textvae.text.batching import TokenStore, collate, evaluation_batches
from textvae.types import Batch

BY_CHARACTER = ("character", "byte")  # tokenizers without words
TRAIN_SENTENCES = 100_000  # of the training part that samples are compared with, or a language model learns
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


@dataclass(frozen=True)
class _Part:
    """A run in the hand and the part of a corpus that it is evaluated on."""

    vae: Any
    recipe: Recipe
    seed: int
    split: str
    corpus: corpora.Corpus
    encoded: dict[str, Any]
    store: TokenStore
    references: list[str]  # the first sentences, to be reconstructed

    @property
    def kind(self) -> str:
        return str(self.vae.recipe.tokenizer.kind)

    def units(self, texts: list[str]) -> list[str]:
        return spaced(texts, self.kind)

    def batches(self) -> Iterator[Batch]:
        return (self.vae.on_device(batch) for _, batch in evaluation_batches(self.store, self.vae.tokenizer.pad_id))

    def texts(self, part: str, at_most: int) -> list[str]:
        """The first sentences of a part as the run reads them: the same that its likelihoods are of."""
        rows: Iterable[Any] = itertools.islice(self.encoded[part], at_most)
        texts: list[str] = self.vae.tokenizer.decode([list(row["tokens"]) for row in rows])
        return texts


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
    _check(vae, asked)
    part = _opened(vae, split, recipe, seed)
    if asked.paths and sum(bool(text.strip()) for text in part.references) < 2:
        raise UserError(f"paths: each goes from one sentence to another, and the part {split!r} has one alone")
    figures, rebuilt = _report(part, asked.whole)
    result = {"split": split, **figures}
    if asked.anneal:
        result["annealed"] = _annealed(part, asked.anneal)
    if recipe.data.grammar is not None:
        # What the best possible model reaches, in nats a sentence.
        result["corpus_entropy"] = grammar.entropy()
    if rebuilt:
        result |= suite.of_reconstructions(rebuilt, part.units(part.references), tokens=str.split)
    if asked.samples or asked.molecules:
        result |= _samples(part, asked)
    corpus: LanguageModel | None = None
    if asked.language:
        result["language"], corpus = _language(part, asked, stage)
    if asked.paths:
        result["paths"] = _paths(part, asked.paths, corpus)
    return {**result, **_representation(part, asked, stage)}


def spaced(texts: list[str], kind: str) -> list[str]:
    """Returns the texts with spaces between what counts as a word: characters, where the tokenizer has no words."""
    if kind not in BY_CHARACTER:
        return texts
    return [" ".join(text.replace(" ", "\u2581")) for text in texts]


def _check(vae: Any, asked: Asked) -> None:
    """Refuses, before anything is computed, what cannot be had."""
    if not vae.latent_dim:
        lacking = {
            "paths": (asked.paths, "no latents to walk between"),
            "probe": (asked.probe, "no latents to probe"),
            "pairs": (asked.pairs, "no latents to compare"),
        }
        for name, (wanted, what) in lacking.items():
            if wanted:
                raise UserError(f"{name}: the run is a language model (model.latent_dim: 0), which has {what}")
    if asked.language and (asked.language < 2 or asked.language_steps < 1):
        raise UserError(
            f"language: got {asked.language} samples and {asked.language_steps} steps; a language model needs 2 "
            "samples or more, thousands to learn much, and 1 step or more"
        )
    if asked.probe:
        (_, learned), (_, tested) = asked.probe
        labelled.check(learned, tested)
        if not asked.per_label or any(size is not None and size < 1 for size in asked.per_label):
            raise UserError(f"per_label: got {list(asked.per_label)}; at least one is needed, and each above 0")


def _opened(vae: Any, split: str, recipe: Recipe, seed: int) -> _Part:
    corpus = corpora.load(recipe.data)
    encoded = encoding.encode(corpus, vae.tokenizer, recipe.data)
    parts: dict[str, Any] = {str(name): rows for name, rows in encoded.parts.items()}
    if split not in parts:
        raise UserError(f"split: the corpus has no part {split!r}{suggest(split, parts)}")
    store = TokenStore(parts[split])
    if not len(store):
        raise UserError(f"split: the part {split!r} has no sentence")
    first = [store[row].tolist() for row in range(min(len(store), recipe.evaluation.bleu_sentences))]
    return _Part(vae, recipe, seed, split, corpus, parts, store, vae.tokenizer.decode(first))


def _report(part: _Part, whole: bool) -> tuple[dict[str, Any], list[str]]:
    """The report's figures, and the reconstructions where there are some."""
    rebuilt: list[str] = []

    def reconstruct() -> list[str]:
        rebuilt.extend(part.units(part.vae.reconstruct(part.references)))
        return rebuilt

    settings = part.recipe.evaluation
    figures = report.evaluate(
        part.vae.model,
        part.batches,
        iw_samples=settings.iw_samples,
        batch_tokens=settings.batch_tokens,
        generator=part.vae.generator(part.seed),
        references=part.units(part.references),
        reconstruct=reconstruct,
        whole=whole,
        together=part.vae.together,
        bleu_tokenize="none" if part.kind in ("word", *BY_CHARACTER) else "13a",
    )
    if whole:
        _add_whole(figures, part)
    return figures, rebuilt


def _add_whole(result: dict[str, Any], part: _Part) -> None:
    store, tokenizer = part.store, part.vae.tokenizer
    order = np.concatenate([rows for rows, _ in evaluation_batches(store, tokenizer.pad_id)])
    back = np.argsort(order)
    # Batches stand in order of length; another run's tokenizer may sort otherwise.
    result["per_sentence"] = {name: [values[row] for row in back] for name, values in result["per_sentence"].items()}
    texts = tokenizer.decode([store[row].tolist() for row in range(len(store))])
    result["fingerprint"] = fingerprint(texts)
    words, characters = bounds.counts(texts)
    for name in ("nll_elbo", "nll_iw"):
        if result[name] is not None:
            total = result[name] * len(texts)
            result[f"bits_per_character_{name[4:]}"] = bounds.bits_per_character(total, characters)
            result[f"ppl_word_{name[4:]}"] = bounds.word_perplexity(total, words)


def _annealed(part: _Part, count: int) -> dict[str, Any]:
    """The bound's check on the same sentences, means over them, and how far the encoder is from its best."""
    vae, seed = part.vae, part.seed
    first = [part.store[row] for row in range(min(count, len(part.store)))]
    batches = [vae.on_device(collate(first, vae.tokenizer.pad_id))]
    checked = annealing.ais_nll(vae.model, batches, generator=vae.generator(seed))
    samples = part.recipe.evaluation.iw_samples
    weighted = bounds.iw_nll(vae.model, batches, samples=samples, generator=vae.generator(seed))
    draws = vae.generator(seed)
    refined = [annealing.refine(vae.model, batch, generator=draws) for batch in batches]
    return {
        "sentences": len(checked.nll),
        "nll_ais": float(checked.nll.mean()),
        "nll_iw": float(weighted.nll.mean()),
        "acceptance": float(checked.acceptance.mean()),
        "nll_refined": float(torch.cat([found.nll for found in refined]).mean()),
        "amortisation_gap": float(torch.cat([found.gap for found in refined]).mean()),
    }


def _samples(part: _Part, asked: Asked) -> dict[str, Any]:
    drawn = part.vae.sample(asked.samples or 1000, seed=part.seed)
    train = [row["text"] for row in itertools.islice(part.corpus.parts["train"], TRAIN_SENTENCES)]
    compared = (part.units(texts) for texts in (drawn, train, part.references))
    result = {"samples": suite.of_samples(*compared, tokens=str.split)}
    return {**result, "molecules": molecule_figures(drawn, train)} if asked.molecules else result


def _language(part: _Part, asked: Asked, stage: Stage) -> tuple[dict[str, Any], LanguageModel]:
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


def _paths(part: _Part, count: int, corpus: LanguageModel | None) -> dict[str, Any]:
    references = [text for text in part.references if text.strip()]  # a stranger's tokenizer may read one as nothing
    ends = itertools.islice(itertools.pairwise(references), count)
    walks = [part.vae.interpolate(a, b, WALK) for a, b in ends]
    figures = suite.of_paths([part.units(walk) for walk in walks], tokens=str.split)
    return figures if corpus is None else {**figures, **suite.of_paths_perplexity(walks, corpus)}


def _representation(part: _Part, asked: Asked, stage: Stage) -> dict[str, Any]:
    def encode(texts: Sequence[str]) -> torch.Tensor:
        latents: torch.Tensor = part.vae.encode([_as_in_the_corpus(text, part.recipe) for text in texts])
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


def _as_in_the_corpus(text: str, recipe: Recipe) -> str:
    text = text.lower() if recipe.data.lowercase else text
    return unicodedata.normalize(recipe.data.normalize, text) if recipe.data.normalize else text
