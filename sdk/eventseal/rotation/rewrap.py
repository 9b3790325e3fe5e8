"""Rewrap: every key moves to its KEK's newest version, or to another KEK. No item is touched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from eventseal.rotation.keks import kek_report
from eventseal.rotation.old_key_tables import refuse_old_key_tables
from eventseal.rotation.results import Failure, JobResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from eventseal.keys import Rewrap
    from eventseal.kms import KmsAdapter
    from eventseal.rotation.sealed_store import SealedStore

WRAPPING_TABLE = "key_wrappings"
"""Names the wrappings in ``by_table`` and in failures."""


def rewrap(
    store: SealedStore,
    *,
    to: KmsAdapter | None = None,
    batch: int = 100,
    dry_run: bool = False,
    progress: Callable[[JobResult], None] | None = None,
) -> JobResult:
    """
    Wrap every live key where it should be, and drop what that makes superfluous.

    Without *to* each key gets a wrapping under the newest version of every configured KEK, also under those
    that it misses, and loses those under older versions. With *to* that KEK becomes the only one. Data keys
    under branch keys are wrapped under their branch's active key. What was done is in the rows: run again, it
    goes on.

    Inside one KMS service no key is seen, and no right to decrypt is needed. The old wrapping then stays
    until a process that opens keys has unwrapped the new one. Run it again after that, with the right to
    decrypt: a wrapping goes only in a run that has itself unwrapped the one that stays.

    Args:
        store: Whose keyring has the KEKs.
        to: The only KEK that is to remain. If it is not configured yet, the old wrappings stay until it is.
        batch: Keys in one call, 1 or more.
        dry_run: Whether only to count; a KEK is asked for nothing but its newest version.
        progress: Called after each batch with what was done so far.

    Returns:
        ``done`` keys are wrapped as they should be; ``left`` are those that would move (in a dry run), and
        those whose old wrappings stay for now: ``by_table`` tells them apart. ``by_kek`` counts the wrappings
        afterwards.

    Raises:
        ConfigurationError: An argument is refused.
        IntegrityError: The store key's row is not what a keyring sealed.
        KmsError: A KEK refused or failed; what was done stays.
        StoreError: The key store refused or failed.
        StoreReadOnlyError: The key tables are of an earlier release: run `eventseal init` first.
    """
    if not dry_run:
        refuse_old_key_tables(store)
    started = time.monotonic()
    total = 0 if progress is None else store.key_store.count_wrapped_keys(store.keyring.application)

    def report(rewrapped: Rewrap, *, complete: bool, uses: Mapping[str, int]) -> JobResult:
        unseen = 0 if complete else max(0, total - rewrapped.keys)
        return _result(rewrapped, complete=complete, unseen=unseen, by_kek=uses, started=started)

    def tell(rewrapped: Rewrap) -> None:
        if progress is not None:
            progress(report(rewrapped, complete=False, uses={}))

    rewrapped = store.keyring.rewrap(to, batch=batch, dry_run=dry_run, progress=tell)
    return report(rewrapped, complete=True, uses=kek_report(store).by_kek)


def _result(
    rewrapped: Rewrap, *, complete: bool, unseen: int, by_kek: Mapping[str, int], started: float
) -> JobResult:
    return JobResult(
        verb="rewrap",
        complete=complete,
        done=rewrapped.done,
        left=rewrapped.to_move + rewrapped.awaiting + unseen,
        failed=rewrapped.failed,
        seconds=time.monotonic() - started,
        by_table={
            WRAPPING_TABLE: {
                "done": rewrapped.done,
                "to_move": rewrapped.to_move,
                "awaiting": rewrapped.awaiting,
                "failed": rewrapped.failed,
                "added": sum(rewrapped.added.values()),
                "dropped": rewrapped.dropped,
            }
        },
        by_kek=by_kek,
        failures=tuple(
            Failure.of_key(WRAPPING_TABLE, key_id, error) for key_id, error in rewrapped.failures.items()
        ),
    )
