"""A process that migrates, or copies, by the environment's settings and is killed in the middle: ``HOW``."""

from __future__ import annotations

import os
import signal
import sys
import warnings

from eventseal.configuration import EventSeal
from eventseal.rotation import copy_items, migrate
from eventseal.storage import SQLAlchemyActiveRecordStrategy, SQLAlchemySettings
from eventseal.storage.jobs import shards as job_shards

BATCHES_BEFORE = 3


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killing(owner, name: str, *, before: bool) -> None:
    """Die at the call of a function behind the first ones: before it has done anything, or behind it."""
    function, calls = getattr(owner, name), []

    def counted(*args, **named):
        calls.append(name)
        if before and len(calls) > BATCHES_BEFORE:
            kill()
        result = function(*args, **named)
        if not before and len(calls) > BATCHES_BEFORE:
            kill()
        return result

    setattr(owner, name, counted)


def main() -> None:
    warnings.simplefilter("ignore")
    how, *rest = sys.argv[1:]
    seal = EventSeal.from_settings()
    if how.startswith("copy"):
        killing(SQLAlchemyActiveRecordStrategy, "append", before=how.endswith("before a batch"))
        source = SQLAlchemySettings(rest[0])
        copy_items(seal, source=source, table=rest[1], into=rest[1], batch=10)
    else:
        killing(job_shards, "advance_shard", before=how.endswith("before a commit"))
        migrate(seal, batch=10)
    sys.exit("it was not killed")


if __name__ == "__main__":
    main()
