"""Scores of vectors on labelled data: Spearman's correlation, nDCG and recall, all times 100. Pure."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

#: Found documents that count.
TOP = 10
#: Queries that are compared with all documents at a time.
_QUERIES = 64

Array = npt.NDArray[np.float32]
#: Grades of the documents of each query.
Grades = Mapping[str, Mapping[str, float]]


def rank(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the ranks of values; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return (ends - (count - 1) / 2)[place]


def measure_correlation(first: Array, second: Array, grades: Sequence[float]) -> float:
    """Return Spearman's correlation of the cosines of pairs and their grades. Vectors have length 1."""
    cosines = (first * second).sum(1).astype(np.float64)
    return 100 * float(np.corrcoef(rank(cosines), rank(np.array(grades, np.float64)))[0, 1])


def find_top(queries: Array, documents: Array) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the numbers of the nearest documents of each query, the nearest first. Vectors have length 1."""
    count = min(TOP, len(documents))
    for start in range(0, len(queries), _QUERIES):
        for cosines in queries[start : start + _QUERIES] @ documents.T:
            nearest = np.argpartition(-cosines, count - 1)[:count]
            yield nearest[np.argsort(-cosines[nearest], kind="stable")]


def measure_ndcg(found: Mapping[str, Sequence[str]], grades: Grades) -> float:
    """Return nDCG@10: the mean over queries of the discounted grades of what was found, relative to the best order.

    Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002.
    """
    scores = []
    for query, documents in found.items():
        best = sum_discounted(sorted(grades[query].values(), reverse=True)[:TOP])
        scores.append(sum_discounted([grades[query].get(document, 0) for document in documents]) / best)
    return 100 * float(np.mean(scores))


def sum_discounted(grades: Sequence[float]) -> float:
    """Return the sum of grades, each divided by the logarithm of its place."""
    return float(sum(grade / np.log2(place) for place, grade in enumerate(grades, 2)))


def measure_recall(found: Mapping[str, Sequence[str]], grades: Grades, relevant: float) -> float:
    """Return recall@10: the mean over queries of the share of their relevant documents that was found.

    `relevant` is the least grade of a relevant document.
    """
    shares = []
    for query, documents in found.items():
        wanted = {document for document, grade in grades[query].items() if grade >= relevant}
        shares.append(len(wanted.intersection(documents)) / len(wanted))
    return 100 * float(np.mean(shares))
