"""Models that workers announce: which revision new requests get, and when a worker frees or loads a model. Pure.

1. A name has one current revision, which new requests get. A request keeps its revision to its end, because vectors of
   two revisions must not mix in one answer.
2. Another revision becomes current when a worker announces it in place of the current one, when the name was removed or
   no connected worker has the current one, or when the current one has had no worker for the grace and a worker has the
   other. Any other revision is a stray: it gets no requests, and a worker without other models is refused.
3. A worker keeps a model that it no longer announces, or announces as unloaded, until the broker releases the model:
   at once if another worker keeps it in memory, else when no request for it is open any more.
4. If no worker has an old revision any more, its requests fail as `REPLACED`, and frontends submit them again.
5. A worker is sent a `Load` when requests wait for a model that no worker has in memory, or that has too few workers.
"""

from collections.abc import Iterable, Sequence

from broker.core.models import Model
from broker.core.pool import rank_by_leases
from broker.core.state import State
from broker.core.worker import Worker, WorkerModel
from broker.wire import protocol as wire
from broker.wire.protocol import ModelInfo, ModelKey

#: Seconds for which a worker keeps an old model at least, so that requests on their way to the broker find the model.
LINGER_S = 1.0
#: Another worker gets a request to load a model if its waiting jobs take longer than this, in seconds.
LOAD_WAIT_S = 2.0
#: Seconds after which a `Load` is sent again, or to another worker, if the model is not loaded.
LOAD_AGAIN_S = 60.0
#: Seconds after which a model is forgotten that no worker serves and no request waits for.
FORGET_S = 3600.0


def list_strays(state: State, infos: Sequence[ModelInfo]) -> list[ModelInfo]:
    """Return the models of a hello of an unknown revision, while other workers serve another one."""
    return [info for info in infos if info.key not in state.models and not _may_succeed(state, info.key)]


def announce_models(state: State, worker: Worker, infos: Sequence[ModelInfo], now: float) -> None:
    """Record the models of a worker that has connected, or that announces a change."""
    before = {key.name: key for key, model in worker.models.items() if model.listed}
    listed = {info.key for info in infos}
    for key in before.values():
        if key not in listed:
            _retire_model(state, worker, key, now)
    for info in infos:
        replaces = before.get(info.name, info.key) != info.key and before[info.name] == state.current[info.name]
        succeeds = info.name in state.removed or (info.key not in state.models and _may_succeed(state, info.key))
        worker.list_model(info, now)
        _record_model(state, info)
        if replaces or succeeds:
            _set_current(state, info.key)
    _update_removed(state, before.values(), infos)
    state.models_changed = True


def change_models(state: State, worker: Worker, message: wire.WorkerModels, now: float) -> None:
    """Record the models and states that a connected worker announces. A draining worker changes no models."""
    worker.announced, worker.states = message.number, message.states
    if worker.draining:
        return
    announce_models(state, worker, message.models, now)
    state.events.models_announced(worker)


def _may_succeed(state: State, key: ModelKey) -> bool:
    """Return whether a revision may become current without being announced as a replacement."""
    current = state.current.get(key.name)
    return current is None or key.name in state.removed or not state.pool.has_worker(current)


def _record_model(state: State, info: ModelInfo) -> None:
    current = state.current.get(info.name)
    model = state.models.get(info.key)
    if model is None:
        # A new revision has the same texts.
        model = Model(info, state.models[current].tokens_per_byte) if current else Model(info)
        state.models[info.key] = model
    model.info = info
    model.unserved_since = None


def _set_current(state: State, key: ModelKey) -> None:
    if state.current.get(key.name, key) != key:
        state.events.model_replaced(key.name)
    state.current[key.name] = key
    state.models_changed = True


def _update_removed(state: State, before: Iterable[ModelKey], infos: Sequence[ModelInfo]) -> None:
    """Record which names take no new requests: those that a worker no longer announces, and no other worker does."""
    state.removed -= {info.name for info in infos if state.current[info.name] == info.key}
    for key in before:
        if key == state.current[key.name] and state.pool.find_live_model(key) is None:
            state.removed.add(key.name)


def _retire_model(state: State, worker: Worker, key: ModelKey, now: float) -> None:
    model = worker.models[key]
    model.retire(now)
    if not model.loaded:
        _drop_model(state, worker, key, now)


def _drop_model(state: State, worker: Worker, key: ModelKey, now: float) -> None:
    del worker.models[key]
    if not state.pool.list_ready(key):
        state.models[key].unserved_since = now
        state.models_changed = True


# --- memory of workers -----------------------------------------------------------------------------------------------


def release_models(state: State, now: float) -> None:
    """Release the models that their workers want to free and that no request needs there."""
    for worker, key, model in _list_retired(state):
        if _is_free(state, key) or now >= _find_release_time(model):
            state.outbox.put(worker.peer, wire.Release(key.name, key.revision, worker.announced))
            model.loaded, model.retired_at = False, None
            if not model.listed:
                _drop_model(state, worker, key, now)


def _list_retired(state: State) -> list[tuple[Worker, ModelKey, WorkerModel]]:
    """Return the models that wait to be released and run no batch, if no request needs them."""
    return [
        (worker, key, model)
        for worker in state.pool.workers.values()
        for key, model in worker.models.items()
        if model.retired_at is not None
        and (not state.ledger.model_requests[key] or _is_free(state, key))
        and all(lease.model != key for lease in worker.leases.values())
    ]


def _is_free(state: State, key: ModelKey) -> bool:
    """Return whether other workers keep a model in memory."""
    return bool(state.pool.list_kept(key))


def _find_release_time(model: WorkerModel) -> float:
    return (model.retired_at or 0.0) + LINGER_S


def ask_for_models(state: State, now: float) -> None:
    """Ask one worker to load each model that jobs wait for, if the workers that have the model are too slow."""
    for key, model in state.models.items():
        unloaded = state.pool.list_unloaded(key) if model.queue else []
        if not unloaded or any(_is_asked(worker.models[key], now) for worker in unloaded):
            continue
        loaded_speed = sum(worker.models[key].tokens_per_s for worker in state.pool.list_loaded(key))
        if loaded_speed * LOAD_WAIT_S < model.queue.tokens or not loaded_speed:
            worker = min(unloaded, key=lambda worker: rank_by_leases(worker, key))
            worker.models[key].asked_at = now
            state.outbox.put(worker.peer, wire.Load(key.name, key.revision))


def _is_asked(model: WorkerModel, now: float) -> bool:
    return model.asked_at is not None and now < model.asked_at + LOAD_AGAIN_S


# --- time ------------------------------------------------------------------------------------------------------------


def next_change_at(state: State) -> float | None:
    """Return when the next model can be released or restored without a further message; None without one."""
    times = [_find_release_time(model) for _, _, model in _list_retired(state)]
    times += [time for _, time in _list_restorable(state)]
    return min(times, default=None)


def restore_revisions(state: State, now: float) -> None:
    """Make another revision current that a worker announces, if the current one has had no worker for the grace."""
    for key, time in _list_restorable(state):
        if now >= time:
            _set_current(state, key)
            state.removed.discard(key.name)


def _list_restorable(state: State) -> list[tuple[ModelKey, float]]:
    """Return the revisions that workers announce besides a current one without workers, and when to restore each."""
    restorable: dict[str, tuple[ModelKey, float]] = {}
    for name, current in state.current.items():
        since = state.models[current].unserved_since
        others = (key for key in state.models if key.name == name and key != current) if since is not None else ()
        other = next((key for key in others if state.pool.find_live_model(key)), None)
        if other and since is not None:
            restorable[name] = other, since + state.limits.worker_grace_s
    return list(restorable.values())


def forget_models(state: State, now: float) -> None:
    """Forget the models that no worker has had for long and no request waits for."""
    for key in [key for key, model in state.models.items() if model.is_unserved(now, FORGET_S)]:
        if state.ledger.model_requests[key] or state.pool.has_worker(key):
            continue
        del state.models[key]
        if state.current[key.name] == key:
            other = next((known for known in state.models if known.name == key.name), None)
            if other:
                state.current[key.name] = other
            else:
                del state.current[key.name]
                state.removed.discard(key.name)
            state.models_changed = True
