"""Builders of the messages that describe the scheduler's state to peers. Pure; they change no state."""

from collections.abc import Sequence

import msgspec

from broker.core.state import State
from broker.wire import protocol as wire

#: The longest time that a u32 of milliseconds holds.
MAX_MS = 2**32 - 1


def build_welcome(state: State, hello: int, unused: Sequence[str] = ()) -> wire.Welcome:
    """Return the answer to the hello with this number; `unused` are models of the hello that get no requests."""
    limits = state.limits
    return wire.Welcome(
        protocol=wire.PROTOCOL_MAX,
        epoch=state.epoch,
        heartbeat_ms=int(limits.heartbeat_s * 1000),
        liveness_ms=int(limits.liveness_s * 1000),
        lease_ms=int(min(MAX_MS, limits.lease_s * 1000)),
        hello=hello,
        max_wait_ms=int(min(MAX_MS, limits.max_wait_s * 1000)),
        unused=list(unused),
    )


def build_models(state: State) -> wire.Models:
    """Return the current revision of every known model with its number of ready workers, and the state of each."""
    models = [state.pool.find_live_model(key) or state.models[key].info for key in state.current.values()]
    states = {model.name: _describe_state(state, model) for model in models}
    for loading in [*state.loading.list_states(), *state.pool.list_states()]:
        known = states.get(loading.name)
        # A model that was removed and added again waits to be loaded.
        if known is None or known.state == wire.Availability.END or loading.state < known.state:
            states[loading.name] = loading
        elif known.state == wire.Availability.AVAILABLE:
            # The old revision is served although a new one could not be loaded.
            states[loading.name] = msgspec.structs.replace(known, text=known.text or loading.text)
    return wire.Models(models, list(states.values()), sorted(state.removed))


def _describe_state(state: State, model: wire.ModelInfo) -> wire.ModelState:
    if model.workers:
        return wire.ModelState(model.name, wire.Availability.AVAILABLE)
    ending = state.pool.has_worker(model.key)
    return wire.ModelState(model.name, wire.Availability.UNLOADING if ending else wire.Availability.END)


def build_stats(state: State) -> wire.Stats:
    """Return the totals of all counters, the connected workers, and the number of open and waiting jobs."""
    workers = [
        wire.WorkerStats(
            worker.name,
            worker.device,
            list(dict.fromkeys(key.name for key in worker.models)),
            len(worker.leases),
            worker.answered_batches,
            worker.answered_jobs,
            {key.name: model.info.precision for key, model in worker.models.items()},
        )
        for worker in state.pool.workers.values()
    ]
    queued = sum(model.queue.jobs for model in state.models.values())
    return wire.Stats(state.events.metrics.count_totals(), workers, state.ledger.jobs, queued)
