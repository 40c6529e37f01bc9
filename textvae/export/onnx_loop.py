"""Greedy decoding as one ONNX model: the decoder's step within ONNX's operator Loop."""

from __future__ import annotations

from typing import Any

import numpy as np

from textvae.recipe import Generation
from textvae.types import Tokenizer


def loop(start: Any, step: Any, tokenizer: Tokenizer, settings: Generation) -> Any:
    """Returns z (B, D) and max_length () to ids (B, T), <pad> after </s>, as one ONNX model.

    The state goes round the loop with the last words and which sentences are over; z is read from without. It ends
    when the last sentence does, or after max_length words.

    Args:
        start: the model z -> state.
        step: the model word, z, state -> logits, state.
        tokenizer: gives the special tokens.
        settings: `ban_unk`, and `max_length` where the graph is given no other.
    """
    from onnx import TensorProto, compose

    # Names of the two graphs must differ: the inner one sees the outer one's.
    start, step = compose.add_prefix(start, "start/"), compose.add_prefix(step, "step/")
    states = state_names(len(start.graph.output))
    carried = ["first_words", "none_finished", *(f"start/{name}" for name in states)]
    nodes = [
        _node("Shape", ["z"], ["rows"], start=0, end=1),
        _node("Expand", ["bos", "rows"], ["first_words"]),
        _node("Expand", ["false", "rows"], ["none_finished"]),
        _node("Identity", ["z"], ["start/z"]),
        *start.graph.node,
        _node(
            "Loop",
            ["max_length", "", *carried],
            [*(f"{name}/end" for name in carried), "by_step"],
            body=_word(start, step, states),
        ),
        _node("Transpose", ["by_step"], ["ids"], perm=[1, 0]),
    ]
    width = start.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    banned = np.zeros(len(tokenizer), np.float32)
    banned[banned_ids(tokenizer, settings)] = -np.inf
    constants = {
        "max_length": np.int64(settings.max_length),  # a value makes the input optional
        "banned": banned,
        "bos": np.int64(tokenizer.bos_id),
        "eos": np.int64(tokenizer.eos_id),
        "pad": np.int64(tokenizer.pad_id),
        "false": np.bool_(False),
    }
    return _model(
        nodes,
        [_value("z", TensorProto.FLOAT, ["batch", width]), _value("max_length", TensorProto.INT64, [])],
        [_value("ids", TensorProto.INT64, ["batch", "words"])],
        constants,
        (start, step),
    )


def state_names(number: int, suffix: str = "") -> list[str]:
    """Returns the names of a state's tensors in the graphs: state_0, state_1, or state_0_next, .."""
    return ["_".join(filter(None, ("state", str(i), suffix))) for i in range(number)]


def banned_ids(tokenizer: Tokenizer, settings: Generation) -> list[int]:
    """Returns the ids that are never written, as `textvae.generation.search` has them."""
    banned = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id if settings.ban_unk else None}
    return sorted(i for i in banned - {tokenizer.eos_id} if i is not None)


def _word(start: Any, step: Any, states: list[str]) -> Any:
    """The loop's body: iteration, go_on, words, finished, state -> go_on, words, finished, state, and what it wrote."""
    from onnx import TensorProto, helper

    logits, *after = step.graph.output
    given = {item.name: item for item in step.graph.input}
    nodes = [
        # A graph may have lost an input that changes nothing, as z where it enters by the state alone.
        *(_node("Identity", ["z"], [name]) for name in given if name == "step/z"),
        *step.graph.node,
        _node("Add", [logits.name, "banned"], ["allowed"]),
        _node("ArgMax", ["allowed"], ["likeliest"], axis=1, keepdims=0),
        _node("Where", ["finished", "pad", "likeliest"], ["word"]),
        _node("Equal", ["word", "eos"], ["ends"]),
        _node("Or", ["finished", "ends"], ["finished_next"]),
        _node("Not", ["finished_next"], ["open"]),
        _node("Cast", ["open"], ["open_as_number"], to=TensorProto.INT64),
        _node("ReduceMax", ["open_as_number"], ["any_open"], keepdims=0),
        _node("Cast", ["any_open"], ["go_on"], to=TensorProto.BOOL),
        _node("Identity", ["word"], ["written"]),
    ]
    inputs = [
        _value("iteration", TensorProto.INT64, []),
        _value("before", TensorProto.BOOL, []),
        given["step/word"],
        _value("finished", TensorProto.BOOL, ["batch"]),
        *(given[f"step/{name}"] for name in states),
    ]
    outputs = [
        _value("go_on", TensorProto.BOOL, []),
        _value("word", TensorProto.INT64, ["batch"]),
        _value("finished_next", TensorProto.BOOL, ["batch"]),
        *after,
        _value("written", TensorProto.INT64, ["batch"]),
    ]
    return helper.make_graph(nodes, "word", inputs, outputs, initializer=step.graph.initializer)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any], parts: Any) -> Any:
    from onnx import helper, numpy_helper

    start, step = parts
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "greedy", inputs, outputs, initializer=[*start.graph.initializer, *values])
    domains = {item.domain: item for item in (*start.opset_import, *step.opset_import)}
    functions = {(item.domain, item.name): item for item in (*start.functions, *step.functions)}
    return helper.make_model(
        graph,
        opset_imports=list(domains.values()),
        functions=list(functions.values()),
        ir_version=max(start.ir_version, step.ir_version),
        producer_name="textvae",
    )


def _node(kind: str, inputs: list[str], outputs: list[str], **options: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, **options)


def _value(name: str, dtype: int, shape: list[Any]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, dtype, shape)
