"""Runs a command that ends when its parent ends.

Started by path as ``python -I -S leash.py PARENT SIGNAL UID GID COMMAND...``: it changes user (``-`` keeps
it), asks the kernel for SIGNAL at the parent's death and becomes COMMAND. A wrapper instead of a
``preexec_fn``, because the supervisor has threads and code between fork and exec may then deadlock.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def change_user(uid: str, gid: str) -> None:
    """Gives up root for `uid` and `gid`; the kernel forgets the death signal here, so this comes first."""
    if uid == "-":
        return
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))


def die_with_parent(parent: int, signal_number: int) -> None:
    """Ties this process to `parent`; leaves at once when the parent is already gone."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent:
        raise SystemExit(1)


def main() -> None:
    """Reads the arguments of the module docstring and becomes the command."""
    parent, signal_number, uid, gid, *command = sys.argv[1:]
    change_user(uid, gid)
    die_with_parent(int(parent), int(signal_number))
    os.execvp(command[0], command)  # noqa: S606 - the supervisor's own argument list, no shell


if __name__ == "__main__":
    main()
