"""Quality of the served vectors on the STS benchmark's development set.

Not part of `scripts/test`, because the licences of the sentences do not allow a copy in this repository. Fetch the file
from https://github.com/PhilipMay/stsb-multi-mt as score, sentence, sentence in tab-separated columns, and run
`VECMILL_STSB=stsb-en-dev.tsv scripts/test tests/quality`.
"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.harness.servers import Server, rows

#: Spearman's correlation of cosines and scores with sentence-transformers 6.2.0 and torch 2.13.0 on CPU in float32 from
#: the same weights: `scipy.stats.spearmanr` of `util.cos_sim(model.encode(...), ...)`.
SPEARMAN = 0.86716


def rank(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the ranks of values; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return (ends - (count - 1) / 2)[place]


def test_stsb_correlation_equals_sentence_transformers(tmp_path: Path) -> None:
    path = Path(os.environ.get("VECMILL_STSB", ""))
    assert path.is_file(), f"{path} is not a file; set VECMILL_STSB to the path of stsb-en-dev.tsv"
    pairs = [line.split("\t") for line in path.read_text().splitlines()]
    assert len(pairs) == 1500
    server = Server(tmp_path)
    try:
        sides = [
            np.concatenate(
                [rows(server.embed([pair[side] for pair in pairs[i : i + 250]])) for i in range(0, 1500, 250)]
            )
            for side in (1, 2)
        ]
    finally:
        server.program.close()
    cosines = (sides[0] * sides[1]).sum(1).astype(np.float64)
    scores = np.array([float(pair[0]) for pair in pairs])
    assert float(np.corrcoef(rank(cosines), rank(scores))[0, 1]) == pytest.approx(SPEARMAN, abs=0.002)
