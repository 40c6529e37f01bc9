"""The sequence VAE: its parts put together. It knows no loss and no text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from textvae.nets.devices import runs_ahead, traced
from textvae.nets.products import by_onednn
from textvae.nets.recording import are_known
from textvae.types import Batch, VAEOutput

State = tuple[Tensor, ...]

# Leading bits of a number of rows that prepared steps tell apart: 300 rows are made up to 320. For each other number
# oneDNN makes kernels anew, which takes memory and as long as the products of a few dozen rows.
FINEST = 3
# Of a smaller output layer, or for fewer steps, nothing is made ready.
WORTH_NUMBERS, WORTH_STEPS = 2**19, 16
PUT_IN_PLACE = frozenset({"forward", "logits", "start", "step", "steps"})


class SequenceVAE(nn.Module):
    """p(x, z) = p(z) prod_t p(x_t | x_<t, z) with q(z|x), over token ids.

    Without an encoder it is the language model p(x) = prod_t p(x_t | x_<t), the same code, and z has
    0 dimensions.

    Args:
        latent_dim: D; 0 for a language model.
        encoder_embedding: ids to vectors for the encoder; may be the decoder's own.
        encoder: (B, T, E), lengths -> features (B, F).
        posterior: features -> q(z|x).
        prior: () -> p(z).
        decoder_embedding: ids to vectors for the decoder.
        decoder: `start` and `forward` as in `textvae.nets.decoders`.
        output: hidden states to log-probabilities.
        word_dropout: noise on the decoder's inputs.
        noise: noise on what the encoder reads, Batch -> Batch.
        draw: draws z (S, B, D) from a posterior, with noise (S, B, D) given or not.
        heads: name -> further predictions from z: (batch, z (S, B, D)) -> (S, B) nats, for terms of the objective.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        decoder_embedding: nn.Embedding,
        decoder: nn.Module,
        output: nn.Module,
        word_dropout: nn.Module,
        noise: nn.Module | None = None,
        encoder_embedding: nn.Embedding | None = None,
        encoder: nn.Module | None = None,
        posterior: nn.Module | None = None,
        prior: nn.Module | None = None,
        draw: Callable[[Distribution, int, Tensor | None], Tensor] | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder_embedding = encoder_embedding
        self.encoder = encoder
        self.posterior = posterior
        self.prior = prior
        self.decoder_embedding = decoder_embedding
        # Any: torch types the attributes of a module as tensors or modules, never as methods.
        self.decoder: Any = decoder
        self.output: Any = output
        self.word_dropout = word_dropout
        self.noise = noise
        self.draw = draw
        self.heads = nn.ModuleDict(heads or {})

    def encode(self, batch: Batch) -> Distribution:
        """Returns q(z|x), batch (B,), event (D,); row i is sentence i.

        Raises:
            ValueError: for a language model, which has no posterior.
        """
        if self.encoder is None or self.encoder_embedding is None or self.posterior is None:
            raise ValueError("a language model (latent_dim 0) has no posterior to encode into")
        if self.noise is not None:
            batch = self.noise(batch)
        embedded = _by_step(self.encoder_embedding, batch.targets)  # (B, T, E)
        posterior: Distribution = self.posterior(self.encoder(embedded, batch.lengths))
        return posterior

    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        """Returns log p(x|z), (S, B), nats a sequence, for z (S, B, D)."""
        samples, sentences = z.shape[:2]
        if samples > 1 and self._shares(z):
            return self._log_likelihood_of_draws(batch, z)
        rows = samples * sentences
        inputs = self.word_dropout(batch.inputs)
        embedded = _by_step(self.decoder_embedding, inputs)  # (B, T, E)
        embedded = embedded.expand(samples, *embedded.shape).flatten(0, 1)  # (S*B, T, E)
        flat = z.reshape(rows, -1)  # (S*B, D)
        hidden, _ = self.decoder(embedded, flat, self.decoder.start(flat))  # (S*B, T, H)
        mask = batch.mask.expand(samples, -1, -1).flatten(0, 1)  # (S*B, T)
        targets = batch.targets.expand(samples, -1, -1).flatten(0, 1)  # (S*B, T)
        if runs_ahead(hidden):
            # Choosing the real tokens would wait for the device; lengths in a batch are near equal.
            per_token = self.output(hidden.transpose(0, 1).flatten(0, 1), targets.T.flatten())
            per_token = per_token.view(mask.T.shape).T.masked_fill(~mask, 0.0)
        else:
            real = self.output(hidden[mask], targets[mask])
            per_token = real.new_zeros(mask.shape).masked_scatter(mask, real)  # (S*B, T)
        summed: Tensor = per_token.sum(-1)  # (S*B,)
        return summed.view(samples, sentences)

    def _shares(self, z: Tensor) -> bool:
        """Whether draws of z can share what they have in common: a GPU's own recurrent kernels are faster."""
        plain = not (self.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or traced())
        return plain and z.device.type == "cpu" and getattr(self.decoder, "can_read_draws", False)

    def _log_likelihood_of_draws(self, batch: Batch, z: Tensor) -> Tensor:
        order = batch.lengths.argsort(descending=True)
        tokens, z = batch.tokens[order], z[:, order].transpose(0, 1)  # (B, T+1), (B, S, D)
        samples = z.shape[1]
        going = [int(count) for count in batch.mask.sum(0) if count]
        inputs = self.word_dropout(tokens[:, : len(going)])
        hidden = self.decoder.read_draws(self.decoder_embedding(inputs), z, going)  # (sum of going * S, H)
        targets = torch.cat([tokens[:count, step + 1] for step, count in enumerate(going)])
        log_p = self.output(hidden, targets.repeat_interleave(samples))
        total: Tensor = log_p.new_zeros(len(z), samples)
        for part in log_p.view(-1, samples).split(going):
            total[: len(part)] += part
        return total[order.argsort()].T

    def start(self, z: Tensor) -> State:
        """Returns the decoder's state before the first word, each tensor (layers, B, H), for z (B, D)."""
        state: State = self.decoder.start(z)
        return state

    def step(self, tokens: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads one word a row.

        Args:
            tokens: (B,) int64, the words to read; <s> first.
            z: (B, D).
            state: from `start` or from the step before.

        Returns:
            Logits (B, V) of the next word, float32, and the state after it.
        """
        hidden, state = self.decoder(self.decoder_embedding(tokens[:, None]), z, state)
        return self.output.logits(hidden[:, 0]), state

    def prepared(self, rows: int, steps: int) -> SequenceVAE | PreparedSteps:
        """Returns what takes the same steps faster, for as long as the weights stay as they are; or itself.

        That is on a CPU, in float32, in evaluation and without gradients, of parts that are no user's own.

        Args:
            rows: of a step at most, or so; it may take more.
            steps: how many there may be.
        """
        own = (self.decoder, self.output, self.decoder_embedding)
        parts = [self, *(part for module in own for part in module.modules())]
        as_written = all(callable(getattr(type(part), "steps", None)) for part in own[:2])
        if not as_written or not are_known(parts) or not isinstance(self.decoder_embedding, nn.Embedding):
            return self
        # Dropout that is on in one part, or a method that was put in the place of one.
        if any(part.training or not PUT_IN_PLACE.isdisjoint(vars(part)) for part in parts):
            return self
        numbers = self.decoder_embedding.num_embeddings * self.decoder.hidden_dim
        if steps < WORTH_STEPS or numbers < WORTH_NUMBERS or not self.decoder.can_read_draws:
            return self
        return PreparedSteps(self, rows) if by_onednn(self.decoder_embedding.weight) else self

    def forward(self, batch: Batch, *, samples: int = 1, noise: Tensor | None = None) -> VAEOutput:
        """Encodes, draws z and scores the sentences under it.

        Args:
            batch: B sentences.
            samples: S, draws of z a sentence.
            noise: (S, B, D) standard normal draws to use; new ones where absent.

        Returns:
            The output; for a language model both distributions are None and z is (1, B, 0).
        """
        if self.latent_dim == 0:
            z = self.decoder_embedding.weight.new_zeros(1, len(batch.lengths), 0)
            return VAEOutput(None, None, z, self.log_likelihood(batch, z))
        assert self.draw is not None
        posterior = self.encode(batch)
        return self.describe(batch, posterior, self.draw(posterior, samples, noise))

    def describe(self, batch: Batch, posterior: Distribution, z: Tensor) -> VAEOutput:
        """Returns the output for draws z (S, B, D) of a posterior, the encoder's own or another.

        A head is asked in training only: no figure of an evaluation is made of it.
        """
        assert self.prior is not None
        # A step of its own in the graph: what flows back from the likelihood can be told from what comes otherwise.
        decoded = z.view_as(z)
        log_likelihood = self.log_likelihood(batch, decoded)
        heads = {name: head(batch, z) for name, head in self.heads.items()} if self.training else {}
        return VAEOutput(posterior, self.prior(), z, log_likelihood, decoded, heads)


class PreparedSteps:
    """`SequenceVAE.start` and `SequenceVAE.step` with weights that are made ready once.

    Args:
        model: in evaluation; its weights must not change while this is in use.
        rows: of a step at most, or so.
    """

    def __init__(self, model: SequenceVAE, rows: int) -> None:
        self.start, self._embedded = model.start, model.decoder_embedding
        self._read: Callable[[Tensor, Tensor, State], tuple[Tensor, State]]
        self._read = model.decoder.steps(model.latent_dim, rows)
        self._logits: Callable[[Tensor], Tensor] = model.output.steps(rows)

    def step(self, tokens: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads one word a row, as `SequenceVAE.step` does."""
        rows = len(tokens)
        lacking = -rows % (1 << max(0, rows.bit_length() - FINEST))
        if lacking:
            tokens, z = F.pad(tokens, (0, lacking)), F.pad(z, (0, 0, 0, lacking))
            state = tuple(F.pad(part, (0, 0, 0, lacking)) for part in state)
        hidden, state = self._read(self._embedded(tokens), z, state)
        return self._logits(hidden)[:rows], tuple(part[:, :rows] for part in state)


def _by_step(embedding: nn.Embedding, tokens: Tensor) -> Tensor:
    """(B, T, E), in memory step after step: a recurrent kernel reads it as it is, and so its states are written."""
    return embedding(tokens.T).transpose(0, 1)  # type: ignore[no-any-return]
