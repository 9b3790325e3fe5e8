"""Who works on a shard, told so that others on the same machine see at once when it is dead."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

_PARTS = 3
_live: set[str] = set()
"""The workers of this process that work."""


def new_worker() -> str:
    """Name a worker of this process: machine, process, when that began, and a number of its own."""
    worker = f"{_machine()}|{os.getpid()}|{_start_of(os.getpid())}|{uuid4().hex}"
    _live.add(worker)
    return worker


def end_worker(worker: str) -> None:
    """Forget a worker: what it still holds is free."""
    _live.discard(worker)


def is_dead(worker: str) -> bool:
    """
    Whether a worker is known to have ended: its process did, or, within this process, it did itself.

    Of another machine's, where processes cannot be told apart, or of an edited name, nothing is known.
    """
    machine, *rest = worker.split("|")
    if machine != _machine() or len(rest) != _PARTS or not (rest[0].isdecimal() and rest[0].isascii()):
        return False
    pid, start, _ = rest
    if not start:
        return False
    if pid == str(os.getpid()) and start == _start_of(os.getpid()):
        return worker not in _live
    return _start_of(pid) != start


@lru_cache(maxsize=1)
def _machine() -> str:
    """Name what process ids are unique in: a container's are its own."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        booted = namespace = ""
    return f"{socket.gethostname()}/{booted}/{namespace}".replace("|", "")


def _start_of(pid: int | str) -> str:
    """Say when a process began, in the kernel's ticks; empty if there is none, or nothing tells."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The second field is the program's name, in parentheses, and may hold anything.
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in {"Z", "X"} else fields[18]
