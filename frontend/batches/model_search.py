"""Search for the model of a batch: it may be away or still be loading, or only another runner's server may have it."""

import logging
import time

from broker.wire.protocol import ModelInfo
from frontend.api.errors import OVMS_UNKNOWN_MODEL, ApiError
from frontend.api.model_names import resolve_name
from frontend.batches.rows import Batch, BatchError
from frontend.batches.sending import Sender, Stop
from frontend.session.broker_client import BrokerClient

log = logging.getLogger(__name__)

#: Seconds without a runner that serves the model, after which a batch fails. A model that the server had or was loading
#: when the batch was created is awaited until the batch expires.
UNKNOWN_S = 15.0


class ModelSearch:
    """Search for the model of one batch. A batch whose model is away gives its slot to others, with `Stop.WAIT`."""

    def __init__(self, batch: Batch, broker: BrokerClient, sender: Sender) -> None:
        self._batch, self._broker, self._sender = batch, broker, sender

    async def run(self) -> list[BatchError]:
        """Note the model and its revision. Return errors if there is no such model or if there are several."""
        batch, names = self._batch, set()
        for name, line in batch.names.items():
            try:
                model = await self._find(name)
            except ApiError as error:
                text = str(error).replace(f" - {OVMS_UNKNOWN_MODEL}", "")
                return [BatchError("model_not_found", text, "model", line)]
            if model is None:
                return []
            names.add(model.name)
            if len(names) > 1:
                text = "the model differs from that of earlier lines; put each model in its own batch"
                return [BatchError("model_mismatch", text, "model", line)]
            batch.model = batch.model or name
            batch.revision = model.revision
        return []

    async def _find(self, name: str) -> ModelInfo | None:
        """Return a model; None if the batch has stopped. Raise `ApiError` if no runner has served it for long."""
        if self._sender.stopped:
            return None
        try:
            return await self._broker.find_model(name)
        except ApiError as error:
            if self._is_unknown(name, error):
                raise
            # Another runner may serve a model that this runner's broker does not know.
            log.info("%s: waits for its model: %s", self._batch.id, error)
            self._sender.stop(Stop.WAIT)
            return None

    def _is_unknown(self, name: str, error: ApiError) -> bool:
        """Note since when no runner serves the model, and return whether to give it up."""
        batch, now = self._batch, time.time()
        if error.status != 404:
            batch.missing_since = None
            return False
        batch.missing_since = now if batch.missing_since is None else batch.missing_since
        return now - batch.missing_since >= UNKNOWN_S and not self._was_served(name)

    def _was_served(self, name: str) -> bool:
        """Return whether the server had the model when the batch was created."""
        base, served = name.rpartition(":")[0], self._batch.served
        # If the model is here, its prompt is what is unknown.
        return name in served or (base in served and resolve_name(base, self._broker.models) is None)
