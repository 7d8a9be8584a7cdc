"""Store of files and batches: the database and the file store, opened from one configuration."""

import asyncio
import uuid
from pathlib import Path

from frontend.batches.connections import DATABASE_NAME, connect
from frontend.batches.contents import Contents, open_contents
from frontend.batches.database import Database
from frontend.batches.errors import ForeignStoreError, StoreError, convert_error
from frontend.batches.threads import call_database
from frontend.config import StoreConfig

#: Age at which an object without a row is a leftover of a killed process, in seconds. An upload gets its row when it is
#: complete, and the object of a chunk belongs to an open batch.
ORPHAN_AGE_S = 3600.0
#: Age at which an unfinished upload is a leftover. Its file gets older only while its client pauses.
UNFINISHED_AGE_S = 3600.0
#: Time after its creation at which a batch that has ended is removed, in seconds. A batch runs for 30 days at most.
BATCH_AGE_S = 120 * 86400.0


class Store:
    """Rows and bytes of files and batches.

    A database and its file store have the same identity. Otherwise the removal of objects without a row would remove
    the files of another database.
    """

    def __init__(self, database: Database, contents: Contents) -> None:
        self.database = database
        self.contents = contents
        #: Whether the two have been found to belong together.
        self._checked = False

    def check(self) -> None:
        """Raise `ForeignStoreError` if the file store belongs to another database. Blocks."""
        identity = self.database.keep_setting("identity", uuid.uuid4().hex)
        if self.contents.identify(identity) != identity:
            text = f"{self.contents.name} belongs to another database; give that with --database or --data, or give"
            raise ForeignStoreError(f"{text} another --file-store, in S3 another prefix")
        self._checked = True

    def check_at_start(self) -> None:
        """Do as `check`, unless the database or the file store cannot be used yet. Blocks."""
        try:
            self.check()
        except ForeignStoreError:
            raise
        except StoreError:
            # A server starts without its store, and the first use checks again.
            pass

    async def check_once(self) -> None:
        """Do as `check` before the first use of the store."""
        if not self._checked:
            await asyncio.to_thread(self.check)

    async def remove_expired(self, now: float) -> int:
        """Remove files that have expired or that were deleted while a batch read them, and old batches.

        Return the number of removed objects.
        """
        await call_database(self.database.remove_batches, now - BATCH_AGE_S)
        count = 0
        while keys := await call_database(self.database.pop_expired_files, now):
            await self.contents.delete(keys)
            count += len(keys)
        return count

    async def remove_orphans(self, min_age_s: float = ORPHAN_AGE_S) -> int:
        """Remove objects that killed processes have left, and return their number."""
        await asyncio.to_thread(self.check)
        count = await asyncio.to_thread(self.contents.remove_unfinished, max(min_age_s, UNFINISHED_AGE_S))
        async for keys in self.contents.list_old_keys(min_age_s):
            unused = await call_database(self.database.find_unused_keys, keys)
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
    contents = open_contents(config.file_store, data)
    if not config.database and contents.contains(data / DATABASE_NAME):
        raise StoreError(f"{contents.name} contains the database of --data; give another folder with --file-store")
    return Store(Database(connect(config.database, data)), contents)
