"""Raw connections to a frontend, and whether the frontend answers."""

import json
import socket
import ssl
from pathlib import Path

import httpx

from tests.harness.clients import body
from tests.harness.processes import Cluster


def is_ready(cluster: Cluster, path: str = "/v2/health/ready") -> bool:
    """Return whether a path without a key answers 200."""
    try:
        return httpx.get(cluster.url + path).status_code == 200
    except httpx.TransportError:
        return False


def is_answered(client: httpx.Client, path: str) -> bool:
    """Return whether a path answers 200 on a new connection."""
    try:
        return client.get(path, headers={"Connection": "close"}).status_code == 200
    except httpx.TransportError:
        return False


def open_connection(cluster: Cluster, tmp_path: Path, receive_buffer: int = 0) -> socket.socket:
    """Connect to the frontend, over TLS if it has a certificate."""
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", cluster.port))
    if "--tls-cert" not in cluster.programs[-1].process.args:  # type: ignore[operator]
        return connection
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    return trusted.wrap_socket(connection, server_hostname="127.0.0.1")


def encode_request(*texts: str) -> bytes:
    """Return the bytes of a request for embeddings."""
    content = json.dumps(body(*texts)).encode()
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)
