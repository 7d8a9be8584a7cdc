"""Keys of inputs: equal keys mean that the same vector answers both inputs. Pure."""

import hashlib
from collections.abc import Iterable

from broker.wire.protocol import Frame, Kind, ModelKey

#: Bytes of a key. Nobody can construct two inputs with the same key of this length.
KEY_BYTES = 32
#: Inputs of more bytes have no key, because hashing them would delay the broker's other peers (1 ms for 1 MiB). A model
#: takes much longer for them.
MAX_INPUT_BYTES = 1024 * 1024


class InputKeys:
    """Keys of the inputs of one request."""

    __slots__ = ("_base", "looks_up")

    def __init__(self, model: ModelKey, kind: Kind, options: int, scope: str | bytes, *, looks_up: bool) -> None:
        #: Whether earlier and running results are used. Otherwise the results are only stored.
        self.looks_up = looks_up
        tagged = b"t" + scope.encode() if isinstance(scope, str) else b"b" + scope
        parts = (model.name.encode(), model.revision.encode(), bytes([kind, options]), tagged)
        self._base = hashlib.blake2b(_join_parts(parts), digest_size=KEY_BYTES)

    def compute(self, payload: Frame) -> bytes:
        """Return the key of an input; empty if the input is too large to have one."""
        if len(payload) > MAX_INPUT_BYTES:
            return b""
        digest = self._base.copy()
        digest.update(payload)
        return digest.digest()


def _join_parts(parts: Iterable[bytes]) -> bytes:
    """Return the parts with their lengths, so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)
