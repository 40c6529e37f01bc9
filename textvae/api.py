"""A trained run in the hand: texts in, latents, texts and figures out, row for row."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from textvae import build, checkpoint, recipe_file, toolbox
from textvae.combinations import OF_SAMPLING
from textvae.distributed import agreed, all_results, is_mine
from textvae.errors import CheckpointError, UserError, suggest
from textvae.evaluation import language as language_models
from textvae.evaluation import progress as stages
from textvae.evaluation.scores import score as score_texts
from textvae.evaluation.whole import Asked, LabelledTexts, ScoredPairs
from textvae.evaluation.whole import evaluate as evaluate_run
from textvae.generation import given
from textvae.generation.latent import PATHS
from textvae.generation.latent import path as latent_path
from textvae.generation.search import generate
from textvae.hub import HubMixin
from textvae.latent import fitted
from textvae.latent.vmf import VonMisesFisher
from textvae.model import SequenceVAE
from textvae.recipe import Generation, Recipe
from textvae.seeds import mix, set_aside
from textvae.text import corpora, tokenizers
from textvae.text.batching import ListStore, evaluation_batches
from textvae.toolbox.labels import posteriors_to_fit
from textvae.types import Batch, Tokenizer

ROWS = 512  # sentences generated at once
IW_SAMPLES = 1_000_000  # a sentence, at most: minutes of work each


def load(
    run: str | Path,
    *,
    device: str | torch.device = "cpu",
    trust_code: bool = False,
    together: bool = False,
) -> TextVAE:
    """Loads a run folder; nothing in it is executed.

    Args:
        run: the folder that `textvae train --out` wrote; it may have been moved.
        device: where the model goes.
        trust_code: import the classes that the recipe names by dotted path.
        together: see `TextVAE.together`.

    Raises:
        CheckpointError: no run, or a damaged one.
        UserError: the recipe needs code and `trust_code` is false.
    """
    folder, device = Path(run), given.device(device)
    if not (folder / checkpoint.RECIPE).is_file():
        what = "is a file, and a run is a folder" if folder.is_file() else "holds no run"
        raise CheckpointError(f"{folder}: {what} ({checkpoint.RECIPE} is missing)")
    if (folder / checkpoint.EXPORT).is_file() and not (folder / checkpoint.WEIGHTS).exists():
        raise CheckpointError(f"{folder}: is an export and no run; in Python textvae.export.load reads it")
    recipe = recipe_file.load(folder / checkpoint.RECIPE)
    build.check(recipe, str(folder / checkpoint.RECIPE), trust_code=trust_code, trained=True)
    saved = str(folder / checkpoint.TOKENIZER)
    tokenizer = tokenizers.load(saved, kind=recipe.tokenizer.kind, trust_code=trust_code)
    if not trust_code:  # a stranger's sizes are held against his weights before there is memory for them
        outline, otherwise = build.outline(recipe, tokenizer)
        checkpoint.check_shapes(outline, folder / checkpoint.WEIGHTS, otherwise)
    # The parameters drawn here are overwritten; the caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        model = build.build_model(recipe, tokenizer, trust_code=trust_code)
    checkpoint.load_weights(model, folder / checkpoint.WEIGHTS)
    vae = TextVAE(model.to(device), tokenizer, recipe)
    vae.folder = folder
    vae.together = together
    found = checkpoint.load_prior(folder)
    if found is not None:
        vae.fitted_prior = fitted.restore(*found, vae.latent_dim, str(folder / checkpoint.FITTED_PRIOR))
    return vae


class TextVAE(HubMixin):
    """A sequence VAE with its tokenizer and recipe. Row i of every result belongs to row i of the input.

    Args:
        model: the trained model; put into evaluation mode.
        tokenizer: the one it was trained with.
        recipe: what it was trained by; its `generation` section gives the defaults of decoding.
    """

    def __init__(self, model: SequenceVAE, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.fitted_prior: torch.nn.Module | None = None  # what `sample` draws from, where there is one
        # Whether a launcher's processes share the work of a call, which all of them make with the same arguments.
        self.together = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def latent_dim(self) -> int:
        """D; 0 for a language model."""
        return self.model.latent_dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Returns the posterior means, (N, D) float32 on the CPU."""
        return self.encode_distribution(texts)[0]

    def encode_distribution(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the posterior means and standard deviations, each (N, D) float32 on the CPU."""
        self._needs_latents("encode")
        texts = given.texts(texts)
        means, scales = torch.empty(2, len(texts), self.latent_dim)
        found: dict[int, tuple[Any, Tensor, Tensor]] = {}
        with torch.inference_mode():
            for number, (rows, batch) in enumerate(self.batches(texts)):
                if is_mine(number, together=self.together):
                    posterior = self.model.encode(batch)
                    # On a sphere the mean lies inside; the decoder knows the surface alone.
                    centre = posterior.mode if isinstance(posterior, VonMisesFisher) else posterior.mean
                    found[number] = (rows, centre.float().cpu(), posterior.stddev.float().cpu())
        for rows, centres, spreads in all_results(found, together=self.together):
            means[rows], scales[rows] = centres, spreads
        return means, scales

    def decode(self, z: Tensor, *, seed: int | None = None, **options: Any) -> list[str]:
        """Returns a text for each row of z (N, D).

        Args:
            z: latents.
            seed: repeats a result; matters where words are drawn.
            **options: of decoding, as in a recipe's `generation` section: method (greedy, sample, beam),
                temperature, top_k, top_p, beam_size, max_length, ban_unk. The recipe's are the defaults.

        Raises:
            UserError: an unknown option, a value out of range, or z of another width or not finite.
        """
        z = given.latents(z, self.latent_dim)
        settings = self._settings(options)
        seed = self._agreed(seed)
        found: dict[int, list[list[int]]] = {}
        with torch.inference_mode():
            for number, part in enumerate(z.to(self.device).split(ROWS)):
                if is_mine(number, together=self.together):
                    found[number] = generate(
                        self.model,
                        part,
                        settings=settings,
                        bos_id=self.tokenizer.bos_id,
                        eos_id=self.tokenizer.eos_id,
                        pad_id=self.tokenizer.pad_id,
                        unk_id=self.tokenizer.unk_id,
                        # Each part draws its own, so that another process can.
                        generator=self.generator(mix(seed, number) if number else seed),
                    )
        ids = [row for rows in all_results(found, together=self.together) for row in rows]
        return self.tokenizer.decode(ids)

    def sample(self, n: int, *, seed: int | None = None, **options: Any) -> list[str]:
        """Returns n texts from z drawn from the prior. Options: see `decode`."""
        return self.decode(self.sample_latents(n, seed=seed), seed=seed, **options)

    def sample_latents(self, n: int, *, seed: int | None = None) -> Tensor:
        """Returns n draws from the fitted prior if there is one, else from the model's own, (n, D)."""
        n = given.count(n, "n")
        if self.latent_dim == 0 or n == 0:
            return torch.zeros(n, self.latent_dim)
        prior = self.fitted_prior or self.model.prior
        assert prior is not None
        # torch's distributions draw from the global state; it is put back afterwards.
        with set_aside(self._agreed(seed), self.device), torch.inference_mode():
            z: Tensor = prior().sample(torch.Size([n]))
        return z.cpu()

    def fit_prior(
        self, texts: Sequence[str], *, kind: str = "gaussian", components: int = 10, seed: int = 0
    ) -> torch.nn.Module:
        """Fits a prior to the aggregate posterior of texts, from which `sample` then draws.

        For a plain or a Wasserstein autoencoder, whose latents nothing holds to N(0, I), and for any run whose
        latents have missed their prior (two-stage training: Ghosh 2020, arXiv 1903.12436).

        Args:
            texts: sentences, thousands of them.
            kind: gaussian (full covariance), mixture (of diagonal Gaussians, by EM) or flow.
            components: of a mixture.
            seed: of the fit.

        Raises:
            UserError: an unknown kind, no components, too few sentences, or latents on a sphere.
        """
        texts = given.texts(texts)
        fitted.check(kind, components, len(texts))
        generator = torch.Generator().manual_seed(self._agreed(seed))
        means, scales = posteriors_to_fit(self, texts, seed=self._agreed(seed))
        self.fitted_prior = fitted.fit(kind, means, scales, components=components, generator=generator)
        return self.fitted_prior

    def reconstruct(self, texts: Sequence[str], *, seed: int | None = None, **options: Any) -> list[str]:
        """Returns each text decoded from its posterior mean, greedily unless `method` says otherwise."""
        return self.decode(self.encode(texts), seed=seed, **{"method": "greedy", **options})

    def interpolate(
        self,
        a: str,
        b: str,
        steps: int = 7,
        *,
        path: Literal["linear", "spherical", "data"] = "linear",
        corpus: Sequence[str] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> list[str]:
        """Returns `steps` texts decoded along the path between two sentences' means, both ends included.

        Greedily unless `method` says otherwise. The path `data` keeps to the latents of `corpus` (the training part).
        """
        if path not in ("data", *PATHS):
            raise UserError(f"path: got {path!r}{suggest(path, ('data', *PATHS))}")
        ends = [given.sentence(a, "a"), given.sentence(b, "b")]
        if path == "data":
            return toolbox.interpolate(self, a, b, steps, corpus=corpus, seed=seed, **options)
        if corpus is not None:
            raise UserError(f"corpus: says nothing on the path {path!r}; it is for path='data'")
        z = self.encode(ends)
        return self.decode(latent_path(z[0], z[1], steps, kind=path), seed=seed, **{"method": "greedy", **options})

    def score(self, texts: Sequence[str], *, iw_samples: int | None = None, seed: int = 0) -> list[dict[str, float]]:
        """Returns each text's figures, in nats a sequence.

        Args:
            texts: N sentences.
            iw_samples: adds `nll_iw`, the importance-weighted estimate with so many samples, a million at most.
            seed: of the draws of z.

        Returns:
            For each text nll_elbo (one draw of z), reconstruction, kl, tokens (</s> counted) and ppl_elbo; a language
            model's nll_elbo is exact, and a semi-amortised run's are `evaluate`'s encoder_alone.
        """
        if iw_samples is not None:
            iw_samples = given.count(iw_samples, "iw_samples", 1, IW_SAMPLES)
        return score_texts(self, given.texts(texts), iw_samples=iw_samples, seed=self._agreed(seed))

    def evaluate(
        self,
        split: str = "test",
        *,
        recipe: Recipe | None = None,
        seed: int = 0,
        samples: int = 0,
        paths: int = 0,
        molecules: bool = False,
        whole: bool = False,
        anneal: int = 0,
        language: int = 0,
        language_steps: int = language_models.STEPS,
        probe: tuple[LabelledTexts, LabelledTexts] | None = None,
        per_label: Sequence[int | None] = (10, 100, None),
        pairs: ScoredPairs | None = None,
        progress: bool = False,
    ) -> dict[str, Any]:
        """Returns the figures of a part of the corpus; see `textvae.evaluation.report`.

        Args:
            split: train, validation or test.
            recipe: gives the corpus, and the settings of evaluation and decoding; the run's own where absent.
            seed: of all draws.
            samples: adds `samples`, figures of so many samples beside the corpus (`evaluation.suite.of_samples`).
            paths: adds `paths`, figures of so many interpolations of 7 steps between sentences of the part.
            molecules: adds `molecules`, figures of the samples as SMILES (`evaluation.molecules.figures`).
            anneal: adds `annealed`, of so many sentences: the NLL by annealed importance sampling beside the
                importance-weighted one, and the amortisation gap (nats a sequence); Gaussian posteriors only.
            whole: adds `aggregate`, how the aggregate posterior lies to the prior and the parts of the KL; the first
                `reconstructions`; `per_sentence`, in the corpus's order; and its `fingerprint`.
            language: adds `language`, forward and reverse perplexity of so many samples beside what real text gets
                (`evaluation.suite.of_language`), and of paths the perplexity along them. Three language models are
                trained for it.
            language_steps: optimiser steps of each of them.
            probe: adds `probe`, accuracies of linear and nearest-neighbour probes of the posterior means
                (`evaluation.suite.of_probes`): (texts, labels) to train on, and to test on. Of files:
                `evaluation.labelled.load`.
            per_label: with how many training sentences of each label; None is all there are.
            pairs: adds `similarity`, how the cosine of posterior means goes with people's scores
                (`evaluation.suite.of_pairs`): (texts, texts, scores). Of a file: `evaluation.labelled.load_pairs`.
            progress: says on standard error how far a long piece of work is.

        Returns:
            `textvae.evaluation.report.evaluate`'s figures; chrf, edit_distance and by_length of reconstructions; bits a
            character and perplexity a word, with unknown_tokens, dropped and settings; on the built-in corpus
            corpus_entropy (nats a sentence); and what was asked for.

        Raises:
            UserError: the corpus has no such part, or cannot be read.
            MissingExtraError: molecules without rdkit.
        """
        return evaluate_run(
            self,
            split,
            recipe=recipe or self.corpus_recipe(),
            seed=seed,
            stage=stages.shown if progress else stages.silent,
            asked=Asked(
                samples=samples,
                paths=paths,
                molecules=molecules,
                whole=whole,
                anneal=anneal,
                language=language,
                language_steps=language_steps,
                probe=probe,
                per_label=per_label,
                pairs=pairs,
            ),
        )

    def corpus_texts(self, split: str, at_most: int) -> list[str]:
        """Returns the first sentences of a part of the run's corpus."""
        corpus = corpora.load(self.corpus_recipe().data)
        parts: dict[str, Any] = {str(name): part for name, part in corpus.parts.items()}
        if split not in parts:
            raise UserError(f"the corpus has no part {split!r}{suggest(split, parts)}")
        at_most = given.count(at_most, "sentences", most=sys.maxsize)
        return [row["text"] for row in itertools.islice(parts[split], at_most)]

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[Tensor, Batch]]:
        """Yields the texts in batches of like length, on the model's device, each with its rows (B,) among them."""
        store = ListStore(self.ids(given.texts(texts)))
        for rows, batch in evaluation_batches(store, self.tokenizer.pad_id):
            yield torch.from_numpy(rows), self.on_device(batch)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the texts' token ids; they are read as the corpus was (`data.lowercase`, `data.normalize`)."""
        return self.tokenizer.encode([corpora.cleaned(text, self.recipe.data) for text in texts])

    def on_device(self, batch: Batch) -> Batch:
        """Returns the batch where the model is."""
        return Batch(*(tensor.to(self.device) for tensor in batch))

    def _settings(self, options: dict[str, Any]) -> Generation:
        if options.get("method", "sample") != "sample":
            # The recipe's temperature and truncation are of its own method, sampling, and say nothing of another.
            options = {**OF_SAMPLING, **options}
        settings = recipe_file.with_options(self.recipe.generation, options, "generation")
        if options.get("beam_size") is not None and settings.method != "beam":
            raise UserError(f"beam_size: is of method beam, and the method is {settings.method}")
        return settings

    def generator(self, seed: int | None) -> torch.Generator:
        """Returns a random stream on the model's device; a new one each time where there is no seed."""
        return torch.Generator(device=self.device).manual_seed(self._agreed(seed))

    def _agreed(self, seed: int | None) -> int:
        """The seed; where there is none, a new one, the same on every process."""
        seed = given.seed(seed)
        if seed is not None:
            return seed
        return agreed(torch.Generator().seed() % 2**63, together=self.together)

    def _needs_latents(self, what: str) -> None:
        if self.latent_dim == 0:
            raise UserError(f"{what}: the run is a language model (model.latent_dim: 0), which has no latents")
