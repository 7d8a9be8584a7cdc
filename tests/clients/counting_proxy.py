"""TCP proxy that counts connections."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class CountingProxy:
    """Proxy that passes connections on to a port of this host, and counts them."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._copies: list[asyncio.Task[None]] = []
        #: 0 until the proxy listens.
        self.port = 0
        self.connections = 0

    @asynccontextmanager
    async def listen(self) -> AsyncIterator["CountingProxy"]:
        """Listen on a free port; at the end, wait until all connections have ended."""
        async with await asyncio.start_server(self._connect, "127.0.0.1", 0) as listener:
            self.port = listener.sockets[0].getsockname()[1]
            yield self
        await asyncio.gather(*self._copies)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._copies += [
            asyncio.create_task(copy_bytes(reader, server_writer)),
            asyncio.create_task(copy_bytes(server_reader, writer)),
        ]


async def copy_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until they end, then close the other side."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
