"""The models that workers have announced: what they are, what waits for them, how long their texts are. Pure."""

from broker.protocol import Kind, ModelInfo, Option
from broker.queues import ModelQueue

#: Tokens of an empty text: those that the tokenizer puts around every text, in most families.
SPECIAL_TOKENS = 2
#: So many tokens that are only counted take a worker as long as one that is run through the model.
CHEAPER = 64


class Model:
    """A model that some worker has announced, and its queue. It stays known when its last worker leaves."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.queue = ModelQueue()
        #: Learned from results; 0.3 is English text in WordPiece.
        self.tokens_per_byte = 0.3
        #: When its last worker left; None while it has one.
        self.unserved_since: float | None = None

    def tokens(self, kind: Kind, size: int, options: int = 0) -> int:
        """Tokens of an input of `size` bytes: estimated for text, exact for token ids. No input costs more than the
        longest that the model takes, for a longer one is refused or cut once it has been counted; one that is only to
        be tokenised costs little."""
        tokens = size // 4 if kind == Kind.TOKENS else SPECIAL_TOKENS + int(size * self.tokens_per_byte)
        if options & Option.TOKENISE:
            return 1 + tokens // CHEAPER
        return min(tokens, self.info.max_tokens + 1)

    def learn(self, texts: int, tokens: int, size: int) -> None:
        """Correct the estimate by the exact count of a batch's texts, as far as it can be believed: whoever sends
        words of 100 kB, which are one unknown token each, must not make everybody's texts look short."""
        if size:
            ratio = (tokens - SPECIAL_TOKENS * texts) / size
            self.tokens_per_byte += 0.1 * (min(max(ratio, 0.05), 4.0) - self.tokens_per_byte)

    def unserved(self, now: float, for_s: float) -> bool:
        """Whether it has had no worker for so many seconds."""
        return self.unserved_since is not None and now >= self.unserved_since + for_s
