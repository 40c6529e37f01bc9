"""The values that travel between the parts, and the protocols the parts keep.

Letters in shapes: B sentences, T target tokens of the longest one, S samples of z a sentence,
D latent dimensions, H hidden units, E embedding dimensions, V tokens in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution


class Batch(NamedTuple):
    """Sentences as token ids. A NamedTuple of tensors, because accelerate moves those and leaves a dataclass."""

    tokens: Tensor  # (B, T+1) int64: <s> w1 .. wn </s> <pad> ..
    lengths: Tensor  # (B,) int64, target tokens a row: </s> counted, <s> not

    @property
    def inputs(self) -> Tensor:
        """(B, T): what the decoder reads, <s> first."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """(B, T): what the decoder predicts, </s> last. Also what the encoder reads."""
        return self.tokens[:, 1:]

    @property
    def mask(self) -> Tensor:
        """(B, T) bool: true on real target tokens, false on padding."""
        steps = torch.arange(self.tokens.shape[1] - 1, device=self.tokens.device)
        return steps[None, :] < self.lengths[:, None]


class VAEOutput(NamedTuple):
    """What the model says of a batch. For a language model (latent_dim 0) both distributions are None."""

    posterior: Distribution | None  # q(z|x): batch (B,), event (D,), float32
    prior: Distribution | None  # p(z): batch (), event (D,)
    z: Tensor  # (S, B, D), reparameterised; row i is sentence i
    log_likelihood: Tensor  # (S, B) log p(x|z), nats a sequence
    decoded: Tensor | None = None  # (S, B, D) z as the decoder saw it: a step of the graph between z and the above
    heads: Mapping[str, Tensor] | None = None  # name -> (S, B), what else the model says of x given z, nats


class Losses(NamedTuple):
    """One step's objective, taken apart."""

    total: Tensor  # (), nats a sequence; what is minimised
    terms: dict[str, Tensor]  # () each, unweighted, in its own unit, detached
    weights: dict[str, float]
    figures: Tensor  # (1 + terms,), detached: total and terms; their mean over pieces and processes is the step's


class Divergence(Protocol):
    """A distance that holds the posterior to the prior; sees distributions and samples, nothing else."""

    unit: ClassVar[str]  # "nats", "latent units squared"

    def __call__(self, posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
        """Returns (B,), one value a sentence, or (), one value for the batch."""
        ...


class Reconstruction(Protocol):
    """What the model pays for a sentence given z; gets the whole output."""

    unit: ClassVar[str]
    figure: ClassVar[str]  # the figure of an evaluation that stands for it where the best checkpoint is picked

    def __call__(self, output: VAEOutput) -> Tensor:
        """Returns (B,) nats a sequence."""
        ...


class Schedule(Protocol):
    """A weight as a function of the optimiser step; only controllers read the measured value."""

    def __call__(self, step: int, value: Tensor | None = None) -> float:
        """Returns the weight at this step (steps count from 0)."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. Special tokens are its own business, never the caller's."""

    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int | None

    def __len__(self) -> int:
        """The size of the vocabulary, special tokens counted."""
        ...

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text, <s> first and </s> last, unpadded."""
        ...

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Returns the text of each row of ids; stops at </s>, drops <s> and <pad>."""
        ...

    def save(self, folder: str) -> None:
        """Writes what `textvae.text.tokenizers.load` reads."""
        ...
