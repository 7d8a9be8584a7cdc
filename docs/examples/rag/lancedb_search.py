"""A vector store on disk, of the output of scripts/embed: `python lancedb_search.py VECTORS [QUESTION]`.

Without a question, measure the search with questions.jsonl. The server is at OPENAI_BASE_URL, and its key is
OPENAI_API_KEY.
"""

import sys
from typing import Any

import lancedb
import pyarrow.dataset
from openai import OpenAI
from passages import TOP, Passage, report

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def load(vectors: str) -> Any:
    """Return a table with the vectors of all Parquet files. Rows with errors have none, and are left out."""
    embedded = pyarrow.dataset.field("embedding").is_valid()
    rows = pyarrow.dataset.dataset(vectors, format="parquet").to_table(filter=embedded)
    database = lancedb.connect(f"{vectors.rstrip('/')}.lancedb")
    database.drop_table("passages", ignore_missing=True)
    return database.create_table("passages", rows)


def main() -> None:
    """Answer the question, or measure the search."""
    table = load(sys.argv[1])
    client = OpenAI()

    def search(question: str) -> list[Passage]:
        # A model without prompts ignores input_type.
        answer = client.embeddings.create(model=MODEL, input=question, extra_body={"input_type": "query"})
        found: list[Passage] = table.search(answer.data[0].embedding).distance_type("cosine").limit(TOP).to_list()
        return found

    documents = {name.partition("#")[0] for name in table.to_arrow()["id"].to_pylist()}
    report(search, documents, " ".join(sys.argv[2:]))


if __name__ == "__main__":
    main()
