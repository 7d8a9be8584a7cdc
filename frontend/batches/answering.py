"""A line of a batch as a request to the broker: its answer, byte for byte as POST /v1/embeddings would give."""

import time
from typing import NamedTuple

from broker.wire.protocol import Caching, Lane, Origin
from frontend.api.errors import ApiError, body_too_large, from_failure
from frontend.api.model_names import resolve_name
from frontend.api.rendering import render_embeddings
from frontend.api.schemas import EmbeddingsRequest, RequestOptions, hash_client, parse_embeddings
from frontend.api.submission import apply_model_defaults, apply_prompt_of_name, build_submission
from frontend.batches.lines import (
    InputLine,
    LineError,
    make_request_id,
    parse_line,
    render_answer,
    render_error,
    render_unsent,
)
from frontend.batches.rows import Batch
from frontend.config import Config
from frontend.session.broker_client import BrokerClient
from frontend.session.rendering import render_pending

#: Seconds after which a line that the broker has admitted is sent again.
LINE_DEADLINE_S = 600.0
#: Pause if an error has no Retry-After, in seconds.
_PAUSE_S = 5.0
#: Codes of errors that are the server's or temporary: such a line is sent again.
_TEMPORARY = {
    *("broker_unavailable", "no_worker", "model_replaced", "overloaded", "deadline_exceeded", "shutting_down"),
    *("rate_limit_exceeded", "model_not_found"),
}
#: Characters of a float32 as a number, and in base64.
_NUMBER_BYTES, _BASE64_BYTES = 13, 6
#: Dimension of a model that the broker has not announced yet.
_DIMENSION = 1024


class RefusedError(Exception):
    """The line must be sent again after a pause."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(str(error))
        self.pause_s = error.retry_after_s or _PAUSE_S


class ModelReplacedError(Exception):
    """The model has another revision than the batch began with. The text is one sentence for the client."""


class Line(NamedTuple):
    """A line that can be sent, or that is answered with an error at once."""

    number: int
    #: Offset in the input file of the byte after the line.
    end: int
    request_id: str
    custom_id: str
    request: EmbeddingsRequest | None
    error: ApiError | None
    #: Size of the line and of its inputs, in bytes.
    size: int

    @property
    def inputs(self) -> int:
        """Number of inputs of the request; 1 if it is answered with an error."""
        return len(self.request.inputs) if self.request else 1


class Answer(NamedTuple):
    """What is written for a line."""

    succeeded: bool
    line: bytes
    tokens: int = 0


class Answerer:
    """The requests of one batch, with the limits of its key."""

    def __init__(self, broker: BrokerClient, config: Config, batch: str, endpoint: str, revision: str) -> None:
        self._broker, self._config = broker, config
        self._batch, self._endpoint, self._revision = batch, endpoint, revision

    def prepare(self, line: InputLine) -> Line:
        """Parse a line as the HTTP API parses a body. An error becomes the answer of the line."""
        custom_id, request, error = "", None, None
        config = self._config
        try:
            if line.content is None:
                raise body_too_large(config.max_body_bytes)
            custom_id, body = parse_line(line.content, self._endpoint)
            if len(body) > config.max_body_bytes:
                raise body_too_large(config.max_body_bytes)
            request = parse_embeddings(
                body,
                config.max_inputs,
                self._broker.models,
                truncate=config.truncate,
                token_ids=not config.no_token_ids,
            )
        except LineError as reason:
            # The file was validated, so this is a file that somebody has changed.
            error = ApiError(400, str(reason), param=reason.param, code=reason.code)
        except ApiError as reason:
            error = reason
        request_id = make_request_id(self._batch, line.number)
        return Line(line.number, line.end, request_id, custom_id, request, error, line.size)

    def estimate_bytes(self, line: Line) -> int:
        """Return about how many bytes the line and its answer take in memory."""
        if line.request is None:
            return line.size
        request = line.request
        resolved = resolve_name(request.model, self._broker.models)
        dimension = request.dimensions or (self._broker.models[resolved.model].dimension if resolved else _DIMENSION)
        value_bytes = _BASE64_BYTES if request.encoding_format == "base64" else _NUMBER_BYTES
        return line.size + line.inputs * dimension * value_bytes

    async def answer(self, line: Line, options: RequestOptions) -> Answer:
        """Return the answer of a line.

        Raise `RefusedError` if the line must be sent again, and `ModelReplacedError` if the model has another revision.
        """
        if line.request is None or line.error:
            assert line.error
            return render_failure(line, line.error)
        try:
            tokens, body = await self._embed(line, line.request, options)
        except ApiError as error:
            if error.code in _TEMPORARY:
                raise RefusedError(error) from None
            return render_failure(line, error)
        return Answer(True, render_answer(line.request_id, line.custom_id, 200, body), tokens)

    async def _embed(self, line: Line, request: EmbeddingsRequest, options: RequestOptions) -> tuple[int, bytes]:
        """Return the number of tokens and the body of the answer."""
        config = self._config
        model = await self._broker.find_model(request.model)
        self._check_revision(request.model, model.revision)
        request = apply_model_defaults(apply_prompt_of_name(request, self._broker.models), model)
        prepared = build_submission(request, model, config.dimensions_policy, config.max_request_tokens)
        if not prepared.inputs:
            return 0, render_embeddings(request, {}, 0, truncated={}, errors=prepared.errors)
        done = await self._broker.run(
            model.name,
            prepared.kind,
            prepared.inputs,
            options._replace(origin=Origin(line.request_id)),
            time.monotonic() + options.deadline_s,
            options=prepared.options,
            per_item=request.error_policy == "per_item",
            max_tokens=config.max_request_tokens,
        )
        if done.revision:
            self._check_revision(request.model, done.revision)
        temporary = next((one for one in done.failures.values() if is_temporary(from_failure(one.code))), None)
        if temporary:
            raise from_failure(temporary.code, temporary.text, temporary.retry_after_ms)
        return done.tokens, render_pending(request, model, prepared, done)

    def _check_revision(self, name: str, revision: str) -> None:
        if revision != self._revision:
            text = f"the model {name} was replaced: its revision is {revision}, and the batch began with"
            raise ModelReplacedError(f"{text} {self._revision}; create a new batch for the requests that are left")


def is_temporary(error: ApiError) -> bool:
    """Return whether to send a line again that got this error."""
    return error.code in _TEMPORARY


def render_failure(line: Line, error: ApiError) -> Answer:
    """Return the answer for a request that the HTTP API would refuse."""
    return Answer(False, render_error(line.request_id, line.custom_id, error))


def render_skipped(line: Line, code: str, message: str) -> Answer:
    """Return the answer for a request that never ran."""
    return Answer(False, render_unsent(line.request_id, line.custom_id, code, message))


def make_options(batch: Batch, until: float) -> RequestOptions:
    """Return the options of a batch's requests, none of which is left with the broker after the time `until`."""
    deadline_s = max(0.0, min(LINE_DEADLINE_S, until - time.monotonic()))
    # Without keys, each batch is a client of its own. The address lets it share results, as all clients without keys.
    client = batch.owner or hash_client(batch.id)
    address = "" if batch.owner else hash_client(f"address of {batch.id}")
    limits = batch.client_jobs, batch.client_tokens
    return RequestOptions(Lane.BULK, deadline_s, client, *limits, address=address, caching=Caching(batch.caching))
