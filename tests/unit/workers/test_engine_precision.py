"""What a model is computed in, on devices that this host has and on others, and the probe of `auto`."""

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from tests.unit.workers.test_golden_sentences import SENTENCES
from tests.unit.workers.test_model_folder import write_folder
from workers.engine import precision as module
from workers.engine import verdicts
from workers.engine.device import DeviceError, DeviceFloats, can_round, list_members, read_floats
from workers.engine.engine import Engine
from workers.engine.precision import LEAST_COSINE, Choice, choose_float, compute_least_cosine, find_hint, load_engine
from workers.engine.verdicts import find_verdict, store_verdict
from workers.models.prepare import PreparedModel, prepare_model
from workers.models.source import INT8_GROUP, Overrides, Precision

OLD_CPU = DeviceFloats("old", "f32")
CPU = DeviceFloats("new", "bf16", frozenset({"f32", "bf16"}))
#: A CPU that only emulates bfloat16.
SLOW_CPU = DeviceFloats("slow", "f32", frozenset({"f32", "bf16"}))
GPU = DeviceFloats("gpu", "f16", frozenset({"f32", "f16"}))
ACCURATE = {"EXECUTION_MODE_HINT": "ACCURACY"}
HINT = {"INFERENCE_PRECISION_HINT": "bf16"}


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedModel:
    return prepare_model(write_folder(tmp_path / "tiny"), tmp_path / "cache", print)


def find_float(engine: Engine) -> str:
    return str(engine._compiled.get_property("INFERENCE_PRECISION_HINT").to_string())


# --- choice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "device", "floats", "given", "expected"),
    [
        ("auto", "CPU", [OLD_CPU], {}, Choice("f32")),
        ("auto", "CPU", [SLOW_CPU], {}, Choice("f32")),
        ("auto", "CPU", [CPU], {}, Choice("bf16", must_probe=True)),
        ("auto", "GPU", [GPU], {}, Choice("f16", must_probe=True)),
        ("auto", "AUTO:GPU", [GPU], {}, Choice("f16", must_probe=True)),
        ("auto", "AUTO:GPU,CPU", [GPU, CPU], {}, Choice("f32")),
        ("auto", "AUTO:GPU.0,GPU.1", [GPU, GPU], {}, Choice("f16", must_probe=True)),
        ("f32", "GPU", [GPU], {}, Choice("f32")),
        ("bf16", "CPU", [CPU], {}, Choice("bf16")),
        ("bf16", "CPU", [SLOW_CPU], {}, Choice("bf16")),
        ("f16", "GPU", [GPU], {}, Choice("f16")),
        ("int8", "CPU", [CPU], {}, Choice("bf16")),
        ("int8", "CPU", [OLD_CPU], {}, Choice("f32")),
        ("auto", "CPU", [CPU], {"INFERENCE_PRECISION_HINT": "FLOAT32"}, Choice("f32")),
        ("auto", "CPU", [OLD_CPU], {"INFERENCE_PRECISION_HINT": "bf16"}, Choice("bf16")),
        ("int8", "CPU", [CPU], {"INFERENCE_PRECISION_HINT": "f32"}, Choice("f32")),
        ("bf16", "CPU", [CPU], {"INFERENCE_PRECISION_HINT": "BF16"}, Choice("bf16")),
        ("auto", "CPU", [CPU], ACCURATE, Choice("f32")),
        ("auto", "NPU", [GPU], {}, Choice("f16")),
        ("int8", "NPU", [GPU], {}, Choice("f16")),
    ],
)
def test_precision_fits_the_device(
    wanted: Precision, device: str, floats: list[DeviceFloats], given: dict[str, Any], expected: Choice
) -> None:
    assert choose_float(wanted, device, floats, given, needs_float32=False) == expected


@pytest.mark.parametrize(
    ("wanted", "device", "floats", "given", "reason"),
    [
        ("bf16", "CPU", [OLD_CPU], {}, "device CPU does not compute in bf16; set --precision auto or f32"),
        ("f16", "CPU", [CPU], {}, "device CPU does not compute in f16; set --precision auto or f32"),
        ("bf16", "AUTO:GPU,CPU", [GPU, CPU], {}, "device AUTO:GPU,CPU does not compute in bf16; "),
        ("f32", "NPU", [GPU], {}, "device NPU computes in f16 only; set --precision auto or choose another device"),
        (
            "bf16",
            "CPU",
            [CPU],
            ACCURATE,
            "--precision bf16 contradicts the OpenVINO properties of the model, which ask",
        ),
        ("f32", "CPU", [CPU], {"INFERENCE_PRECISION_HINT": "bf16"}, "--precision f32 contradicts the OpenVINO prop"),
    ],
)
def test_impossible_precision_is_refused(
    wanted: Precision, device: str, floats: list[DeviceFloats], given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DeviceError) as caught:
        choose_float(wanted, device, floats, given, needs_float32=False)
    assert str(caught.value).startswith(reason)


def test_overflowing_model_gets_no_float16() -> None:
    for wanted in ("auto", "int8"):
        assert choose_float(wanted, "GPU", [GPU], {}, needs_float32=True) == Choice("f32")
    assert choose_float("auto", "CPU", [CPU], {}, needs_float32=True) == Choice("bf16", must_probe=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ""),
        ({"EXECUTION_MODE_HINT": "PERFORMANCE"}, ""),
        ({"EXECUTION_MODE_HINT": "accuracy"}, "f32"),
        ({"INFERENCE_PRECISION_HINT": "dynamic"}, "f32"),
        ({"INFERENCE_PRECISION_HINT": "f16", **ACCURATE}, "f16"),
    ],
)
def test_hint_of_properties_is_found(given: dict[str, Any], expected: str) -> None:
    assert find_hint(given) == expected


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("GPU.1", ["GPU.1"]),
        ("AUTO:GPU.1,CPU(2)", ["GPU.1", "CPU"]),
        ("HETERO:GPU.0,CPU", ["GPU.0", "CPU"]),
        ("AUTO", ["CPU", "GPU.0", "GPU.1"]),
        ("AUTO:-GPU", ["CPU"]),
        ("AUTO:-GPU.0", ["CPU", "GPU.1"]),
    ],
)
def test_modes_may_run_several_devices(device: str, expected: list[str]) -> None:
    assert list_members(device, ["CPU", "GPU.0", "GPU.1", "NPU"]) == expected


@pytest.mark.parametrize("device", ["CPU", "AUTO", "AUTO:CPU", "HETERO:CPU"])
def test_native_float_is_that_of_openvino(prepared: PreparedModel, device: str) -> None:
    (floats,) = read_floats(device)
    compiled = ov.Core().compile_model(prepared.model_path, "CPU", {})
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == floats.native
    assert {"f32", floats.native} <= floats.supported


def test_floats_of_an_npu_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.device.choose_device", lambda device, _: device)
    assert read_floats("NPU") == [DeviceFloats("NPU", "f16", frozenset({"f16"}))]


# --- probe -----------------------------------------------------------------------------------------------------------


def make_rows(*rows: list[float]) -> Any:
    return np.array(rows, np.float32)


@pytest.mark.parametrize(
    ("vectors", "expected", "cosine"),
    [
        (make_rows([1, 0], [3, 4]), make_rows([2, 0], [3, 4]), 1),
        (make_rows([1, 0], [0, 1]), make_rows([1, 0], [3, 4]), 0.8),
        (make_rows([1, 0], [0, 0]), make_rows([1, 0], [0, 0]), 1),
        (make_rows([1, 0], [0, 0]), make_rows([1, 0], [0, 1]), -1),
        (make_rows([1, 0], [np.nan, 0]), make_rows([1, 0], [0, 0]), -1),
        (make_rows([np.inf, 0]), make_rows([1, 0]), -1),
        (make_rows([1, 0]), make_rows([np.nan, 0]), -1),
    ],
)
def test_least_cosine_shows_every_fault(vectors: Any, expected: Any, cosine: float) -> None:
    assert compute_least_cosine(vectors, expected) == pytest.approx(cosine)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[float]]:
    """Return a function that sets the result of the next probes, and returns the list of those that were done."""

    def set_result(cosine: float) -> list[float]:
        done: list[float] = []

        def compute(*vectors: Any) -> float:
            assert compute_least_cosine(*vectors) > 0.99
            done.append(cosine)
            return cosine

        monkeypatch.setattr(module, "compute_least_cosine", compute)
        monkeypatch.setattr(module, "read_floats", lambda device: [CPU])
        return done

    return set_result


def test_passed_probe_is_not_repeated(
    prepared: PreparedModel, tmp_path: Path, probe: Callable[[float], list[float]]
) -> None:
    done, cache = probe(LEAST_COSINE), tmp_path / "cache"
    for _ in range(2):
        engine, name = load_engine(prepared, "CPU", 1, cache, Overrides())
        assert (name, find_float(engine)) == ("bf16", find_float(Engine(prepared, "CPU", 1, cache, HINT)))
    assert len(done) == 1
    # The reference was not stored.
    assert len(list(cache.rglob("*.blob"))) == 1


def test_failed_probe_falls_back_to_float32(
    prepared: PreparedModel, tmp_path: Path, probe: Callable[[float], list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    done = probe(0.9998)
    for number in (1, 2):
        engine, name = load_engine(prepared, "CPU", 1, tmp_path / "cache", Overrides())
        assert (name, find_float(engine)) == ("f32", "f32")
        assert len(caplog.messages) == number
    assert len(done) == 1
    assert caplog.messages[0] == (
        "computing in f32, which is slower than bf16, because vectors in bf16 differ too much (least cosine 0.999800); "
        "set --precision bf16 to take them nevertheless, or f32 to end this warning"
    )


@pytest.mark.parametrize("error", [DeviceError("no room"), RuntimeError("a.cpp:1:\nno room"), MemoryError("no room")])
def test_probe_that_fails_gives_float32(
    prepared: PreparedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    alive: list[weakref.ref[Engine]] = []

    def load(*arguments: Any) -> Engine:
        # The engine in the native float was freed before.
        assert not [engine for engine in alive if engine() is not None]
        alive.append(weakref.ref(engine := Engine(*arguments)))
        return engine

    def fail(*arguments: Any) -> Engine:
        # One that is kept would keep the engines in its traceback.
        raise type(error)(*error.args)

    monkeypatch.setattr(module, "_load_reference", fail)
    monkeypatch.setattr(module, "read_floats", lambda device: [CPU])
    monkeypatch.setattr(module, "Engine", load)
    engine, name = load_engine(prepared, "CPU", 1, tmp_path / "cache", Overrides())
    assert (name, find_float(engine), len(alive)) == ("f32", "f32", 2)
    assert caplog.messages == [
        "computing in f32, which is slower than bf16, because vectors in bf16 could not be compared: no room; "
        "set --precision bf16 to take them nevertheless, or f32 to end this warning"
    ]
    assert not list(tmp_path.rglob("probes.json"))


def test_stored_failure_compiles_only_float32(
    prepared: PreparedModel, tmp_path: Path, probe: Callable[[float], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe(0.5)
    load_engine(prepared, "CPU", 1, tmp_path / "cache", Overrides())
    compiled = []

    def load(*arguments: Any) -> Engine:
        compiled.append(arguments[-1]["INFERENCE_PRECISION_HINT"])
        return Engine(*arguments)

    monkeypatch.setattr(module, "Engine", load)
    load_engine(prepared, "CPU", 1, tmp_path / "cache", Overrides())
    assert compiled == ["f32"]


def test_model_without_room_for_float32_is_served(
    prepared: PreparedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(*arguments: Any) -> Engine:
        if arguments[-1]["INFERENCE_PRECISION_HINT"] == "f32":
            raise DeviceError("device CPU could not compile the model: out of memory")
        return Engine(*arguments)

    monkeypatch.setattr(module, "Engine", load)
    monkeypatch.setattr(module, "read_floats", lambda device: [CPU])
    _, name = load_engine(prepared, "CPU", 1, tmp_path / "cache", Overrides())
    assert name == "bf16"
    assert caplog.messages == [
        "computing in bf16, not compared with f32: device CPU could not compile the model: out of memory"
    ]
    assert not list(tmp_path.rglob("probes.json"))


def test_probe_is_repeated_for_another_model(
    prepared: PreparedModel, tmp_path: Path, probe: Callable[[float], list[float]]
) -> None:
    done, cache = probe(1), tmp_path / "cache"
    load_engine(prepared, "CPU", 1, cache, Overrides())
    other = prepare_model(write_folder(tmp_path / "other", seed=1), cache, print)
    load_engine(other, "CPU", 1, cache, Overrides())
    assert len(done) == 2


def test_damaged_verdicts_are_replaced(tmp_path: Path) -> None:
    store_verdict(tmp_path, "one", 0.5)
    (path,) = tmp_path.rglob("probes.json")
    path.write_bytes(b'{"one": "high"}')
    assert find_verdict(tmp_path, "one") is None
    store_verdict(tmp_path, "two", 1)
    assert (find_verdict(tmp_path, "one"), find_verdict(tmp_path, "two")) == (None, 1)


def test_number_of_verdicts_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "MAX_RESULTS", 2)
    for key in ("a", "b", "a", "c"):
        store_verdict(tmp_path, key, 1)
    assert [find_verdict(tmp_path, key) for key in "abc"] == [1, None, 1]


# --- engines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["bf16", "f16"])
def test_explicit_float_is_used_or_refused(prepared: PreparedModel, tmp_path: Path, wanted: Precision) -> None:
    (floats,) = read_floats("CPU")
    overrides = Overrides(precision=wanted)
    if wanted in floats.supported:
        engine, name = load_engine(prepared, "CPU", 1, tmp_path / "cache", overrides)
        assert (name, find_float(engine)) == (wanted, wanted)
    else:
        with pytest.raises(DeviceError, match=f"device CPU does not compute in {wanted}; set --precision auto or f32"):
            load_engine(prepared, "CPU", 1, tmp_path / "cache", overrides)


def test_float_that_openvino_replaces_is_not_announced(
    prepared: PreparedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (floats,) = read_floats("CPU")
    for hint in {"bf16", "f16"} - floats.supported:
        caplog.clear()
        overrides = Overrides(properties={"INFERENCE_PRECISION_HINT": hint})
        engine, name = load_engine(prepared, "CPU", 1, tmp_path / "cache", overrides)
        assert name == find_float(engine) in floats.supported
        assert caplog.messages == [f"computing in {name}, because device CPU does not execute {hint}"]


def test_streams_beyond_the_cpus_are_logged(
    prepared: PreparedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, _ = load_engine(prepared, "CPU", 1000, tmp_path / "cache", Overrides(precision="f32"))
    text = f"running {engine.streams} streams instead of the 1000 of --streams, because device CPU runs no more"
    assert caplog.messages == [f"{text} at a time"]


@pytest.mark.parametrize("device", ["CPU", "AUTO", "HETERO:CPU"])
@pytest.mark.parametrize("wanted", ["auto", "f32", "int8"])
def test_vectors_agree_in_every_precision(tmp_path: Path, device: str, wanted: Precision) -> None:
    folder, cache, overrides = write_folder(tmp_path / "tiny"), tmp_path / "cache", Overrides(precision=wanted)
    engine, name = load_engine(prepare_model(folder, cache, print, overrides), device, 1, cache, overrides)
    assert name == wanted or (wanted == "auto" and name in ("bf16", "f32"))
    reference = Engine(prepare_model(folder, cache, print), "CPU", 1, cache)
    texts = ["a", "hello world", "hello " * 10]
    ids = engine.tokenize_texts(texts)
    vectors, expected = engine.run_inference(0, ids).copy(), reference.run_inference(0, ids).copy()
    assert compute_least_cosine(vectors, expected) >= {"f32": 0.999999, "int8": 0.999}.get(name, LEAST_COSINE)
    # Alone and in a crowd.
    for row, text_ids in enumerate(ids):
        assert compute_least_cosine(engine.run_inference(0, [text_ids]), expected[row : row + 1]) > 0.999


def test_int8_has_its_own_revision(tmp_path: Path) -> None:
    folder, cache = write_folder(tmp_path / "tiny"), tmp_path / "cache"
    revisions = {
        wanted: prepare_model(folder, cache, print, Overrides(precision=wanted)).revision
        for wanted in ("auto", "f32", "bf16", "f16", "int8")
    }
    assert len(set(revisions.values())) == 2
    assert revisions["int8"] != revisions["auto"] == revisions["f32"]


def test_int8_rounds_activations_in_its_group(tmp_path: Path) -> None:
    folder, cache, overrides = write_folder(tmp_path / "tiny"), tmp_path / "cache", Overrides(precision="int8")
    prepared = prepare_model(folder, cache, print, overrides)
    assert prepared.model_path.with_suffix(".bin").stat().st_size * 2 < (folder / "model.safetensors").stat().st_size
    for properties, expected in (({}, INT8_GROUP), ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}, "0")):
        engine, _ = load_engine(prepared, "CPU", 1, cache, Overrides(precision="int8", properties=properties))
        assert str(engine._compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == expected


@pytest.mark.parametrize("device", ["AUTO:CPU", "HETERO:CPU"])
def test_modes_round_in_the_same_group(tmp_path: Path, device: str) -> None:
    folder, cache, overrides = write_folder(tmp_path / "tiny"), tmp_path / "cache", Overrides(precision="int8")
    prepared = prepare_model(folder, cache, print, overrides)
    engines = [load_engine(prepared, name, 1, cache, overrides)[0] for name in ("CPU", device)]
    expected, vectors = (engine.run_inference(0, engine.tokenize_texts(["hello world"])).copy() for engine in engines)
    np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize("device", ["CPU", "GPU.1", "GPU(4)", "AUTO", "AUTO:GPU.1,CPU", "HETERO:GPU,CPU", "NPU"])
def test_only_an_npu_gets_no_group(device: str) -> None:
    assert can_round(device) == (device != "NPU")


def test_overflowing_model_is_served_in_int8(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SENTENCES / "embeddinggemma", tmp_path / "gemma"))
    overrides = Overrides(precision="int8")
    engine, name = load_engine(
        prepare_model(folder, tmp_path / "cache", print, overrides), "CPU", 1, tmp_path / "cache", overrides
    )
    assert name == "int8"
    assert np.isfinite(engine.run_inference(0, engine.tokenize_texts(["a", "some text"]))).all()
