"""Models that workers have announced, each with its queue and its ratio of tokens to bytes. Pure."""

from broker.core.jobs import SPECIAL_TOKENS, Pricing, choose_pricing
from broker.core.queues import ModelQueue
from broker.wire.protocol import Kind, ModelInfo


class Model:
    """One revision of a model that a worker has announced. The model stays known when its last worker leaves."""

    def __init__(self, info: ModelInfo, tokens_per_byte: float = 0.3) -> None:
        self.info = info
        self.queue = ModelQueue()
        #: Learned from results; the initial 0.3 fits English text in WordPiece.
        self.tokens_per_byte = tokens_per_byte
        #: When the last worker left; None while the model has a worker.
        self.unserved_since: float | None = None

    def choose_pricing(self, kind: Kind, options: int = 0) -> Pricing:
        """Return how to estimate the tokens of a request's inputs."""
        return choose_pricing(kind, options, self.tokens_per_byte, self.info.max_tokens)

    def record_lengths(self, texts: int, tokens: int, size: int) -> None:
        """Update `tokens_per_byte` from the exact token count of a batch's `texts`, which have `size` bytes.

        The observed ratio is clamped, because a client that sends words of 100 kB, each a single unknown token, must
        not make the texts of all clients look short.
        """
        if size:
            ratio = (tokens - SPECIAL_TOKENS * texts) / size
            self.tokens_per_byte += 0.1 * (min(max(ratio, 0.05), 4.0) - self.tokens_per_byte)

    def is_unserved(self, now: float, for_s: float) -> bool:
        """Return whether the model has had no worker for `for_s` seconds."""
        return self.unserved_since is not None and now >= self.unserved_since + for_s
