"""Files and batches with OpenAI's client for Node. `acceptance/test_files.py` has the client for Python."""

import json
import subprocess
from pathlib import Path

from tests.clients.test_client_libraries import INSTALLED, PROGRAMS
from tests.harness.processes import Cluster, until


def test_node_client_uses_files_and_batches(cluster: Cluster, tmp_path: Path) -> None:
    cluster.broker()
    cluster.frontend("--data", str(tmp_path / "data"))
    until(lambda: cluster.health().get("broker") == "connected", what="the frontend")
    path = tmp_path / "input.jsonl"
    path.write_text('{"custom_id": "ü"}\n' * 50_000)
    program = (PROGRAMS / "node_files.mjs").read_text()
    command = ["node", "--input-type=module", "--eval", program, "--", f"{cluster.url}/v1", "none", str(path)]
    done = subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    first = answer["files"][0]
    assert (first["bytes"], first["filename"], first["purpose"]) == (path.stat().st_size, "input.jsonl", "batch")
    assert first["expires_at"] == first["created_at"] + 7200
    assert answer["ready"] == "processed"
    assert answer["content"] == path.read_text()
    assert answer["listed"] == [file["id"] for file in answer["files"][::-1]]
    assert (answer["batch"]["status"], answer["batch"]["metadata"]) == ("validating", {"source": "node"})
    assert answer["retrieved"] == answer["batch"]
    assert answer["batches"] == [answer["batch"]["id"]]
    assert answer["cancelled"] == "cancelling"
    assert answer["deleted"] == {"id": first["id"], "object": "file", "deleted": True}
    assert answer["refusal"] == {"status": 404, "message": f"404 No such File object: {first['id']}"}
