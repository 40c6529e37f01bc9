"""ONNX: the graphs of a model, greedy decoding with its loop inside one of them, and their int8 form."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from textvae.errors import MissingExtraError, UserError
from textvae.export import graphs
from textvae.export.onnx_loop import loop, state_names
from textvae.model import SequenceVAE
from textvae.recipe import Generation
from textvae.types import Tokenizer

DYNAMIC = torch.export.Dim.DYNAMIC
FILES = {"encoder": "encoder.onnx", "start": "decoder_start.onnx", "step": "decoder_step.onnx", "greedy": "greedy.onnx"}
ROWS, WORDS = 3, 5  # of the example that is traced; any but 0 and 1, which torch takes for constants


def traced(model: SequenceVAE, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the ONNX models (ModelProtos) encoder, start and step, float32.

    Args:
        model: has latents; it stays as it is.
        tokenizer: gives the ids of the example that is traced.

    Raises:
        MissingExtraError: without the extra `export`.
        UserError: a model that cannot be traced.
    """
    require()
    z = torch.zeros(ROWS, model.latent_dim)
    # Each part has other rows than the next: nothing ties their numbers together, and they come apart again.
    tokens = torch.full((ROWS + 1, WORDS + 1), tokenizer.eos_id)
    lengths = torch.full((ROWS + 1,), WORDS)
    with torch.no_grad():
        # What a distribution computes once and keeps must be numbers by now: within a trace it would have no value.
        graphs.Encoder(graphs.separate(model))(tokens, lengths)
    model = graphs.for_onnx(model)
    state = tuple(model.start(z))
    before, first, after = (state_names(len(state), suffix) for suffix in ("", "first", "next"))
    batch, states = {0: DYNAMIC}, tuple({1: DYNAMIC} for _ in state)
    # Traced once: most of the time goes into what torch sets up for a trace, whatever its size.
    whole = trace(
        graphs.Whole(model),
        (tokens, lengths, torch.zeros(ROWS + 2, model.latent_dim), z, z[:, 0].long(), *state),
        [{**batch, 1: DYNAMIC}, batch, batch, batch, batch, states],
        ["tokens", "lengths", "first", "z", "word", *before],
        ["mean", "scale", *first, "logits", *after],
    )
    start = part(whole, ["first"], first)
    rename(start, {"first": "z", **dict(zip(first, before))})
    return {
        "encoder": part(whole, ["tokens", "lengths"], ["mean", "scale"]),
        "start": start,
        "step": part(whole, ["word", "z", *before], ["logits", *after]),
    }


def part(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Returns the part of an ONNX model that makes some of its outputs from some of its inputs."""
    from onnx.utils import Extractor

    return Extractor(model).extract_model(list(inputs), list(outputs))


def rename(model: Any, names: Mapping[str, str]) -> None:
    """Gives inputs and outputs of an ONNX model other names, in place."""
    for node in model.graph.node:
        for place in (node.input, node.output):
            place[:] = [names.get(name, name) for name in place]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)


def write(
    models: Mapping[str, Any], tokenizer: Tokenizer, settings: Generation, folder: Path, *, int8: bool = False
) -> None:
    """Writes encoder.onnx, decoder_start.onnx, decoder_step.onnx and greedy.onnx into a folder.

    Args:
        models: from `traced`; they stay as they are.
        tokenizer: gives the special tokens of greedy decoding.
        settings: its `ban_unk`, and its `max_length`, which greedy.onnx takes where it is given no other.
        folder: exists.
        int8: weights of the matrix products, embeddings and LSTM encoders in int8, activations quantised as they
            come; what has no such form (ONNX's GRU operator) stays in float32.
    """
    import onnx

    found = dict(models)
    if int8:
        found |= {name: quantize(found[name]) for name in ("encoder", "step")}
    found["greedy"] = loop(found["start"], found["step"], tokenizer, settings)
    for name, graph in found.items():
        onnx.checker.check_model(graph)
        onnx.save(graph, folder / FILES[name])


def require() -> None:
    """Raises MissingExtraError where what the extra `export` brings is not installed."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(library)
        except ImportError as error:
            raise MissingExtraError(library, "export", "for ONNX") from error


def trace(
    module: nn.Module, args: tuple[Any, ...], shapes: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]
) -> Any:
    """Returns the ONNX model (a ModelProto) of a module.

    Args:
        module: what is traced.
        args: an example of its arguments.
        shapes: which of their dimensions may change, one entry a parameter.
        inputs: names of the arguments.
        outputs: names of the results.

    Raises:
        UserError: it cannot be traced.
    """
    try:
        with quiet():
            program = torch.onnx.export(
                module.eval(),
                args,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple(shapes),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UserError(f"export: this model has no form in ONNX ({reason})") from error
    return program.model_proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what tracing says of itself: its progress, and advice that is for torch's own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def quantize(model: Any) -> Any:
    """Returns an ONNX model with int8 weights, its activations quantised as they come.

    Weights have 7 bits of the 8: processors without VNNI instructions add two products in 16 bits, which overflow
    with more. So a model gives the same on every machine.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        try:
            root.setLevel(logging.ERROR)  # it advises a step of its own, on the root logger
            quantize_dynamic(model, path, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        finally:
            root.setLevel(level)
        import onnx

        return onnx.load(path)
