"""
Rotate every data key of a store while its applications run.

Run it: ``python examples/rotate_keys.py demo-output/eventseal.toml`` (``make demo`` creates that file).
You can stop it anywhere, and run it again. If an item or a key failed or is left, it exits with 1.
If you must correct something first, it exits with 2. If a retry can succeed, it exits with 3.
"""

from __future__ import annotations

import sys
import time

from eventseal import EventSeal
from eventseal.errors import EventSealError, KmsUnavailableError, StoreUnavailableError
from eventseal.rotation import JobResult, reencrypt, retire, rotate_keys


def show(result: JobResult) -> None:
    """Print the progress of a step on standard error."""
    print(f"{result.verb}: {result.done:,} done, {result.left:,} left", end="\r", file=sys.stderr, flush=True)


def run(seal: EventSeal) -> int:
    """Rotate, re-encrypt, wait for all processes, retire. Return the exit code."""
    print(f"Scopes with a new key: {rotate_keys(seal, progress=show).done:,}")
    moved = reencrypt(seal, progress=show)
    while moved.settles_at is not None:  # other processes may still append under an old key
        time.sleep(max(0.0, (moved.settles_at - seal.key_store.now()).total_seconds()))
        moved = reencrypt(seal, progress=show)
    print(f"Items re-encrypted: {moved.done:,}, failed: {moved.failed:,}")
    if moved.left:
        print(f"Items left: {moved.left:,}. Run it again")
    for failure in moved.failures:
        print(f"  {failure.error}: {failure.table} {dict(failure.row)}: {failure.remedy}")
    retired = retire(seal, progress=show)
    print(f"Old keys destroyed: {retired.done:,}, kept: {retired.left:,}")
    return 1 if moved.failed or moved.unfinished or retired.failed else 0


def main() -> int:
    """Open the store of the settings file in the first argument."""
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
