"""
Seals items in threads and forked processes that share a warm pool, and counts the IVs that came twice.

Run by ``test_ivs.py``, in a process of its own: ``iv_census.py ITEMS [--prefetch]``. With ``--prefetch`` the
random blocks come from a store kept for later, which a fork copies: the census must notice.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from pathlib import Path

from eventseal.suites import A256CBC_HS512
from eventseal.suites.cbc_hmac import ContextPool, seal_many

PROCESSES, THREADS, PAGE = 4, 2, 500


class Prefetched:
    """Random bytes drawn ahead: what the suites must never do."""

    def __init__(self, size: int) -> None:
        self.store = os.urandom(size)

    def __call__(self, size: int) -> bytes:
        given, self.store = self.store[:size], self.store[size:]
        return given


def seal_pages(pool: ContextPool, items: int, path: Path, **random: Prefetched) -> None:
    page = [(b"{}", b"")] * PAGE
    with path.open("wb") as file:
        for _ in range(items // PAGE):
            file.write(b"".join([body[:16] for body in seal_many(pool, page, **random)]))


def main() -> None:
    items = int(sys.argv[1])
    share = items // (PROCESSES * THREADS)
    random = {"_random": Prefetched(16 * items)} if "--prefetch" in sys.argv else {}
    pool = ContextPool(A256CBC_HS512, bytes(64))
    with tempfile.TemporaryDirectory() as folder:
        seal_pages(pool, PAGE, Path(folder) / "warm", **random)
        children = []
        for process in range(PROCESSES):
            child = os.fork()
            if not child:
                threads = [
                    threading.Thread(
                        target=seal_pages,
                        args=(pool, share, Path(folder) / f"{process}-{number}"),
                        kwargs=random,
                    )
                    for number in range(THREADS)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                os._exit(0)
            children.append(child)
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        written = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    ivs = [data[start : start + 16] for data in written for start in range(0, len(data), 16)]
    print(json.dumps({"ended": ended, "items": len(ivs), "repeated": len(ivs) - len(set(ivs))}))


if __name__ == "__main__":
    main()
