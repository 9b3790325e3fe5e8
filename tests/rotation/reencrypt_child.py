"""A process that re-encrypts and ends in the middle of it: ``URL KEY_FILE HOW``."""

from __future__ import annotations

import os
import signal
import sys
import warnings

from eventseal.configuration import EventSeal
from eventseal.rotation import reencrypt
from eventseal.storage.database import transactions
from eventseal.storage.jobs import shards as job_shards

BATCHES_BEFORE = 3


def on_call(module, name, act) -> None:
    """Do something before the function's call behind the first batches."""
    function, calls = getattr(module, name), []

    def counted(*args, **named):
        calls.append(name)
        if len(calls) == BATCHES_BEFORE + 1:
            act()
        return function(*args, **named)

    setattr(module, name, counted)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    url, key_file, how = sys.argv[1:]
    warnings.simplefilter("ignore")
    seal = EventSeal.from_settings(store_url=url, kms_key=f"local://{key_file}", application="shop")
    if how == "killed in a transaction":
        on_call(job_shards, "advance_shard", kill)
    elif how == "killed behind a commit":
        on_call(transactions, "_committed", lambda: None)
        committed, batches = transactions._committed, []

        def kill_behind(connection, work):
            result = committed(connection, work)
            batches.append(isinstance(result, job_shards.Shard) and result.cursor is not None)
            if sum(batches) > BATCHES_BEFORE:
                kill()
            return result

        transactions._committed = kill_behind
    elif how == "interrupted":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run, it may be ignored
        on_call(job_shards, "advance_shard", lambda: signal.raise_signal(signal.SIGINT))
    try:
        result = reencrypt(seal, batch=50)
    except KeyboardInterrupt:
        sys.exit(130)
    print(result.done)


if __name__ == "__main__":
    main()
