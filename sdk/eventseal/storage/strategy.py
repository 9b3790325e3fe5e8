"""The active record strategy: reads and writes sequenced items as rows."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from eventseal.errors import ConfigurationError, ItemNotFoundError, MissingTableError
from eventseal.items.item import SequencedItem
from eventseal.storage.database.faults import is_transient, translated
from eventseal.storage.database.layout import follow_layout_of
from eventseal.storage.datastore import DATASTORE
from eventseal.storage.items.appends import ItemAppends
from eventseal.storage.items.caller_transactions import (
    current_transaction,
    joined_transaction,
    own_transaction,
)
from eventseal.storage.items.columns import comes_after, item_columns
from eventseal.storage.items.places import TablePlace
from eventseal.storage.items.registry import entry_of, read_visible_registry
from eventseal.storage.items.tables import SealedTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Select
    from sqlalchemy.engine import Row


class SQLAlchemyActiveRecordStrategy:
    """
    Reads and writes the items of one table, through a session.

    Args:
        active_record_class: A declarative class whose columns have the names of the item class's fields.
        session: The session whose transactions are used. A scoped session gives each thread its own.
        sequenced_item_class: A named tuple or a dataclass. Its first four fields are the sequence id, the
            position, the topic and the data. ``key_id`` and other fields are found by name.

    Raises:
        ConfigurationError: The two classes do not match, a column cannot hold an item's place exactly, or
            *session* is not a SQLAlchemy session.
    """

    def __init__(
        self,
        active_record_class: type[Any],
        session: scoped_session[Session] | Session,
        *,
        sequenced_item_class: type[Any] = SequencedItem,
    ) -> None:
        if not isinstance(session, scoped_session | Session):
            raise ConfigurationError(
                f"the session is a {type(session).__name__}, not a SQLAlchemy session",
                remedy="Pass datastore.session.",
            )
        self.active_record_class = active_record_class
        self.sequenced_item_class = sequenced_item_class
        self.session = session
        self._columns = item_columns(active_record_class, sequenced_item_class)
        with suppress(UnboundExecutionError):  # a session whose database is chosen later
            follow_layout_of(session.get_bind(mapper=active_record_class).engine)
        self._appends = ItemAppends(self._columns, active_record_class)
        self._make_item = _item_maker(sequenced_item_class, self._columns.fields)

    @property
    def collection(self) -> str:
        """The logical name that is bound to each item."""
        return self._columns.collection

    def other_collections(self, application: str) -> list[str]:
        """
        Return other collections that items of the table may have.

        This is the record class's ``__former_collection__``, as long as the registry has that name. The
        registry has it until ``eventseal reencrypt --to-collection`` has re-encrypted the items. If the
        session does not come from a datastore, the list is empty.

        Args:
            application: The application that owns the items.

        Raises:
            StoreError: The database refused or failed.
        """
        datastore = self._current_session().info.get(DATASTORE)
        if self._columns.former_collection is None or datastore is None:
            return []
        try:
            known = read_visible_registry(datastore.key_engine, application).complete()
        except MissingTableError:
            return []
        entry = entry_of(known, self._columns.table.fullname, application)
        still = None if entry is None else entry.bound_to(self._columns).former_collection
        return [] if still is None else [still]

    @property
    def place(self) -> TablePlace:
        """The table as a place, for code that destroys keys."""
        engine = self._current_session().get_bind(mapper=self.active_record_class).engine
        return TablePlace(engine, SealedTable.of(self._columns, None))

    @contextmanager
    def transaction(self, session: Session | scoped_session[Session] | None = None) -> Iterator[Session]:
        """
        Run a block as one transaction. See :meth:`eventseal.eventstore.EventStore.transaction`.

        Args:
            session: The session of an application that commits itself. With ``None``, the end of the block
                commits the strategy's own session.
        """
        if session is None:
            with own_transaction(self.session) as own:
                yield own
            return
        theirs = session() if isinstance(session, scoped_session) else session
        with joined_transaction(self.session, theirs, self.active_record_class):
            yield theirs

    def append(self, items: Any) -> None:
        """
        Write one or more items and commit the session. Inside :meth:`transaction`, it commits nothing.

        The commit includes whatever else the caller has added to the session. On any error, nothing is
        written. Only after :class:`KeyClosedError`, the caller's own rows stay in the open transaction. The
        caller can then seal the items again and append them once more.

        Args:
            items: One item of the item class, or several.

        Raises:
            SequencedItemConflictError: A position is taken.
            KeyClosedError: A key that sealed some of the items was retired meanwhile.
            SerializationError: A place does not fit its column exactly.
            StoreError: The database refused or failed. ``StoreUnavailableError``, ``StoreReadOnlyError`` and
                ``MissingTableError`` are more specific.
        """
        batch = [items] if isinstance(items, self.sequenced_item_class) else list(items)
        self._appends.append(self._current_session(), batch, current_transaction(self.session))

    def get_item(self, sequence_id: Any, eq: Any) -> Any:
        """
        Read the item at position *eq* of a sequence.

        Raises:
            ItemNotFoundError: There is no item at this position. The error is also a ``LookupError``.
        """
        found = self._read(self._in_sequence(sequence_id).where(self._columns.position == eq))
        if not found:
            raise ItemNotFoundError(
                f"there is no item at position {eq} of sequence {sequence_id} in {self._columns.table}"
            )
        return self._make_item(found[0])

    def get_items(
        self,
        sequence_id: Any,
        gt: Any = None,
        gte: Any = None,
        lt: Any = None,
        lte: Any = None,
        limit: int | None = None,
        query_ascending: bool = True,
        results_ascending: bool = True,
    ) -> list[Any]:
        """
        Read items of a sequence.

        Args:
            sequence_id: The sequence to read.
            gt: Read only positions after this one.
            gte: Read only this position and those after it.
            lt: Read only positions before this one.
            lte: Read only this position and those before it.
            limit: The maximum number of items: the first ones, or the last if *query_ascending* is false.
            query_ascending: Whether the limit counts from the beginning of the sequence.
            results_ascending: Whether the result is in ascending order of positions.

        Raises:
            ConfigurationError: The limit is negative.
        """
        if limit is not None and limit < 0:
            raise ConfigurationError(
                f"limit is {limit}, but must be 0 or more",
                remedy="To read all items, omit limit. To count from the end, set query_ascending=False.",
            )
        position = self._columns.position
        bounds = [
            compare(bound)
            for compare, bound in (
                (position.__gt__, gt),
                (position.__ge__, gte),
                (position.__lt__, lt),
                (position.__le__, lte),
            )
            if bound is not None
        ]
        query = self._in_sequence(sequence_id).where(*bounds)
        query = query.order_by(position.asc() if query_ascending else position.desc()).limit(limit)
        found = [self._make_item(row) for row in self._read(query)]
        if results_ascending != query_ascending:
            found.reverse()
        return found

    def all_items(self, *, page_size: int = 1000) -> Iterator[Any]:
        """
        Iterate over all items in order of sequence id and position.

        Each page is read in its own transaction. So items that are appended meanwhile may be included.

        Args:
            page_size: The number of rows in a page.
        """
        place = self._columns.place
        query = select(*self._columns.columns).order_by(*place).limit(page_size)
        page = self._read(query)
        while page:
            yield from map(self._make_item, page)
            full = len(page) == page_size
            page = self._read(query.where(comes_after(place, page[-1][:2]))) if full else []

    def _in_sequence(self, sequence_id: Any) -> Select[Any]:
        return select(*self._columns.columns).where(self._columns.sequence_id == sequence_id)

    def _read(self, query: Select[Any]) -> list[Row[Any]]:
        """Read inside the caller's transaction, or in a separate short one."""
        session = self._current_session()
        with translated(f"reading {self._columns.table}"):
            if session.in_transaction():
                return self._rows(session, query)
            try:
                return self._rows(session, query)
            except DBAPIError as error:
                session.rollback()
                if not is_transient(error):
                    raise
                return self._rows(session, query)
            finally:
                session.rollback()

    def _rows(self, session: Session, query: Select[Any]) -> list[Row[Any]]:
        # Through the connection: the session would first flush the rows that the caller has added.
        connection = session.connection(bind_arguments={"mapper": self.active_record_class})
        return list(connection.execute(query))

    def _current_session(self) -> Session:
        return self.session() if isinstance(self.session, scoped_session) else self.session


def _item_maker(item_class: type[Any], fields: tuple[str, ...]) -> Callable[[Row[Any]], Any]:
    make = getattr(item_class, "_make", None)
    if make is not None and fields == getattr(item_class, "_fields", None):
        return cast("Callable[[Row[Any]], Any]", make)
    return lambda row: item_class(**dict(zip(fields, row, strict=True)))
