"""From a recipe to its objects: the only file that knows every family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from textvae.errors import RecipeError, UserError
from textvae.latent.divergences import DIVERGENCES
from textvae.latent.posteriors import POSTERIORS, sample
from textvae.latent.priors import PRIORS
from textvae.model import SequenceVAE
from textvae.nets.decoders import DECODERS
from textvae.nets.encoders import ENCODERS
from textvae.nets.initialization import INITIALIZATIONS
from textvae.nets.output import OUTPUTS
from textvae.objective import RECONSTRUCTIONS, Objective
from textvae.optimizers import OPTIMIZERS
from textvae.recipe import Recipe, Section
from textvae.registry import Registry, takes_positional
from textvae.schedules import DECAYS, RATES, SCHEDULES, Constant, Horizon
from textvae.text.noise import NOISES, Chain, Vocabulary, WordDropout
from textvae.text.tokenizers import TOKENIZERS
from textvae.types import Schedule, Tokenizer

LARGEST_TRIED = 512  # latent dimensions of the try that a check makes

# Key path of a section -> its family. `*` stands for a term's name.
FAMILIES: Mapping[str, Registry] = {
    "tokenizer": TOKENIZERS,
    "model.encoder": ENCODERS,
    "model.decoder": DECODERS,
    "model.output": OUTPUTS,
    "model.posterior": POSTERIORS,
    "model.prior": PRIORS,
    "model.initialization": INITIALIZATIONS,
    "model.noise": NOISES,
    "objective.reconstruction": RECONSTRUCTIONS,
    "objective.*": DIVERGENCES,
    "objective.*.weight": SCHEDULES,
    "training.optimizer": OPTIMIZERS,
    "training.lr_schedule": RATES,
    "training.decay": DECAYS,
}


def problems(recipe: Recipe, *, trust_code: bool = True) -> list[str]:
    """Returns what is wrong with the recipe's sections and their combinations, one message a problem."""
    found = []
    for path, registry, options in _sections(recipe):
        found += registry.problems(options, path, trust_code=trust_code)
    return found or [*_combinations(recipe), *_tried(recipe, trust_code)]


def check(recipe: Recipe, source: str = "recipe", *, trust_code: bool = True) -> None:
    """Raises RecipeError with every problem of the recipe's sections, if there is one."""
    found = problems(recipe, trust_code=trust_code)
    if found:
        raise RecipeError(found, source)


def _sections(recipe: Recipe) -> Iterator[tuple[str, Registry, dict[str, Any]]]:
    model, training = recipe.model, recipe.training
    plain = {
        "tokenizer": recipe.tokenizer,
        "model.decoder": model.decoder,
        "model.output": model.output,
        "model.initialization": model.initialization,
        "objective.reconstruction": recipe.objective.reconstruction,
        "training.optimizer": training.optimizer,
        "training.lr_schedule": training.lr_schedule,
    }
    if model.latent_dim:
        plain |= {"model.encoder": model.encoder, "model.posterior": model.posterior, "model.prior": model.prior}
    if training.decay is not None:
        plain["training.decay"] = training.decay
    for number, noise in enumerate(model.noise):
        yield f"model.noise.{number}", NOISES, noise.as_dict()
    for path, section in plain.items():
        yield path, FAMILIES[path], section.as_dict()
    for name, term in recipe.objective.terms.items():
        options = {key: value for key, value in term.as_dict().items() if key != "weight"}
        yield f"objective.{name}", DIVERGENCES, options
        if isinstance(term.weight, Section):
            yield f"objective.{name}.weight", SCHEDULES, term.weight.as_dict()


def _combinations(recipe: Recipe) -> list[str]:
    found = []
    model = recipe.model
    options = DECODERS.options(model.decoder.kind)(**_options(model.decoder))
    hidden_dim = getattr(options, "hidden_dim", None)
    if model.tie_output and hidden_dim not in (None, model.embedding_dim):
        found.append(
            f"model.tie_output: the output matrix can only be the embedding table where model.decoder.hidden_dim "
            f"({hidden_dim}) equals model.embedding_dim ({model.embedding_dim})"
        )
    return found


def _tried(recipe: Recipe, trust_code: bool) -> list[str]:
    """What posterior, prior and terms say of each other when they meet, tried on a few latents of few dimensions."""
    model = recipe.model
    kinds = (model.posterior.kind, model.prior.kind)
    if not model.latent_dim or any("." in kind for kind in kinds):
        return []
    dimensions, features = min(model.latent_dim, LARGEST_TRIED), 8
    path, found = "model.posterior", []
    # The caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            posterior_of = POSTERIORS.build(model.posterior.as_dict(), features, dimensions, path=path)
            posterior = posterior_of(torch.randn(8, features))
            z = sample(posterior, 1)
            path = "model.prior"
            prior_of = PRIORS.build(model.prior.as_dict(), dimensions, path=path)
            if hasattr(prior_of, "attach"):
                prior_of.attach(posterior_of, features)
            prior = prior_of()
        except (ValueError, ImportError) as error:
            return [_at_path(path, error)]
        for name, term in recipe.objective.terms.items():
            if "." in term.kind:
                continue
            path = f"objective.{name}"
            options = {key: value for key, value in term.as_dict().items() if key != "weight"}
            shape = (dimensions,) if takes_positional(DIVERGENCES.resolve(term.kind)) else ()
            try:
                DIVERGENCES.build(options, *shape, path=path)(posterior, prior, z)
            except ValueError as error:
                found.append(_at_path(path, error))
    return found


def _at_path(path: str, error: Exception) -> str:
    return str(error) if str(error).startswith(("model.", "objective.")) else f"{path}: {error}"


def _options(section: Section) -> dict[str, Any]:
    return {key: value for key, value in section.as_dict().items() if key != "kind"}


def build_model(recipe: Recipe, tokenizer: Tokenizer, *, trust_code: bool = True) -> SequenceVAE:
    """Returns the recipe's model with fresh parameters, from torch's global random state.

    Raises:
        UserError: a section or combination that cannot be built.
    """
    config = recipe.model

    def build(path: str, section: Section, *args: Any) -> Any:
        return FAMILIES[path].build(section.as_dict(), *args, path=path, trust_code=trust_code)

    vocabulary = len(tokenizer)
    if config.word_dropout and tokenizer.unk_id is None:
        raise UserError(f"model.word_dropout: tokenizer.kind {recipe.tokenizer.kind!r} has no <unk> to put in")
    decoder = build("model.decoder", config.decoder, config.embedding_dim, config.latent_dim)
    embedding = nn.Embedding(vocabulary, config.embedding_dim)
    output = build("model.output", config.output, decoder.hidden_dim, vocabulary)
    parts: dict[str, Any] = {}
    if config.latent_dim:
        encoder = build("model.encoder", config.encoder, config.embedding_dim)
        parts = {
            "encoder_embedding": embedding
            if config.share_embeddings
            else nn.Embedding(vocabulary, config.embedding_dim),
            "encoder": encoder,
            "posterior": build("model.posterior", config.posterior, encoder.feature_dim, config.latent_dim),
            "prior": build("model.prior", config.prior, config.latent_dim),
            "draw": sample,
        }
        if hasattr(parts["prior"], "attach"):
            parts["prior"].attach(parts["posterior"], encoder.feature_dim)
        if config.noise:
            known = Vocabulary(vocabulary, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id)
            parts["noise"] = Chain(
                NOISES.build(noise.as_dict(), known, path=f"model.noise.{number}", trust_code=trust_code)
                for number, noise in enumerate(config.noise)
            )
    model = SequenceVAE(
        latent_dim=config.latent_dim,
        decoder_embedding=embedding,
        decoder=decoder,
        output=output,
        word_dropout=WordDropout(config.word_dropout, -1 if tokenizer.unk_id is None else tokenizer.unk_id),
        **parts,
    )
    if config.tie_output:
        output.weight = embedding.weight
    build("model.initialization", config.initialization)(model)
    return model


def build_objective(recipe: Recipe, horizon: Horizon, *, trust_code: bool = True) -> Objective:
    """Returns the recipe's objective for a training of this length; terms with parameters start anew."""
    terms = {}
    for name, term in recipe.objective.terms.items():
        path = f"objective.{name}"
        options = {key: value for key, value in term.as_dict().items() if key != "weight"}
        constructor = DIVERGENCES.resolve(term.kind, trust_code=trust_code)
        # Critics and other terms with parameters ask for the latents' width; the rest need nothing.
        shape = (recipe.model.latent_dim,) if takes_positional(constructor) else ()
        divergence = DIVERGENCES.build(options, *shape, path=path, trust_code=trust_code)
        terms[name] = divergence, _schedule(term.weight, horizon, f"{path}.weight", trust_code)
    section = recipe.objective.reconstruction.as_dict()
    reconstruction = RECONSTRUCTIONS.build(section, path="objective.reconstruction", trust_code=trust_code)
    return Objective(reconstruction, terms)


def _schedule(weight: float | Section, horizon: Horizon, path: str, trust_code: bool) -> Schedule:
    if not isinstance(weight, Section):
        return Constant(horizon, value=weight)
    schedule: Schedule = build_timed(SCHEDULES, weight, horizon, path, trust_code=trust_code)
    return schedule


def build_timed(registry: Registry, section: Section, horizon: Horizon, path: str, *, trust_code: bool = True) -> Any:
    """Returns a schedule, rate or decay; a duration that the horizon cannot tell is an error at its path."""
    try:
        return registry.build(section.as_dict(), horizon, path=path, trust_code=trust_code)
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(path) else f"{path}: {message}") from error
