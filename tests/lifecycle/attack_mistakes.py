"""Mistakes that only an attack shows: each drops one of the rules by which edited rows are refused."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from sqlalchemy import func, select

from eventseal.keys import Keyring, revocation_tree
from eventseal.keys.authentication import row_checks
from eventseal.keys.authentication.row_macs import Seals
from eventseal.keys.rewrap.key_wrappings import KeyWrappings
from eventseal.keys.ring.sealing import ScopeBatch, Seats
from eventseal.keys.ring.state_transitions import NextChangeMark
from eventseal.rotation import key_rotation, retirement
from eventseal.storage.database import column_types
from eventseal.storage.database.table_setup import KEY_ID
from eventseal.storage.items import key_counts
from eventseal.storage.items.table_queries import described

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lifecycle.site import Site


@contextmanager
def old_rows_pass(_: Site) -> Iterator[None]:
    with patch.object(row_checks, "is_set_back", lambda _: False):
        yield


@contextmanager
def old_nodes_pass(_: Site) -> Iterator[None]:
    class Fitting(bytes):
        def __ne__(self, _: object) -> bool:
            return False

    digest = revocation_tree.node_digest
    with patch.object(revocation_tree, "node_digest", lambda content: Fitting(digest(content))):
        yield


@contextmanager
def scopes_get_no_entry(_: Site) -> Iterator[None]:
    make = NextChangeMark.__init__

    def wrong(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self._touched = set(self._scopes)

    with patch.object(NextChangeMark, "__init__", wrong):
        yield


@contextmanager
def first_use_goes_by_the_slots(_: Site) -> Iterator[None]:
    settle_closed = Seats._settle_closed

    def wrong(self: Any, batch: Any, scopes: Any, found: Any) -> Any:
        return settle_closed(self, ScopeBatch({}), scopes, found)

    with patch.object(Seats, "_settle_closed", wrong):
        yield


@contextmanager
def tables_of_others_do_not_count(_: Site) -> Iterator[None]:
    registered_tables = retirement.registered_tables

    def own_tables(datastore: Any, application: str, *arguments: Any) -> list[Any]:
        row_checks = datastore.registry().tables
        mine = {row.table for row in row_checks if row.application in {None, application}}
        found = registered_tables(datastore, application, *arguments)
        return [table for table in found if table.table in mine]

    with patch.object(retirement, "registered_tables", own_tables):
        yield


@contextmanager
def unregistered_tables_do_not_count(_: Site) -> Iterator[None]:
    with (
        patch.object(retirement, "refuse_unregistered_tables", lambda _: None),
        patch.object(retirement, "refuse_copies", lambda _: None),
    ):
        yield


@contextmanager
def items_count_by_their_column(_: Site) -> Iterator[None]:
    def by_column(connection: Any, tables: Any, key_ids: Any) -> dict[Any, Counter[str]]:
        found: dict[Any, Counter[str]] = {}
        for table in tables:
            column = described(table)[KEY_ID]
            query = select(column, func.count()).where(column.in_(sorted(key_ids))).group_by(column)
            for named, items in connection.execute(query):
                found.setdefault(named, Counter())[table.table] += items
        return found

    with (
        patch.object(key_counts, "count_under", by_column),
        patch.object(key_counts, "count_misnamed", lambda *_: {}),
    ):
        yield


@contextmanager
def whatever_names_a_destroyed_key_is_erased(_: Site) -> Iterator[None]:
    with patch.object(Keyring, "are_listed_as_erased", lambda _, items: [True] * len(items)):
        yield


@contextmanager
def any_time_is_read(_: Site) -> Iterator[None]:
    with patch.object(column_types, "_LAST_TIME", datetime.max.replace(tzinfo=UTC)):
        yield


@contextmanager
def rolls_need_no_seal(_: Site) -> Iterator[None]:
    with patch.object(Seals, "fits_epoch", lambda *_: True):
        yield


@contextmanager
def rotations_believe_times(_: Site) -> Iterator[None]:
    key_pages = key_rotation.key_pages

    def wrong(*arguments: Any, **named: Any) -> Iterator[list[Any]]:
        for page in key_pages(*arguments, **named):
            yield [record for record in page if record.created_at <= datetime.now(UTC)]

    with patch.object(key_rotation, "key_pages", wrong):
        yield


@contextmanager
def rolls_believe_times(_: Site) -> Iterator[None]:
    renew_branches = KeyWrappings.renew_branches

    def wrong(self: Any, made: Any) -> Any:
        holders = [holder for holder in self._branches_with_keys().values() if holder is not None]
        later = {holder.key_id for holder in holders if holder.created_at > datetime.now(UTC)}
        return renew_branches(self, made | later)

    with patch.object(KeyWrappings, "renew_branches", wrong):
        yield
