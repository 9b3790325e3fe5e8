"""
Opens a sealed bomb and reports how much memory that took; run by ``test_bombs.py`` in a process of its own.

``bomb_child.py FILE LIMIT``: the file holds an item of the place and key below.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from eventseal.cipher import AESCipher, ItemContext
from eventseal.errors import EventSealError

KEY = bytes(range(32))
PLACE = ItemContext("bombs", 0, "Bomb")


def peak() -> int:
    """Bytes that this program ever had in memory. Not ``ru_maxrss``: a child begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    sealed, limit = Path(sys.argv[1]).read_bytes(), int(sys.argv[2])
    cipher = AESCipher(KEY, max_plaintext=limit)
    cipher.decrypt(cipher.encrypt(b"warm " * 100, PLACE), PLACE)
    before = peak()
    started = time.process_time()  # the processor's: others on the machine do not count
    try:
        outcome = f"opened {len(cipher.decrypt(sealed, PLACE))}"
    except EventSealError as error:
        outcome = type(error).__name__
    seconds = time.process_time() - started
    print(json.dumps({"outcome": outcome, "grown": peak() - before, "seconds": seconds}))


if __name__ == "__main__":
    main()
