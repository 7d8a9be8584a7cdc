"""Settings that frontends and runners must share, because answers depend on them: each notes its own in the store."""

import msgspec

from frontend.batches.database import Database
from frontend.config import Config

#: Settings of requests, on which the answers to lines depend.
_NAMES = ("max_body_bytes", "max_inputs", "max_request_tokens", "truncate", "no_token_ids", "dimensions_policy")


def compare_settings(database: Database, config: Config, program: str, other: str) -> list[str]:
    """Note the settings of a program, and return how those that the other program noted last differ. Blocks.

    Raise `StoreError` if the database cannot be used.
    """
    own = {name: getattr(config, name) for name in _NAMES}
    database.save_setting(f"settings of {program}", msgspec.json.encode(own).decode())
    noted = msgspec.json.decode(database.keep_setting(f"settings of {other}", "{}"), type=dict[str, object])
    return [
        f"--{name.replace('_', '-')} is {own[name]!r}, but {noted[name]!r} in {other}"
        for name in _NAMES
        if name in noted and noted[name] != own[name]
    ]
