"""State of the scheduler: all that messages and time change, in one place. Pure."""

from broker.core.abandonment import Abandonment
from broker.core.blame import Blame
from broker.core.events import EventRecorder
from broker.core.ledger import Ledger
from broker.core.limits import Limits
from broker.core.model_loading import ModelLoading
from broker.core.models import Model
from broker.core.outbox import Outbox
from broker.core.pool import Pool
from broker.core.quota import Quotas
from broker.core.reloads import Reloads
from broker.wire.protocol import ModelKey


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
        self.reloads = Reloads()
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
