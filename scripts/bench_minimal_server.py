"""The shortest embeddings server: sentence-transformers behind FastAPI, a peer of `scripts/bench --peers`.

It runs in an environment of its own, which `bench_peers.py` installs: `python bench_minimal_server.py FOLDER PORT`.
"""

import base64
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from sentence_transformers import SentenceTransformer

app = FastAPI()
model = SentenceTransformer(sys.argv[1], device="cpu")


def get_health() -> dict[str, str]:
    """Answer that the server is ready."""
    return {"status": "ok"}


def embed_texts(request: dict[str, Any]) -> dict[str, Any]:
    """Answer the vectors of a request, in one of FastAPI's threads."""
    vectors = model.encode(request["input"], show_progress_bar=False)
    data = [
        {"object": "embedding", "index": index, "embedding": base64.b64encode(vector.tobytes()).decode()}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": request["model"]}


app.get("/health")(get_health)
app.post("/v1/embeddings")(embed_texts)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
