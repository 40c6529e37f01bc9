"""Every figure of a model on a set of sentences: the full report, and the quick one of a line while training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from textvae.distributed import all_results, alone, is_mine
from textvae.errors import UserError
from textvae.evaluation import aggregate, bounds, intervals, latents, text
from textvae.latent.posteriors import Point, diagonal_gaussian
from textvae.latent.vmf import UniformSphere
from textvae.seeds import drawn_from
from textvae.types import Batch

DECOMPOSED = 1_000  # sentences about, whose KL a quick report takes apart
ACTIVE = 0.01  # of a unit's variance, under a prior of variance 1
QUICK_PAIRS = 2**24  # log q(z_i | x_j) a quick report computes: about half a second on one core


class _Pass(NamedTuple):
    """One pass over the sentences with one draw of z each."""

    elbo: bounds.Elbo
    posteriors: list[Distribution]  # of the batches; none for a language model
    z: Tensor  # (1, N, D)
    prior: Distribution | None

    @property
    def points(self) -> bool:
        """Whether the posteriors are points, which have no density."""
        return any(isinstance(posterior, Point) for posterior in self.posteriors)


Measure = Callable[[Sequence[Distribution], Distribution, Tensor], dict[str, float]]


def quick(
    model: Any,
    batches: Iterable[Batch],
    *,
    generator: torch.Generator | None = None,
    measure: Measure | None = None,
    together: bool = False,
) -> dict[str, float]:
    """Returns the figures of one forward pass with one draw of z a sentence.

    Args:
        model: `encode`, `prior`, `log_likelihood`, `latent_dim`.
        batches: the sentences.
        generator: of the draws of z; it lives on the model's device.
        measure: (posteriors, prior, z) -> further figures, not asked of a language model.
        together: whether the processes, each of which makes this call, share the batches out; the result is the same.

    Returns:
        reconstruction, kl and nll_elbo (nats a sequence, means over sentences), ppl_elbo, mutual_information (nats,
        whole set; on more than 4,096 sentences averaged over a part of them) and active_units. The last two and the
        kl are 0 for a language model; a point posterior has neither kl, bound nor information: they are nan. Of
        Gaussian posteriors also the parts of the KL (Chen 2018) on about 1,000 of the sentences, nats:
        kl_part_mutual_information, kl_part_total_correlation and kl_part_dimensions.

    Raises:
        UserError: no sentence.
    """
    found = _pass(model, batches, generator, together)
    count = len(found.elbo.nll)
    figures = _elbo_figures(found.elbo)
    mutual = _mutual_information(found, at_most=max(QUICK_PAIRS // count, 1000))
    if measure is not None and found.prior is not None:
        # Each process holds all of them by now, and the same draws: what gathers rows would count them many times over.
        with torch.inference_mode(), alone(), drawn_from(generator):
            figures = {**measure(found.posteriors, found.prior, found.z), **figures}
    return {**figures, "mutual_information": mutual, "active_units": float(_active_units(found)), **_kl_parts(found)}


def evaluate(
    model: Any,
    batches: Callable[[], Iterable[Batch]],
    *,
    iw_samples: int = 500,
    batch_tokens: int = 20_000,
    generator: torch.Generator | None = None,
    references: Sequence[str] = (),
    reconstruct: Callable[[], list[str]] | None = None,
    bleu_tokenize: str = "none",
    mutual_information_sentences: int = 10_000,
    whole: bool = False,
    fitted: Distribution | None = None,
    together: bool = False,
) -> dict[str, Any]:
    """Returns every figure of a set of sentences.

    Args:
        model: `encode`, `prior`, `log_likelihood`, `latent_dim`.
        batches: () -> the sentences, afresh at each call.
        iw_samples: importance samples a sentence.
        batch_tokens: padded tokens times samples worked on at once.
        generator: of the draws of z; it lives on the model's device.
        references: texts to reconstruct, for BLEU.
        reconstruct: () -> their reconstructions.
        bleu_tokenize: sacrebleu's tokenizer.
        mutual_information_sentences: the average is over so many at most; the aggregate posterior is of all.
        whole: adds `aggregate` (the figures of `evaluation.aggregate`: how the aggregate posterior lies to the prior,
            and the parts of the KL) and `per_sentence`.
        fitted: a prior fitted after training, which samples are drawn from; `aggregate` has distances to it, too.
        together: whether the processes, each of which makes this call, share the likelihoods out; no figure changes.

    Returns:
        sentences, target_tokens; in nats a sequence reconstruction, kl, nll_elbo = reconstruction + kl and nll_iw
        with iw_standard_error (None for one sample); ppl_elbo, ppl_iw; nll_iw_interval and ppl_iw_interval (95 %,
        bootstrap over sentences; None for one); iw_samples, iw_ess, the mean effective sample size, and iw_ess_low,
        which 95 % of the sentences are above; mutual_information (nats, whole set) and its ceiling ln N; active_units;
        kl_by_dimension (nats; None where it has no closed form); of the reconstructions bleu, token_accuracy and
        exact_match. For a language model nll_iw is nll_elbo, the exact NLL; what belongs to latents is 0, and to
        reconstructions None. A point posterior (a plain autoencoder) has no density: its kl, bounds and mutual
        information are None.

    Raises:
        UserError: no sentence, or a figure that is not finite.
    """
    found = _pass(model, batches(), generator, together)
    figures: dict[str, Any] = {"sentences": len(found.elbo.nll), "target_tokens": int(found.elbo.tokens.sum())}
    likelihoods, per_sentence = _likelihoods(
        model,
        found,
        batches,
        samples=iw_samples,
        batch_tokens=batch_tokens,
        generator=generator,
        together=together,
    )
    figures |= likelihoods
    figures |= _latent_figures(found, at_most=mutual_information_sentences)
    rebuilt = reconstruct() if model.latent_dim and reconstruct is not None and references else None
    figures |= _text_figures(rebuilt, references, bleu_tokenize)
    _require_finite(figures)
    return {**figures, **_whole(found, per_sentence, fitted, generator)} if whole else figures


def _likelihoods(
    model: Any,
    found: _Pass,
    batches: Callable[[], Iterable[Batch]],
    *,
    samples: int,
    batch_tokens: int,
    generator: torch.Generator | None,
    together: bool,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The means over sentences, and what they are means of."""
    figures: dict[str, Any] = {**_elbo_figures(found.elbo)}
    tokens = {"tokens": found.elbo.tokens}
    if found.points:
        figures |= dict.fromkeys(("kl", "nll_elbo", "ppl_elbo", "nll_iw", "ppl_iw", "iw_standard_error"))
        figures |= dict.fromkeys(("iw_ess", "iw_ess_low", "nll_iw_interval", "ppl_iw_interval"))
        return {**figures, "iw_samples": 0}, tokens
    per_sentence = {**tokens, "nll_elbo": found.elbo.nll, "nll_iw": found.elbo.nll, "kl": found.elbo.kl}
    per_sentence["reconstruction"] = found.elbo.reconstruction
    if not found.posteriors:
        figures |= {"nll_iw": figures["nll_elbo"], "ppl_iw": figures["ppl_elbo"]}
        figures |= {"iw_standard_error": 0.0, "iw_samples": 0, "iw_ess": 0.0, "iw_ess_low": 0.0}
        return {**figures, **_intervals(found.elbo.nll, found.elbo.tokens)}, per_sentence
    weighted = bounds.iw_nll(
        model, batches(), samples=samples, batch_tokens=batch_tokens, generator=generator, together=together
    )
    figures |= {**_iw_figures(weighted, samples), **_intervals(weighted.nll, weighted.tokens)}
    return figures, {**per_sentence, "nll_iw": weighted.nll}


def _intervals(nll: Tensor, tokens: Tensor) -> dict[str, Any]:
    if len(nll) < 2 or not bool(nll.isfinite().all()):  # what is not finite is refused by its own name
        return {"nll_iw_interval": None, "ppl_iw_interval": None}
    order = nll.argsort(stable=True)  # which sentence is drawn must not hang on the batches' order
    nll, tokens = nll[order], tokens[order]
    interval = intervals.confidence_interval(nll, generator=torch.Generator().manual_seed(0))
    low, high = intervals.perplexity_interval(nll, tokens, generator=torch.Generator().manual_seed(0))
    finite = math.isfinite(low) and math.isfinite(high)
    return {"nll_iw_interval": [interval.low, interval.high], "ppl_iw_interval": [low, high] if finite else None}


def _latent_figures(found: _Pass, *, at_most: int) -> dict[str, Any]:
    return {
        "mutual_information": None if found.points else _mutual_information(found, at_most=at_most),
        "mutual_information_ceiling": math.log(len(found.elbo.nll)),
        "active_units": _active_units(found),
        "kl_by_dimension": None if found.points else _kl_by_dimension(found),
    }


def _text_figures(texts: list[str] | None, references: Sequence[str], bleu_tokenize: str) -> dict[str, Any]:
    if texts is None:
        return dict.fromkeys(("bleu", "token_accuracy", "exact_match"))
    return {
        "bleu": text.bleu(texts, references, tokenize=bleu_tokenize),
        "token_accuracy": text.token_accuracy(texts, references),
        "exact_match": text.exact_match(texts, references),
    }


def _require_finite(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        if value is not None and not all(map(math.isfinite, value if isinstance(value, list) else [value])):
            raise UserError(
                f"{name} is {value}, not a finite number: the weights are broken or far from trained; "
                "look at the run's loss, and train with a lower training.optimizer.lr or training.gradient_clip"
            )


def _whole(
    found: _Pass,
    per_sentence: dict[str, Tensor],
    fitted: Distribution | None,
    generator: torch.Generator | None,
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if found.prior is not None:
        with torch.inference_mode():
            figures["aggregate"] = aggregate.figures(
                found.posteriors, found.prior, found.z, fitted=fitted, generator=generator or torch.Generator()
            )
    return {**figures, "per_sentence": {name: values.tolist() for name, values in per_sentence.items()}}


def _pass(model: Any, batches: Iterable[Batch], generator: torch.Generator | None, together: bool) -> _Pass:
    parts: list[Sequence[Tensor]] = []
    mine: dict[int, Tensor] = {}
    posteriors: list[Distribution] = []
    draws: list[Tensor] = []
    with bounds.evaluating(model):
        for number, batch in enumerate(batches):
            likelihood = is_mine(number, together=together)
            scored = bounds.score(model, batch, generator=generator, likelihood=likelihood)
            if likelihood:
                mine[number] = scored.reconstruction.cpu()
            parts.append((scored.kl, batch.lengths))
            draws.append(scored.z)
            if scored.posterior is not None:
                posteriors.append(scored.posterior)
        scores = all_results(mine, together=together)
        elbo = bounds.Elbo(*bounds.joined([(score, *part) for score, part in zip(scores, parts)]))
        return _Pass(elbo, posteriors, torch.cat(draws, 1), model.prior() if posteriors else None)


def _elbo_figures(elbo: bounds.Elbo) -> dict[str, float]:
    return {
        "reconstruction": float(elbo.reconstruction.mean()),
        "kl": float(elbo.kl.mean()),
        "nll_elbo": float(elbo.nll.mean()),
        "ppl_elbo": bounds.perplexity(float(elbo.nll.sum()), int(elbo.tokens.sum())),
    }


def _iw_figures(weighted: bounds.ImportanceWeighted, samples: int) -> dict[str, Any]:
    count = len(weighted.nll)
    # Sentences' errors are independent: the mean's is the root of the summed squares over N.
    error = float(weighted.standard_error.square().sum().sqrt()) / count if samples > 1 else None
    return {
        "nll_iw": float(weighted.nll.mean()),
        "ppl_iw": bounds.perplexity(float(weighted.nll.sum()), int(weighted.tokens.sum())),
        "iw_standard_error": error,
        "iw_samples": samples,
        "iw_ess": float(weighted.effective_samples.mean()),
        "iw_ess_low": float(weighted.effective_samples.quantile(0.05)),
    }


def _mutual_information(found: _Pass, *, at_most: int) -> float:
    if not found.posteriors:
        return 0.0
    if isinstance(found.posteriors[0], Point):
        return math.nan
    with torch.inference_mode():
        return latents.mutual_information(found.posteriors, found.z, at_most=at_most).nats


def _kl_parts(found: _Pass) -> dict[str, float]:
    """The parts of the KL on some of the sentences, for its time grows with their square."""
    pairs = [latents.gaussian_parameters(posterior) for posterior in found.posteriors]
    known = [pair for pair in pairs if pair is not None]
    if found.prior is None or len(known) < len(pairs):
        return {}
    # Sentences stand in order of length: every so many-th of them is like the whole.
    every = max(1, math.ceil(found.z.shape[1] / DECOMPOSED))
    with torch.inference_mode():
        mean, scale = (torch.cat(column)[::every] for column in zip(*known))
        parts = latents.decompose([diagonal_gaussian(mean, scale)], found.prior, found.z[:, ::every])
    return {
        "kl_part_mutual_information": parts.mutual_information,
        "kl_part_total_correlation": parts.total_correlation,
        "kl_part_dimensions": parts.dimension_kl,
    }


def _active_units(found: _Pass) -> int:
    if not found.posteriors:
        return 0
    # On the unit sphere a dimension has a D-th of a standard normal's variance.
    threshold = ACTIVE / found.z.shape[-1] if isinstance(found.prior, UniformSphere) else ACTIVE
    with torch.inference_mode():
        return latents.active_units(torch.cat([posterior.mean for posterior in found.posteriors]), threshold)


def _kl_by_dimension(found: _Pass) -> list[float] | None:
    if found.prior is None:
        return []
    # A learned prior's parameters would ask autograd to keep the pass's tensors, which have none.
    with torch.inference_mode():
        by_dimension = latents.kl_by_dimension(found.posteriors, found.prior)
    return None if by_dimension is None else [round(value, 4) for value in by_dimension.tolist()]
