"""Runs for other runtimes: ONNX (float32 and int8) and torch.export, and what reads them back (the extra `export`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textvae.checkpoint import EXPORT as DESCRIPTION
from textvae.checkpoint import FITTED_PRIOR
from textvae.errors import CheckpointError, MissingExtraError, UserError, suggest

if TYPE_CHECKING:
    from textvae.api import TextVAE
    from textvae.export.runtime import ExportedVAE

FORMATS = ("onnx", "torch", "int8")
PART = ".export.part"  # what is being written, until it is whole


def export(vae: TextVAE, folder: str | Path, *, format: str = "onnx", traced: Mapping[str, Any] | None = None) -> Path:
    """Writes a run for another runtime into a folder and returns its path.

    onnx: encoder.onnx (tokens (B, T+1), lengths (B,) -> mean, scale (B, D)), decoder_start.onnx (z (B, D) -> state),
    decoder_step.onnx (word (B,), z, state -> logits (B, V), state) and greedy.onnx (z, max_length -> ids (B, T)).
    int8: the same with int8 weights. torch: the first three as .pt2 programs. Beside them export.json (what goes in
    and out, special tokens), recipe.yaml, tokenizer/ and, where the tokenizer has that form, a tokenizer.json for
    `transformers`, and the fitted prior (fitted_prior.safetensors) where the run has one.

    Args:
        vae: the run.
        folder: a new or an empty one, or one of an earlier export of the same format, which is written anew.
        format: onnx, torch or int8.
        traced: what `textvae.export.onnx_format.traced` gave for this run, where both onnx and int8 are wanted.

    Raises:
        UserError: an unknown format, a language model, a folder that holds other things or another format, or a model
            that cannot be traced.
        MissingExtraError: ONNX without the extra `export`.
    """
    if format not in FORMATS:
        raise UserError(f"--format: got {format!r}{suggest(format, FORMATS)}")
    if not vae.latent_dim:
        raise UserError("export: the run is a language model (model.latent_dim: 0), which has no latents to export")
    from textvae import checkpoint, recipe_file
    from textvae.export import onnx_format, torch_format
    from textvae.hub.tokenizer import save_for_transformers
    from textvae.latent.fitted import kind_of

    place = Path(folder)
    if place.exists() and not (place / DESCRIPTION).is_file() and (not place.is_dir() or _others(place)):
        raise UserError(f"{place}: exists and is no export; name a new folder")
    if (place / DESCRIPTION).is_file() and (there := _described(place)[0]) != format:
        # Files of both would lie side by side, and which are the export's only the last would say.
        raise UserError(f"{place}: holds an export of the format {there}; name another folder for {format}")
    if format != "torch":
        onnx_format.require()
    made = not place.exists()
    part = place / PART
    try:
        if part.exists():  # of an export that was killed
            shutil.rmtree(part)
        part.mkdir(parents=True)
        if format == "torch":
            torch_format.write(vae.model, vae.tokenizer, part)
        else:
            found = onnx_format.traced(vae.model, vae.tokenizer) if traced is None else traced
            onnx_format.write(found, vae.tokenizer, vae.recipe.generation, part, int8=format == "int8")
        vae.tokenizer.save(str(part / checkpoint.TOKENIZER))
        save_for_transformers(vae.tokenizer, part, vae.recipe.data)
        if vae.fitted_prior is not None:
            checkpoint.save_prior(kind_of(vae.fitted_prior), vae.fitted_prior, part)
        checkpoint.write_text(part / checkpoint.RECIPE, recipe_file.dump(vae.recipe))
        checkpoint.write_text(part / DESCRIPTION, json.dumps(_description(vae, format), indent=2) + "\n")
        _move(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if made and place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    return place


def load(folder: str | Path, *, threads: int | None = None, trust_code: bool = False) -> ExportedVAE:
    """Returns an export in the hand: `encode`, `decode` by every method, `reconstruct`, `interpolate`.

    Args:
        folder: what `export` wrote.
        threads: of onnxruntime; as many as torch has where absent.
        trust_code: read .pt2 programs, which torch unpickles, and import a tokenizer class by dotted path.

    Raises:
        CheckpointError: no export, or a damaged one.
        UserError: .pt2 programs without `trust_code`.
        MissingExtraError: ONNX without the extra `export`.
    """
    from textvae import checkpoint, recipe_file
    from textvae.export import runtime
    from textvae.latent import fitted
    from textvae.text import tokenizers

    place = Path(folder)
    format, latent_dim = _described(place)
    if format == "torch" and not trust_code:
        raise UserError(f"{place}: torch unpickles what .pt2 programs hold; only if you trust them: trust_code=True")
    recipe = recipe_file.load(place / checkpoint.RECIPE)
    saved = str(place / checkpoint.TOKENIZER)
    tokenizer = tokenizers.load(saved, kind=recipe.tokenizer.kind, trust_code=trust_code)
    graphs: Any = runtime.TorchGraphs(place) if format == "torch" else runtime.OnnxGraphs(place, threads=threads)
    vae = runtime.ExportedVAE(runtime.ExportedModel(graphs, latent_dim), tokenizer, recipe)
    if (prior := checkpoint.load_prior(place)) is not None:
        try:
            vae.fitted_prior = fitted.restore(*prior, latent_dim, str(place / FITTED_PRIOR))
        except MissingExtraError as error:  # a flow, without which sampling alone is not to be had
            vae.lacking = error
    return vae


def _others(place: Path) -> bool:
    return any(entry.name != PART for entry in place.iterdir())


def _move(part: Path, place: Path) -> None:
    """Puts what was written in the place of an earlier export: whole, or, where that is cut off, no export at all."""
    from textvae.hub.tokenizer import TRANSFORMERS

    for name in (DESCRIPTION, FITTED_PRIOR, *TRANSFORMERS):  # not every run has the latter ones
        (place / name).unlink(missing_ok=True)
    for entry in sorted(part.iterdir(), key=lambda entry: entry.name == DESCRIPTION):
        old = place / entry.name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        entry.replace(old)


def _described(place: Path) -> tuple[str, int]:
    """The format and D of an export's folder."""
    try:
        description = json.loads((place / DESCRIPTION).read_text(encoding="utf-8"))
        format, latent_dim = description["format"], int(description["latent_dim"])
    except OSError as error:
        raise CheckpointError(f"{place}: holds no export ({DESCRIPTION} is missing)") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place / DESCRIPTION}: is damaged ({error!r})") from error
    if format not in FORMATS:
        raise CheckpointError(f"{place / DESCRIPTION}: is damaged (format is {format!r})")
    return str(format), latent_dim


def _description(vae: TextVAE, format: str) -> dict[str, Any]:
    import torch

    from textvae import __version__
    from textvae.export import onnx_format, torch_format

    tokenizer, generation = vae.tokenizer, vae.recipe.generation
    state = [list(tensor.shape[::2]) for tensor in vae.model.start(torch.zeros(1, vae.latent_dim, device=vae.device))]
    return {
        "format": format,
        "textvae": __version__,
        "torch": torch.__version__,
        "files": torch_format.FILES if format == "torch" else onnx_format.FILES,
        "latent_dim": vae.latent_dim,
        "vocabulary": len(tokenizer),
        "state": {f"state_{i}": {"layers": layers, "hidden_dim": width} for i, (layers, width) in enumerate(state)},
        "special_ids": {name: getattr(tokenizer, f"{name}_id") for name in ("pad", "bos", "eos", "unk")},
        "generation": {"max_length": generation.max_length, "ban_unk": generation.ban_unk},
    }
