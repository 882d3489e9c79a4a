"""Python's own worker processes end with the process that started them, whatever ended it.

The standard library ends them on a clean exit only: after a SIGKILL they would work on for nobody.
"""

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it is gone.

    Called first thing in the child; `parent` is the process that started it, which may be gone
    already. Where the kernel is not Linux this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
