"""Keeps what writes from key tables of a release before the revocation tree. No KMS is needed to tell."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from eventseal.errors import KmsError
from eventseal.keys.revocations import old_key_tables

if TYPE_CHECKING:
    from eventseal.keys.store import KeyStore
    from eventseal.rotation.sealed_store import SealedStore


def has_old_key_tables(key_store: KeyStore, application: str) -> bool:
    """
    Say whether an application's change mark looks like one of the earlier release; its seal is not checked.

    Raises:
        IntegrityError: The mark was edited so that it cannot be read.
        StoreError: The key store refused or failed.
    """
    found = key_store.revocations(application, [])
    return found is not None and not found[0].has_tree


def refuse_old_key_tables(store: SealedStore) -> None:
    """
    Stop before anything is written while the key tables are of the earlier release.

    Raises:
        IntegrityError: The mark is not what a keyring sealed, or old tables were put back.
        StoreError: The key store refused or failed.
        StoreReadOnlyError: The tables are of the earlier release.
    """
    application = store.keyring.application
    if has_old_key_tables(store.key_store, application):
        with suppress(KmsError):  # a worker may lack the right to unwrap
            store.keyring.key_tables()  # an old mark that was put back is told as that
        raise old_key_tables(application)
