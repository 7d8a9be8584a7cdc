"""OpenVINO models of graphs that others have made: optimum-intel's IR, and ONNX.

Inputs and outputs are chosen by name. The result has the inputs and outputs of the models that Vecmill builds itself:
token types, which are 0, and position ids become part of the graph.
"""

import reprlib
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.models.head import make_model
from workers.models.json_files import REMEDY, ModelError, get_last_line, summarize_error
from workers.models.layout import PaddedLayout, make_integer, make_integers
from workers.models.modules import Modules, Normalize

#: Output with one vector for each text, and outputs with one for each token, in the order of preference.
_SENTENCE = "sentence_embedding"
_TOKENS = ("last_hidden_state", "token_embeddings")
_EXPORT = "export it again with: optimum-cli export openvino --task feature-extraction"


def build_model(path: Path, modules: Modules, *, repool: bool) -> ov.Model:
    """Return the model of a graph, with the modules unless the graph has them.

    A graph with the output `sentence_embedding` has them. If `repool`, this output is ignored and the modules apply to
    the output for tokens, as in OVMS. Raise `ModelError` if the graph is damaged or no embedding model.
    """
    graph = _read_graph(path)
    layout = PaddedLayout()
    _replace_inputs(path, graph, layout)
    output, is_sentence = _choose_output(path, graph, repool=repool)
    hidden = op.convert(output.get_node().input_value(0), "f32")
    if is_sentence:
        steps = (Normalize(),) if modules.is_normalized else ()
        modules = Modules(base=modules.base, steps=steps, truncate_dim=modules.truncate_dim)
    model = make_model(hidden, layout, modules, path.stem)
    if model.output(0).get_partial_shape()[1].is_dynamic:
        raise ModelError(f"{path}: the size of a vector is not in the graph; {_EXPORT}")
    return model


def find_vocabulary_size(model: ov.Model) -> int | None:
    """Return the number of rows of the table that the token ids select from, or None if there is no such table."""
    pending = [port.get_node() for port in model.input("input_ids").get_target_inputs()]
    while pending:
        node = pending.pop()
        kind = node.get_type_name()
        if kind == "Gather":
            rows = node.input_value(0).get_partial_shape()[0]
            if rows.is_static:
                return int(rows.get_length())
        if kind in ("Convert", "Reshape", "Unsqueeze", "Squeeze"):
            pending += [port.get_node() for port in node.output(0).get_target_inputs()]
    return None


def _read_graph(path: Path) -> ov.Model:
    """Return the graph of a file. Raise `ModelError` if it is damaged, or holds the state of a text generator."""
    try:
        graph = ov.Core().read_model(path)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO could not read {path}: {summarize_error(get_last_line(error))}; {REMEDY}") from None
    names = {name for port in graph.inputs for name in port.names}
    if graph.get_sinks() or any(name == "beam_idx" or name.startswith("past_key") for name in names):
        raise ModelError(f"{path} generates text and keeps a state between calls (beam_idx, past keys); {_EXPORT}")
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Constant" and not _is_valid(node):
            name = reprlib.repr(node.get_friendly_name())
            raise ModelError(f"{path}: the weights {name} have values that are not numbers; {REMEDY}")
    return graph


def _is_valid(constant: Any) -> bool:
    """Return whether the values of a constant are numbers. Infinity is one: masks have it."""
    if constant.get_element_type() not in (ov.Type.f16, ov.Type.f32, ov.Type.f64):
        return True
    return not np.isnan(constant.data).any()


def _replace_inputs(path: Path, graph: ov.Model, layout: PaddedLayout) -> None:
    """Connect what reads the graph's inputs to those of the layout."""
    ids, attended = layout.inputs
    provided = {
        "input_ids": ids,
        "attention_mask": attended,
        "token_type_ids": op.multiply(ids, make_integer(0)),
        "position_ids": _count_positions(attended),
    }
    found = {_find_name(port, provided): port for port in graph.inputs}
    for name, port in found.items():
        if name not in provided:
            raise ModelError(f"{path} needs the input {reprlib.repr(name)}, which no text has; {_EXPORT}")
        shape = port.get_partial_shape()
        if shape.rank.is_static and (len(shape) != 2 or any(size.is_static for size in shape)):
            raise ModelError(f"{path}: {name} has the shape {shape}, but must have any two sizes; {_EXPORT}")
        source = provided[name]
        if port.get_element_type() != ov.Type.i64:
            source = op.convert(source, port.get_element_type().get_type_name())
        for target in port.get_target_inputs():
            target.replace_source_output(source.output(0))
    if "input_ids" not in found:
        raise ModelError(f"{path} has no input input_ids but {', '.join(found) or 'none'}; {_EXPORT}")


def _count_positions(attended: Any) -> Any:
    """Return position ids: the number of tokens before each token, at least 0."""
    counted = op.cum_sum(attended, op.constant(np.int64(1)))
    return op.maximum(op.subtract(counted, make_integers(1)), make_integers(0))


def _choose_output(path: Path, graph: ov.Model, *, repool: bool) -> tuple[Any, bool]:
    """Return an output, and whether it has one vector for each text. Raise `ModelError` if no output is suitable."""
    named = {name: port for port in graph.outputs for name in port.names}
    if _SENTENCE in named and not repool:
        return _check_rank(path, _SENTENCE, named[_SENTENCE], 2), True
    for name in _TOKENS:
        if name in named:
            return _check_rank(path, name, named[name], 3), False
    others = [port for port in graph.outputs if _get_rank(port) == 3 and "logits" not in port.names]
    if len(others) == 1:
        return others[0], False
    if _SENTENCE in named:
        raise ModelError(
            f"{path} has only {_SENTENCE}, so its pooling cannot be replaced; export the model without pooling, "
            "or remove the setting that replaces it (pooling, or include_prompt of 1_Pooling)"
        )
    found = ", ".join(sorted(named)) or "without names"
    raise ModelError(f"{path} has the outputs {found}, but none of {', '.join((_SENTENCE, *_TOKENS))}; {_EXPORT}")


def _check_rank(path: Path, name: str, port: Any, rank: int) -> Any:
    if _get_rank(port) != rank:
        raise ModelError(
            f"{path}: {name} has the shape {port.get_partial_shape()}, but must have {rank} sizes; {_EXPORT}"
        )
    return port


def _get_rank(port: Any) -> int | None:
    rank = port.get_partial_shape().rank
    return None if rank.is_dynamic else int(rank.get_length())


def _find_name(port: Any, wanted: Container[str]) -> str:
    """Return the wanted name of an input that has several, or any of its names."""
    names: list[str] = sorted(port.names) or [port.get_node().get_friendly_name()]
    return next((name for name in names if name in wanted), names[0])
