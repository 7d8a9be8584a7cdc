"""The same search with LangChain, in memory: `python langchain_search.py PASSAGES [QUESTION]`.

The server is at OPENAI_BASE_URL, and its key is OPENAI_API_KEY.
"""

import sys

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings
from passages import TOP, Passage, read_passages, report

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def main() -> None:
    """Answer the question, or measure the search."""
    passages = {passage["id"]: passage for passage in read_passages(sys.argv[1])}
    # Otherwise LangChain sends token ids of OpenAI's models.
    embeddings = OpenAIEmbeddings(
        model=MODEL, check_embedding_ctx_length=False, model_kwargs={"extra_body": {"truncate": "end"}}
    )
    store = InMemoryVectorStore(embeddings)
    texts = [f"{passage['heading']}\n{passage['text']}" for passage in passages.values()]
    store.add_documents([Document(text, id=name) for name, text in zip(passages, texts, strict=True)])

    def search(question: str) -> list[Passage]:
        return [passages[found.id or ""] for found in store.similarity_search(question, TOP)]

    report(search, {name.partition("#")[0] for name in passages}, " ".join(sys.argv[2:]))


if __name__ == "__main__":
    main()
