"""Validation of a batch's input file, line by line, before any line runs. Pure.

A file with an error fails as a whole, with the numbers of its lines. What only tokenization can find is an error of its
line alone, in the batch's error file.
"""

import hashlib

from frontend.api.errors import ApiError
from frontend.api.inputs import parse_object
from frontend.batches.lines import InputLine, LineError, parse_line
from frontend.batches.rows import BatchError

#: Number of errors after which a file is not read further.
MAX_ERRORS = 100
#: Number of names of models that are remembered, which is enough to report that a file has several models.
MAX_NAMES = 100
_DIGEST_BYTES = 16


class Validator:
    """Checks the lines of one file, in their order. Keeps 16 bytes for each `custom_id`."""

    def __init__(self, endpoint: str, max_inputs: int, max_line_bytes: int) -> None:
        """`max_inputs` is the limit on lines, and on inputs over all lines."""
        self._endpoint = endpoint
        self._max_inputs = max_inputs
        self._max_line_bytes = max_line_bytes
        self.errors: list[BatchError] = []
        #: Number of requests, and of inputs over all requests.
        self.requests = self.inputs = 0
        #: Names of models that the requests have, with the number of the first line of each.
        self.models: dict[str, int] = {}
        self._seen: set[bytes] = set()

    @property
    def complete(self) -> bool:
        """Whether further lines need not be read, because the file is refused already."""
        return len(self.errors) >= MAX_ERRORS or max(self.requests, self.inputs) > self._max_inputs

    def add_line(self, line: InputLine) -> None:
        """Check the next line."""
        self.requests += 1
        if self.requests > self._max_inputs:
            text = f"the file has more than {self._max_inputs} requests; split it into several batches"
            self._add_error(line, LineError("too_many_tasks", text))
            return
        try:
            self._check_line(line)
        except LineError as error:
            self._add_error(line, error)

    def finish(self) -> None:
        """Check the file as a whole, after its last line."""
        if not self.requests:
            text = "the input file has no request; write one JSON object per line"
            self.errors.append(BatchError("empty_file", text))

    def _check_line(self, line: InputLine) -> None:
        if line.content is None:
            text = f"the line has {line.size} bytes, but a line may have {self._max_line_bytes}"
            raise LineError("line_too_large", f"{text}; split its inputs over several lines")
        request = parse_line(line.content, self._endpoint)
        digest = hashlib.blake2b(request.custom_id.encode(), digest_size=_DIGEST_BYTES).digest()
        if digest in self._seen:
            text = "an earlier line has the same custom_id; each must be unique in the file"
            raise LineError("duplicate_custom_id", text, "custom_id")
        self._seen.add(digest)
        try:
            fields, _ = parse_object(request.body)
        except ApiError:
            # The line gets the same answer as a request with this body.
            fields = {}
        model = fields.get("model")
        if isinstance(model, str) and len(self.models) < MAX_NAMES:
            self.models.setdefault(model, line.number)
        self.inputs += _count_inputs(fields.get("input"))
        if self.inputs > self._max_inputs:
            text = f"the file has more than {self._max_inputs} inputs over all requests; split it into several batches"
            raise LineError("too_many_tasks", text, "input")

    def _add_error(self, line: InputLine, error: LineError) -> None:
        self.errors.append(BatchError(error.code, str(error), error.param, line.number))


def _count_inputs(value: object) -> int:
    """Return the number of inputs in a field `input`: a text, texts, token ids, or lists of token ids."""
    if not isinstance(value, list) or not value or isinstance(value[0], int):
        return 1
    return len(value)
