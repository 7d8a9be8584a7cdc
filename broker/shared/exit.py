"""Exit statuses that supervisors act on, and the exit of a program that cannot start."""

import sys
from typing import NoReturn

#: Status for what no restart can repair, such as an invalid setting, a missing model or a taken port.
REFUSED_STATUS = 2
#: Status of a worker that hangs, also after the death of one of its threads.
HUNG_STATUS = 70


def exit_refused(program: str, reason: object) -> NoReturn:
    """Print why a program cannot start, and exit with a status after which a supervisor does not restart it."""
    print(f"vecmill {program}: {reason}", file=sys.stderr)
    sys.exit(REFUSED_STATUS)
