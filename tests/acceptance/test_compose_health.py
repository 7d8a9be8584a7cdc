"""The frontend's health check in compose.yaml, run without containers."""

import subprocess
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from tests.harness.processes import ROOT, Cluster, until


def check_health(cluster: Cluster, cert: str) -> int:
    """Return the exit status of the health check for a frontend."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["frontend"]
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    command[-1] = command[-1].replace("$$", "$").replace("8000", str(cluster.port))
    environ = {"PATH": f"{ROOT}/.venv/bin:/usr/bin:/bin", "VECMILL_FRONTEND_TLS_CERT": cert}
    return subprocess.run(command, env=environ, capture_output=True, timeout=10, check=False).returncode


def test_health_check_follows_readiness(cluster: Cluster) -> None:
    cluster.broker()
    cluster.frontend()
    until(lambda: cluster.health(), what="the frontend")
    assert check_health(cluster, "") == 1
    cluster.worker()
    until(lambda: check_health(cluster, "") == 0, what="health")


def test_health_check_passes_with_tls(cluster: Cluster, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    cluster.broker()
    cluster.frontend("--tls-cert", str(cert), "--tls-key", str(key))
    worker = cluster.worker()
    until(lambda: check_health(cluster, str(cert)) == 0, what="health")
    worker.close()
    until(lambda: check_health(cluster, str(cert)) == 1, what="the worker's end")
    assert check_health(cluster, "") != 0
