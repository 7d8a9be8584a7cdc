"""Quality of each precision on the STS benchmark. See `test_stsb.py` for the files."""

from pathlib import Path

import pytest

from tests.harness.servers import Server
from tests.quality.real_models import fetch_minilm
from tests.quality.test_stsb import measure_correlation


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("precision", "expected"), [("f32", 82.03), ("auto", 82.04), ("int8", 82.01)])
def test_stsb_correlation_of_precisions(tmp_path: Path, precision: str, expected: float) -> None:
    flags = ("--model", str(fetch_minilm()), "--model-name", "real", "--precision", precision)
    server = Server(tmp_path, *flags)
    try:
        assert measure_correlation(server, "real", "stsb-en-test") == pytest.approx(expected, abs=0.05)
    finally:
        server.program.close()
