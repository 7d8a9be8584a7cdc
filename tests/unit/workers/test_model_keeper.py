"""What a worker loads and answers while it serves; the thread of the loader does not run."""

import pytest

from broker.wire import protocol as wire
from tests.harness.fake_worker import FakeBackend, model
from workers.engine.pipeline import Pipeline
from workers.session.catalog import Catalog, Version
from workers.session.loader import Loaded, Loader, Scan
from workers.session.model_keeper import ModelKeeper
from workers.session.session import SLOTS, Session

HELLO = wire.WorkerHello(1, 1, "test", bytes(16), 1, "host", 1, "CPU", [], 1024, 1000, 0)


def load(name: str, version: Version) -> Loaded:
    return Loaded(model(), FakeBackend())


class Kept:
    """Keeper of no models, and the parts that it works on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loads: list[str] = []
        self.catalog, self.session = Catalog(), Session(HELLO, SLOTS)
        self.loader = Loader(lambda: Scan({}), load, 0.0, lambda: None)
        monkeypatch.setattr(self.loader, "load_model", lambda name, version: self.loads.append(name))
        self.keeper = ModelKeeper(self.catalog, self.loader, self.session, Pipeline(lambda: None), 0.0)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    return Kept(monkeypatch)


def test_draining_worker_loads_no_model(kept: Kept) -> None:
    kept.session.drain()
    kept.loader.done.append(Scan({"m": 1}))
    kept.keeper.run(0.0)
    assert kept.loads == []


def test_failure_of_a_reload_can_be_sent(kept: Kept) -> None:
    kept.keeper.handle(wire.Reload(7), 0.0)
    kept.loader.done.append(Scan({}, failure="\udcff" + "x" * 5000, requested=True))
    (reloaded,) = kept.keeper.run(0.0)
    assert reloaded == wire.Reloaded(7, changed=False, failure="\ufffd" + "x" * 4095)
    wire.encode(reloaded)
