"""Latents for other libraries: a column of a `datasets` table, and the files of TensorBoard's projector."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from textvae.checkpoint import write_text
from textvae.errors import UserError, suggest
from textvae.generation import given

PROJECTED = "latents"


class LatentColumn:
    """Adds the posterior means as a column, for `dataset.map(latent_column(vae, "text"), batched=True)`.

    Args:
        vae: a TextVAE.
        column: of the texts.
        name: of the new column, (D,) float32 a row.
    """

    def __init__(self, vae: Any, column: str = "text", *, name: str = "latent") -> None:
        if not vae.latent_dim:
            raise UserError("latent_column: the run is a language model (model.latent_dim: 0), which has no latents")
        self.vae = vae
        self.column = column
        self.name = name

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, NDArray[np.float32]]:
        """Returns the new column of a batch of rows, (N, D).

        Raises:
            UserError: no such column, or one that holds no texts.
        """
        if self.column not in batch:
            raise UserError(f"column: got {self.column!r}{suggest(self.column, list(batch))}")
        texts = batch[self.column]
        if isinstance(texts, str):
            raise UserError(f"column {self.column!r}: holds one text; map with batched=True")
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise UserError(f"column {self.column!r}: holds {wrong[0]!r}; it must be texts")
        latents: NDArray[np.float32] = self.vae.encode(list(texts)).numpy()
        return {self.name: latents}


def latent_column(vae: Any, column: str = "text", *, name: str = "latent") -> LatentColumn:
    """Returns a function that adds a latent column to a `datasets` table; see `LatentColumn`.

    Args:
        vae: a TextVAE.
        column: of the texts.
        name: of the new column.

    Raises:
        UserError: a language model, which has no latents.
    """
    return LatentColumn(vae, column, name=name)


def projector(
    vae: Any, texts: Sequence[str], folder: str | Path, *, columns: Mapping[str, Sequence[Any]] | None = None
) -> Path:
    """Writes what TensorBoard's projector shows: tensors.tsv, metadata.tsv and its two kinds of configuration.

    `tensorboard --logdir FOLDER` reads projector_config.pbtxt; projector_config.json is for the page that stands alone
    (projector.tensorflow.org/?config=ADDRESS).

    Args:
        vae: a TextVAE.
        texts: N sentences; their posterior means (N, D) are the points.
        folder: is made where it is missing.
        columns: further columns of metadata, N values each, as {"label": labels}.

    Returns:
        The folder.

    Raises:
        UserError: no text, or a column of another length.
    """
    further, texts = dict(columns or {}), given.texts(texts)
    if not texts:
        raise UserError("projector: got no text")
    for name, values in further.items():
        if len(values) != len(texts):
            raise UserError(f"projector: column {name!r} has {len(values)} values for {len(texts)} texts")
    z: Tensor = vae.encode(texts)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / "tensors.tsv", "".join("\t".join(map(repr, row)) + "\n" for row in z.tolist()))
    rows: list[Sequence[Any]] = list(zip(texts, *further.values()))
    # A single column has no heading, or the heading would be a point's name.
    heading = [["text", *further]] if further else []
    lines = ("\t".join(map(_cell, row)) + "\n" for row in [*heading, *rows])
    write_text(place / "metadata.tsv", "".join(lines))
    write_text(
        place / "projector_config.pbtxt",
        f'embeddings {{\n  tensor_name: "{PROJECTED}"\n  tensor_path: "tensors.tsv"\n'
        '  metadata_path: "metadata.tsv"\n}\n',
    )
    embedding = {
        "tensorName": PROJECTED,
        "tensorShape": list(z.shape),
        "tensorPath": "tensors.tsv",
        "metadataPath": "metadata.tsv",
    }
    write_text(place / "projector_config.json", json.dumps({"embeddings": [embedding]}, indent=2) + "\n")
    return place


def _cell(value: Any) -> str:
    """One cell on one line; an empty one is shown as a space, for the projector drops empty lines."""
    return " ".join(str(value).split()) or " "
