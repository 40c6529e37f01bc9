"""Exported graphs as a model that the rest works with: encode, decode by every method, scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from textvae.api import TextVAE
from textvae.errors import CheckpointError, MissingExtraError, UserError
from textvae.export import onnx_format, torch_format
from textvae.generation import given
from textvae.latent.posteriors import diagonal_gaussian
from textvae.model import State
from textvae.recipe import Generation, Recipe
from textvae.types import Batch, Tokenizer, VAEOutput


class Graphs(Protocol):
    """What runs the files of one format."""

    def encode(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and scale, (B, D) each, of tokens (B, T+1) and lengths (B,)."""
        ...

    def start(self, z: Tensor) -> State:
        """Returns the state before the first word, for z (B, D)."""
        ...

    def step(self, tokens: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns logits (B, V) after tokens (B,), and the state."""
        ...


class OnnxGraphs:
    """ONNX files in onnxruntime, on the CPU.

    Args:
        folder: where they lie.
        threads: of onnxruntime; as many as torch has where absent.

    Raises:
        MissingExtraError: without onnxruntime.
        CheckpointError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        onnx_format.require()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._sessions: dict[str, Any] = {}
        for name, file in onnx_format.FILES.items():
            path = folder / file
            if not path.is_file():
                raise CheckpointError(f"{path}: is missing; the export is not whole")
            try:
                self._sessions[name] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's own errors have no class in common
                reason = str(error).partition("\n")[0]
                raise CheckpointError(f"{path}: is damaged or no ONNX model ({reason})") from error
        self._states = [value.name for value in self._sessions["start"].get_outputs()]

    def encode(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and scale, (B, D) each."""
        mean, scale = self._run("encoder", {"tokens": tokens, "lengths": lengths})
        return mean, scale

    def start(self, z: Tensor) -> State:
        """Returns the state before the first word."""
        return tuple(self._run("start", {"z": z}))

    def step(self, tokens: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns logits (B, V) and the state."""
        logits, *after = self._run("step", {"word": tokens, "z": z, **dict(zip(self._states, state))})
        return logits, tuple(after)

    def greedy(self, z: Tensor, max_length: int) -> Tensor:
        """Returns ids (B, T) of z (B, D), the loop within the graph; <pad> after </s>."""
        (ids,) = self._run("greedy", {"z": z, "max_length": torch.tensor(max_length)})
        return ids

    def _run(self, name: str, inputs: dict[str, Tensor]) -> list[Tensor]:
        known = {value.name for value in self._sessions[name].get_inputs()}
        known |= {value.name for value in self._sessions[name].get_overridable_initializers()}
        # A graph has lost an input that changes nothing, as z where it enters by the state alone.
        arrays = {key: tensor.contiguous().numpy() for key, tensor in inputs.items() if key in known}
        return [torch.from_numpy(array) for array in self._sessions[name].run(None, arrays)]


class TorchGraphs:
    """torch.export's files.

    Args:
        folder: where they lie.

    Raises:
        CheckpointError: a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._modules: dict[str, Any] = {}
        for name, file in torch_format.FILES.items():
            path = folder / file
            if not path.is_file():
                raise CheckpointError(f"{path}: is missing; the export is not whole")
            try:
                with onnx_format.quiet():
                    self._modules[name] = torch.export.load(path).module()
            except Exception as error:  # a damaged archive may raise anything
                raise CheckpointError(f"{path}: is damaged or no exported program ({error})") from error

    def encode(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and scale, (B, D) each."""
        if tokens.shape[1] < 3:  # a program is of two tokens or more; what is beyond a sentence's length is not read
            tokens = torch.nn.functional.pad(tokens, (0, 3 - tokens.shape[1]))
        mean, scale = self._modules["encoder"](tokens, lengths)
        return mean, scale

    def start(self, z: Tensor) -> State:
        """Returns the state before the first word."""
        return tuple(self._modules["start"](z))

    def step(self, tokens: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns logits (B, V) and the state."""
        logits, *after = self._modules["step"](tokens, z, *state)
        return logits, tuple(after)


class ExportedModel(nn.Module):
    """Graphs in the place of a SequenceVAE, for evaluation: nothing in it learns.

    Args:
        graphs: run the files.
        latent_dim: D.
        prior: () -> p(z), for scores and samples; an export holds none.
    """

    def __init__(self, graphs: Graphs, latent_dim: int, prior: nn.Module | None = None) -> None:
        super().__init__()
        self.graphs = graphs
        self.latent_dim = latent_dim
        self.prior = prior

    def encode(self, batch: Batch) -> Distribution:
        """Returns N(mean, scale^2), batch (B,), event (D,)."""
        return diagonal_gaussian(*self.graphs.encode(batch.tokens, batch.lengths))

    def start(self, z: Tensor) -> State:
        """Returns the state before the first word, each tensor (layers, B, H), for z (B, D)."""
        return self.graphs.start(z)

    def step(self, tokens: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns logits (B, V) of the word after tokens (B,), and the state."""
        return self.graphs.step(tokens, z, state)

    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        """Returns log p(x|z), (S, B) nats a sequence, for z (S, B, D), word by word."""
        rows = []
        for draw in z:
            state, total = self.start(draw), draw.new_zeros(len(draw), dtype=torch.float64)
            for inputs, targets, real in zip(batch.inputs.T, batch.targets.T, batch.mask.T):
                logits, state = self.step(inputs, draw, state)
                log_p = logits.double().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
                total += log_p.masked_fill(~real, 0.0)
            rows.append(total.float())
        return torch.stack(rows)

    def forward(self, batch: Batch, *, samples: int = 1, noise: Tensor | None = None) -> VAEOutput:
        """Encodes, draws z and scores; as `textvae.model.SequenceVAE.forward`."""
        posterior: Any = self.encode(batch)
        if noise is None:
            noise = torch.randn(samples, *posterior.mean.shape)
        z = posterior.mean + posterior.stddev * noise
        return VAEOutput(posterior, self.prior() if self.prior else None, z, self.log_likelihood(batch, z))


class ExportedVAE(TextVAE):
    """An export in the hand, with the methods of a TextVAE; greedy decoding runs within the graph where it can.

    Args:
        model: the graphs.
        tokenizer: the run's.
        recipe: the run's.
    """

    def __init__(self, model: ExportedModel, tokenizer: Tokenizer, recipe: Recipe) -> None:
        super().__init__(model, tokenizer, recipe)  # type: ignore[arg-type]  # it has all that is asked of one
        self.graphs = model.graphs
        self.lacking: MissingExtraError | None = None  # what the fitted prior needs and this machine has not

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def decode(self, z: Tensor, *, seed: int | None = None, **options: Any) -> list[str]:
        """Returns a text for each row of z (N, D); see `TextVAE.decode`."""
        settings, z = self._settings(options), given.latents(z, self.latent_dim)
        graphs = self.graphs
        inside = settings == self._within(settings.max_length)
        if not isinstance(graphs, OnnxGraphs) or not inside or not len(z):
            return super().decode(z, seed=seed, **options)
        ids: list[list[int]] = []
        for part in z.split(ROWS):
            ids += graphs.greedy(part, settings.max_length).tolist()
        return self.tokenizer.decode(ids)

    def _within(self, max_length: int) -> Generation:
        """What the graph of greedy decoding does."""
        return self._settings({"method": "greedy", "max_length": max_length})

    def _save_pretrained(self, save_directory: Path) -> None:
        raise UserError("an export cannot be saved as a run; save the run that it was made of")

    def sample_latents(self, n: int, *, seed: int | None = None) -> Tensor:
        """Returns n draws, (n, D), from the fitted prior, else from N(0, I): an export holds no other."""
        if self.lacking is not None and self.fitted_prior is None:
            raise self.lacking
        if self.fitted_prior is None and self.model.prior is None:
            kind = self.recipe.model.prior.kind
            if kind != "standard_normal":
                raise UserError(f"sample: an export holds no prior, and the run's is {kind!r}; decode z of your own")
            return torch.randn(given.count(n, "n"), self.latent_dim, generator=self.generator(seed))
        return super().sample_latents(n, seed=seed)

    def evaluate(self, split: str = "test", **asked: Any) -> dict[str, Any]:
        """Refuses: the figures need the run's prior, which an export does not hold.

        Raises:
            UserError: always.
        """
        raise UserError("evaluate: an export holds no prior, and has no such thing; evaluate the run it was made of")

    def score(self, texts: Sequence[str], *, iw_samples: int | None = None, seed: int = 0) -> list[dict[str, float]]:
        """Returns each text's figures; see `TextVAE.score`.

        Raises:
            UserError: no prior to score with, or a posterior that is not Gaussian.
        """
        if self.model.prior is None:
            raise UserError("score: an export holds no prior; score with the run itself")
        return super().score(texts, iw_samples=iw_samples, seed=seed)


ROWS = 256  # latents decoded at once: a loop goes on until the last of its sentences ends
