"""Graphs that others have exported: optimum-intel's IR and ONNX."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op
import pytest

from tests.harness.data import DATA
from tests.harness.families import pad_texts, read_golden
from tests.harness.graphs import (
    add_sentence,
    build_graph,
    encode_onnx,
    look_up,
    make_graph,
    make_input,
    save_graph,
)
from tests.unit.workers.test_model_folder import write_folder
from workers.models.imported import build_model, find_vocabulary_size
from workers.models.json_files import ModelError
from workers.models.modules import Modules, Normalize, Pooling
from workers.models.precision import WeightFormat, compress_weights

TEXTS = [np.array(ids) for ids in ([2, 5, 6, 7, 8, 3], [2, 9, 3], [2])]
TABLE = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny")


def run(model: ov.Model, texts: Sequence[Any] = TEXTS) -> list[Any]:
    """Return the outputs of a model."""
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ids, mask = pad_texts(texts)
    result = compiled({"input_ids": ids, "attention_mask": mask})
    return [result[port] for port in compiled.outputs]


def run_modules(path: Path, *steps: Any, repool: bool = False) -> list[Any]:
    return run(build_model(path, Modules(base=path.parent, steps=steps), repool=repool))


def get_states(source: Path, texts: Sequence[Any] = TEXTS) -> list[Any]:
    """Return the hidden states of each text, computed alone."""
    return [run(build_graph(source), [text])[0][0] for text in texts]


def get_error(path: Path, *, repool: bool = False) -> str:
    with pytest.raises(ModelError) as error:
        build_model(path, Modules(base=path.parent, steps=(Pooling(("mean",)),)), repool=repool)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_modules_follow_the_hidden_states(folder: Path) -> None:
    path = save_graph(build_graph(folder), folder / "openvino_model.xml")
    vectors, divisors = run_modules(path, Pooling(("mean",)), Normalize())
    means = np.array([states.mean(0) for states in get_states(folder)])
    np.testing.assert_allclose(vectors * divisors, means, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_sentence_embedding_is_used_as_it_is(folder: Path) -> None:
    path = save_graph(build_graph(folder, add_sentence), folder / "openvino_model.xml")
    (vectors,) = run_modules(path, Pooling(("cls",)))
    np.testing.assert_allclose(vectors, [states.sum(0) for states in get_states(folder)], atol=1e-5)


def test_sentence_embedding_is_normalized_if_the_modules_say_so(folder: Path) -> None:
    path = save_graph(build_graph(folder, add_sentence), folder / "openvino_model.xml")
    vectors, divisors = run_modules(path, Pooling(("cls",)), Normalize())
    np.testing.assert_allclose(vectors * divisors, [states.sum(0) for states in get_states(folder)], atol=1e-5)


def test_configured_pooling_replaces_the_graphs_own(folder: Path) -> None:
    path = save_graph(build_graph(folder, add_sentence), folder / "openvino_model.xml")
    (vectors,) = run_modules(path, Pooling(("cls",)), repool=True)
    np.testing.assert_allclose(vectors, [states[0] for states in get_states(folder)], atol=1e-6)


def test_position_ids_count_the_attended_tokens(folder: Path) -> None:
    positions = np.random.default_rng(1).normal(size=(12, 16))
    given = make_input("position_ids")
    graph = build_graph(
        folder, lambda states, _: {"last_hidden_state": op.add(states, look_up(positions, given))}, [given]
    )
    (vectors,) = run_modules(save_graph(graph, folder / "m.xml"), Pooling(("lasttoken",)))
    expected = [states[-1] + positions[len(states) - 1] for states in get_states(folder)]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_token_types_are_zero(folder: Path, kind: Any) -> None:
    types = np.random.default_rng(2).normal(size=(2, 16))
    given = make_input("token_type_ids", kind=kind)
    graph = build_graph(folder, lambda states, _: {"last_hidden_state": op.add(states, look_up(types, given))}, [given])
    (vectors,) = run_modules(save_graph(graph, folder / "m.xml"), Pooling(("cls",)))
    np.testing.assert_allclose(vectors, [states[0] + types[0] for states in get_states(folder)], atol=1e-5)


def test_hidden_states_are_chosen_by_name(folder: Path) -> None:
    def choose(states: Any, _: Any) -> dict[str, Any]:
        return {"attentions": op.multiply(states, op.constant(np.float32(2))), "last_hidden_state": states}

    path = save_graph(build_graph(folder, choose), folder / "m.xml")
    (vectors,) = run_modules(path, Pooling(("cls",)))
    np.testing.assert_allclose(vectors, [states[0] for states in get_states(folder)], atol=1e-6)


def test_single_output_for_tokens_needs_no_name(folder: Path) -> None:
    graph = build_graph(
        folder, lambda states, _: {"hidden": states, "pooler_output": op.reduce_sum(states, np.array([1]))}
    )
    (vectors,) = run_modules(save_graph(graph, folder / "m.xml"), Pooling(("cls",)))
    np.testing.assert_allclose(vectors, [states[0] for states in get_states(folder)], atol=1e-6)


@pytest.mark.parametrize(("name", "tolerance"), [("fp16", 2e-3), ("int8", 5e-2), ("int4", 2)])
def test_quantized_graph_is_served(folder: Path, name: str, tolerance: float) -> None:
    graph = build_graph(folder)
    compress_weights(graph, WeightFormat(name=name, group_size=-1))
    model = build_model(
        save_graph(graph, folder / "m.xml"), Modules(base=folder, steps=(Pooling(("cls",)),)), repool=False
    )
    np.testing.assert_allclose(run(model)[0], [states[0] for states in get_states(folder)], atol=tolerance)
    assert find_vocabulary_size(model) == 64


def test_half_precision_output_becomes_float32(folder: Path) -> None:
    graph = build_graph(folder, lambda states, _: {"last_hidden_state": op.convert(states, "f16")})
    (vectors,) = run_modules(save_graph(graph, folder / "m.xml"), Pooling(("cls",)))
    assert vectors.dtype == np.float32


def test_infinity_in_a_mask_is_accepted(folder: Path) -> None:
    limit = op.constant(np.float32(np.inf))
    graph = build_graph(folder, lambda states, _: {"last_hidden_state": op.minimum(states, limit)})
    assert len(run_modules(save_graph(graph, folder / "m.xml"), Pooling(("cls",)))) == 1


def make_plain(outputs: Sequence[str], inputs: Sequence[Any] = (), table: Any = TABLE) -> ov.Model:
    """Return a graph that only looks ids up."""
    ids = make_input("input_ids")
    states = look_up(table, ids)
    return make_graph(
        {name: op.add(states, op.constant(np.float32(number))) for number, name in enumerate(outputs)},
        [ids, *inputs, make_input("attention_mask")],
    )


def test_graph_of_a_text_generator_is_refused(tmp_path: Path) -> None:
    graph = make_plain(["last_hidden_state"], [make_input("beam_idx", (-1,), np.int32)])
    error = get_error(save_graph(graph, tmp_path / "m.xml"))
    assert error == (
        f"{tmp_path}/m.xml generates text and keeps a state between calls (beam_idx, past keys); export it again with: "
        "optimum-cli export openvino --task feature-extraction"
    )


def test_graph_with_a_state_is_refused(tmp_path: Path) -> None:
    ids, mask = make_input("input_ids"), make_input("attention_mask")
    states = look_up(TABLE, ids)
    kept = op.read_value(states, "kept")
    graph = ov.Model([op.result(op.add(states, kept))], [op.assign(kept, "kept")], [ids, mask], "stateful")
    assert "generates text and keeps a state" in get_error(save_graph(graph, tmp_path / "m.xml"))


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        (["logits"], "has the outputs logits, but none of sentence_embedding, last_hidden_state, token_embeddings"),
        (["a", "b"], "has the outputs a, b, but none of"),
        (["sentence_embedding"], "sentence_embedding has the shape [?,?,8], but must have 2 sizes"),
    ],
)
def test_graph_without_a_suitable_output_is_refused(tmp_path: Path, outputs: list[str], reason: str) -> None:
    assert reason in get_error(save_graph(make_plain(outputs), tmp_path / "m.xml"))


def test_pooling_of_a_graph_without_tokens_cannot_be_replaced(folder: Path) -> None:
    def choose(states: Any, layout: Any) -> dict[str, Any]:
        return {"sentence_embedding": add_sentence(states, layout)["sentence_embedding"]}

    path = save_graph(build_graph(folder, choose), folder / "m.xml")
    assert "has only sentence_embedding, so its pooling cannot be replaced" in get_error(path, repool=True)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (make_input("pixel_values", (-1, 3)), "needs the input 'pixel_values', which no text has"),
        (make_input("token_type_ids", (1, 128)), "token_type_ids has the shape [1,128], but must have any two sizes"),
        (make_input("position_ids", (-1,)), "position_ids has the shape [?], but must have any two sizes"),
    ],
)
def test_unsuitable_input_is_refused(tmp_path: Path, given: Any, reason: str) -> None:
    assert reason in get_error(save_graph(make_plain(["last_hidden_state"], [given]), tmp_path / "m.xml"))


def test_graph_without_ids_is_refused(tmp_path: Path) -> None:
    mask = make_input("attention_mask")
    graph = make_graph({"last_hidden_state": look_up(TABLE, mask)}, [mask])
    assert "has no input input_ids but attention_mask" in get_error(save_graph(graph, tmp_path / "m.xml"))


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    table = TABLE.copy()
    table[3, 4] = np.nan
    graph = make_plain(["last_hidden_state"], table=table)
    assert "have values that are not numbers" in get_error(save_graph(graph, tmp_path / "m.xml"))


@pytest.mark.parametrize("keep", [0.5, 0.9])
@pytest.mark.parametrize("name", ["m.xml", "m.bin"])
def test_truncated_graph_is_refused(folder: Path, name: str, keep: float) -> None:
    path = save_graph(build_graph(folder), folder / "m.xml")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * keep)])
    assert get_error(path).startswith(f"OpenVINO could not read {path}: ")


def test_onnx_of_torch_equals_transformers(tmp_path: Path) -> None:
    golden = read_golden("bert")
    path = tmp_path / "model.onnx"
    shutil.copy(DATA / "imported" / "bert.onnx", path)
    model = build_model(path, Modules(base=tmp_path, steps=(Pooling(("mean",)),)), repool=False)
    assert find_vocabulary_size(model) == 200
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ids, mask = pad_texts(golden.texts)
    vectors = compiled({"input_ids": ids, "attention_mask": mask})[0]
    means = np.array([states[-1] for states in golden.states])
    np.testing.assert_allclose(vectors, means, atol=1e-5)


def test_weights_next_to_an_onnx_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(encode_onnx(TABLE, "model.onnx_data"))
    (tmp_path / "model.onnx_data").write_bytes(TABLE.tobytes())
    (vectors,) = run_modules(tmp_path / "model.onnx", Pooling(("cls",)))
    np.testing.assert_allclose(vectors, [TABLE[ids[0]] for ids in TEXTS])


def test_openvino_reads_no_weights_outside_the_folder(tmp_path: Path) -> None:
    # Vecmill refuses such a file before; this shows that OpenVINO would not read it either.
    (tmp_path / "secret").write_bytes(TABLE.tobytes())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(encode_onnx(TABLE, "../secret"))
    assert "OpenVINO could not read" in get_error(tmp_path / "model" / "model.onnx")


def test_unknown_operation_is_named(tmp_path: Path) -> None:
    content = encode_onnx(TABLE).replace(b"Gather", b"Gothar")
    (tmp_path / "model.onnx").write_bytes(content)
    assert "Gothar" in get_error(tmp_path / "model.onnx")
