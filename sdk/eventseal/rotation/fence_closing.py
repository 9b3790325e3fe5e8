"""Closes the fences of keys in the items' database, and then counts what is left under them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from eventseal.errors import StoreUnavailableError
from eventseal.storage.database.faults import sqlstate
from eventseal.storage.database.transactions import write
from eventseal.storage.items.fences import PATIENCE, close_fences
from eventseal.storage.items.key_counts import count_needed, count_under

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection, Engine

    from eventseal.storage.items.tables import SealedTable


if TYPE_CHECKING:
    Excused = Callable[[Connection, Collection[UUID]], Mapping[UUID, Counter[str]]]

_LOCK_NOT_AVAILABLE = "55P03"


@dataclass(frozen=True, slots=True)
class Closing:
    """
    How the closing of fences ended.

    Attributes:
        closed: The keys under which nothing is written any more, with the items of each in each table.
        needed: Those that have items, and whose fences were left as they were.
        held: Those whose fence somebody held for too long, with the error.
    """

    closed: dict[UUID, Counter[str]] = field(default_factory=dict)
    needed: dict[UUID, Counter[str]] = field(default_factory=dict)
    held: dict[UUID, StoreUnavailableError] = field(default_factory=dict)


class _StillNeeded(Exception):  # noqa: N818 - undoes the transaction, and is caught where that was begun
    def __init__(self, items: Mapping[UUID, Counter[str]]) -> None:
        super().__init__()
        self.items = items


def close_and_count(
    engine: Engine,
    tables: Sequence[SealedTable],
    key_ids: Collection[UUID],
    *,
    even_if_needed: bool,
    excused: Excused | None = None,
) -> Closing:
    """
    Close the fences of keys, in one transaction that waits for every one that wrote under them; then count.

    Args:
        engine: Of the items' database.
        tables: Every one that may hold items under the keys.
        key_ids: A hundred at a time: their fences are held together.
        even_if_needed: Whether the fence of a key is closed although it has items.
        excused: Counts, in the same transaction, those of them for whose sake no key stays.

    Raises:
        StoreError: The database refused or failed, otherwise than by a lock that somebody holds.
    """
    result = Closing()
    pending = sorted(key_ids)
    kind: dict[str, Any] = {"even_if_needed": even_if_needed, "excused": excused}
    work = partial(_close, tables=tables, **kind)
    while pending:
        try:
            items = write(engine, partial(work, key_ids=pending), doing=_doing(pending))
        except _StillNeeded as needed:
            result.needed.update(needed.items)
            pending = [key_id for key_id in pending if key_id not in needed.items]
        except StoreUnavailableError as error:
            if not is_lock_timeout(error):
                raise
            if len(pending) > 1:  # find out whose fence it is
                for key_id in pending:
                    _merge(result, close_and_count(engine, tables, [key_id], **kind))
            else:
                result.held[pending[0]] = held_fence(pending[0], error)
            return result
        else:
            result.closed.update({key_id: items.get(key_id, Counter()) for key_id in pending})
            return result
    return result


def _close(
    connection: Connection,
    key_ids: Sequence[UUID],
    tables: Sequence[SealedTable],
    *,
    even_if_needed: bool,
    excused: Excused | None,
) -> dict[UUID, Counter[str]]:
    close_fences(connection, key_ids)
    # A new statement, hence a new snapshot: it sees whatever the closing has waited for.
    if even_if_needed:
        return count_under(connection, tables, key_ids)
    items = count_needed(connection, tables, key_ids)
    if items and excused is not None:
        items = without(items, excused(connection, list(items)))
    if items:
        raise _StillNeeded(items)
    return {}


def without(
    items: Mapping[UUID, Counter[str]], excused: Mapping[UUID, Counter[str]]
) -> dict[UUID, Counter[str]]:
    """Subtract counts by key and table; a key of which nothing is left is left out."""
    left = {key_id: counts - excused.get(key_id, Counter()) for key_id, counts in items.items()}
    return {key_id: counts for key_id, counts in left.items() if counts}


def _merge(result: Closing, one: Closing) -> None:
    result.closed.update(one.closed)
    result.needed.update(one.needed)
    result.held.update(one.held)


def _doing(key_ids: Sequence[UUID]) -> str:
    return f"closing the fence of key {key_ids[0]}" + (f" and {len(key_ids) - 1} more" * (len(key_ids) > 1))


def is_lock_timeout(error: StoreUnavailableError) -> bool:
    """Whether somebody held a fence for too long."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and sqlstate(cause) == _LOCK_NOT_AVAILABLE


def held_fence(key_id: UUID, error: StoreUnavailableError) -> StoreUnavailableError:
    """Say whose fence somebody held for too long."""
    held = StoreUnavailableError(
        f"a transaction that wrote under key {key_id} is still open after {PATIENCE} s",
        remedy="Run it again when the transaction has ended; pg_stat_activity shows the ones that stay open.",
        key_id=key_id,
    )
    held.__cause__ = error
    return held
