"""The upgrade of key tables that a release before the revocation tree has written: once, by one function."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from eventseal.erasure.shredding import list_erased
from eventseal.rotation.sealed_store import registered_tables

if TYPE_CHECKING:
    from eventseal.keys.authentication.old_key_tables import OldRows
    from eventseal.rotation.sealed_store import SealedStore


class Upgraded(NamedTuple):
    """
    What an upgrade has taken over.

    Attributes:
        keys: Keys that are compromised or destroyed.
        erased: Items of scopes that were reopened, which are taken for erased as they were found: nothing
            proves that they were.
        edited: Rows that do not match their seals, and were left out.
    """

    keys: int
    erased: int
    edited: int


def upgrade_key_tables(store: SealedStore) -> Upgraded | None:
    """
    Upgrade the key tables of a release before the revocation tree. `eventseal init` calls it.

    The processes of that release must be stopped: one that meets the new change mark ends with an error.

    Args:
        store: An ``EventSeal``, or any object with its four, whose tables were made: ``setup_tables()``.

    Returns:
        ``None`` if there was nothing to do.

    Raises:
        ConfigurationError: A registered table is not there.
        IntegrityError: The rows are not what the old mark counts, or that of a shredded key was edited.
        StoreError: A database refused or failed, or the key tables changed meanwhile; run it again.
    """
    erased = 0

    def first(rows: OldRows) -> None:
        nonlocal erased
        if rows.reopened:
            tables = registered_tables(store.datastore, store.cipher.application)
            erased = list_erased(store, tables, rows.reopened)

    rows = store.keyring.upgrade_key_tables(first=first)
    return None if rows is None else Upgraded(rows.keys, erased, len(rows.edited))
