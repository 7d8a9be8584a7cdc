"""Quality of the served vectors on the STS benchmark: the published scores, with prompts where a model has them.

Not part of `scripts/test`, because the licences of the sentences do not allow a copy in this repository. Fetch the
files from https://github.com/PhilipMay/stsb-multi-mt as score, sentence, sentence in tab-separated columns, put them
into one folder as stsb-en-dev.tsv, stsb-en-test.tsv, stsb-de-test.tsv and stsb-zh-test.tsv, and run
`VECMILL_STSB=FOLDER/stsb-en-dev.tsv scripts/test tests/quality`. The models are downloaded into `.cache`.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.harness.servers import Server, rows
from tests.quality.real_models import fetch_e5, fetch_minilm, fetch_mpnet

#: Texts in a request.
BATCH = 250


def rank(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the ranks of values; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return (ends - (count - 1) / 2)[place]


def read_pairs(name: str) -> list[list[str]]:
    """Return score, sentence and sentence of each pair in a file."""
    path = Path(os.environ.get("VECMILL_STSB", "")).with_name(f"{name}.tsv")
    assert path.is_file(), f"{path} is not a file; set VECMILL_STSB to the path of stsb-en-dev.tsv"
    return [line.split("\t") for line in path.read_text().splitlines()]


def measure_correlation(server: Server, model: str, name: str, **fields: object) -> float:
    """Return Spearman's correlation of cosines and scores, times 100."""
    pairs = read_pairs(name)
    sides = [
        np.concatenate(
            [
                rows(server.embed([pair[side] for pair in pairs[start : start + BATCH]], model=model, **fields))
                for start in range(0, len(pairs), BATCH)
            ]
        )
        for side in (1, 2)
    ]
    cosines = (sides[0] * sides[1]).sum(1).astype(np.float64)
    scores = np.array([float(pair[0]) for pair in pairs])
    return 100 * float(np.corrcoef(rank(cosines), rank(scores))[0, 1])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("fetch", "fields", "expected"),
    [
        # With sentence-transformers 6.2.0 and torch 2.13.0 on CPU in float32 from the same weights. The scores of the
        # test sets of the first two are also the published ones.
        (fetch_minilm, {}, {"stsb-en-dev": 86.72, "stsb-en-test": 82.03}),
        (fetch_mpnet, {}, {"stsb-en-test": 83.42}),
        # Of weights rounded to 4 bits. Published for float32: 83.59, 78.94 and 78.05.
        (fetch_e5, {"prompt_name": "query"}, {"stsb-en-test": 83.97, "stsb-de-test": 78.91, "stsb-zh-test": 78.25}),
    ],
    ids=["minilm", "mpnet", "e5"],
)
def test_stsb_correlation_is_the_published_one(
    tmp_path: Path, fetch: Callable[[], Path], fields: dict[str, object], expected: dict[str, float]
) -> None:
    folder = fetch()
    server = Server(tmp_path, "--precision", "f32", "--model", str(folder), "--model-name", "real")
    try:
        measured = {name: measure_correlation(server, "real", name, **fields) for name in expected}
    finally:
        server.program.close()
    assert measured == pytest.approx(expected, abs=0.05)
