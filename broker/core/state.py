"""State of the scheduler: all that messages and time change, in one place. Pure."""

from broker.core.abandonment import Abandonment
from broker.core.blame import Blame
from broker.core.coalescing import Coalescing
from broker.core.events import EventRecorder
from broker.core.ledger import Ledger
from broker.core.limits import Limits
from broker.core.model_loading import ModelLoading
from broker.core.models import Model
from broker.core.outbox import Outbox
from broker.core.pool import Pool
from broker.core.quota import Quotas
from broker.core.reloads import Reloads
from broker.wire.protocol import Availability, ModelKey

#: Seconds for which jobs wait for a worker although a process has failed to load their model: the process of the last
#: worker may be restarting, and has not announced itself yet.
FAILED_GRACE_S = 3.0

_FAILED = Availability.FAILED


class State:
    """All mutable state. Only `Scheduler` and the modules that it calls change it."""

    def __init__(self, epoch: int, limits: Limits) -> None:
        #: Random number of this start of the broker. Results that carry another epoch are ignored.
        self.epoch = epoch
        self.limits = limits
        #: Frontends, open requests and deadlines.
        self.ledger = Ledger(limits.liveness_s)
        #: Workers and leases.
        self.pool = Pool(limits.liveness_s, limits.lease_s)
        #: Announced models with their queues: every revision of each name, until it is forgotten.
        self.models: dict[ModelKey, Model] = {}
        #: Revision of each name that new requests get, and the names that take no new requests.
        self.current: dict[str, ModelKey] = {}
        self.removed: set[str] = set()
        #: Models that processes are loading or failed to load.
        self.loading = ModelLoading(limits.liveness_s)
        #: Reloads of configurations that workers have not answered.
        self.reloads = Reloads(epoch)
        #: Results in memory, and jobs that wait for the result of an equal input.
        self.coalescing = Coalescing(limits)
        #: Suspects, trials and blocked inputs.
        self.blame = Blame(limits)
        #: Token buckets of clients, and jobs that clients abandoned.
        self.quotas = Quotas()
        self.abandonment = Abandonment()
        #: Metrics and job history.
        self.events = EventRecorder()
        #: Messages to send at the end of the current call.
        self.outbox = Outbox()
        #: Whether frontends must be sent the list of models at the end of the current call.
        self.models_changed = False
        #: Whether new requests are rejected because the broker is shutting down.
        self.draining = False
        #: Number of the newest batch.
        self.newest_batch = 0

    def find_grace_s(self, model: ModelKey) -> float:
        """Return how long a model's jobs wait for a worker; 0 in a drain, because no worker starts any more."""
        grace_s = 0.0 if self.draining else self.limits.worker_grace_s
        return min(grace_s, FAILED_GRACE_S) if self.find_failure(model) else grace_s

    def find_failure(self, model: ModelKey) -> str:
        """Return why a model without a worker could not be loaded since its last worker left; empty if unknown."""
        since = self.models[model].unserved_since
        if since is None:
            return ""
        failed = (state.text for state in self.pool.list_states() if (state.name, state.state) == (model.name, _FAILED))
        return next(failed, "") or self.loading.find_failure(model.name, since)
