"""One server for all clients, and nginx in front of it."""

import os
from collections.abc import Iterator

import httpx
import pytest

from tests.clients.golden import KEY
from tests.harness.api_keys import make_entry
from tests.harness.processes import Program, free_port, until
from tests.harness.servers import Server

NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  # keepalive_timeout has its default, 60 s.
  upstream kept {{ server 127.0.0.1:{server}; keepalive 1024; }}
  server {{
    listen 127.0.0.1:{port};
    location /kept/ {{ proxy_pass http://kept/; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    # As nginx connects by default: HTTP/1.0, and one connection for each request.
    location /default/ {{ proxy_pass http://127.0.0.1:{server}/; }}
  }}
}}
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start one server. All clients have to send its API key."""
    folder = tmp_path_factory.mktemp("server")
    keys = folder / "keys.toml"
    keys.write_text(make_entry("clients", KEY))
    server = Server(folder, "--precision", "f32", "--api-keys", str(keys))
    yield server
    server.program.close()


@pytest.fixture(scope="session")
def nginx(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start nginx in front of the server, and return the URL of nginx."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    (folder / "nginx.conf").write_text(NGINX.format(server=server.port, port=port))
    # nginx needs two descriptors for a request, and the soft limit of a shell may be 1,024.
    start = ["bash", "-c", 'ulimit -Sn "$(ulimit -Hn)"; exec nginx -p "$0" -c nginx.conf', str(folder)]
    program = Program("nginx", start, folder / "nginx.log", {"PATH": f"{os.environ['PATH']}:/usr/sbin"})
    until(lambda: is_listening(f"http://127.0.0.1:{port}") or program.process.poll() is not None, what="nginx")
    assert program.process.poll() is None, program.output
    yield f"http://127.0.0.1:{port}"
    program.close()


def is_listening(url: str) -> bool:
    """Return whether a server answers."""
    try:
        return httpx.get(url).status_code > 0
    except httpx.TransportError:
        return False
