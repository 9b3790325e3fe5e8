"""The ledger's key goes along where keys move from one KEK, or version of it, to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.erasure.shred import own_ledger

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
