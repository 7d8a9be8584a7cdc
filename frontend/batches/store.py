"""Store of files and batches: the database and the file store, opened from one configuration."""

import asyncio
from pathlib import Path
from typing import NamedTuple

from frontend.batches.connections import connect
from frontend.batches.contents import Contents, open_contents
from frontend.batches.database import Database
from frontend.batches.errors import convert_error
from frontend.config import StoreConfig

#: Age at which an object without a row is a leftover of a killed process, in seconds. An upload gets its row when it is
#: complete, and the object of a chunk belongs to an open batch.
ORPHAN_AGE_S = 3600.0
#: Age at which an unfinished upload is a leftover. Its file gets older only while its client pauses.
UNFINISHED_AGE_S = 3600.0


class Store(NamedTuple):
    """Rows and bytes of files and batches."""

    database: Database
    contents: Contents

    async def remove_expired(self, now: float) -> int:
        """Remove files that have expired or that were deleted while a batch read them. Return the number of objects."""
        count = 0
        while keys := await asyncio.to_thread(self.database.pop_expired_files, now):
            await self.contents.delete(keys)
            count += len(keys)
        return count

    async def remove_orphans(self, min_age_s: float = ORPHAN_AGE_S) -> int:
        """Remove objects that killed processes have left, and return their number."""
        count = await asyncio.to_thread(self.contents.remove_unfinished, max(min_age_s, UNFINISHED_AGE_S))
        async for keys in self.contents.list_old_keys(min_age_s):
            unused = await asyncio.to_thread(self.database.find_unused_keys, keys)
            await self.contents.delete(unused)
            count += len(unused)
        return count


def open_store(config: StoreConfig) -> Store:
    """Return the store of a configuration with `--data`. Raise `StoreError` if it cannot be used. Blocks."""
    data = Path(config.data)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise convert_error(f"the folder {data} of --data", error) from None
    return Store(Database(connect(config.database, data)), open_contents(config.file_store, data))
