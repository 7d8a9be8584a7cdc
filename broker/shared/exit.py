"""Exit statuses of all programs, and the exit of a program that cannot start. Needs only Python.

| status | when |
|---|---|
| 0 | drained after SIGTERM or SIGINT, or done |
| 1 | a fault of Vecmill; the traceback is in the log |
| 2 | refused: an invalid setting, model, key, device or address; a restart cannot help |
| 70 | a worker ended itself because an inference hung or one of its threads died; restart it |
| 130 | `scripts/serve` was stopped before the model was ready, or by a second signal |
"""

import sys
from typing import NoReturn

REFUSED_STATUS = 2
HUNG_STATUS = 70
INTERRUPTED_STATUS = 130


def exit_refused(program: str, reason: object) -> NoReturn:
    """Print why a program cannot start, and exit. `program` is empty for scripts."""
    print(f"{f'vecmill {program}'.rstrip()}: {reason}", file=sys.stderr)
    sys.exit(REFUSED_STATUS)
