"""`python -m frontend`: read the configuration, run Sanic."""

import functools
import os
import sys

import msgspec
from sanic import Sanic
from sanic.worker.loader import AppLoader
from sanic.worker.manager import WorkerManager

from frontend.app import Connection, create_app
from frontend.config import load


def main() -> None:
    """Exit status 0 after a drain, 1 for an address that cannot be used, 2 for a refused configuration."""
    try:
        config = load(sys.argv[1:], os.environ)
    except msgspec.ValidationError as error:
        print(f"vecmill frontend: configuration: {error}", file=sys.stderr)
        sys.exit(2)
    loader = AppLoader(factory=functools.partial(create_app, config))
    app = loader.load()
    app.prepare(
        config.host,
        config.port,
        workers=config.processes,
        single_process=config.processes == 1,
        motd=False,
        protocol=Connection,
        access_log=False,
    )
    try:
        if config.processes == 1:
            Sanic.serve_single(primary=app)
        else:
            _let_early_signals_end_the_manager()
            Sanic.serve(primary=app, app_loader=loader)
    except OSError as error:
        print(f"vecmill frontend: cannot listen on port {config.port} of {config.host}: {error}", file=sys.stderr)
        sys.exit(1)


def _let_early_signals_end_the_manager() -> None:
    """Sanic 25.12's manager loops for ever on a SIGTERM that comes before it has seen all its processes start."""
    all_started = WorkerManager._all_workers_ack

    def started_or_stopping(manager: WorkerManager) -> bool:
        return bool(manager._shutting_down or all_started(manager))  # type: ignore[no-untyped-call]

    WorkerManager._all_workers_ack = started_or_stopping  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
