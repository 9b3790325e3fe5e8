"""Closed KEKs, and closed versions of KEKs: nothing that they have wrapped is stored any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from eventseal.errors import KeyDestroyedError
from eventseal.keys.wrapping.branches import BRANCH_PREFIX
from eventseal.storage.keys.tables import EVERY_VERSION, kek_fences

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.engine import Connection

    from eventseal.kms.adapter import WrappedKey


_CLOSED = (
    "Try again: the KEK wraps under a newer version by now. If it goes on, the KEK was replaced by "
    "`eventseal roll-epoch`: configure its successor alone."
)


def refuse_closed(connection: Connection, wrappings: Iterable[WrappedKey]) -> None:
    """
    Refuse what was just stored, if its KEK was closed meanwhile.

    Who closes a KEK keeps others from storing wrappings until it has committed, and counts what is there: so
    a wrapping is either counted, or refused here. What branch keys have wrapped costs nothing.

    Args:
        connection: In the caller's transaction, which has inserted *wrappings* in an earlier statement.
        wrappings: Under KEKs or branch keys.

    Raises:
        KeyDestroyedError: A KEK, or the version that made a wrapping, is closed. The caller rolls back.
    """
    by_kek = [wrapped for wrapped in wrappings if not wrapped.kek_uri.startswith(BRANCH_PREFIX)]
    if not by_kek:
        return
    query = select(kek_fences.c.kek_uri, kek_fences.c.kek_version).where(
        kek_fences.c.kek_uri.in_({wrapped.kek_uri for wrapped in by_kek})
    )
    closed = {(row.kek_uri, row.kek_version) for row in connection.execute(query)}
    for wrapped in by_kek:
        if {(wrapped.kek_uri, EVERY_VERSION), (wrapped.kek_uri, wrapped.kek_version)} & closed:
            version = "" if wrapped.kek_version is None else f" (version {wrapped.kek_version})"
            raise KeyDestroyedError(
                f"{wrapped.kek_uri}{version} was closed before what it has wrapped was stored",
                kek_uri=wrapped.kek_uri,
                remedy=_CLOSED,
            )
