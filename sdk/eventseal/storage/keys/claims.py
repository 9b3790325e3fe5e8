"""
Claims: notes that a process is creating the key of a slot.

A claim is no lock. If one is lost, two processes create a key, and the slot keeps one of them
(docs/decisions/0036).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Float, or_, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from eventseal.storage.database.rows import insertion
from eventseal.storage.database.transactions import writes
from eventseal.storage.keys.tables import key_claims

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from sqlalchemy.engine import Connection
    from sqlalchemy.sql.compiler import SQLCompiler

_PLACE_SIZE = 2
"""The bytes of a slot that are its place. So there are 65,536 rows at most, and nobody deletes old claims."""


class _Now(FunctionElement[float]):
    """The database's clock, in seconds since 1970."""

    inherit_cache = True
    type = Float()


@compiles(_Now, "postgresql")
def _now_on_postgresql(_element: _Now, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(_Now, "sqlite")
def _now_on_sqlite(_element: _Now, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@writes("claiming the creation of keys", filtered=True)
def claim_slots(
    connection: Connection, slots: Collection[bytes], *, owner: UUID, seconds: float
) -> set[bytes]:
    """
    Claim slots that nobody else has claimed, and return them.

    Two slots may share a place. Then the later claim replaces the earlier one.

    Args:
        connection: A connection in its own transaction.
        slots: Digests of 32 bytes.
        owner: A random id of the caller, who may claim a slot again.
        seconds: The duration of the claims, by the database's clock.
    """
    there, now = key_claims.c, _Now()
    inserting = insertion(connection, key_claims)
    new = inserting.excluded
    statement = inserting.on_conflict_do_update(
        index_elements=["place"],
        set_={"slot": new.slot, "owner": new.owner, "ends_at": new.ends_at},
        where=or_(there.slot != new.slot, there.owner == new.owner, there.ends_at <= now),
    ).returning(there.slot)
    claimed = set()
    for slot in sorted(slots):  # so that two processes do not deadlock
        row = {"place": slot[:_PLACE_SIZE].hex(), "slot": slot, "owner": owner, "ends_at": now + seconds}
        if connection.execute(statement.values(row)).first() is not None:
            claimed.add(slot)
    return claimed


@writes("ending the claims of keys", filtered=True)
def release_slots(connection: Connection, slots: Collection[bytes], *, owner: UUID) -> None:
    """End the owner's claims, for example because the KMS refused."""
    mine = key_claims.c.slot.in_(slots), key_claims.c.owner == owner
    # An update, so that no role needs the right to delete here.
    connection.execute(update(key_claims).where(*mine).values(ends_at=0))
