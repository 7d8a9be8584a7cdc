"""Choice between the formats of /metrics."""

import pytest
from prometheus_client import CollectorRegistry

from broker.shared.exposition import choose_encoder

PLAIN = "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize("kind", ["text/plain", "application/openmetrics-text"])
@pytest.mark.parametrize(
    "version", ["abc", "x.y", "1e5", "-1", "", "1.", "9" * 5000, "\uff12.0", "2.x\x1b", "1.0.0\r\nx: y", '"1.0.0"']
)
def test_invalid_version_is_ignored(kind: str, version: str) -> None:
    encode, content_type = choose_encoder(f"{kind}; version={version}; q=0.5")
    assert content_type == PLAIN
    assert encode(CollectorRegistry()) == b""


def test_valid_format_beside_invalid_one_is_chosen() -> None:
    accept = "text/plain;version=abc,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"
    encode, content_type = choose_encoder(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0;")
    assert encode(CollectorRegistry()) == b"# EOF\n"


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "text/plain;version=0.0.4", "text/html"])
def test_text_format_is_default(accept: str) -> None:
    assert choose_encoder(accept)[1] == PLAIN
