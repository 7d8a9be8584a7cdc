"""`scripts/accuracy`: how good a server's vectors are, on labelled data and MTEB tasks, by precision.

Everything is measured over HTTP, so that tokenization, batching, pooling and rendering count as users see them.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accuracy_client import Array, Client, ServerError
from accuracy_data import Collection, DataError, Pairs, find_sets, make_collection
from accuracy_scores import find_top, measure_correlation, measure_ndcg, measure_recall
from bench_load import LoadError
from bench_peers import TORCH, install
from bench_servers import ROOT, Server, find_cpu_name

sys.path.insert(0, str(ROOT))

from broker.shared.exit import INTERRUPTED_STATUS, exit_refused

#: Where this project's own machines have labelled data.
DATA = ROOT.parent / "shared" / "data"
#: Environment of MTEB, and its packages. A GPU's libraries would take gigabytes.
ENVIRONMENT = ROOT / ".cache" / "accuracy" / "mteb"
PACKAGES = (*TORCH, "mteb==2.26.24", "sentence-transformers==6.2.0")
#: Published scores by model, data and measure, from the models' cards and https://sbert.net.
PUBLISHED = {
    ("all-MiniLM-L6-v2", "stsb-en-test", "Spearman"): 82.03,
    ("all-mpnet-base-v2", "stsb-en-test", "Spearman"): 83.42,
}
#: Row of the cosines between the vectors of the first column and of the others.
COSINES = "texts above"

#: Data and measure.
Row = tuple[str, str]


@dataclass(slots=True)
class Column:
    """What was measured of one server."""

    title: str
    model: str
    values: dict[Row, float] = field(default_factory=dict)
    #: Vectors of pairs and queries, in the order in which they were measured.
    vectors: list[Array] = field(default_factory=list)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags of scripts/accuracy."""
    parser = argparse.ArgumentParser(
        prog="scripts/accuracy",
        description="Measure how good a server's vectors are, on labelled data and MTEB tasks.",
        epilog="docs/accuracy.md describes the data and the measures.",
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=Path, help="folder of labelled data (default: ../shared/data, if it is there)")
    parser.add_argument(
        "--mteb", nargs="+", default=[], metavar="TASK", help="MTEB tasks, such as STSBenchmark SciFact"
    )
    precisions = ["f32", "auto", "int8"]
    parser.add_argument(
        "--precision", nargs="+", default=precisions, help="start a server for each (default: f32 auto int8)"
    )
    parser.add_argument("--model", help="model folder or OWNER/NAME (default: all-MiniLM-L6-v2)")
    parser.add_argument(
        "--cache", default=str(ROOT / ".cache" / "vecmill"), help="folder for models (default: %(default)s)"
    )
    parser.add_argument("--url", help="measure this running server instead, such as http://127.0.0.1:8000")
    parser.add_argument("--model-name", help="name of the model in the running server (default: its only model)")
    parser.add_argument("--api-key", default=os.environ.get("API_KEY", ""), help="its API key (default: $API_KEY)")
    parser.add_argument("--prompt", default="", help="name of the model's prompt for pairs of sentences, such as query")
    parser.add_argument("--output", type=Path, help="write the table to this file, too")
    options = parser.parse_args(arguments)
    if options.model and options.url:
        parser.error("--url measures a running server; choose its model by --model-name")
    if options.data is None and not options.mteb:
        options.data = DATA
    return options


@contextlib.contextmanager
def open_servers(options: argparse.Namespace, precision: str) -> Iterator[Client]:
    """Return a client of the running server, or of one that is started in a precision and closed at the end."""
    if options.url:
        client = Client(options.url, options.model_name or "", options.api_key)
        if not client.model:
            names = client.list_models()
            if len(names) != 1:
                raise ServerError(f"{options.url} serves {len(names)} models; set --model-name: {', '.join(names)}")
            client = Client(options.url, names[0], options.api_key)
        yield client
        return
    model = ("--model", options.model) if options.model else ()
    server = Server("--precision", precision, "--cache", options.cache, *model)
    try:
        yield Client(f"http://127.0.0.1:{server.port}", server.model)
    finally:
        server.close()


def measure_server(options: argparse.Namespace, client: Client, precision: str) -> Column:
    """Return what is measured of a server."""
    served = str(client.read_model()["precision"])
    column = Column(served if precision in ("", served) else f"{precision} ({served})", client.model)
    for data in find_sets(options.data) if options.data else []:
        print(f"measuring {column.title}, {data.name} …", file=sys.stderr)
        if isinstance(data, Pairs):
            measure_pairs(column, client, data, options.prompt)
        else:
            queries = client.embed(list(data.queries.values()), input_type="query")
            documents = client.embed(list(data.documents.values()), input_type="document")
            measure_search(column, data, queries, documents)
            column.vectors.append(queries)
    if options.mteb:
        print(f"measuring {column.title}, {', '.join(options.mteb)} …", file=sys.stderr)
        column.values |= run_mteb(client, options.mteb, options.prompt)
    return column


def measure_pairs(column: Column, client: Client, pairs: Pairs, prompt: str = "") -> None:
    """Add the correlation of pairs, and the search with their first sentences."""
    texts = sorted({*pairs.first, *pairs.second})
    vectors = client.embed(texts, **({"prompt_name": prompt} if prompt else {}))
    column.vectors.append(vectors)
    place = {text: number for number, text in enumerate(texts)}
    first, second = (vectors[[place[text] for text in side]] for side in (pairs.first, pairs.second))
    column.values[pairs.name, "Spearman"] = measure_correlation(first, second, pairs.grades)
    search = make_collection(pairs)
    sides = (vectors[[place[text] for text in side]] for side in (search.queries, search.documents))
    measure_search(column, search, *sides)


def measure_search(column: Column, data: Collection, queries: Array, documents: Array) -> None:
    """Add nDCG@10 and recall@10 of a search."""
    names = list(data.documents)
    found = {
        query: [names[number] for number in numbers]
        for query, numbers in zip(data.queries, find_top(queries, documents), strict=True)
    }
    column.values[data.name, "nDCG@10"] = measure_ndcg(found, data.grades)
    column.values[data.name, "recall@10"] = measure_recall(found, data.grades, data.relevant)


def run_mteb(client: Client, tasks: Sequence[str], prompt: str) -> dict[Row, float]:
    """Return the results of MTEB tasks. Raise `LoadError` if MTEB or a task's data cannot be had."""
    install(ENVIRONMENT, PACKAGES)
    request = json.dumps({"url": client.url, "model": client.model, "tasks": tasks, "prompt": prompt})
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        program = Path(__file__).with_name("accuracy_mteb.py")
        command = [str(ENVIRONMENT / "bin" / "python"), str(program), request, str(output)]
        done = subprocess.run(command, env={**os.environ, "API_KEY": client.key}, check=False)
        if done.returncode:
            raise LoadError(f"MTEB ended with status {done.returncode}; its output above has the reason")
        return {(f"MTEB {task}", measure): value for task, measure, value in json.loads(output.read_text())}


def add_cosines(columns: Sequence[Column]) -> None:
    """Add the cosines between the vectors of the first column and of the others."""
    exact = [np.concatenate(column.vectors) for column in columns if column.vectors]
    for column, vectors in zip(columns, exact, strict=False):
        cosines = (vectors * exact[0]).sum(1)
        title = columns[0].title
        column.values[COSINES, f"cosine to {title}, mean"] = float(cosines.mean())
        column.values[COSINES, f"cosine to {title}, least"] = float(cosines.min())


def format_table(columns: Sequence[Column]) -> str:
    """Return the table in Markdown, a column for each server."""
    model = columns[0].model.rpartition("/")[2]
    lines = [f"| data | measure | published | {' | '.join(column.title for column in columns)} |"]
    lines.append("|---|---|---:" + "|---:" * len(columns) + "|")
    for row in columns[0].values:
        digits = 5 if row[0] == COSINES else 2
        published = f"{PUBLISHED[model, *row]:.2f}" if (model, *row) in PUBLISHED else ""
        values = " | ".join(f"{column.values[row]:.{digits}f}" for column in columns)
        lines.append(f"| {row[0]} | {row[1]} | {published} | {values} |")
    return "\n".join(lines) + "\n"


def run(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    columns: list[Column] = []
    for precision in [""] if options.url else options.precision:
        with open_servers(options, precision) as client:
            columns.append(measure_server(options, client, precision))
    if len(columns) > 1:
        add_cosines(columns)
    table = format_table(columns)
    print(f"{columns[0].model} on {find_cpu_name()}\n" if not options.url else f"{columns[0].model}\n")
    print(table, end="")
    if options.output:
        options.output.write_text(table)


def main() -> None:
    """Run the command. Exit with status 2 if something is missing."""
    options = parse_arguments()
    # SIGTERM would leave servers behind.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        run(options)
    except (DataError, ServerError, LoadError, OSError) as error:
        exit_refused("", error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_STATUS)


if __name__ == "__main__":
    main()
