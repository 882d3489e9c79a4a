"""Starts a program so that it cannot outlive the process that asked for it.

Run as a script, without our package and without site-packages, because it stands between the
supervisor and every program it starts: it drops to another user where asked, tells the kernel to
signal the program when the supervisor dies, and becomes the program. The kernel watches the thread
that forked, so the supervisor starts programs from its main thread only.

Usage: launch.py PARENT_PID DEATH_SIGNAL NICENESS UID:GID|- PROGRAM [ARGUMENT ...]
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the program named in `arguments`; exit 125 when that cannot be done safely."""
    parent, death_signal, niceness, user = arguments[:4]
    program = arguments[4:]
    os.nice(int(niceness))
    if user != "-":
        uid, gid = (int(part) for part in user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After the change of user, which clears it; it survives the exec below.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        sys.exit(f"cannot tie {program[0]} to its supervisor: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit(125)  # The supervisor died before the line above could see it.
    try:
        os.execvp(program[0], program)  # noqa: S606
    except OSError as error:
        print(f"cannot start {program[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(125)


if __name__ == "__main__":
    main(sys.argv[1:])
