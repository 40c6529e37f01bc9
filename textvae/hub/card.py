"""The model card of a run: metadata that the Hub reads, and what a person should know before using it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from textvae import recipe_file
from textvae.errors import UserError
from textvae.folders import CURVES, metrics

SAMPLES = 5
FIGURES = {
    "nll_elbo": "-ELBO, nats a sentence",
    "nll_iw": "importance-weighted NLL, nats a sentence",
    "ppl_elbo": "perplexity a token, from the ELBO",
    "ppl_iw": "perplexity a token, importance-weighted",
    "reconstruction": "reconstruction, nats a sentence",
    "kl": "KL to the prior, nats a sentence",
    "mutual_information": "mutual information of text and latent, nats",
    "active_units": "active units",
    "bleu": "BLEU of reconstructions",
    "corpus_entropy": "entropy of the corpus, nats a sentence: the lowest NLL possible",
}
METRICS = {"ppl_elbo": "perplexity", "ppl_iw": "perplexity"}  # names that the Hub knows, where they differ
OWN = "<!-- written by textvae, {}; an edited card is not written again -->"
COLLAPSED = 0.1  # nats of mutual information
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)*|multilingual|code")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")


def card(
    vae: Any,
    *,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    repo_id: str | None = None,
    title: str | None = None,
) -> ModelCard:
    """Returns the card of a run; see `textvae.hub.HubMixin.generate_model_card`.

    Args:
        vae: a TextVAE; its folder, where it knows it, gives figures and picture.
        license: a name of the Hub's list.
        language: two or three letters, one or several.
        repo_id: "user/name", for the example.
        title: the recipe's name where absent.

    Raises:
        UserError: a licence or language that the Hub would refuse.
    """
    recipe, own = vae.recipe, vae.recipe.data.grammar is not None
    license = license or ("apache-2.0" if own else "unknown")
    if not LICENSE.fullmatch(license):
        raise UserError(f"license: got {license!r}; a name of the Hub's list, as apache-2.0, mit, cc-by-4.0, other")
    languages = [language] if isinstance(language, str) else list(language or (["en"] if own else []))
    wrong = [name for name in languages if not LANGUAGE.fullmatch(name)]
    if wrong:
        raise UserError(f"language: got {wrong[0]!r}; two or three letters (ISO 639), as en or de")
    part, count, figures = _figures(vae.folder)
    hub = recipe.data.hub
    data = ModelCardData(
        library_name="textvae",
        license=license,
        language=languages or None,
        pipeline_tag="text-generation",
        tags=sorted({"textvae", "variational-autoencoder", "text-vae", "model_hub_mixin"}),
        datasets=[hub.name] if hub is not None else None,
        model_name=recipe.name if figures else None,
        eval_results=list(_results(recipe, part, figures)) or None,
    )
    text = "\n\n".join(_body(vae, title or recipe.name, repo_id, part, count, figures, license))
    written = f"---\n{data.to_yaml()}\n---\n\n{text}\n"
    return ModelCard(f"{written}\n{OWN.format(_digest(written))}\n")


def is_untouched(path: Path) -> bool:
    """Returns whether a file is a card of ours, as it was written: one that somebody has edited is theirs."""
    try:
        written, _, last = path.read_text(encoding="utf-8").rstrip("\n").rpartition("\n\n")
    except (OSError, UnicodeDecodeError):
        return False
    return last == OWN.format(_digest(f"{written}\n"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _figures(folder: Path | None) -> tuple[str, int | None, dict[str, float]]:
    """The part of the corpus, how many sentences, and figures: of a saved evaluation, else of the training."""
    if folder is None:
        return "", None, {}
    part, found = "", {}
    for split in ("test", "validation"):
        path = folder / f"evaluation-{split}.json"
        if path.is_file():
            part, found = split, _read(path.read_text(encoding="utf-8"))
            break
    else:
        rows = [row for row in metrics(folder) if row["part"] == "validation"]
        if rows:
            part, found = "validation", rows[-1]
    numbers = {name: found.get(name) for name in FIGURES}
    figures = {
        name: float(value)
        for name, value in numbers.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    count = found.get("sentences")
    return part, count if type(count) is int else None, figures


def _read(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _results(recipe: Any, part: str, figures: dict[str, float]) -> Iterator[EvalResult]:
    kind, name = _source(recipe)
    hub = recipe.data.hub
    for figure, value in figures.items():
        if figure != "corpus_entropy":  # the corpus's, not the model's
            yield EvalResult(
                task_type="text-generation",
                task_name="Text autoencoding",
                dataset_type=hub.name if hub is not None else kind,
                dataset_name=name,
                dataset_config=hub.config if hub is not None else None,
                dataset_revision=hub.revision if hub is not None else None,
                dataset_split=part,
                metric_type=METRICS.get(figure, figure),
                metric_name=FIGURES[figure],
                metric_value=round(value, 4),
            )


def _source(recipe: Any) -> tuple[str, str]:
    """What kind of corpus, and what it is called; of local files their names alone, not where they lie."""
    data = recipe.data
    if data.hub is not None:
        return "hub", data.hub.name
    if data.grammar is not None:
        return "textvae-grammar", "textvae's built-in corpus"
    if data.folder is not None:
        return "folder", Path(data.folder).name
    files = data.files.get("train")
    names = [files] if isinstance(files, str) else files
    return "files", ", ".join(Path(name).name for name in names)


def _body(
    vae: Any, title: str, repo_id: str | None, part: str, count: int | None, figures: dict[str, float], license: str
) -> Iterator[str]:
    recipe = vae.recipe
    yield f"# {' '.join(title.split())}"
    yield _what(vae)
    name = repo_id or "user/name"
    yield "## Use"
    call = "vae.sample(5, seed=0)" if not vae.latent_dim else 'vae.interpolate("a sentence", "another one", 7)'
    yield _fenced(f'import textvae\n\nvae = textvae.TextVAE.from_pretrained("{name}")\n{call}', "python")
    yield "## Data"
    yield _data(recipe)
    yield "## Figures"
    if figures:
        rows = "\n".join(f"| {FIGURES[key]} | {value:.4g} |" for key, value in figures.items())
        of = f" ({count:,} sentences)" if count else ""
        yield f"On the {part} part{of}.\n\n| Figure | Value |\n|---|---:|\n{rows}"
        yield "Perplexity is exp(total nats / total tokens); `</s>` counts, `<s>` does not."
    else:
        yield "None were kept with the run."
    if vae.folder is not None and (vae.folder / CURVES).is_file():
        yield "## Training"
        yield f"![loss, KL, mutual information and active units while training]({CURVES})"
    yield "## Samples"
    fitted = getattr(vae.fitted_prior, "kind", None)
    prior = f"the {fitted} that was fitted to its latents" if fitted else "the prior"
    yield f"Drawn from {prior} with seed 0, not chosen."
    yield _fenced("\n".join(" ".join(text.split()) for text in vae.sample(SAMPLES, seed=0)), "text")
    yield "## Recipe"
    yield _fenced(recipe_file.dump(recipe).rstrip("\n"), "yaml")
    yield "## Licence"
    yield _licence(recipe, license)
    yield "## Limits"
    yield "\n".join(f"- {limit}" for limit in _limits(vae, part, figures))


def _what(vae: Any) -> str:
    recipe, parameters = vae.recipe, sum(p.numel() for p in vae.model.parameters())
    size = f"{parameters:,} parameters, {len(vae.tokenizer):,} tokens ({recipe.tokenizer.kind})"
    if not vae.latent_dim:
        return f"A language model trained with textvae: {size}."
    cells = [getattr(recipe.model, side).as_dict().get("cell", "lstm").upper() for side in ("encoder", "decoder")]
    parts = f"{cells[0]} encoder, {cells[1]} decoder; posterior {recipe.model.posterior.kind}"
    return (
        "A variational autoencoder over text, trained with textvae. A sentence is encoded into "
        f"{vae.latent_dim} latent dimensions and written back word by word ({parts}, prior "
        f"{recipe.model.prior.kind}; {size})."
    )


def _data(recipe: Any) -> str:
    kind, name = _source(recipe)
    said = {
        "hub": f"The data set [{name}](https://huggingface.co/datasets/{name}) of the Hugging Face Hub.",
        "textvae-grammar": "Sentences drawn from a grammar that textvae holds; English-like, of a small vocabulary.",
        "folder": f"A data set that was saved locally as `{name}`.",
        "files": f"Local files: `{name}`.",
    }[kind]
    length = recipe.data.max_length
    return said + (f" Sentences of at most {length} tokens." if length else "")


def _licence(recipe: Any, license: str) -> str:
    if license != "unknown":
        return f"{license}, for these weights. textvae itself is Apache-2.0."
    return (
        "Not stated. Weights can repeat what they were trained on, so the terms of the training data "
        f"({_source(recipe)[1]}) decide. textvae itself is Apache-2.0."
    )


def _limits(vae: Any, part: str, figures: dict[str, float]) -> Iterator[str]:
    kind = vae.recipe.tokenizer.kind
    yield "It writes sentences like those it was trained on, true or not, and repeats what is in them, bias included."
    if kind in ("word", "character"):
        yield f"Its {kind}s are those of the training text; any other is read as `<unk>`."
    if vae.latent_dim:
        yield "What it writes back from a sentence's latent need not be the sentence."
    known = figures.get("mutual_information")
    if vae.latent_dim and known is not None and known < COLLAPSED:
        yield f"The posterior has collapsed: latents say {known:.2g} nats of the sentence, and encoding little."
    if part == "validation":
        yield "The figures are of the validation part, which also chose the weights."
    yield "It was made for research, and not tested for decisions about people."


def _fenced(text: str, kind: str) -> str:
    """A code block whose fence is longer than any within."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
    return f"{fence}{kind}\n{text}\n{fence}"
