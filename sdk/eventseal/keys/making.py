"""New keys: wrapped, bound and sealed records, ready for the key store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from eventseal.keys.key_ids import new_key_id
from eventseal.keys.records import KeyRecord
from eventseal.keys.seals import BINDING_SIZE, binding_of
from eventseal.keys.states import KeyState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.resources import Resources
    from eventseal.keys.seals import Seals
    from eventseal.keys.states import KeyPurpose


def new_record(application: str, scope: str, purpose: KeyPurpose, *, leased: int) -> KeyRecord:
    """Make the record of a new active key, without what only its bytes can give: binding, wrappings, seal."""
    return KeyRecord(
        key_id=new_key_id(),
        application=application,
        scope=scope,
        active_scope=scope,
        purpose=purpose,
        state=KeyState.ACTIVE,
        binding=b"",
        items_reserved=leased,
        seal=b"",
    )


def new_tombstone(application: str, scope: str, purpose: KeyPurpose) -> KeyRecord:
    """Make the record, without its seal, of a shredded key that never was: it keeps a scope's slot taken."""
    return replace(
        new_record(application, scope, purpose, leased=0),
        state=KeyState.DESTROYED,
        destroyed_by="shredded",
        binding=bytes(BINDING_SIZE),  # of no key: nothing is ever unwrapped for this row
    )


def new_keys(
    resources: Resources, seals: Seals, leases: Mapping[str, int]
) -> dict[str, tuple[DataKey, KeyRecord]]:
    """
    Make a key for each scope; nothing is stored yet.

    Args:
        resources: Say for what purpose, and what makes and wraps them.
        seals: Seal their rows.
        leases: By scope the items that this process leases with its key.

    Raises:
        KmsError: Some key could not be wrapped; then none is given.
    """
    blank = [
        new_record(resources.application, scope, resources.purpose, leased=leased)
        for scope, leased in leases.items()
    ]
    made = zip(blank, resources.wrapping.generate(blank), strict=True)
    return {
        record.scope: (key, seals.sealed(replace(record, binding=binding_of(key), wrappings=wrappings)))
        for record, (key, wrappings) in made
    }
