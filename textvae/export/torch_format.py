"""torch.export: encoder, decoder start and decoder step as programs of PyTorch's own operators (.pt2)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from textvae.errors import UserError
from textvae.export import graphs
from textvae.export.onnx_format import DYNAMIC, ROWS, WORDS, quiet
from textvae.model import SequenceVAE
from textvae.types import Tokenizer

FILES = {"encoder": "encoder.pt2", "start": "decoder_start.pt2", "step": "decoder_step.pt2"}


def write(model: SequenceVAE, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes encoder.pt2, decoder_start.pt2 and decoder_step.pt2, which `torch.export.load` reads without textvae.

    Args:
        model: has latents; it stays as it is.
        tokenizer: gives the ids of the example that is traced.
        folder: exists.

    Raises:
        UserError: a model that cannot be traced, or a torch that traces a recurrence for one length alone.
    """
    for name, program in programs(model, tokenizer).items():
        with quiet():
            torch.export.save(program, folder / FILES[name])


def programs(model: SequenceVAE, tokenizer: Tokenizer) -> dict[str, torch.export.ExportedProgram]:
    """Returns encoder, start and step as exported programs; any number of sentences, of any length.

    Raises:
        UserError: as `write`.
    """
    try:
        # torch would unroll a recurrence over the example's words; written as a loop it takes any number of them.
        from torch.export._patches import (
            register_gru_while_loop_decomposition,
            register_lstm_while_loop_decomposition,
        )
    except ImportError as error:
        raise UserError(
            f"export: torch {torch.__version__} exports a recurrence for sentences of one length alone; "
            "torch 2.13 does for all, and --format onnx needs no newer one"
        ) from error
    model = graphs.separate(model)
    z = torch.zeros(ROWS, model.latent_dim)
    tokens = torch.full((ROWS, WORDS + 1), tokenizer.eos_id)
    lengths = torch.full((ROWS,), WORDS)
    state = tuple(model.start(z))
    batch, states = {0: DYNAMIC}, tuple({1: DYNAMIC} for _ in state)
    encoder = graphs.Encoder(graphs.separate(model))
    with torch.no_grad():
        # What a distribution computes once and keeps must be numbers by now: within a trace it would have no value.
        encoder(tokens, lengths)
    with register_gru_while_loop_decomposition(), register_lstm_while_loop_decomposition():
        exported = {"encoder": _export(encoder, (tokens, lengths), ({0: DYNAMIC, 1: DYNAMIC}, batch))}
    exported["start"] = _export(graphs.Start(model), (z,), (batch,))
    exported["step"] = _export(graphs.Step(model), (tokens[:, 0], z, *state), (batch, batch, states))
    return exported


def _export(module: torch.nn.Module, args: tuple[Any, ...], shapes: tuple[Any, ...]) -> torch.export.ExportedProgram:
    try:
        with quiet(), warnings.catch_warnings():
            return torch.export.export(module.eval(), args, dynamic_shapes=shapes)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"export: torch cannot export this model's {type(module).__name__} ({reason})") from error
