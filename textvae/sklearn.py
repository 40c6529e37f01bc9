"""A run as a scikit-learn transformer: texts to latents, in a pipeline (the extra `sklearn`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textvae.errors import MissingExtraError, UserError

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError as error:
    raise MissingExtraError("scikit-learn", "sklearn", "for LatentTransformer") from error

if TYPE_CHECKING:
    from textvae.api import TextVAE


class LatentTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Texts to the posterior means of a trained run, for `make_pipeline(LatentTransformer("runs/x"), classifier)`.

    Nothing is learned in `fit`: the run is trained already. It is loaded at the first use; a clone or a pickle holds
    the path alone, and loads again where it is used, so the folder must be there.

    Args:
        run: the run folder.
        device: where the model goes.
        trust_code: import the classes that the recipe names by dotted path.
    """

    def __init__(self, run: str | Path, *, device: str = "cpu", trust_code: bool = False) -> None:
        self.run = run
        self.device = device
        self.trust_code = trust_code

    def fit(self, X: Iterable[str], y: Any = None) -> LatentTransformer:
        """Loads the run and returns the transformer; `X` and `y` stay unread."""
        self._loaded()
        return self

    def transform(self, X: Iterable[str]) -> NDArray[np.float32]:
        """Returns the posterior means, (N, D) float32, of texts (a list, an array or a column of strings).

        Raises:
            UserError: something other than texts, or a run that is a language model.
            CheckpointError: no run, or a damaged one.
        """
        dimensions = getattr(X, "ndim", 1)
        if dimensions != 1:  # a list of a table would be its columns' names
            raise UserError(f"X: got {dimensions} dimensions; it must be a list of texts, or one column: table['text']")
        texts = [X] if isinstance(X, (str, bytes)) else list(X)
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if isinstance(X, (str, bytes)) or wrong is not None:
            raise UserError(f"X: got {X if wrong is None else wrong!r}; it must be a list of texts (str)")
        latents: NDArray[np.float32] = self._loaded().encode([str(text) for text in texts]).numpy()
        return latents

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Returns the columns' names, z0, z1, ..; `input_features` stays unread."""
        return np.asarray([f"z{i}" for i in range(self._loaded().latent_dim)], dtype=object)

    def _loaded(self) -> TextVAE:
        # By all that decides what is loaded, so that set_params is obeyed.
        key = (str(self.run), self.device, self.trust_code)
        if getattr(self, "_key", None) != key:
            from textvae.api import load

            self._vae, self._key = load(self.run, device=self.device, trust_code=self.trust_code), key
        return self._vae

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        return {name: value for name, value in state.items() if name not in ("_vae", "_key")}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.requires_fit = False
        return tags
