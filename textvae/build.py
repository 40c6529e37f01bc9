"""From a recipe to its objects: the only file that knows every family."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from textvae.averages import AVERAGES
from textvae.combinations import contradictions, of_term, tried
from textvae.errors import RecipeError, UserError
from textvae.latent.divergences import DIVERGENCES
from textvae.latent.flows import least_numbers
from textvae.latent.posteriors import POSTERIORS, sample
from textvae.latent.priors import PRIORS
from textvae.model import SequenceVAE
from textvae.nets.decoders import DECODERS
from textvae.nets.encoders import ENCODERS
from textvae.nets.heads import HEADS
from textvae.nets.initialization import INITIALIZATIONS
from textvae.nets.output import OUTPUTS
from textvae.objective import RECONSTRUCTIONS, HeadTerm, Objective
from textvae.optimizers import OPTIMIZERS
from textvae.recipe import Recipe, Section
from textvae.registry import Registry, takes_positional
from textvae.schedules import DECAYS, RATES, SCHEDULES, Constant, Horizon
from textvae.text.noise import NOISES, Chain, Vocabulary, WordDropout
from textvae.text.tokenizers import TOKENIZERS
from textvae.types import Divergence, Schedule, Tokenizer

KERNELS_KEPT = "128"

# A term of the objective is a divergence, or a head of the model with its loss.
TERMS = Registry("divergence", {**DIVERGENCES.kinds, **HEADS.kinds}, default=DIVERGENCES.default, beside=["weight"])

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
    "objective.*": TERMS,
    "objective.*.weight": SCHEDULES,
    "training.optimizer": OPTIMIZERS,
    "training.lr_schedule": RATES,
    "training.decay": DECAYS,
    "training.average": AVERAGES,
}

OF_MODELS = ("model.", "objective.reconstruction")  # key paths by which a trained model is built and read


def problems(recipe: Recipe, *, trust_code: bool = True, trained: bool = False) -> list[str]:
    """Returns what is wrong with the recipe's sections and their combinations, one message a problem.

    Args:
        recipe: the recipe.
        trust_code: whether dotted paths may be imported.
        trained: its model is there: whether it could be trained again is no question then.
    """
    found = []
    for path, registry, options in _sections(recipe):
        found += registry.problems(options, path, trust_code=trust_code)
    if found:
        return found
    found = [*contradictions(recipe), *tried(recipe), *_timed(recipe, trust_code)]
    return [problem for problem in found if not trained or problem.startswith(OF_MODELS)]


def _timed(recipe: Recipe, trust_code: bool) -> list[str]:
    """What schedules say against themselves, and a stream, whose epochs have no known length, against durations."""
    # Of a corpus that is held the lengths are known when it is read; any will do to see what options say of each other.
    found, horizon = [], Horizon(None, recipe.training.max_steps) if recipe.data.streaming else Horizon(1_000, 10_000)
    for path, registry, options in _sections(recipe):
        if registry in (SCHEDULES, RATES, DECAYS, AVERAGES):
            if "." in str(options.get("kind", "")) and not recipe.data.streaming:
                continue  # one's own may mind how long a training is
            try:
                registry.build(options, horizon, path=path, trust_code=trust_code)
            except UserError as error:
                found.append(str(error) if str(error).startswith(path) else f"{path}: {error}")
    return found


def section_problems(values: Any, *, trust_code: bool = True) -> list[str]:
    """Returns what is wrong with the sections of plain values that are no recipe, each by itself."""
    found = []
    for path, registry in FAMILIES.items():
        for where, section in _at(values, path.split("."), ()):
            # A term has to name its kind; elsewhere the family's own one stands for it.
            if isinstance(section, Mapping) and ("kind" in section or not path.startswith("objective.*")):
                options = {key: value for key, value in section.items() if path != "objective.*" or key != "weight"}
                found += registry.problems(options, where, trust_code=trust_code)
    return found


def _at(values: Any, keys: Sequence[str], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The values at a key path, each with its own, where `*` is any key but `reconstruction`; of a list its items."""
    if not keys:
        items = enumerate(values) if isinstance(values, list) else [(None, values)]
        yield from ((".".join([*path, *([] if key is None else [str(key)])]), value) for key, value in items)
    elif isinstance(values, Mapping):
        chosen = [key for key in values if key != "reconstruction"] if keys[0] == "*" else [keys[0]]
        for key in chosen:
            if key in values:
                yield from _at(values[key], keys[1:], (*path, str(key)))


def check(recipe: Recipe, source: str = "recipe", *, trust_code: bool = True, trained: bool = False) -> None:
    """Raises RecipeError with every problem of the recipe's sections, if there is one; see `problems`."""
    found = problems(recipe, trust_code=trust_code, trained=trained)
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
    if training.average is not None:
        plain["training.average"] = training.average
    for number, noise in enumerate(model.noise):
        yield f"model.noise.{number}", NOISES, noise.as_dict()
    for path, section in plain.items():
        yield path, FAMILIES[path], section.as_dict()
    for name, term in recipe.objective.terms.items():
        options = of_term(term)
        yield f"objective.{name}", TERMS, options
        if isinstance(term.weight, Section):
            yield f"objective.{name}.weight", SCHEDULES, term.weight.as_dict()


def build_model(recipe: Recipe, tokenizer: Tokenizer, *, trust_code: bool = True) -> SequenceVAE:
    """Returns the recipe's model with fresh parameters, from torch's global random state.

    Raises:
        UserError: a section or combination that cannot be built.
    """
    _bound_kernel_caches()
    config = recipe.model

    def build(path: str, section: Section, *args: Any) -> Any:
        return FAMILIES[path].build(section.as_dict(), *args, path=path, trust_code=trust_code)

    vocabulary = len(tokenizer)
    if config.word_dropout and tokenizer.unk_id is None:
        raise UserError(f"model.word_dropout: tokenizer.kind {recipe.tokenizer.kind!r} has no <unk> to put in")
    decoder = build("model.decoder", config.decoder, config.embedding_dim, config.latent_dim)
    embedding = nn.Embedding(vocabulary, config.embedding_dim)
    output = build("model.output", config.output, decoder.hidden_dim, vocabulary)
    if hasattr(output, "attach"):
        output.attach(embedding)
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
            "heads": {
                name: HEADS.build(of_term(term), config.latent_dim, vocabulary, path=f"objective.{name}")
                for name, term in recipe.objective.terms.items()
                if term.kind in HEADS
            },
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


def outline(recipe: Recipe, tokenizer: Tokenizer, *, trust_code: bool = True) -> tuple[SequenceVAE, dict[str, int]]:
    """Returns the recipe's model on the device "meta", which costs no memory, and what of it is not as the recipe says.

    That is posterior and prior where one of them is a flow: name -> the numbers that it has at the very least.

    Raises:
        UserError: see `build_model`.
    """
    config = recipe.model
    parts = {"posterior": (config.posterior, "gaussian"), "prior": (config.prior, "standard_normal")}
    # Flows work with values while they are made.
    flows = {name: part for name, (part, _) in parts.items() if part.kind == "flow" and config.latent_dim}
    plain = config.model_copy(update={name: Section(kind=parts[name][1]) for name in flows})
    with torch.device("meta"):
        model = build_model(recipe.model_copy(update={"model": plain}), tokenizer, trust_code=trust_code)
    return model, {name: least_numbers(config.latent_dim, **part.as_dict()) for name, part in flows.items()}


def _bound_kernel_caches() -> None:
    """Lets oneDNN keep fewer of its kernels, of which it makes new ones for each shape of input.

    By default it keeps 1,024, and torch's binding as many once more; with sentences of many lengths, in bf16, that was
    some GiB after an hour. With 128 it stays where it is after a minute, at 3 % of a step's time or less. Read by both
    when they are first needed; what the user has set stays.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, KERNELS_KEPT)


def build_objective(recipe: Recipe, horizon: Horizon, *, trust_code: bool = True) -> Objective:
    """Returns the recipe's objective for a training of this length; terms with parameters start anew."""
    terms: dict[str, tuple[Divergence | HeadTerm, Schedule]] = {}
    for name, term in recipe.objective.terms.items():
        path = f"objective.{name}"
        options = of_term(term)
        if term.kind in HEADS:
            head: Any = HEADS.resolve(term.kind)
            terms[name] = HeadTerm(name, head.unit), _schedule(term.weight, horizon, f"{path}.weight", trust_code)
            continue
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
