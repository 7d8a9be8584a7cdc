"""The thread that scans the configuration and loads models."""

import threading
from collections.abc import Sequence

import pytest

from tests.harness.fake_worker import FakeBackend, model
from tests.harness.processes import until
from workers.session.catalog import Version
from workers.session.loader import Loaded, Loader, LoadError, Scan


class Played:
    """Loader of which the test decides what the scans find."""

    def __init__(self, scans: Sequence[Scan | Exception], poll_s: float = 0.0) -> None:
        self._scans = list(scans)
        self.scanned = 0
        self.woken = threading.Event()
        self.loader = Loader(self.scan, self.load, poll_s, self.woken.set)
        self.loader.start(Scan({"m": 1}))

    def scan(self) -> Scan:
        self.scanned += 1
        found = self._scans[min(self.scanned, len(self._scans)) - 1]
        if isinstance(found, Exception):
            raise found
        return found

    def load(self, name: str, version: Version) -> Loaded:
        if version == "damaged":
            raise LoadError("the model is damaged")
        if version == "odd":
            raise ZeroDivisionError
        return Loaded(model(), FakeBackend())

    def take(self) -> Scan | str | Loaded:
        """Return the next result."""
        assert self.woken.wait(5)
        self.woken.clear()
        return self.loader.done.popleft()


def test_requested_scan_is_always_reported() -> None:
    played = Played([Scan({"m": 1}), LoadError("no such file")])
    played.loader.scan_now()
    assert played.take() == Scan({"m": 1}, requested=True)
    played.loader.scan_now()
    assert played.take() == Scan({}, failure="no such file", requested=True)


def test_polled_change_is_reported_once_it_has_settled() -> None:
    played = Played([Scan({"m": 1}), Scan({"m": 2}), Scan({"m": 3}), Scan({"m": 3})], poll_s=0.01)
    assert played.take() == Scan({"m": 3})
    seen = played.scanned
    until(lambda: played.scanned > seen + 3, what="more scans")
    assert not played.loader.done


def test_unexpected_error_of_a_scan_is_reported() -> None:
    failed = Scan({}, failure="could not read the configuration: ValueError: embedded null byte")
    played = Played([ValueError("embedded null byte")] * 3 + [Scan({"m": 2})], poll_s=0.01)
    assert played.take() == failed
    assert played.take() == Scan({"m": 2})


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("damaged", "the model is damaged"),
        ("odd", "could not load m: ZeroDivisionError; the log of the worker has the reason"),
    ],
)
def test_failed_load_is_reported_and_the_thread_goes_on(version: str, reason: str) -> None:
    played = Played([])
    played.loader.load_model("m", version)
    assert played.take() == reason
    played.loader.load_model("m", "good")
    loaded = played.take()
    assert isinstance(loaded, Loaded)
    assert loaded.info == model()
