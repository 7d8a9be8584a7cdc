"""Quality of each precision on the STS benchmark, also as a search: what `scripts/accuracy` measures.

See `test_stsb.py` for the files, and docs/accuracy.md for the whole table.
"""

import sys
from pathlib import Path

import pytest

from tests.harness.processes import ROOT
from tests.harness.servers import Server
from tests.quality.real_models import fetch_minilm
from tests.quality.test_stsb import measure_file

sys.path.insert(0, str(ROOT / "scripts"))

from accuracy import Column

NAME = "stsb-en-test"
#: Expected correlation, nDCG@10 and recall@10, times 100, and the least mean cosine and cosine to f32.
EXPECTED = {
    "f32": (82.03, 94.32, 99.19, 1, 1),
    "auto": (82.04, 94.33, 99.19, 0.9999, 0.9998),
    "int8": (82.01, 94.26, 99.21, 0.998, 0.99),
}


@pytest.mark.timeout(1800)
def test_precisions_keep_the_quality(tmp_path: Path) -> None:
    columns = {precision: measure_precision(tmp_path, precision) for precision in EXPECTED}
    (exact,) = columns["f32"].vectors
    for precision, (*scores, mean, least) in EXPECTED.items():
        column = columns[precision]
        assert list(column.values.values()) == pytest.approx(scores, abs=0.1)
        cosines = (column.vectors[0] * exact).sum(1)
        assert cosines.mean() >= mean - 1e-5
        assert cosines.min() >= least - 1e-5


def measure_precision(folder: Path, precision: str) -> Column:
    """Return what is measured of all-MiniLM-L6-v2, served in a precision."""
    server = Server(folder, "--model", str(fetch_minilm()), "--model-name", "real", "--precision", precision)
    try:
        return measure_file(server, "real", NAME)
    finally:
        server.program.close()
