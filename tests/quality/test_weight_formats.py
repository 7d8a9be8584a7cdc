"""Quality of the weight formats of `scripts/export_model` on the STS benchmark. See `test_stsb.py` for the files."""

from pathlib import Path

import pytest

from tests.harness.servers import Server
from tests.quality.real_models import fetch_minilm
from tests.quality.test_stsb import measure_file
from workers.models.export import ExportOptions, export_model


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "expected"), [("fp32", 82.03), ("fp16", 82.03), ("int8", 82.01), ("int4", 82.40)])
def test_stsb_correlation_of_weight_formats(tmp_path: Path, name: str, expected: float) -> None:
    options = ExportOptions(
        source=str(fetch_minilm()),
        name=name,
        repository=tmp_path / "models",
        config_path=tmp_path / "models" / "config.json",
        weight_format=name,
    )
    folder = export_model(options, tmp_path / "cache", print)
    server = Server(tmp_path, "--precision", "f32", "--model", str(folder), "--cache", str(tmp_path / "cache"))
    try:
        measured = measure_file(server, name, "stsb-en-test").values["stsb-en-test", "Spearman"]
    finally:
        server.program.close()
    assert measured == pytest.approx(expected, abs=0.1)
