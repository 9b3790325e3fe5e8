"""The ledger's key goes along where keys move from one KEK, or version of it, to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.erasure.shred import own_ledger
from eventseal.errors import JobError
from eventseal.rotation.keks import kek_names

if TYPE_CHECKING:
    from eventseal.kms import KmsAdapter
    from eventseal.rotation.sealed_store import SealedStore


def carry_ledger(store: SealedStore, to: KmsAdapter | None = None) -> bool:
    """
    Wrap the key of the store's own ledger as its other keys are wrapped, and unwrap it once to be sure.

    Whoever ends a KEK, or older versions of it, does this before: the ledger could not be verified again.

    Args:
        store: An ``EventSeal``, or any object with its four.
        to: The only KEK that is to remain; ``None``: the newest version of each of the store's.

    Returns:
        Whether there is a ledger.

    Raises:
        EventSealError: As :meth:`eventseal.erasure.Ledger.rewrap` raises.
    """
    ledger = own_ledger(store)
    if ledger is None or not ledger.exists(store.keyring.application):
        return False
    ledger.rewrap(store, to=None if to is None else [to])
    return True


def refuse_needed_by_ledger(store: SealedStore, uri: str, version: str | None = None) -> None:
    """
    Refuse that a KEK, or one version of it, is taken away while the store's own ledger needs it.

    Args:
        store: An ``EventSeal``, or any object with its four.
        uri: The KEK: as it is configured, or as wrappings name it.
        version: As wrappings tell it; ``None``: the whole KEK.

    Raises:
        JobError: The ledger's key was not seen to open without it.
        EventSealError: As :meth:`eventseal.erasure.Ledger.opens_without` raises.
    """
    ledger = own_ledger(store)
    if ledger is None or not ledger.exists(store.keyring.application):
        return
    wrappings = ledger.wrappings(store)
    named = kek_names(store, uri, {wrapped.kek_uri for wrapped in wrappings})
    leaving = [
        wrapped
        for wrapped in wrappings
        if wrapped.kek_uri in named and (version is None or wrapped.kek_version in {version, None})
    ]
    if leaving and not ledger.opens_without(store, leaving):
        raise JobError(
            f"the key of {ledger.name} does not open without {uri}: no entry could be verified",
            remedy="Wrap it elsewhere first: eventseal rewrap",
        )
