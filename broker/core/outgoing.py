"""Builders of the messages that describe the scheduler's state to peers. Pure; they change no state."""

from broker.core.state import State
from broker.wire import protocol as wire

#: The longest time that a u32 of milliseconds holds.
MAX_MS = 2**32 - 1


def build_welcome(state: State, hello: int) -> wire.Welcome:
    """Return the answer to the hello with this number."""
    limits = state.limits
    return wire.Welcome(
        protocol=wire.PROTOCOL_MAX,
        epoch=state.epoch,
        heartbeat_ms=int(limits.heartbeat_s * 1000),
        liveness_ms=int(limits.liveness_s * 1000),
        lease_ms=int(min(MAX_MS, limits.lease_s * 1000)),
        hello=hello,
        max_wait_ms=int(min(MAX_MS, limits.max_wait_s * 1000)),
    )


def build_models(state: State) -> wire.Models:
    """Return every known model with its number of ready workers, and the state of each."""
    models = [state.pool.find_live_model(name) or model.info for name, model in state.models.items()]
    states = {model.name: _describe_state(state, model) for model in models}
    for name, (model_state, text) in state.loading.list_states().items():
        if name not in states or model_state < states[name].state:
            states[name] = wire.ModelState(name, model_state, text)
    return wire.Models(models, list(states.values()))


def _describe_state(state: State, model: wire.ModelInfo) -> wire.ModelState:
    if model.workers:
        return wire.ModelState(model.name, wire.Availability.AVAILABLE)
    draining = state.pool.has_draining_worker(model.name)
    return wire.ModelState(model.name, wire.Availability.UNLOADING if draining else wire.Availability.END)


def build_stats(state: State) -> wire.Stats:
    """Return the totals of all counters, the connected workers, and the number of open and waiting jobs."""
    workers = [
        wire.WorkerStats(
            worker.name,
            worker.device,
            list(worker.models),
            len(worker.leases),
            worker.answered_batches,
            worker.answered_jobs,
        )
        for worker in state.pool.workers.values()
    ]
    queued = sum(model.queue.jobs for model in state.models.values())
    return wire.Stats(state.events.metrics.count_totals(), workers, state.ledger.jobs, queued)
