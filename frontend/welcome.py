"""What is printed when a server is ready: its address, and a command to copy."""

import contextlib
import json
import shlex
from collections.abc import Mapping

#: Port that compose.yaml publishes and scripts/serve listens on, as PORT or ADDRESS:PORT.
PORT_VARIABLE = "VECMILL_PORT"


def format_url(host: str, port: int, *, tls: bool) -> str:
    """Return the URL at which a client on this host reaches a server on these addresses, which commas separate."""
    host = host.split(",")[0].strip()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http{'s' * tls}://{f'[{host}]' if ':' in host else host}:{port}"


def split_address(text: str) -> tuple[str, int]:
    """Return the address and port of PORT, ADDRESS:PORT or [ADDRESS]:PORT. Raise `ValueError` if the port is none."""
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def read_published_address(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the address and port of compose.yaml's variable.

    Return None without one, and for the URL that Kubernetes sets for a Service called vecmill.
    """
    with contextlib.suppress(ValueError):
        text = environ.get(PORT_VARIABLE, "")
        return None if "://" in text else split_address(text)
    return None


def list_published_hosts(hosts: str, environ: Mapping[str, str]) -> list[str]:
    """Return the addresses at which clients reach a server on these addresses, which commas separate."""
    published = read_published_address(environ)
    return [published[0]] if published else list(map(str.strip, hosts.split(",")))


def format_curl(url: str, model: str, *, needs_key: bool) -> str:
    """Return a curl command that embeds two texts."""
    body = json.dumps({"model": model, "input": ["hello world", "how are you"]})
    # The certificate is for the host's name rather than for its address.
    flags = "-k " if url.startswith("https:") else ""
    key = ' -H "Authorization: Bearer $API_KEY"' if needs_key else ""
    return f"curl {flags}{url}/v1/embeddings -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"
