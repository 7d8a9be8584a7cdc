"""Configuration of frontends, and what runners of batches share with them; see `broker.shared.settings`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker.shared import settings
from broker.shared.settings import LogFormat, LogLevel


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the store of files and batches, which frontends and runners share."""

    data: Annotated[
        str,
        Meta(description="folder of the database and of uploaded files; empty: no /v1/files and no /v1/batches"),
    ] = ""
    file_store: Annotated[
        str, Meta(description="where the bytes of files are: a folder or s3://BUCKET/PREFIX; empty: in --data")
    ] = ""
    database: Annotated[
        str, Meta(description="postgresql:// URL of the rows of files and batches; empty: SQLite in --data")
    ] = ""
    max_file_bytes: Annotated[int, Meta(gt=0, description="maximum size of an uploaded file")] = 200 * 1024 * 1024
    max_stored_bytes: Annotated[int, Meta(ge=0, description="maximum size of all files of an API key; 0: no limit")] = 0
    max_open_batches: Annotated[
        int, Meta(ge=0, description="maximum number of batches of an API key that have not ended; 0: no limit")
    ] = 100
    max_batch_inputs: Annotated[
        int, Meta(gt=0, description="maximum number of lines in a batch, and of inputs over all lines")
    ] = 50_000


class Config(StoreConfig, frozen=True, kw_only=True):
    """The settings of a frontend."""

    broker: Annotated[str, Meta(description="the broker's endpoint for frontends")] = "tcp://127.0.0.1:7410"
    host: Annotated[
        str, Meta(description="comma-separated addresses or names to listen on; '::': all of IPv4 and IPv6")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535, description="port to listen on")] = 8000
    processes: Annotated[int, Meta(ge=1, description="number of processes that share the port")] = 1
    listen_fds: Annotated[
        str, Meta(description="descriptors of listening sockets to serve on; empty: listen on --host and --port")
    ] = ""
    keys: Annotated[str, Meta(description="folder with frontend.key_secret and broker.key; empty: no CURVE")] = ""
    deadline_s: Annotated[
        float, Meta(gt=0, description="maximum duration of a request, and its default deadline, in seconds")
    ] = 60.0
    send_timeout_s: Annotated[
        float,
        Meta(gt=0, le=86400, description="disconnect a client that does not read for this many seconds"),
    ] = 60.0
    min_read_rate: Annotated[
        float,
        Meta(
            ge=0,
            description="disconnect a client that reads a large answer more slowly than this many bytes per second, "
            "averaged over --send-timeout-s; 0: never",
        ),
    ] = 16384.0
    max_unread_bytes: Annotated[
        int,
        Meta(gt=0, description="maximum number of bytes of large answers that clients have not read, in each process"),
    ] = 64 * 1024 * 1024
    request_timeout_s: Annotated[
        float, Meta(gt=0, description="maximum pause of a client while it sends a request, in seconds")
    ] = 60.0
    body_timeout_s: Annotated[float, Meta(gt=0, description="maximum duration of a request body, in seconds")] = 300.0
    # Above the 60 s for which nginx, Apache and AWS's load balancers keep idle connections.
    idle_timeout_s: Annotated[
        float, Meta(gt=0, le=86400, description="close a connection after this many seconds without a request")
    ] = 75.0
    interactive_bytes: Annotated[
        int, Meta(ge=0, description="requests of at most this many input bytes use the interactive lane by default")
    ] = 4096
    interactive_inputs: Annotated[
        int, Meta(ge=0, description="requests of at most this many inputs use the interactive lane by default")
    ] = 8
    broker_grace_s: Annotated[
        float, Meta(ge=0, description="how long requests wait for a disconnected broker, in seconds")
    ] = 5.0
    api_keys: Annotated[
        str, Meta(description="file of API keys made by scripts/api-key; empty: no key is required")
    ] = ""
    allowed_origins: Annotated[
        str, Meta(description="comma-separated CORS origins; '*' allows any, empty disables CORS")
    ] = "*"
    tls_cert: Annotated[str, Meta(description="PEM file with the certificate chain; empty: no TLS")] = ""
    tls_key: Annotated[
        str, Meta(description="PEM file with the certificate's key, unencrypted; empty: the key is in --tls-cert")
    ] = ""
    # The token ids of 16 MiB of text just fit into one frame (`MAX_FRAME_BYTES` in broker/wire/protocol.py).
    max_body_bytes: Annotated[
        int, Meta(gt=0, le=16 * 1024 * 1024, description="maximum size of a request body, at most 16 MiB")
    ] = 8 * 1024 * 1024
    max_incoming_bytes: Annotated[
        int, Meta(gt=0, description="maximum size of all request bodies that are arriving, in each process")
    ] = 256 * 1024 * 1024
    max_inputs: Annotated[int, Meta(gt=0, le=65536, description="maximum number of inputs in a request")] = 2048
    max_request_tokens: Annotated[
        int, Meta(gt=0, description="maximum number of tokens in a request, over all inputs")
    ] = 300_000
    truncate: Annotated[
        Literal["", "none", "start", "end"],
        Meta(
            description="where to truncate inputs that are too long if the request has no truncate; none: reject them; "
            "empty: as the model's configuration specifies"
        ),
    ] = ""
    no_token_ids: Annotated[bool, Meta(description="reject inputs that are token ids")] = False
    dimensions_policy: Annotated[
        Literal["allow", "warn", "refuse"],
        Meta(description="what to do with requests for fewer dimensions than the model has, unless it declares them"),
    ] = "warn"
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"


#: Settings of a frontend on which answers depend. A batch keeps those of the frontend that has accepted it.
ANSWER_SETTINGS = (
    *("max_body_bytes", "max_inputs", "max_request_tokens", "truncate", "no_token_ids", "dimensions_policy"),
)


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Return the configuration. Raise SettingsError if a value is invalid."""
    return settings.load(Config, "VECMILL_FRONTEND_", "python -m frontend", "Vecmill's frontend.", arguments, environ)
