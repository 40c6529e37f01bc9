"""Every figure of a run: likelihoods and latents of a part of its corpus, reconstructions, samples and paths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from textvae.errors import UserError, suggest
from textvae.evaluation import annealing, bounds, report, suite
from textvae.evaluation.compare import fingerprint
from textvae.evaluation.molecules import figures as molecule_figures
from textvae.recipe import Recipe
from textvae.text import corpora, encoding, grammar
from textvae.text.batching import TokenStore, collate, evaluation_batches
from textvae.types import Batch

BY_CHARACTER = ("character", "byte")  # tokenizers without words
TRAIN_SENTENCES = 100_000  # of the training part that samples are compared with


def evaluate(
    vae: Any,
    split: str,
    *,
    recipe: Recipe,
    seed: int,
    samples: int = 0,
    paths: int = 0,
    molecules: bool = False,
    whole: bool = False,
    anneal: int = 0,
) -> dict[str, Any]:
    """Returns the figures of `textvae.api.TextVAE.evaluate`, whose work this is.

    Args:
        vae: a TextVAE.
        split: train, validation or test.
        recipe: gives the corpus and the evaluation's settings.
        seed: of all draws.
        samples: how many to describe.
        paths: how many to describe.
        molecules: whether the samples are SMILES.
        anneal: on how many sentences annealed importance sampling checks the bound.
        whole: adds the aggregate posterior's figures, bits a character, perplexity a word, and figures sentence by
            sentence in the corpus's order, by which runs are compared.

    Raises:
        UserError: the corpus has no such part, or cannot be read.
    """
    kind = vae.recipe.tokenizer.kind
    if paths and not vae.latent_dim:
        raise UserError(
            "paths: the run is a language model (model.latent_dim: 0), which has no latents to walk between"
        )

    def units(texts: list[str]) -> list[str]:
        return spaced(texts, kind)

    corpus = corpora.load(recipe.data)
    encoded = encoding.encode(corpus, vae.tokenizer, recipe.data)
    if split not in encoded.parts:
        raise UserError(f"--split: the corpus has no part {split!r}{suggest(split, encoded.parts)}")
    store = TokenStore(encoded.parts[split])
    if not len(store):
        raise UserError(f"--split: the part {split!r} has no sentence")
    pad_id, settings = vae.tokenizer.pad_id, recipe.evaluation
    sentences = [store[row].tolist() for row in range(min(len(store), settings.bleu_sentences))]
    references = vae.tokenizer.decode(sentences)

    rebuilt: list[str] = []

    def reconstruct() -> list[str]:
        rebuilt.extend(units(vae.reconstruct(references)))
        return rebuilt

    def batches() -> Iterator[Batch]:
        return (vae.on_device(batch) for _, batch in evaluation_batches(store, pad_id))

    result = report.evaluate(
        vae.model,
        batches,
        iw_samples=settings.iw_samples,
        batch_tokens=settings.batch_tokens,
        generator=vae.generator(seed),
        references=units(references),
        reconstruct=reconstruct,
        whole=whole,
        bleu_tokenize="none" if kind in ("word", *BY_CHARACTER) else "13a",
    )
    if whole:
        _add_whole(result, store, pad_id, vae.tokenizer)
    if anneal:
        first = [store[row] for row in range(min(anneal, len(store)))]
        result["annealed"] = _annealed(vae, [vae.on_device(collate(first, pad_id))], settings.iw_samples, seed)
    if recipe.data.grammar is not None:
        # What the best possible model reaches, in nats a sentence.
        result["corpus_entropy"] = grammar.entropy()
    if rebuilt:
        result |= suite.of_reconstructions(rebuilt, units(references), tokens=str.split)
    if samples or molecules:
        drawn = vae.sample(samples or 1000, seed=seed)
        train = [row["text"] for row in itertools.islice(corpus.parts["train"], TRAIN_SENTENCES)]
        result["samples"] = suite.of_samples(units(drawn), units(train), units(references), tokens=str.split)
        if molecules:
            result["molecules"] = molecule_figures(drawn, train)
    if paths:
        ends = list(itertools.pairwise(references))[:paths]
        walks = [units(vae.interpolate(a, b, 7)) for a, b in ends]
        result["paths"] = suite.of_paths(walks, tokens=str.split)
    return {"split": split, **result}


def _add_whole(result: dict[str, Any], store: TokenStore, pad_id: int, tokenizer: Any) -> None:
    order = np.concatenate([rows for rows, _ in evaluation_batches(store, pad_id)])
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


def _annealed(vae: Any, batches: list[Batch], iw_samples: int, seed: int) -> dict[str, Any]:
    """The bound's check on the same sentences, means over them, and how far the encoder is from its best."""
    checked = annealing.ais_nll(vae.model, batches, generator=vae.generator(seed))
    weighted = bounds.iw_nll(vae.model, batches, samples=iw_samples, generator=vae.generator(seed))
    gap = annealing.amortisation_gap(vae.model, batches, generator=vae.generator(seed))
    return {
        "sentences": len(checked.nll),
        "nll_ais": float(checked.nll.mean()),
        "nll_iw": float(weighted.nll.mean()),
        "acceptance": float(checked.acceptance.mean()),
        "amortisation_gap": float(gap.mean()),
    }


def spaced(texts: list[str], kind: str) -> list[str]:
    """Returns the texts with spaces between what counts as a word: characters, where the tokenizer has no words."""
    if kind not in BY_CHARACTER:
        return texts
    return [" ".join(text.replace(" ", "\u2581")) for text in texts]
