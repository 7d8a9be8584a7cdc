"""Embed Parquet files on a Ray cluster: `python ray_data.py INPUT OUTPUT URL`, with `pip install "ray[data]" openai`.

INPUT has the columns `id` and `text`; OUTPUT gets them and `embedding`. The same command goes on after a crash, and
later embeds new rows only: ids in OUTPUT_checkpoint are left out. All nodes must reach INPUT, OUTPUT and URL. Without a
cluster, `scripts/embed` does the same with less.
"""

import os
import sys
from typing import Any

import numpy as np
import ray
from openai import OpenAI
from ray.data.checkpoint import CheckpointConfig

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
#: Requests at a time in the whole cluster, and texts in a request. Two of them keep one worker of Vecmill busy.
IN_FLIGHT = 4
TEXTS = 256


class Embedder:
    """Actor that sends one request after another."""

    def __init__(self, url: str) -> None:
        # Bulk requests do not delay the search queries of others. The client waits as long as Retry-After says.
        headers = {"x-vecmill-lane": "bulk"}
        key = os.environ.get("OPENAI_API_KEY", "unused")
        self._client = OpenAI(base_url=f"{url}/v1", api_key=key, default_headers=headers, max_retries=20, timeout=120)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with vectors."""
        fields = {"truncate": "end", "input_type": "document"}
        answer = self._client.embeddings.create(model=MODEL, input=batch["text"].tolist(), extra_body=fields)
        batch["embedding"] = np.array([item.embedding for item in answer.data], np.float32)
        return batch


def main() -> None:
    """Embed all rows."""
    source, target, url = sys.argv[1:]
    ray.init()
    context = ray.data.DataContext.get_current()
    # Kept after the end, so that another run embeds new rows only; otherwise it would add all rows again.
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=f"{target}_checkpoint", delete_checkpoint_on_success=False
    )
    # An actor waits for answers and needs no CPU. If actors reserved CPUs, a small cluster would have none left for
    # the filter of the checkpoint and for the writer, and the job would wait without end.
    embedders = ray.data.ActorPoolStrategy(size=IN_FLIGHT)
    # Ray joins small files to one block, which one actor would get. A crash repeats unfinished blocks.
    rows = ray.data.read_parquet(source).select_columns(["id", "text"]).repartition(target_num_rows_per_block=TEXTS)
    rows = rows.map_batches(Embedder, fn_constructor_args=(url,), batch_size=TEXTS, compute=embedders, num_cpus=0)
    rows.write_parquet(target)


if __name__ == "__main__":
    main()
