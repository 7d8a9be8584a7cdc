"""Threads for calls of the database. Calls that wait for its lock do not hold up those that sync files."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Calls at a time. More would wait for the two connections.
_executor = ThreadPoolExecutor(8, "database")


async def call_database(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Return the result of a method of the database, which blocks."""
    run = functools.partial(function, *arguments, **named)
    return await asyncio.get_running_loop().run_in_executor(_executor, run)
