"""Models that a worker is configured to serve, without threads."""

import pytest

from broker.wire.protocol import Availability, ModelInfo, ModelState
from workers.session.catalog import Catalog


def info(name: str = "m", revision: str = "r", *, unloaded: bool = False) -> ModelInfo:
    return ModelInfo(name, revision, 4, 100, unloaded=unloaded)


@pytest.fixture
def catalog() -> Catalog:
    """Return a catalog that serves version 1 of the model m since time 0."""
    catalog = Catalog()
    catalog.configure({"m": 1}, {})
    assert catalog.begin_load() == ("m", 1)
    assert catalog.end_load(info(), 0.0)
    return catalog


def test_models_are_loaded_one_after_another() -> None:
    catalog = Catalog()
    assert catalog.configure({"a": 1, "b": 1}, {"c": "refused"})
    assert catalog.begin_load() == ("a", 1)
    assert catalog.begin_load() is None
    assert catalog.list_states() == [
        ModelState("a", Availability.LOADING),
        ModelState("b", Availability.START),
        ModelState("c", Availability.FAILED, "refused"),
    ]
    assert catalog.end_load(info("a"), 0.0)
    assert catalog.begin_load() == ("b", 1)
    catalog.fail_load("broken")
    assert catalog.begin_load() is None
    assert catalog.list_models() == [info("a")]
    assert catalog.list_failures() == ["b: broken", "c: refused"]


def test_same_configuration_changes_nothing(catalog: Catalog) -> None:
    assert not catalog.configure({"m": 1}, {})
    assert catalog.begin_load() is None


def test_old_version_is_served_while_the_new_one_loads(catalog: Catalog) -> None:
    assert catalog.configure({"m": 2}, {})
    assert catalog.begin_load() == ("m", 2)
    assert catalog.list_models() == [info()]
    assert catalog.end_load(info(revision="s"), 0.0)
    assert catalog.list_models() == [info(revision="s")]
    assert catalog.list_states() == []


def test_damaged_version_leaves_the_old_one(catalog: Catalog) -> None:
    catalog.configure({"m": 2}, {})
    catalog.begin_load()
    catalog.fail_load("broken")
    assert catalog.list_models() == [info()]
    assert catalog.list_states() == [ModelState("m", Availability.FAILED, "broken")]
    assert not catalog.configure({"m": 2}, {})
    assert catalog.begin_load() is None
    # A reload tries again; so does a change.
    assert not catalog.configure({"m": 2}, {}, retry=True)
    assert catalog.begin_load() == ("m", 2)
    catalog.fail_load("broken")
    assert catalog.configure({"m": 3}, {})
    assert catalog.begin_load() == ("m", 3)


def test_refused_model_stays_as_it_was(catalog: Catalog) -> None:
    catalog.configure({}, {"m": "refused"})
    assert catalog.begin_load() is None
    assert catalog.list_models() == [info()]
    assert catalog.list_failures() == ["m: refused"]
    assert catalog.configure({"m": 1}, {})
    assert catalog.list_failures() == []


def test_removed_model_is_forgotten(catalog: Catalog) -> None:
    assert catalog.configure({}, {})
    assert catalog.list_models() == []
    assert catalog.release(info().key)


def test_version_that_changed_while_it_loaded_is_dropped(catalog: Catalog) -> None:
    catalog.configure({"m": 2, "n": 1}, {})
    catalog.begin_load()
    catalog.configure({"m": 3, "n": 1}, {})
    assert not catalog.end_load(info(revision="s"), 0.0)
    assert catalog.begin_load() == ("m", 3)
    catalog.configure({"m": 1}, {})
    assert not catalog.end_load(info(revision="t"), 0.0)
    assert catalog.begin_load() is None
    catalog.configure({"m": 1, "n": 1}, {})
    catalog.begin_load()
    catalog.configure({"m": 1}, {})
    catalog.fail_load("broken")
    assert catalog.list_failures() == []


def test_version_that_is_refused_while_it_loads_is_served(catalog: Catalog) -> None:
    catalog.configure({"m": 2}, {})
    catalog.begin_load()
    catalog.configure({}, {"m": "refused"})
    assert catalog.end_load(info(revision="s"), 0.0)


def test_end_without_a_load_raises(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match="no model is being loaded"):
        catalog.fail_load("broken")


def test_idle_model_is_unloaded_and_loaded_again(catalog: Catalog) -> None:
    assert catalog.next_idle_at(10) == 10
    catalog.unload_idle(9, 10, set())
    catalog.unload_idle(20, 10, {info().key})
    assert catalog.list_models() == [info()]
    catalog.use(info().key, 15)
    catalog.unload_idle(20, 10, set())
    assert catalog.list_models() == [info()]
    catalog.unload_idle(25, 10, set())
    assert catalog.list_models() == [info(unloaded=True)]
    assert catalog.next_idle_at(10) is None
    assert catalog.release(info().key)
    assert catalog.begin_load() is None
    catalog.demand(info().key, 30)
    assert catalog.begin_load() == ("m", 1)
    assert catalog.end_load(info(), 30)
    assert catalog.list_models() == [info()]
    assert catalog.begin_load() is None


@pytest.mark.parametrize("method", ["use", "demand"])
def test_model_in_memory_is_used_again(catalog: Catalog, method: str) -> None:
    catalog.unload_idle(10, 10, set())
    getattr(catalog, method)(info().key, 11)
    assert catalog.list_models() == [info()]
    assert not catalog.release(info().key)


def test_unloaded_model_that_cannot_be_loaded_is_not_announced(catalog: Catalog) -> None:
    catalog.unload_idle(10, 10, set())
    catalog.release(info().key)
    catalog.demand(info().key, 11)
    catalog.begin_load()
    catalog.fail_load("no memory")
    assert catalog.list_models() == []
    catalog.demand(info().key, 12)
    catalog.use(info().key, 12)
    assert catalog.begin_load() is None


@pytest.mark.parametrize(
    ("reason", "expected"), [("caf\udcc3\udca9", "caf\u00e9"), ("\udcff", "\ufffd"), ("\ud800", "?")]
)
def test_reasons_can_be_sent(reason: str, expected: str) -> None:
    catalog = Catalog()
    catalog.configure({"a": 1}, {"b": reason})
    catalog.begin_load()
    catalog.fail_load(reason)
    assert [state.text for state in catalog.list_states()] == [expected, expected]


def test_model_with_a_failed_new_version_stays_loaded(catalog: Catalog) -> None:
    catalog.configure({"m": 2}, {})
    catalog.begin_load()
    catalog.fail_load("broken")
    catalog.unload_idle(100, 10, set())
    assert catalog.list_models() == [info()]
    assert catalog.next_idle_at(10) is None


def test_model_that_cannot_be_loaded_is_withdrawn_on_demand(catalog: Catalog) -> None:
    catalog.unload_idle(100, 10, set())
    catalog.configure({"m": 2}, {})
    catalog.begin_load()
    catalog.fail_load("broken")
    assert catalog.release(info().key)
    catalog.demand(info().key, 101)
    assert catalog.begin_load() is None
    assert catalog.list_models() == []


def test_idle_time_starts_when_the_last_batch_ends(catalog: Catalog) -> None:
    catalog.unload_idle(20, 10, {info().key})
    catalog.unload_idle(21, 10, set())
    assert catalog.list_models() == [info()]
    catalog.unload_idle(30, 10, set())
    assert catalog.list_models() == [info(unloaded=True)]
