"""The same search with LlamaIndex, in memory: `python llamaindex_search.py PASSAGES [QUESTION]`.

The server is at OPENAI_BASE_URL, and its key is OPENAI_API_KEY.
"""

import os
import sys

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from passages import TOP, Passage, read_passages, report

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def main() -> None:
    """Answer the question, or measure the search."""
    passages = {passage["id"]: passage for passage in read_passages(sys.argv[1])}
    embedding = OpenAILikeEmbedding(
        model_name=MODEL,
        api_base=os.environ["OPENAI_BASE_URL"],
        api_key=os.environ["OPENAI_API_KEY"],
        additional_kwargs={"extra_body": {"truncate": "end"}},
    )
    nodes = [TextNode(id_=name, text=f"{each['heading']}\n{each['text']}") for name, each in passages.items()]
    retriever = VectorStoreIndex(nodes, embed_model=embedding).as_retriever(similarity_top_k=TOP)

    def search(question: str) -> list[Passage]:
        return [passages[found.node_id] for found in retriever.retrieve(question)]

    report(search, {name.partition("#")[0] for name in passages}, " ".join(sys.argv[2:]))


if __name__ == "__main__":
    main()
