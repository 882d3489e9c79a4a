"""How `make test` shares the tests between its processes.

What starts servers of its own measures time by them, and would be slower beside more of its kind:
a whole stack is one share and everything else that starts servers another, each in its order. Of
the rest every module is a share, because what its tests prepare is prepared once per module.
"""

from typing import Final

STACKS: Final = ("tests/integration/test_end_to_end.py", "tests/integration/test_local_stack.py")
SERVERS: Final = ("tests/contract/", "tests/faults/", "tests/integration/")


def share_of(nodeid: str) -> str:
    """Return the share that a test belongs to."""
    if nodeid.startswith(STACKS):
        return "stacks"
    return "servers" if nodeid.startswith(SERVERS) else nodeid.partition("::")[0]
