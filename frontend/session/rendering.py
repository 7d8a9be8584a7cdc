"""Rendering of a request that the broker has answered. Pure."""

from broker.wire.protocol import ModelInfo
from frontend.api.errors import from_failure
from frontend.api.rendering import render_embeddings, shape_vectors
from frontend.api.schemas import EmbeddingsRequest
from frontend.api.submission import PreparedSubmission
from frontend.session.pending import Pending


def render_pending(request: EmbeddingsRequest, model: ModelInfo, prepared: PreparedSubmission, done: Pending) -> bytes:
    """Return the body of the answer to an embeddings request."""
    if not (prepared.errors or done.failures):
        vectors = dict(enumerate(shape_vectors([row for row in done.rows if row is not None], request, model)))
        return render_embeddings(request, vectors, done.tokens, truncated=done.truncated, errors={})
    positions = prepared.positions
    rows = {positions[index]: row for index, row in enumerate(done.rows) if row is not None}
    vectors = dict(zip(rows, shape_vectors(list(rows.values()), request, model), strict=True))
    truncated = {positions[index]: tokens for index, tokens in done.truncated.items()}
    failures = {positions[index]: from_failure(one.code, one.text) for index, one in done.failures.items()}
    return render_embeddings(request, vectors, done.tokens, truncated=truncated, errors=prepared.errors | failures)
