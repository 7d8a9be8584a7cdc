"""PostgreSQL server for tests, from the programs of Debian's package `postgresql`."""

import contextlib
import getpass
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.processes import free_port


def find_program(name: str) -> Path | None:
    """Return the path of a program of the newest installed version, none of which is in PATH in Debian."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return next((folder / name for folder in reversed(folders) if (folder / name).exists()), None)


@contextlib.contextmanager
def run_postgres(folder: Path) -> Iterator[str]:
    """Yield the URL of an empty database. Skip the test if PostgreSQL is missing, and fail in CI."""
    initdb, pg_ctl = find_program("initdb"), find_program("pg_ctl")
    if initdb is None or pg_ctl is None:
        text = "PostgreSQL is missing; run: apt-get install postgresql"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    folder.mkdir()
    # The server refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else getpass.getuser()
    if user == "nobody":
        # The parents of pytest's folders are private.
        folder = Path(shutil.copytree(folder, f"/tmp/vecmill-postgres-{os.getpid()}"))
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    port = free_port()

    def call(*command: str | Path) -> None:
        subprocess.run(
            [str(word) for word in command],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            user=user if user == "nobody" else None,
        )

    data = folder / "data"
    call(initdb, "-D", data, "-U", "vecmill", "--auth", "trust", "--no-sync")
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    call(pg_ctl, "-D", data, "-o", settings, "-l", folder / "log", "-w", "start")
    try:
        yield f"postgresql://vecmill@127.0.0.1:{port}/postgres"
    finally:
        call(pg_ctl, "-D", data, "-m", "immediate", "stop")
        if user == "nobody":
            shutil.rmtree(folder)
