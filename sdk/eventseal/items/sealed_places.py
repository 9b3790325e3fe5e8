"""The protocol of a place that stores sealed items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable
from uuid import UUID

from eventseal.errors import ConfigurationError
from eventseal.keys.states import KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

Place: TypeAlias = "tuple[Any, Any]"
"""Sequence id and position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """
    Rows of a range in order of their places, column by column.

    The columns make it fast: thousands of rows a second pass through here.

    Attributes:
        sequence_ids: One for each row, like all other columns. Neighbours in a stream share the object.
        positions: The positions in their sequences.
        topics: The topics of their events.
        envelopes: The data of the rows.
        key_ids: The key ids in their headers, as 16 bytes. ``None`` means that the row is not an envelope.
        named: The values of their column of key ids, which may differ. Empty if there is no such column.
        locators: The places where the database finds the rows quickly, if it has them.
        written: A mark that rises from one written row to the next, in the database's own order. Empty if it
            was not requested, or if the database has none.
    """

    sequence_ids: Sequence[Any]
    positions: Sequence[Any]
    topics: Sequence[Any]
    envelopes: Sequence[Any]
    key_ids: Sequence[bytes | None]
    named: Sequence[bytes | None] = ()
    locators: Sequence[Any] = ()
    written: Sequence[int | None] = ()

    def __len__(self) -> int:
        return len(self.envelopes)

    @property
    def last_place(self) -> Place:
        """The place of the last row."""
        return self.sequence_ids[-1], self.positions[-1]

    def key_id(self, number: int) -> UUID | None:
        """Return the key that a row's header names."""
        key_id = self.key_ids[number]
        return None if key_id is None else UUID(bytes=key_id)

    def differs(self, number: int) -> bool:
        """Return whether a row's column of key ids disagrees with its header."""
        return bool(self.named) and self.named[number] != self.key_ids[number]

    def only(self, numbers: Sequence[int]) -> Page:
        """Return a page of only these rows."""
        if len(numbers) == len(self):
            return self
        columns = {
            name: [column[number] for number in numbers] if (column := getattr(self, name)) else ()
            for name in self.__slots__
        }
        return Page(**columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """
    The rows that a page contains.

    Attributes:
        keys: Rows under these keys. ``None`` means any key.
        few: Whether the rows are few. Then sorting them for each page is cheaper than reading the table in
            the order of its places.
        fitting: Also rows under these keys, unless their data begin with one of *heads*.
        heads: Beginnings of envelopes, 3 bytes each.
        plain: Also rows that are not envelopes, and rows whose column and header name different keys.
    """

    keys: tuple[UUID, ...] | None
    few: bool = False
    fitting: tuple[UUID, ...] = ()
    heads: tuple[bytes, ...] = ()
    plain: bool = False


InTransaction: TypeAlias = "Callable[[Any, Sequence[int]], None]"
"""Takes the place's transaction, and the numbers of the swapped rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """
    Items with new envelopes, written in one transaction or not at all.

    Attributes:
        page: The items as they were read.
        envelopes: The new envelope of each row.
        fences: The keys of the new envelopes. Their fences stay open until the transaction ends.
        sources: A function that is called last. If a key of the swapped rows no longer exists, it raises, and
            nothing is written.
        cursor: A function that writes the progress of the job, before *sources* is called. ``None`` means
            that there is no job.
    """

    page: Page
    envelopes: Sequence[bytes]
    fences: Collection[UUID]
    sources: InTransaction
    cursor: InTransaction | None = None


@runtime_checkable
class SealedPlace(Protocol):
    """
    A place of sealed items: a table, or your record strategy's store.

    ``eventseal.testing.record_strategy_contract`` holds the suite that every place passes.
    """

    @property
    def name(self) -> str:
        """The name of the place in the key store. Each place has a different one."""
        ...

    @property
    def collection(self) -> str:
        """The collection that is bound to its items."""
        ...

    def close_fence(self, key_ids: Collection[UUID]) -> None:
        """
        Close the fences of keys permanently.

        It waits for every transaction that wrote under one of them. After it returns, nothing more is
        committed under them here. From then on, an append under one raises ``KeyClosedError``.

        Args:
            key_ids: The keys. Some may never have sealed anything here.

        Raises:
            StoreUnavailableError: A transaction that wrote under a key does not end.
        """
        ...

    def count_by_key(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> Mapping[UUID, int]:
        """
        Count the items that need each of these keys, by their headers.

        Args:
            key_ids: Any number of keys.
            purpose: The purpose of the keys. Only items are counted, and nothing that is nested inside them.

        Returns:
            The number of items of each key, at a moment after the call began. Keys without items are omitted.

        Raises:
            ConfigurationError: The purpose is not ``data``, for which each answer would be 0.
        """
        ...

    def pages(self, selection: Selection, after: Place | None, limit: int) -> Page:
        """
        Read items, in a constant order of their places.

        Args:
            selection: The items to read.
            after: The place after which to begin. ``None`` begins at the first.
            limit: The maximum number of items.

        Returns:
            A page. Only an empty page says that there are no more items.
        """
        ...

    def swap(self, change: Change) -> Sequence[int]:
        """
        Write new envelopes, each only if its old envelope is unchanged.

        Returns:
            The numbers of the changed items.

        Raises:
            KeyClosedError: The fence of a new envelope's key is closed. Nothing was changed.
        """
        ...


def refuse_other_purposes(purpose: KeyPurpose) -> None:
    """
    Refuse to count for keys that seal no items. Every place calls this first.

    Raises:
        ConfigurationError: The purpose is not ``data``.
    """
    if purpose is not KeyPurpose.DATA:
        raise ConfigurationError(
            f"keys of purpose {purpose} seal no items, so there is nothing to count here",
            remedy="Count the items of data keys only. Only a shred destroys a key of another purpose.",
        )
