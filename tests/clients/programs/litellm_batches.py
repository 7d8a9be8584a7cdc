"""Run a batch through LiteLLM: litellm_batches.py REQUEST. Prints what LiteLLM returns to its user.

LiteLLM's proxy calls the same functions for the routes /v1/files and /v1/batches.
"""

import json
import sys
import time
from typing import Any

import litellm


def main() -> None:
    """Upload, create, poll, download, list and cancel."""
    request = json.loads(sys.argv[1])
    known: dict[str, Any] = {
        "custom_llm_provider": "openai",
        "api_base": request["url"],
        "api_key": request["key"],
    }
    with open(request["path"], "rb") as file:
        uploaded = litellm.create_file(file=file, purpose="batch", **known)
    wanted = {"completion_window": "24h", "endpoint": "/v1/embeddings", "input_file_id": uploaded.id}
    batch = litellm.create_batch(**wanted, **known)
    while batch.status not in ("completed", "failed"):
        time.sleep(0.1)
        batch = litellm.retrieve_batch(batch_id=batch.id, **known)
    output = litellm.file_content(file_id=batch.output_file_id, **known).content.decode()
    batches = [one.id for one in litellm.list_batches(**known).data]
    print(json.dumps({"status": batch.status, "output": output, "listed": batch.id in batches}))


main()
