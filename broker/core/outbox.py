"""Messages that the scheduler has decided to send. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from broker.wire.protocol import Frame, Message


class Send(NamedTuple):
    """A message to send, with its raw frames."""

    peer: bytes
    message: Message
    frames: Sequence[Frame] = ()


class Outbox:
    """Messages to send, in order."""

    def __init__(self) -> None:
        self._sends: list[Send] = []

    def put(self, peer: bytes, message: Message, frames: Sequence[Frame] = ()) -> None:
        """Append a message."""
        self._sends.append(Send(peer, message, frames))

    def take_all(self) -> list[Send]:
        """Return all messages and empty the outbox."""
        sends, self._sends = self._sends, []
        return sends
