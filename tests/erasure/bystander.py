"""
A process that reads, or writes, one tenant's stream all the time, and hears of a shred by itself alone.

Run as a program, with what it does, a database's URL, a key file, a tenant and a refresh interval, it prints
a line for each operation: when it began by the system's clock, and what came of it. It ends with its input.
"""

from __future__ import annotations

import json
import sys
import threading
import warnings
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAUSE = 0.02
"""Seconds between two operations."""


def main(operation: str, url: str, key_file: str, tenant: str, interval: str) -> None:
    from tests.fixtures.sealed_shops import SealedShop, stream_of

    from eventseal.errors import EventSealError
    from eventseal.keys import CachePolicy
    from eventseal.keys.policy import BootClock
    from eventseal_kms.local import LocalKmsAdapter

    listener = threading.Thread(target=sys.stdin.read, daemon=True)
    listener.start()
    clock, kms = BootClock(), LocalKmsAdapter.from_uri(f"local://{key_file}")
    with SealedShop(url, kms, cache=CachePolicy(refresh_interval=float(interval))) as shop:
        for position in count(1):
            began = clock.now()
            try:
                if operation == "read":
                    shop.events.get_domain_event(stream_of(tenant), 0)
                else:
                    shop.append(tenant, position, number=1)
                outcome = "done"
            except EventSealError as error:
                outcome = type(error).__name__
            print(json.dumps([began, outcome]), flush=True)
            listener.join(PAUSE)
            if not listener.is_alive():
                return


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
