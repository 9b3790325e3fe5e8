"""The event that somebody's data was erased: what projections follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventseal.erasure.ledger_entries import DONE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from eventseal.erasure.ledger import Ledger
    from eventseal.rotation.sealed_store import SealedStore


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectErased:
    """
    A scope was shredded: read models, search indexes and caches that hold its data in plain drop it now.

    It is told at least once, so dropping again must do no harm.

    Attributes:
        application: Whose keys these were.
        scope: The one that was shredded: ``subject:<id>``, or what else it was. As the key tables have it, so
            compare it with ``keyring.stored_scope(...)`` if these hold digests.
        key_ids: Its keys and tombstones.
        entry: The number of the ledger's entry that says so; ``None`` without a ledger.
    """

    application: str
    scope: str
    key_ids: tuple[UUID, ...]
    entry: int | None


def erased_subjects(store: SealedStore, ledger: Ledger, *, after: int = 0) -> Iterator[SubjectErased]:
    """
    Read from a ledger what was erased: for projections in processes that nobody calls back.

    Args:
        store: Whose application and KEKs.
        ledger: The application's.
        after: The number of the last entry that the projection has followed; 0: from the beginning.

    Raises:
        EventSealError: As :meth:`eventseal.erasure.Ledger.entries` raises.
    """
    for entry in ledger.entries(store, after=after):
        if entry.kind == DONE and entry.scope is not None:
            yield SubjectErased(
                application=entry.application,
                scope=entry.scope,
                key_ids=tuple(entry.keys),
                entry=entry.number,
            )


__all__ = ["SubjectErased", "erased_subjects"]
