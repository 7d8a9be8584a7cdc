"""The first model of a worker process, from its configuration to the service."""

import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import workers.engine.device
import workers.engine.precision
import workers.models.sources
from broker.wire.protocol import ModelInfo
from tests.harness.fake_worker import FakeBackend, model
from tests.unit.workers.test_model_folder import write_folder
from workers.__main__ import load_first, serve
from workers.config import Config
from workers.engine.engine import Engine
from workers.loading import load_model, scan_models
from workers.session.catalog import Catalog, Version
from workers.session.loader import Loaded, LoadError, Scan
from workers.session.service import Service


def test_memory_of_first_model_can_be_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "model")
    engines: list[weakref.ref[Engine]] = []
    alive: list[int] = []

    def load_engine(*arguments: object) -> Engine:
        engine = Engine(*arguments)  # type: ignore[arg-type]
        engines.append(weakref.ref(engine))
        return engine

    def run(service: Service) -> None:
        (info,) = service._keeper._catalog.list_models()
        gc.collect()
        alive.append(sum(engine() is not None for engine in engines))
        service._pipeline.remove_model(info.key)
        service._close_sockets()
        gc.collect()
        alive.append(sum(engine() is not None for engine in engines))

    monkeypatch.setattr(workers.engine.precision, "Engine", load_engine)
    monkeypatch.setattr(Service, "run", run)
    serve(Config(broker=f"ipc://{tmp_path}/broker", model=str(folder), cache=str(tmp_path / "cache")))
    # The engine that the probe compares with is gone, too.
    assert alive == [1, 0]


def test_revision_has_the_precision_if_mixes_are_forbidden(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")

    def load(**settings: Any) -> ModelInfo:
        config = Config(model=str(folder), model_name="m", cache=str(tmp_path / "cache"), **settings)
        return load_model(config, "m", scan_models(config).wanted["m"]).info

    plain, separate = load(precision="f32"), load(precision="f32", mix_floats=False)
    rounded = load(precision="int8", mix_floats=False)
    assert [info.precision for info in (plain, separate, rounded)] == ["f32", "f32", "int8"]
    assert len({plain.revision, separate.revision, rounded.revision}) == 3
    assert {len(info.revision) for info in (plain, separate)} == {32}
    assert load().revision == plain.revision


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"precision": "f16", "device": "CPU"}, "device CPU does not compute in f16"),
        ({"device": "QUANTUM"}, "device QUANTUM not found"),
        ({"precision": "f32", "plugin_config": '{"INFERENCE_PRECISION_HINT": "bf16"}'}, "--precision f32 contradicts"),
    ],
)
def test_refused_combination_is_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], reason: str
) -> None:
    folder = write_folder(tmp_path / "model")
    floats = workers.engine.device.DeviceFloats("cpu", "f32")
    if settings.get("device") != "QUANTUM":
        monkeypatch.setattr(workers.engine.precision, "read_floats", lambda _: [floats])
    config = Config(model=str(folder), model_name="m", cache=str(tmp_path / "cache"), **settings)
    with pytest.raises(LoadError, match=reason):
        load_model(config, "m", scan_models(config).wanted["m"])
    assert not (tmp_path / "cache" / "models").exists()


def test_unexpected_error_leaves_the_other_models(caplog: pytest.LogCaptureFixture) -> None:
    def load(name: str, version: Version) -> Loaded:
        if name == "odd":
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        return Loaded(msgspec.structs.replace(model(), name=name), FakeBackend())

    catalog = Catalog()
    assert load_first(catalog, Scan({"odd": 1, "good": 1}), load, lambda _: None).info.name == "good"
    reason = "could not load odd: UnicodeEncodeError; the log of the worker has the reason"
    assert catalog.list_failures() == [f"odd: {reason}"]
    with pytest.raises(LoadError, match="could not load odd"):
        load_first(Catalog(), Scan({"odd": 1}), load, lambda _: None)


def test_other_aliases_do_not_reload_a_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    plain = Config(model=str(folder), model_name="m", cache=str(tmp_path / "cache"))
    scan = scan_models(plain)
    assert scan_models(msgspec.structs.replace(plain, aliases="ada=m")) == scan


def test_alias_of_no_model_is_remarked(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    config = Config(model=str(folder), model_name="m", cache=str(tmp_path / "cache"), aliases="ada=m,bob=n")
    assert scan_models(config).remarks == ("the alias bob has no effect, because no model is named n; choose one of m",)


def test_download_is_no_remark_about_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path / "model")

    def find_folder(text: str, cache: Path, report: Callable[[str], None]) -> Path:
        report(f"fetching {text}")
        return folder

    monkeypatch.setattr(workers.models.sources, "find_folder", find_folder)
    caplog.set_level(logging.INFO)
    assert scan_models(Config(model="acme/tiny", cache=str(tmp_path / "cache"))).remarks == ()
    assert ("INFO", "fetching acme/tiny") in [(record.levelname, record.message) for record in caplog.records]
