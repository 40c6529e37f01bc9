"""What the sections of a recipe say against each other: found when it is read, not in step 4,000."""

from __future__ import annotations

from typing import Any

import torch

from textvae.durations import parse_duration
from textvae.errors import InfiniteError, suggest
from textvae.latent.divergences import DIVERGENCES, diagonal_gaussian, kl
from textvae.latent.posteriors import POSTERIORS, Point, sample
from textvae.latent.priors import PRIORS
from textvae.nets.decoders import DECODERS
from textvae.nets.heads import HEADS
from textvae.objective import RECONSTRUCTIONS
from textvae.recipe import MONITORS, Generation, Recipe, Section
from textvae.registry import takes_positional
from textvae.seeds import set_aside
from textvae.types import VAEOutput

CRITICS = ("wasserstein_critic", "adversarial")
CONTROLLERS = ("pid", "geco")
OF_BATCHES = (  # terms that compare the sentences of a batch with one another, or with as many draws
    *("mmd", "sliced_wasserstein", "max_sliced_wasserstein", "sinkhorn", "total_correlation", "mutual_information"),
    *("dispersion", "wasserstein_critic", "adversarial"),
)
OF_LATENTS = ("kl", "mutual_information", "active_units")  # figures
LARGEST_TRIED = 512  # latent dimensions of the try that a check makes; SMALL: sizes of its parts, where larger
SMALL = {"hidden_dim": 8, "transforms": 2, "components": 4, "projections": 8, "starts": 4, "steps": 3, "iterations": 5}
# Options of decoding that only sampling has a use for, with the values that ask for nothing.
OF_SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": None}
OF_A_BOUND = ("kl", "nll_elbo", "ppl_elbo", "mutual_information")  # figures that points have not


def drawn_from_in_vain(generation: Generation) -> list[str]:
    """Returns what is wrong with a temperature or a truncation of a method that draws nothing, a line each."""
    if generation.method == "sample":
        return []
    return [
        f"generation.{key}: got {getattr(generation, key)} with method {generation.method!r}, which draws nothing; "
        f"leave {key} out or set method: sample"
        for key, nothing in OF_SAMPLING.items()
        if getattr(generation, key) != nothing
    ]


def contradictions(recipe: Recipe) -> list[str]:
    """Returns what sections that are right by themselves say against each other, one message a problem."""
    found = []
    model, terms = recipe.model, recipe.objective.terms
    options = DECODERS.options(model.decoder.kind)(**_options(model.decoder))
    hidden_dim = getattr(options, "hidden_dim", None)
    if model.tie_output and hidden_dim not in (None, model.embedding_dim):
        found.append(
            f"model.tie_output: the output matrix can only be the embedding table where model.decoder.hidden_dim "
            f"({hidden_dim}) equals model.embedding_dim ({model.embedding_dim})"
        )
    found += _reconstruction_problems(recipe)
    heads = [name for name, term in terms.items() if term.kind in HEADS]
    if recipe.training.monitor in [f"term_{name}" for name in heads]:
        found.append(
            f"training.monitor: {recipe.training.monitor} is a help for training, which no evaluation measures; "
            f"take one of {', '.join(MONITORS)}"
        )
    if recipe.training.semi_amortized is not None:
        found += _semi_amortized_problems(recipe)
    if not model.latent_dim:
        found += _language_model_problems(recipe)
    training = recipe.training
    if training.trackers:
        from accelerate.utils import LoggerType

        known = [str(kind) for kind in LoggerType if kind != LoggerType.ALL]
        found += [
            f"training.trackers: got {name!r}{suggest(name, known)}" for name in training.trackers if name not in known
        ]
    found += [*_term_problems(recipe), *_floor_problems(recipe)]
    if model.posterior.kind == "batch_norm" and training.average is not None:
        found.append(
            "training.average: statistics of batch normalisation are those of the parameters as they move, and of "
            "their average none are kept; leave it out, or take another model.posterior"
        )
    if model.posterior.kind == "point" and training.monitor in OF_A_BOUND:
        found.append(
            f"training.monitor: {training.monitor} is of a distribution, and a posterior of kind point is none; take "
            "reconstruction or loss"
        )
    if model.posterior.kind == "point" and training.aggressive is not None:
        found.append("training.aggressive: goes by mutual information, which a posterior of kind point has not")
    found += drawn_from_in_vain(recipe.generation)
    data = recipe.data
    if data.streaming and "train" in (data.limit or {}) and (data.stream_workers > 1 or data.stream_shares):
        found.append(
            "data.limit.train: the first sentences of a stream are what one reader meets first; take "
            "data.stream_workers: 1 or 0, and data.stream_shares: false"
        )
    every, unit = parse_duration(training.evaluate_every)
    if data.streaming and unit == "epochs" and every != round(every):
        found.append(
            f"training.evaluate_every: got {training.evaluate_every!r}; how long an epoch of a stream is, is not known "
            "before its end: take whole epochs, or a number of steps"
        )
    of_batches = [
        f"objective.{name}"
        for name, term in terms.items()
        if term.kind in OF_BATCHES or (term.kind == "w2" and of_term(term).get("over") == "aggregate")
    ]
    of_batches += ["model.posterior"] if model.posterior.kind == "batch_norm" else []
    if training.batch_size < 2 * training.accumulation and of_batches:
        looks = f"{', '.join(of_batches)} looks at the sentences of a piece together, and one alone shows nothing"
        found.append(
            f"training.accumulation: got {training.accumulation} for batches of {training.batch_size}; {looks}: take "
            f"at most {training.batch_size // 2}"
            if training.batch_size > 1
            else f"training.batch_size: got 1; {looks}"
        )
    return found


def _term_problems(recipe: Recipe) -> list[str]:
    """What a term's name, its kind and its weight say of each other."""
    found = []
    for name, term in recipe.objective.terms.items():
        weight = term.weight.as_dict() if isinstance(term.weight, Section) else {}
        if term.kind in HEADS and hasattr(torch.nn.ModuleDict(), name):
            found.append(f"objective.{name}: {name!r} is a name that torch's modules keep to themselves; take another")
        if term.kind == "mutual_information" and weight.get("kind") in CONTROLLERS:
            found.append(
                f"objective.{name}.weight: {weight['kind']} holds a cost at its target, and this term is a reward, "
                "never above 0; take a number or a schedule"
            )
        if weight.get("kind") == "pid" and "start" in weight and weight.get("over") is None:
            found.append(f"objective.{name}.weight.start: is where the target begins to rise, and over says how long")
    cutoffs = recipe.model.output.as_dict().get("cutoffs")
    if isinstance(cutoffs, list) and (not cutoffs or cutoffs != sorted(set(cutoffs))):
        found.append(f"model.output.cutoffs: got {cutoffs}; at least one is needed, and they must rise")
    return found


def _floor_problems(recipe: Recipe) -> list[str]:
    """What a KL that cannot fall below a floor says of the prior that it is held to, and of a target below it."""
    model, found = recipe.model, []
    if not model.latent_dim:
        return []
    posterior, prior = _options(model.posterior), model.prior.kind
    kind, least = model.posterior.kind, 0.0
    if kind == "delta":
        least = float(posterior.get("delta", 4.0))
        if prior != "standard_normal" and "." not in prior:
            found.append(
                f"model.prior: {prior} can move to where the posterior is, and then the floor of model.posterior: "
                "delta is none; take standard_normal"
            )
    for name, term in recipe.objective.terms.items():
        weight = term.weight.as_dict() if isinstance(term.weight, Section) else {}
        if term.kind != "kl" or weight.get("kind") not in CONTROLLERS:
            continue
        target, free = weight.get("target"), float(_options(term).get("free_nats", 0.0) or 0.0)
        floor = max(least, free)
        what = "free_nats" if free >= least else "model.posterior.delta"
        if kind == "von_mises_fisher" and prior == "uniform_sphere":
            found.append(
                f"objective.{name}.weight: {weight['kind']} would move a KL that is the same number whatever is "
                "learned, by model.posterior.kappa alone; take a number"
            )
        elif isinstance(target, int | float) and target <= floor:
            found.append(
                f"objective.{name}.weight.target: got {target:g}, and by {what} the term is never below {floor:g}; "
                "take a higher target, or a lower floor"
            )
    return found


def _language_model_problems(recipe: Recipe) -> list[str]:
    """Options that are of an encoder and its latents, which a language model has not."""
    model, training = recipe.model, recipe.training
    given = {
        "model.noise": bool(model.noise),
        "model.share_embeddings": model.share_embeddings,
        "training.samples": training.samples > 1,
        f"training.monitor ({training.monitor})": training.monitor in OF_LATENTS,
    }
    found = [
        f"{key}: is of an encoder and its latents, and a language model (model.latent_dim: 0) has none; leave it out"
        for key, is_given in given.items()
        if is_given
    ]
    if training.start_from is not None and training.start_from.part == "encoder":
        found.append("training.start_from.part: a language model (model.latent_dim: 0) has no encoder; take part: all")
    return found


def _reconstruction_problems(recipe: Recipe) -> list[str]:
    """What reconstruction, output layer and the number of draws say of each other."""
    found = []
    kind, output = recipe.objective.reconstruction.kind, recipe.model.output
    nearest, wanted = output.kind == "nearest_embedding", kind in ("squared_error", "cosine")
    if wanted and (not nearest or _options(output).get("distance", "squared_error") != kind):
        found.append(
            f"objective.reconstruction.kind: {kind} is a distance of embeddings, which "
            f"model.output: {{kind: nearest_embedding, distance: {kind}}} predicts; write that, or leave model.output "
            "out"
        )
    if nearest and not wanted:
        found.append(
            f"model.output.kind: nearest_embedding predicts embeddings, and objective.reconstruction.kind is {kind}; "
            "take squared_error or cosine there"
        )
    if nearest and recipe.model.tie_output:
        found.append("model.tie_output: nearest_embedding has no output matrix; its tokens are the embeddings already")
    if output.kind == "adaptive_softmax" and recipe.model.tie_output:
        found.append("model.tie_output: adaptive_softmax has no matrix of the embeddings' shape; take softmax")
    if kind == "importance_weighted":
        if not recipe.model.latent_dim:
            found.append("objective.reconstruction.kind: importance_weighted needs latents, and model.latent_dim is 0")
        if recipe.training.samples < 2:
            found.append(
                "training.samples: got 1; importance_weighted is a bound over several draws of z, so take 5 or more"
            )
        for name, term in recipe.objective.terms.items():
            if term.kind == "kl":
                found.append(
                    f"objective.{name}: the bound of importance_weighted holds the KL already; set objective.{name} "
                    "to null"
                )
    return found


def _semi_amortized_problems(recipe: Recipe) -> list[str]:
    found = []
    where, training = "training.semi_amortized", recipe.training
    if not recipe.model.latent_dim:
        return [f"{where}: a language model (model.latent_dim: 0) has no posterior to refine"]
    for key, given in (("aggressive", training.aggressive is not None), ("samples", training.samples > 1)):
        if given:
            found.append(f"{where}: cannot be combined with training.{key}")
    if training.precision == "fp16":
        found.append(f"{where}: differences of gradients are lost in fp16; take training.precision: fp32 or bf16")
    if recipe.objective.reconstruction.kind == "importance_weighted":
        found.append(f"{where}: refines the ELBO's posterior; with importance_weighted there is none to refine")
    if recipe.model.posterior.kind == "delta":
        found.append(f"{where}: moves posteriors out of the scales whose KL has the floor of model.posterior: delta")
    for name, term in recipe.objective.terms.items():
        if term.kind in CRITICS:
            found.append(
                f"{where}: objective.{name} ({term.kind}) has a critic, which moves while posteriors are refined"
            )
        if isinstance(term.weight, Section) and term.weight.kind in CONTROLLERS:
            found.append(
                f"{where}: objective.{name}.weight ({term.weight.kind}) is a controller, which moves at each "
                "measurement and would move with every refining step"
            )
    return found


def tried(recipe: Recipe) -> list[str]:
    """Returns what posterior, prior and terms say of each other, tried on a few latents of few dimensions."""
    model = recipe.model
    kinds = (model.posterior.kind, model.prior.kind)
    if not model.latent_dim or any("." in kind for kind in kinds):
        return []
    dimensions, features = min(model.latent_dim, LARGEST_TRIED), 8
    path, found = "model.posterior", []
    # The caller's random state stays as it was.
    with set_aside(0):
        try:
            posterior_of = POSTERIORS.build(_small(model.posterior.as_dict()), features, dimensions, path=path)
            posterior = posterior_of(torch.randn(8, features))
            z = sample(posterior, 1)
            path = "model.prior"
            prior_of = PRIORS.build(_small(model.prior.as_dict()), dimensions, path=path)
            if hasattr(prior_of, "attach"):
                prior_of.attach(posterior_of, features)
            prior = prior_of()
        except (ValueError, ImportError) as error:
            return [_at_path(path, error)]
        for name, term in recipe.objective.terms.items():
            if "." in term.kind or term.kind in HEADS:
                continue
            path = f"objective.{name}"
            options = _small(of_term(term))
            shape = (dimensions,) if takes_positional(DIVERGENCES.resolve(term.kind)) else ()
            try:
                DIVERGENCES.build(options, *shape, path=path)(posterior, prior, z)
            except InfiniteError:
                pass  # of these posteriors; what a training meets is for it to say
            except ValueError as error:
                found.append(_at_path(path, error))
        if not isinstance(posterior, Point):
            try:
                kl(posterior, prior, z)  # every evaluation has it, whatever the terms are
            except InfiniteError:
                pass
            except ValueError as error:
                found += [] if found else [_at_path("model.prior", error)]
        if recipe.objective.reconstruction.kind == "importance_weighted":
            path, drawn = "objective.reconstruction", sample(posterior, 2)
            output = VAEOutput(posterior, prior, drawn, torch.zeros(drawn.shape[:2]), drawn)
            try:
                RECONSTRUCTIONS.build(recipe.objective.reconstruction.as_dict(), path=path)(output)
            except ValueError as error:
                found.append(_at_path(path, error))
        if recipe.training.semi_amortized is not None and diagonal_gaussian(posterior) is None:
            found.append(
                "training.semi_amortized: refines mean and scale of a diagonal Gaussian; model.posterior.kind is "
                f"{model.posterior.kind}"
            )
    return found


def _small(options: dict[str, Any]) -> dict[str, Any]:
    """Options with sizes that cost neither time nor memory; whether parts suit each other is no matter of size."""
    return {key: min(value, SMALL[key]) if key in SMALL else value for key, value in options.items()}


def _at_path(path: str, error: Exception) -> str:
    return str(error) if str(error).startswith(("model.", "objective.")) else f"{path}: {error}"


def _options(section: Section) -> dict[str, Any]:
    return {key: value for key, value in section.as_dict().items() if key != "kind"}


def of_term(term: Section) -> dict[str, Any]:
    """Returns a term's kind and options; its weight is the objective's business."""
    return {key: value for key, value in term.as_dict().items() if key != "weight"}
