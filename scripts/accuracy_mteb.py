"""MTEB tasks against a running server: `python accuracy_mteb.py REQUEST OUTPUT`, in an environment with mteb.

REQUEST is a JSON object with `url`, `model`, `tasks`, and `prompt`, the name of a prompt or "". OUTPUT is the file for
the results: a JSON list of task, measure and value times 100. The variable `API_KEY` has the API key.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import mteb
from accuracy_client import Array, Client, ServerError
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction


class ServedModel(AbsEncoder):  # type: ignore[misc]
    """Model of a running server, as MTEB calls models."""

    def __init__(self, client: Client, prompt: str = "") -> None:
        known = client.read_model()
        facts = {"name": client.model, "revision": known["revision"], "similarity_fn_name": ScoringFunction.COSINE}
        sizes = {"embed_dim": known["dimension"], "max_tokens": known["max_tokens"]}
        self.mteb_model_meta = ModelMeta.create_empty({**facts, **sizes})
        self._client, self._prompt = client, prompt

    def encode(self, inputs: Any, *, prompt_type: Any = None, **options: Any) -> Array:
        """Return the vectors of batches of texts.

        Searches have `prompt_type` query or document, and get the model's prompt for it; other texts get the prompt of
        the command line.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type is not None:
            return self._client.embed(texts, input_type=prompt_type.value)
        return self._client.embed(texts, **({"prompt_name": self._prompt} if self._prompt else {}))


def run_tasks(model: ServedModel, tasks: Any) -> list[tuple[str, str, float]]:
    """Return task, measure and value times 100 of each task."""
    results = mteb.evaluate(model, tasks, cache=None, show_progress_bar=sys.stderr.isatty())
    measures = {task.metadata.name: task.metadata.main_score for task in tasks}
    return [(done.task_name, measures[done.task_name], 100 * float(done.get_score())) for done in results.task_results]


def main() -> None:
    """Run the program. Exit with status 2 if a task cannot be had, or the server does not answer."""
    request = json.loads(sys.argv[1])
    client = Client(request["url"], request["model"], os.environ.get("API_KEY", ""))
    try:
        tasks = mteb.get_tasks(request["tasks"])
        results = run_tasks(ServedModel(client, request["prompt"]), tasks)
    except (KeyError, ServerError, OSError) as error:  # KeyError: no such task; OSError: its data cannot be fetched
        sys.exit(f"scripts/accuracy: {error.args[0] if error.args else error}")
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
