"""Quality of each precision on the STS benchmark, also as a search. See `test_stsb.py` for the files.

With `-s`, the test prints the rows of the table in docs/models.md.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.harness.servers import Array, Server, rows
from tests.quality.real_models import fetch_minilm
from tests.quality.test_stsb import BATCH, rank, read_pairs

#: Lowest grade of a sentence that answers a query.
RELEVANT = 3
#: Expected correlation and search score, times 100, and the least mean cosine and cosine to f32.
EXPECTED = {"f32": (82.03, 94.32, 1, 1), "auto": (82.04, 94.33, 0.9999, 0.9998), "int8": (82.01, 94.26, 0.998, 0.99)}


@pytest.mark.timeout(1800)
def test_precisions_keep_the_quality(tmp_path: Path) -> None:
    pairs = read_pairs("stsb-en-test")
    texts = sorted({sentence for pair in pairs for sentence in pair[1:]})
    exact: Array | None = None
    for precision, (correlation, search, mean, least) in EXPECTED.items():
        vectors = embed_texts(tmp_path, precision, texts)
        exact = vectors if exact is None else exact
        found = dict(zip(texts, vectors, strict=True))
        cosines = (vectors * exact).sum(1)
        measured = measure_correlation(pairs, found), measure_search(pairs, found)
        print(f"{precision}: {measured[0]:.2f}, {measured[1]:.2f}, {cosines.mean():.5f}, {cosines.min():.4f}")
        assert measured == pytest.approx((correlation, search), abs=0.1)
        assert cosines.mean() >= mean - 1e-5
        assert cosines.min() >= least - 1e-5


def embed_texts(folder: Path, precision: str, texts: Sequence[str]) -> Array:
    """Return the vectors of all-MiniLM-L6-v2, served in a precision."""
    server = Server(folder, "--model", str(fetch_minilm()), "--model-name", "real", "--precision", precision)
    try:
        starts = range(0, len(texts), BATCH)
        return np.concatenate([rows(server.embed(texts[at : at + BATCH], model="real")) for at in starts])
    finally:
        server.program.close()


def measure_correlation(pairs: Sequence[Sequence[str]], vectors: dict[str, Array]) -> float:
    """Return Spearman's correlation of cosines and scores, times 100."""
    cosines = np.array([vectors[first] @ vectors[second] for _, first, second in pairs], np.float64)
    return 100 * float(np.corrcoef(rank(cosines), rank(np.array([float(pair[0]) for pair in pairs])))[0, 1])


def measure_search(pairs: Sequence[Sequence[str]], vectors: dict[str, Array]) -> float:
    """Return nDCG@10, times 100: first sentences search all second ones, of which those of their pairs have a grade.

    Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002.
    """
    documents = sorted({second for _, _, second in pairs})
    matrix = np.stack([vectors[document] for document in documents])
    grades: dict[str, dict[str, float]] = {}
    for score, query, document in pairs:
        grades.setdefault(query, {})[document] = float(score)
    discounts, scores = 1 / np.log2(np.arange(2, 12)), []
    for query, graded in grades.items():
        if max(graded.values()) < RELEVANT:
            continue
        top = np.argsort(-(matrix @ vectors[query]), kind="stable")[:10]
        gain = sum(graded.get(documents[place], 0) * discount for place, discount in zip(top, discounts, strict=True))
        ideal = sorted(graded.values(), reverse=True)[:10]
        scores.append(gain / sum(grade * discount for grade, discount in zip(ideal, discounts, strict=False)))
    return 100 * float(np.mean(scores))
