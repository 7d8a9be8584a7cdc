"""Types of the API's answers: what is encoded, and what openapi.py generates the API's description from. Pure.

Docstrings and `Meta` descriptions are part of that description. Fields are in the order in which they are encoded, and
fields without a default are always present.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType

ErrorType = Literal["invalid_request_error", "rate_limit_error", "server_error"]
#: JSON schema has no type for a boolean that is always true.
AlwaysTrue = Annotated[bool, Meta(extra_json_schema={"const": True})]


class ErrorObject(Struct):
    """OpenAI's error object."""

    message: Annotated[str, Meta(description="What happened, and what to do about it")]
    type: ErrorType
    param: Annotated[str | None, Meta(description="Field or header at fault")]
    code: Annotated[str | None, Meta(description="Reason, for programs")]


class ErrorAnswer(Struct):
    """Body of every answer with a status of 400 or above."""

    error: ErrorObject


# --- embeddings and token ids ----------------------------------------------------------------------------------------


# A dict, because orjson encodes dicts without a call into Python: with a Struct for each vector, answers of 256 x 384
# floats took 7 % longer.
class Embedding(TypedDict):
    """Vector of one input."""

    object: Literal["embedding"]
    embedding: Annotated[list[float] | str | None, Meta(description="Values, or base64; null if there is an error")]
    index: Annotated[int, Meta(description="Position of the input in the request")]
    truncated_tokens: NotRequired[Annotated[int, Meta(description="Tokens that were cut off this input")]]
    error: NotRequired[Annotated[ErrorObject, Meta(description="With error_policy per_item: why the input failed")]]


class Usage(Struct):
    """Tokens of all inputs, without those that were cut off."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Struct):
    """Vectors in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage
    truncated_tokens: Annotated[int, Meta(description="Tokens cut off all inputs, if truncate was set")] | UnsetType = (
        UNSET
    )


class TokenizeAnswer(Struct):
    """Token ids of one text, or a list of them for each of several texts."""

    tokens: list[int | list[int]]


# --- models ----------------------------------------------------------------------------------------------------------


class ModelObject(Struct):
    """OpenAI's model object, with what a client needs to know about the vectors."""

    id: str
    object: Literal["model"]
    created: Annotated[int, Meta(description="Seconds since 1970 at the server's start")]
    owned_by: Literal["vecmill"]
    dimension: Annotated[int, Meta(description="Values in a vector")]
    max_tokens: Annotated[int, Meta(description="Longest input in tokens, special tokens included")]
    revision: Annotated[str, Meta(description="Changes whenever the vectors do; do not mix revisions in an index")]
    precision: Annotated[str, Meta(description="f32, bf16, f16 or int8; of several workers, such as bf16+f32")]
    prompts: Annotated[dict[str, str], Meta(description="Prompts by name")]
    default_prompt: Annotated[str | None, Meta(description="Name of the prompt for inputs that choose none")]
    matryoshka_dimensions: Annotated[
        list[int] | None, Meta(description="Declared values of dimensions; empty: any, null: none")
    ]


class ModelList(Struct):
    """Models that have a worker now."""

    object: Literal["list"]
    data: list[ModelObject]


class StatusDetail(Struct):
    """OVMS's status of a model's version."""

    error_code: str
    error_message: str


class VersionStatus(Struct):
    """State of a model's version, in OVMS's words."""

    version: Literal["1"]
    state: Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
    status: StatusDetail


class ModelStatus(Struct):
    """State of a model, in OVMS's words."""

    model_version_status: list[VersionStatus]


#: Every known model by name.
ConfigAnswer = dict[str, ModelStatus]


# --- KServe and health -----------------------------------------------------------------------------------------------


class ServerMetadata(Struct):
    """KServe's server metadata."""

    name: Literal["vecmill"]
    version: str
    extensions: list[str]


class Tensor(Struct):
    """KServe's metadata of a tensor."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]


class ModelMetadata(Struct):
    """KServe's model metadata."""

    name: str
    versions: list[Literal["1"]]
    platform: Literal["OpenVINO"]
    inputs: list[Tensor]
    outputs: list[Tensor]


class ModelReady(Struct):
    """KServe's answer about a model that is ready."""

    name: str
    ready: AlwaysTrue


class ServerLive(Struct):
    """KServe's answer of a process that runs."""

    live: AlwaysTrue


class ServerReady(Struct):
    """KServe's answer of a server that has a worker."""

    ready: AlwaysTrue


class ServedModel(Struct):
    """Number of a model's workers, and the revision that they serve."""

    workers: int
    revision: str


class HealthAnswer(Struct):
    """State of the broker, the workers and the models, for operators."""

    status: Literal["ready", "not ready"]
    broker: Literal["connected", "away"]
    workers: int
    models: dict[str, ServedModel]
    open_jobs: int
    queued_jobs: int
    counters: dict[str, int]
    worker_list: list[dict[str, Any]]
