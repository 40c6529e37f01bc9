"""Runs on the Hugging Face Hub: what goes up, what comes down, by huggingface_hub's own mixin."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from textvae import checkpoint, recipe_file
from textvae.errors import CheckpointError, UserError, suggest
from textvae.folders import CURVES
from textvae.hub import card
from textvae.hub.tokenizer import TRANSFORMERS, save_for_transformers
from textvae.latent.fitted import kind_of
from textvae.recipe import Recipe

CONFIG, CARD = "config.json", "README.md"
# What a run is loaded from; pictures and figures stay on the Hub.
NEEDED = [
    checkpoint.RECIPE,
    checkpoint.WEIGHTS,
    checkpoint.FITTED_PRIOR,
    checkpoint.EXPORT,  # by which an export is told from a run that is not whole
    f"{checkpoint.TOKENIZER}/*",
]
# What not every run has: where another was saved or pushed before, it goes.
PERHAPS = [checkpoint.FITTED_PRIOR, checkpoint.METRICS, CURVES, *TRANSFORMERS, f"{checkpoint.TOKENIZER}/*"]


class HubMixin(ModelHubMixin, library_name="textvae", tags=["text-vae"]):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of a TextVAE.

    What is saved is a run folder (recipe, weights, tokenizer, a fitted prior) with a model card, its curves and
    metrics, and a tokenizer.json for `transformers`. The recipe goes along as it is, paths of local files included;
    look at it before you push.
    """

    # Set by `textvae.load`: the run's folder, where its figures lie.
    folder: Path | None = None
    # Set by `from_pretrained`: what the recipe names on this machine's disk was put there by whoever wrote it.
    foreign: bool = False

    def corpus_recipe(self) -> Recipe:
        """Returns the run's recipe, for its corpus to be read.

        Raises:
            UserError: the run came by `from_pretrained`, and its recipe names files on this machine.
        """
        recipe: Recipe = self.recipe  # type: ignore[attr-defined]  # of a TextVAE, which stands above
        data = recipe.data
        named = data.folder or next(iter((data.files or {}).values()), None)
        if data.hub is not None and (data.hub.name[:1] in ("/", ".", "~", "\\") or os.path.exists(data.hub.name)):
            named = data.hub.name  # which datasets would take for a folder
        if self.foreign and named is not None:
            raise UserError(
                f"data: the recipe of a run from elsewhere names {named!r} on this machine, which is not read; "
                "evaluate(recipe=...) takes a corpus of yours, and textvae.load a run of yours"
            )
        return recipe

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Returns a run from a folder or the Hub; nothing in it is executed.

        Args:
            pretrained_model_name_or_path: a folder, or the name of a repository ("user/name").
            **options: revision, token, cache_dir, force_download and local_files_only of huggingface_hub; device,
                trust_code and together of `textvae.load`.

        Raises:
            UserError: no such repository, or no way to it.
            CheckpointError: it holds no run, or a damaged one.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir() and not (Path(name) / checkpoint.RECIPE).is_file():
            raise CheckpointError(f"{name}: holds no run ({checkpoint.RECIPE} is missing)")
        try:
            loaded: Self = super().from_pretrained(pretrained_model_name_or_path, **options)
        except UserError:
            raise
        except HFValidationError as error:
            raise UserError(f"{name}: is no folder, and no name of a repository ({_first_line(error)})") from error
        except Exception as error:
            if not _of_the_hub(error):
                raise
            raise UserError(f"{name}: cannot be had from the Hub ({_first_line(error)})") from error
        return loaded

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **options: Any,
    ) -> Any:
        from textvae.api import load

        folder = model_id
        if not Path(model_id).is_dir():
            folder = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=NEEDED,
            )
        known = ("device", "trust_code", "together")
        for name in options:
            if name not in known:
                raise UserError(f"from_pretrained: there is no option {name!r}{suggest(name, known)}")
        vae = load(folder, **options)
        vae.foreign = True
        return vae

    def _save_pretrained(self, save_directory: Path) -> None:
        vae: Any = self  # a TextVAE, which stands above
        folder = save_directory
        checkpoint.write_text(folder / checkpoint.RECIPE, recipe_file.dump(vae.recipe))
        checkpoint.save_weights(vae.model, folder / checkpoint.WEIGHTS)
        vae.tokenizer.save(str(folder / checkpoint.TOKENIZER))
        if vae.fitted_prior is not None:
            checkpoint.save_prior(kind_of(vae.fitted_prior), vae.fitted_prior, folder)
        else:  # the folder may have had another run
            (folder / checkpoint.FITTED_PRIOR).unlink(missing_ok=True)
        if not save_for_transformers(vae.tokenizer, folder, vae.recipe.data):
            for name in TRANSFORMERS:
                (folder / name).unlink(missing_ok=True)
        config = {"model_type": "textvae", "latent_dim": vae.latent_dim, "vocab_size": len(vae.tokenizer)}
        checkpoint.write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        for name in (checkpoint.METRICS, CURVES):
            source = self.folder / name if self.folder is not None else None
            if source is not None and source.resolve() == (folder / name).resolve():
                continue
            (folder / name).unlink(missing_ok=True)
            if source is not None and source.is_file():
                shutil.copyfile(source, folder / name)
        if card.is_untouched(folder / CARD):  # which huggingface_hub would leave, though it is of the run before
            (folder / CARD).unlink()

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Writes the run and its card into a repository of the Hub, in one commit, and returns the commit's address.

        Args:
            repo_id: "user/name"; made where it is missing.
            **options: private, token, branch, create_pr, commit_message and further ones of huggingface_hub;
                model_card_kwargs, as of `generate_model_card`; delete_patterns, of files to take away besides those
                that only a run pushed before has.

        Raises:
            UserError: it cannot be reached, or refuses.
        """
        told = {"repo_id": repo_id, **(options.pop("model_card_kwargs", None) or {})}
        given = options.pop("delete_patterns", None) or []
        # What this run has not, and the one that was pushed before may have had.
        options["delete_patterns"] = [*PERHAPS, *([given] if isinstance(given, str) else given)]
        try:
            return str(super().push_to_hub(repo_id, model_card_kwargs=told, **options))
        except HFValidationError as error:
            raise UserError(f"{repo_id}: is no name of a repository ({_first_line(error)})") from error
        except UserError:
            raise
        except Exception as error:
            if not _of_the_hub(error) and not isinstance(error, ValueError):  # that is metadata the Hub refuses
                raise
            raise UserError(f"{repo_id}: cannot be pushed ({' '.join(str(error).split())})") from error

    def generate_model_card(self, *args: Any, **told: Any) -> ModelCard:
        """Returns the card: what the run was trained on and how, figures, a picture, samples, licence and limits.

        Args:
            *args: huggingface_hub gives none.
            **told: what a run does not know: license (a name of the Hub's list; apache-2.0 for the built-in corpus,
                else unknown), language (two or three letters, one or several), repo_id, title.

        Raises:
            UserError: an unknown argument, or one that the Hub would refuse.
        """
        known = list(inspect.signature(card.card).parameters)[1:]
        if args or (unknown := [name for name in told if name not in known]):
            given = repr(args[0])[:60] if args else unknown[0]
            raise UserError(f"{given}: is no argument of a model card{suggest(given, known)}")
        return card.card(self, **told)


def _of_the_hub(error: Exception) -> bool:
    """Whether the Hub said no, or could not be reached; the client's own errors have their home in httpx."""
    return isinstance(error, (HfHubHTTPError, OSError)) or type(error).__module__.startswith("httpx")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
