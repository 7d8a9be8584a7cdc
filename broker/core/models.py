"""The models that workers have announced: what they are, what waits for them, how long their texts are. Pure."""

from broker.core.jobs import SPECIAL_TOKENS, Pricing, price
from broker.core.queues import ModelQueue
from broker.wire.protocol import Kind, ModelInfo


class Model:
    """A model that some worker has announced, and its queue. It stays known when its last worker leaves."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.queue = ModelQueue()
        #: Learned from results; 0.3 is English text in WordPiece.
        self.tokens_per_byte = 0.3
        #: When its last worker left; None while it has one.
        self.unserved_since: float | None = None

    def price(self, kind: Kind, options: int = 0) -> Pricing:
        """Return how the inputs of a request that comes now are counted in tokens."""
        return price(kind, options, self.tokens_per_byte, self.info.max_tokens)

    def learn(self, texts: int, tokens: int, size: int) -> None:
        """Correct the estimate by the exact count of a batch's texts, as far as it can be believed: whoever sends
        words of 100 kB, which are one unknown token each, must not make everybody's texts look short."""
        if size:
            ratio = (tokens - SPECIAL_TOKENS * texts) / size
            self.tokens_per_byte += 0.1 * (min(max(ratio, 0.05), 4.0) - self.tokens_per_byte)

    def unserved(self, now: float, for_s: float) -> bool:
        """Whether it has had no worker for so many seconds."""
        return self.unserved_since is not None and now >= self.unserved_since + for_s
