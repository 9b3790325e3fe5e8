"""
Rotate every data key of a store through the library, while its applications run.

Run it: ``python examples/rotate_keys.py demo-output/eventseal.toml`` (made by ``make demo``).
It may be stopped anywhere, and run again. It exits with 1 if an item or a key failed or is left, with 3 if it
is worth trying again, and with 2 if something is to be corrected first.
"""

from __future__ import annotations

import sys
import time

from eventseal import EventSeal
from eventseal.errors import EventSealError, KmsUnavailableError, StoreUnavailableError
from eventseal.rotation import JobResult, reencrypt, retire, rotate_keys


def show(result: JobResult) -> None:
    """Say on standard error how far a verb is."""
    print(f"{result.verb}: {result.done:,} done, {result.left:,} left", end="\r", file=sys.stderr, flush=True)


def run(seal: EventSeal) -> int:
    """Rotate, encrypt again, wait until every process has noticed, retire; give the exit code."""
    print(f"{rotate_keys(seal, progress=show).done:,} scopes have a new key")
    moved = reencrypt(seal, progress=show)
    while moved.settles_at is not None:  # a process that has not noticed may still append under an old key
        time.sleep(max(0.0, (moved.settles_at - seal.key_store.now()).total_seconds()))
        moved = reencrypt(seal, progress=show)
    print(f"{moved.done:,} items are under the new keys, {moved.failed:,} could not be moved")
    if moved.left:
        print(f"{moved.left:,} items are left: run it again")
    for failure in moved.failures:
        print(f"  {failure.error}: {failure.table} {dict(failure.row)}: {failure.remedy}")
    retired = retire(seal, progress=show)
    print(f"{retired.done:,} old keys are destroyed, {retired.left:,} stay")
    return 1 if moved.failed or moved.unfinished or retired.failed else 0


def main() -> int:
    """Open the store that the settings file in the first argument describes."""
    try:
        with EventSeal.from_settings(*sys.argv[1:2]) as seal:
            return run(seal)
    except (KmsUnavailableError, StoreUnavailableError) as error:
        print(f"{error}: {error.remedy}", file=sys.stderr)
        return 3
    except EventSealError as error:
        print(f"{error}: {error.remedy}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
