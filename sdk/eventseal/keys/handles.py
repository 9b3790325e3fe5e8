"""
From a key's bytes to its handle. No I/O.

Nothing here raises: the frames of a traceback would hold the bytes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from eventseal.errors import IntegrityError
from eventseal.keys.data_key import DataKey
from eventseal.keys.seals import is_bound

if TYPE_CHECKING:
    from eventseal.keys.records import KeyRecord

KEY_SIZE = 32


def random_key(record: KeyRecord) -> DataKey:
    """Make a random key for a new row."""
    return _handle(os.urandom(KEY_SIZE), record)


def generated_key(material: bytes, record: KeyRecord, *, giver: str) -> DataKey | IntegrityError:
    """
    Give the handle of a key that a KMS has made for a new row.

    Args:
        material: Its bytes.
        record: The row, as far as it is known.
        giver: Who gave the bytes, for the message.

    Returns:
        The handle, or the error of a key that has not 32 bytes.
    """
    if len(material) == KEY_SIZE:
        return _handle(material, record)
    return IntegrityError(
        f"{giver} gave {len(material)} bytes, not {KEY_SIZE}, for key {record.key_id}",
        remedy="Report it to whoever maintains the KMS adapter; the key was not used.",
        key_id=record.key_id,
    )


def unwrapped_key(material: bytes, record: KeyRecord, *, giver: str) -> DataKey | IntegrityError:
    """
    Give the handle of a key that was unwrapped for its row.

    Args:
        material: Its bytes.
        record: The row.
        giver: Who gave the bytes, for the message.

    Returns:
        The handle, or the error of a key that is not the one that the row was made for.
    """
    key = generated_key(material, record, giver=giver)
    if isinstance(key, IntegrityError) or is_bound(key, record):
        return key
    key.close()
    return IntegrityError(
        f"the wrapping of key {record.key_id} holds another key than the row was made for",
        remedy="Find out who changed the key tables, and restore the key's rows from a backup.",
        key_id=record.key_id,
    )


def _handle(material: bytes, record: KeyRecord) -> DataKey:
    return DataKey(
        material,
        key_id=record.key_id,
        application=record.application,
        scope=record.scope,
        purpose=record.purpose,
        state=record.state,
    )
