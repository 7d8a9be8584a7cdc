"""`python -m frontend`: read the configuration, set up logging, run Sanic."""

import functools
import logging
import os
import sys

import msgspec
from sanic import Sanic
from sanic.worker.loader import AppLoader

from frontend.app import create_app
from frontend.config import Config, load


def main() -> None:
    """Exit status 0 after a drain, 2 for a configuration that is refused."""
    try:
        config = load(sys.argv[1:], os.environ)
    except msgspec.ValidationError as error:
        print(f"vecmill frontend: configuration: {error}", file=sys.stderr)
        sys.exit(2)
    loader = AppLoader(factory=functools.partial(make_app, config))
    app = loader.load()
    app.prepare(
        config.host,
        config.port,
        workers=config.processes,
        single_process=config.processes == 1,
        motd=False,
        access_log=False,
    )
    if config.processes == 1:
        Sanic.serve_single(primary=app)
    else:
        Sanic.serve(primary=app, app_loader=loader)


def make_app(config: Config) -> Sanic:  # type: ignore[type-arg]
    """The application, in whichever process needs it."""
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s frontend: %(message)s")
    return create_app(config)


if __name__ == "__main__":
    main()
