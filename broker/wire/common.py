"""Parts that messages in both directions share. Pure."""

import enum
from typing import NamedTuple

import msgspec

from broker.wire.columns import U32, U63, Name, Text
from broker.wire.errors import ErrorCode


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base class of all messages. A message is a header, followed by the raw frames that the header announces."""

    def frame_sizes(self) -> list[int]:
        """Return the sizes in bytes of the raw frames. Raise `RemoteProtocolError` if the header is inconsistent."""
        return []


class Lane(enum.IntEnum):
    """Queue in which a request waits."""

    INTERACTIVE = 0
    BULK = 1


class Kind(enum.IntEnum):
    """Content of a job's input: UTF-8 text, or token ids as u32."""

    TEXT = 0
    TOKENS = 1


class Option(enum.IntFlag):
    """Options of a job, as bits of a byte. Without any, the job gets the model's vector, and a long input fails."""

    #: Truncate an input that is too long at its end, or at its start.
    TRUNCATE_END = 1
    TRUNCATE_START = 2
    #: Return the vector before normalization.
    RAW = 4
    #: Return token ids, u32 each, instead of a vector. The input may be longer than the model accepts.
    TOKENIZE = 8
    #: The input begins with a prompt of the model. Some models leave the tokens of a prompt out of the pooling.
    PROMPT = 16


class Caching(enum.IntEnum):
    """How a request uses the results of equal inputs."""

    #: Earlier results answer its inputs, and its results answer others.
    USE = 0
    #: Every input is computed, and the results answer others.
    REFRESH = 1
    #: Every input is computed, and the results answer no other input.
    SKIP = 2


class Source(enum.IntEnum):
    """Where the row of an answer comes from."""

    #: The input was computed for this request.
    COMPUTED = 0
    #: An equal input had been computed before.
    CACHE = 1
    #: An equal input of this or another request was being computed.
    COALESCED = 2


class Origin(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Origin of a request, for logs: the id of the HTTP request, and its W3C traceparent, empty without one."""

    request_id: Name = ""
    traceparent: Name = ""

    @property
    def trace_id(self) -> str:
        """Trace id in the traceparent (https://www.w3.org/TR/trace-context/); empty without one."""
        return self.traceparent[3:35]


class ModelKey(NamedTuple):
    """What a batch is of: a model by its name and its revision, because vectors of two revisions must not mix."""

    name: str
    revision: str


class ModelInfo(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """A model as workers announce it."""

    name: Name
    #: Hash of weights, tokenizer, pooling and normalization, and of the precision as far as precisions must not mix.
    revision: Name
    dimension: U32
    max_tokens: U32
    #: Ready workers that serve the model; 0 in a worker's own hello.
    workers: U32 = 0
    #: Token ids are below this number; 0: unknown.
    vocabulary: U32 = 0
    #: Token id that fills up shorter inputs of a micro-batch.
    pad_id: U32 = 0
    #: Token ids that the tokenizer puts before and after every text.
    before: list[U32] = []
    after: list[U32] = []
    #: Whether vectors have length 1.
    normalized: bool = False
    #: Prompts, which are put before an input, by name; and the name of the prompt for inputs that choose none.
    prompts: dict[Name, Text] = {}
    default_prompt: Name = ""
    #: Whether the model declares that vectors may be shortened, and the dimensions that it recommends, if any.
    matryoshka: bool = False
    matryoshka_dimensions: list[U32] = []
    #: Best size of a batch in tokens, and throughput, measured by the worker; 0: those of its hello.
    batch_tokens: U32 = 0
    tokens_per_s: U32 = 0
    #: Whether the worker must load the model before it runs a batch.
    unloaded: bool = False
    #: Other names of the model.
    aliases: list[Name] = []
    #: Whether inputs that are too long lose their end if neither their request nor the frontend's setting says so.
    truncates: bool = False
    #: Names of the models that the configuration combines into this one: in OVMS's first layouts the model itself and
    #: its tokenizer. They have a state, but clients cannot request them.
    parts: list[Name] = []
    #: What the model is computed in: f32, bf16, f16 or int8; of several workers, all of theirs, such as bf16+f32.
    precision: Name = ""
    #: Inferences of the model that run in parallel on the device; 0: those of the worker's hello.
    streams: U32 = 0

    @property
    def key(self) -> ModelKey:
        """Name and revision."""
        return ModelKey(self.name, self.revision)

    def prepares_like(self, other: "ModelInfo") -> bool:
        """Return whether a request that was prepared for the other model can be sent to this one as it is."""
        return all(getattr(self, name) == getattr(other, name) for name in _PREPARING)


#: Fields that a frontend reads when it prepares a request or shapes its answer.
_PREPARING = (
    *("name", "dimension", "max_tokens", "vocabulary", "pad_id", "before", "after", "normalized"),
    *("prompts", "default_prompt", "matryoshka", "matryoshka_dimensions", "truncates"),
)


class Availability(enum.IntEnum):
    """State of a model, with OVMS's names: the lowest of the states on all workers."""

    AVAILABLE = 0
    LOADING = 1
    FAILED = 2
    UNLOADING = 3
    END = 4
    #: Waits for other models to be loaded.
    START = 5


class ModelState(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """State of a model; `text` has the error if loading failed."""

    name: Name
    state: Availability
    text: Text = ""


class Welcome(Message, tag=16):
    """Answer of the broker to a hello: the session has started."""

    protocol: int
    #: Random number of this start of the broker. Results that carry another epoch are ignored.
    epoch: U63
    heartbeat_ms: U32
    #: Silence after which either side treats the other as dead.
    liveness_ms: U32
    #: Longest run time of a batch. A worker exits when a batch exceeds it.
    lease_ms: U32
    #: Number of the worker's hello that is answered; 0 for a frontend.
    hello: U63 = 0
    #: Longest queueing delay that admission accepts.
    max_wait_ms: U32 = 2**32 - 1
    #: Models of the worker's hello that get no requests, because other workers serve another revision.
    unused: list[Name] = msgspec.field(default_factory=list)


class Who(Message, tag=17):
    """Answer of the broker to a message on a connection without a session: send a hello."""


class Goodbye(Message, tag=19):
    """The broker ends the session; `text` has the reason."""

    code: ErrorCode
    text: Text
