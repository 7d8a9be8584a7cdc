"""`scripts/accuracy`: scores, labelled data, table, flags, and the client. Starts no server of Vecmill."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import accuracy  # noqa: E402  after the path is set
import accuracy_client  # noqa: E402
from accuracy_client import Client, ServerError  # noqa: E402
from accuracy_data import DataError, Pairs, find_sets, make_collection, read_collection, read_pairs  # noqa: E402
from accuracy_scores import find_top, measure_correlation, measure_ndcg, measure_recall, rank  # noqa: E402

#: A relevant document at place 2 of 2 found, and one of grade 1 at place 1.
GRADES = {"q": {"a": 3.0, "b": 1.0, "c": 3.0}}


# --- scores ----------------------------------------------------------------------------------------------------------


def test_equal_values_share_the_mean_rank() -> None:
    assert rank(np.array([5.0, 1.0, 5.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


def test_correlation_counts_order_and_not_size() -> None:
    angles = np.array([0.0, 0.1, 0.2, 1.5], np.float32)
    first = np.stack([np.ones(4, np.float32), np.zeros(4, np.float32)], 1)
    second = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert measure_correlation(first, second, [5, 4, 3, 0]) == pytest.approx(100)
    assert measure_correlation(first, second, [0, 1, 2, 9]) == pytest.approx(-100)


def test_top_has_the_nearest_documents_in_order() -> None:
    dice = np.random.default_rng(0)
    queries, documents = (dice.normal(size=(count, 8)).astype(np.float32) for count in (130, 2000))
    found = np.array(list(find_top(queries, documents)))
    assert (found == np.argsort(-(queries @ documents.T), 1)[:, :10]).all()
    assert [len(top) for top in find_top(queries[:1], documents[:3])] == [3]


def test_ndcg_discounts_by_place() -> None:
    best = 3 + 3 / np.log2(3) + 1 / 2
    assert measure_ndcg({"q": ["a", "c", "b"]}, GRADES) == pytest.approx(100)
    assert measure_ndcg({"q": ["b", "x", "a"]}, GRADES) == pytest.approx(100 * (1 + 3 / 2) / best)
    assert measure_ndcg({"q": ["x"]}, GRADES) == 0


def test_recall_counts_relevant_documents_only() -> None:
    assert measure_recall({"q": ["b", "x", "a"]}, GRADES, relevant=3) == 50
    assert measure_recall({"q": ["b", "x", "a"]}, GRADES, relevant=1) == pytest.approx(200 / 3)


# --- labelled data ---------------------------------------------------------------------------------------------------


def write_collection(folder: Path, judged: str = "q1\td1\t1\nq2\td1\t0\n") -> Path:
    """Write a collection in BEIR's format, and return its folder."""
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": "d1", "title": "hello", "text": "world"}, {"_id": "d2", "text": "a\u2028abc."}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    queries = [{"_id": "q1", "text": "hello"}, {"_id": "q2", "text": "a"}]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (folder / "qrels/test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


def test_sentences_of_pairs_are_a_search() -> None:
    pairs = Pairs("p", [3.0, 1.0, 2.9], ["one", "one", "two"], ["eins", "zwei", "zwei"])
    search = make_collection(pairs)
    assert search.queries == {"one": "one"}
    assert list(search.documents) == ["eins", "zwei"]
    assert search.grades == {"one": {"eins": 3.0, "zwei": 1.0}}


def test_collection_keeps_queries_with_answers(tmp_path: Path) -> None:
    found = read_collection(write_collection(tmp_path / "small"))
    assert (found.name, found.queries, found.grades) == ("small", {"q1": "hello"}, {"q1": {"d1": 1.0}})
    assert found.documents == {"d1": "hello world", "d2": "a\u2028abc."}


@pytest.mark.parametrize("judged", ["q1\td3\t1\n", "q1\td1\thigh\n", "q1\td1\n", "q9\td1\t1\n"])
def test_damaged_judgement_is_refused_by_line(tmp_path: Path, judged: str) -> None:
    with pytest.raises(DataError, match=r"test\.tsv line 2 is not a known query"):
        read_collection(write_collection(tmp_path / "small", judged))


@pytest.mark.parametrize(("line", "reason"), [("5\tone", "line 2 is not a number and two"), ("x\ta\tb", "line 2")])
def test_damaged_pair_is_refused_by_line(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "stsb-x.tsv").write_text(f"1\ta\tb\n{line}\n")
    with pytest.raises(DataError, match=reason):
        read_pairs(tmp_path / "stsb-x.tsv")


def test_unusable_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no labelled data; set --data"):
        find_sets(tmp_path)
    with pytest.raises(DataError, match="could not read"):
        read_pairs(tmp_path / "missing.tsv")
    with pytest.raises(DataError, match="has no query with a document of grade 1"):
        read_collection(write_collection(tmp_path / "none", "q1\td1\t0\n"))
    folder = write_collection(tmp_path / "damaged")
    (folder / "corpus.jsonl").write_text('{"_id": 1}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl line 1 is not a JSON object"):
        find_sets(tmp_path / "damaged" / "..")


# --- table and flags -------------------------------------------------------------------------------------------------


def test_table_has_published_scores_and_cosines() -> None:
    vectors = np.eye(2, dtype=np.float32)
    row = "stsb-en-test", "Spearman"
    columns = [accuracy.Column(name, "x/all-MiniLM-L6-v2", {row: 82.034}, [vectors]) for name in ("f32", "int8")]
    columns[1].vectors = [vectors * np.array([[1], [0.5]], np.float32)]
    accuracy.add_cosines(columns)
    assert accuracy.format_table(columns).splitlines()[2:] == [
        "| stsb-en-test | Spearman | 82.03 | 82.03 | 82.03 |",
        "| texts above | cosine to f32, mean |  | 1.00000 | 0.75000 |",
        "| texts above | cosine to f32, least |  | 1.00000 | 0.50000 |",
    ]


def test_own_data_are_measured_by_default() -> None:
    assert accuracy.parse_arguments([]).data == accuracy.DATA
    assert accuracy.parse_arguments(["--mteb", "STS12"]).data is None
    with pytest.raises(SystemExit):
        accuracy.parse_arguments(["--url", "http://x", "--model", "folder"])


# --- client ----------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Server that answers with the prepared statuses, in order."""

    statuses: list[int]

    def do_GET(self) -> None:
        """Answer."""
        status = self.statuses.pop(0)
        body = b'{"data": [{"id": "m"}]}' if status == 200 else b'{"error": {"message": "too busy"}}'
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log no request."""


@pytest.fixture
def url() -> Iterator[str]:
    """Start the server."""
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_refused_request_is_repeated(url: str) -> None:
    Handler.statuses = [429, 503, 200]
    assert Client(url, "m").list_models() == ["m"]
    Handler.statuses = [503] * accuracy_client.ATTEMPTS
    with pytest.raises(ServerError, match="answered 503: too busy"):
        Client(url, "m").list_models()


def test_client_names_what_is_wrong(url: str) -> None:
    Handler.statuses = [400, 200]
    with pytest.raises(ServerError, match="answered 400: too busy"):
        Client(url, "m").list_models()
    with pytest.raises(ServerError, match="does not serve the model 'other'; choose from m"):
        Client(url, "other").read_model()
    with pytest.raises(ServerError, match=r"did not answer: .*; is a server running there"):
        Client("http://127.0.0.1:9", "m").list_models()
