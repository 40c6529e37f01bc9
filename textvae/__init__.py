"""textvae: variational autoencoders over text sequences.

>>> import textvae
>>> vae = textvae.load("runs/quickstart")
>>> vae.sample(3, seed=0)
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textvae.api import TextVAE, load
    from textvae.ecosystem import latent_column
    from textvae.errors import UserError
    from textvae.recipe import Recipe
    from textvae.recipe_file import load as load_recipe
    from textvae.training import train

try:
    __version__ = version("textvae")
except PackageNotFoundError:  # the source tree, not installed
    __version__ = "0"

__all__ = ["Recipe", "TextVAE", "UserError", "__version__", "latent_column", "load", "load_recipe", "train"]

_HOMES = {
    "TextVAE": ("textvae.api", "TextVAE"),
    "latent_column": ("textvae.ecosystem", "latent_column"),
    "load": ("textvae.api", "load"),
    "load_recipe": ("textvae.recipe_file", "load"),
    "Recipe": ("textvae.recipe", "Recipe"),
    "train": ("textvae.training", "train"),
    "UserError": ("textvae.errors", "UserError"),
}


def __getattr__(name: str) -> Any:
    # Importing textvae must not wait for torch; a name is fetched when it is first used.
    if name not in _HOMES:
        raise AttributeError(f"module 'textvae' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
