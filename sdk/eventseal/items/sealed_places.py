"""The protocol of a place that stores items: what is asked of it before keys are destroyed or items moved."""

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
    Rows of a range, in order of their places, column by column: thousands a second go through here.

    Attributes:
        sequence_ids: One for each row, like all others; neighbours of one stream share the object.
        positions: In their sequences.
        topics: Of their events.
        envelopes: Their data.
        key_ids: What their headers name, as 16 bytes; ``None``: the row is no envelope.
        named: What stands in their column of key ids, which may differ; empty if there is no such column.
        locators: Where the database finds the rows quickly, if it has that.
        written: Rises from one written row to the next in the database's own order, as marks have it; empty
            if it was not asked for, or the database has none.
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
        """Of the last row."""
        return self.sequence_ids[-1], self.positions[-1]

    def key_id(self, number: int) -> UUID | None:
        """Give the key that a row's header names."""
        key_id = self.key_ids[number]
        return None if key_id is None else UUID(bytes=key_id)

    def differs(self, number: int) -> bool:
        """Whether a row's column of key ids says something else than its header."""
        return bool(self.named) and self.named[number] != self.key_ids[number]

    def only(self, numbers: Sequence[int]) -> Page:
        """Give a page of these rows alone."""
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
    Which rows a page gives.

    Attributes:
        keys: Rows under these; ``None``: under any key.
        few: Whether there are so few of them that sorting them for each page is cheaper than reading the
            table in the order of its places.
        fitting: Rows under these too, unless their data begins with one of *heads*.
        heads: Beginnings of envelopes, 3 bytes each.
        plain: Rows that are no envelopes too, and those whose column and header name different keys.
    """

    keys: tuple[UUID, ...] | None
    few: bool = False
    fitting: tuple[UUID, ...] = ()
    heads: tuple[bytes, ...] = ()
    plain: bool = False


InTransaction: TypeAlias = "Callable[[Any, Sequence[int]], None]"
"""Takes what a place calls a transaction, and the numbers of the rows that were swapped in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """
    Items with their new envelopes, and what is to be done with them: all in one transaction, or nothing.

    Attributes:
        page: As it was read.
        envelopes: The new one of each row.
        fences: The keys of the new envelopes. Their fences are open until the transaction ends.
        sources: Called last: it raises if a key of the swapped rows is gone, and nothing is written then.
        cursor: Writes how far the job is, before *sources* is called; ``None``: there is no job.
    """

    page: Page
    envelopes: Sequence[bytes]
    fences: Collection[UUID]
    sources: InTransaction
    cursor: InTransaction | None = None


@runtime_checkable
class SealedPlace(Protocol):
    """
    A place that holds sealed items: a table, or what a record strategy of one's own writes to.

    ``eventseal.testing.record_strategy_contract`` holds the suite that every place passes.
    """

    @property
    def name(self) -> str:
        """The name by which the key store remembers the place: no other place has it."""
        ...

    @property
    def collection(self) -> str:
        """The logical name that is bound to its items."""
        ...

    def close_fence(self, key_ids: Collection[UUID]) -> None:
        """
        Close the fences of keys for good: once this returns, nothing more is committed under them here.

        It waits for every transaction that wrote under one. From then on, an append under one raises
        ``KeyClosedError``.

        Args:
            key_ids: Also of keys that never sealed anything here.

        Raises:
            StoreUnavailableError: A transaction that wrote under a key does not end.
        """
        ...

    def count_by_key(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> Mapping[UUID, int]:
        """
        Count the items that need each of some keys, by the key id in the header of each envelope.

        Args:
            key_ids: Any number.
            purpose: What the keys seal. Only items are counted: what is nested inside them, nobody counts.

        Returns:
            The items of each key, as of a moment after the call began; a key without any is left out.

        Raises:
            ConfigurationError: The purpose is another than ``data``: the answer would be 0 for each.
        """
        ...

    def pages(self, selection: Selection, after: Place | None, limit: int) -> Page:
        """
        Read items in an order of their places that stays the same.

        Args:
            selection: Which items.
            after: Begin behind this place; ``None``: at the first.
            limit: Items at most.

        Returns:
            Only an empty page says that there are no more.
        """
        ...

    def swap(self, change: Change) -> Sequence[int]:
        """
        Give items new envelopes, each only if its envelope is still what was read.

        Returns:
            The numbers of the items that were changed.

        Raises:
            KeyClosedError: The fence of a new envelope's key is closed; nothing was changed.
        """
        ...


def refuse_other_purposes(purpose: KeyPurpose) -> None:
    """
    Refuse to count for keys that seal no items: every place calls this before it counts.

    Raises:
        ConfigurationError: The purpose is another than ``data``.
    """
    if purpose is not KeyPurpose.DATA:
        raise ConfigurationError(
            f"keys of purpose {purpose} seal no items: what they sealed cannot be counted here",
            remedy="Count the items of data keys only. Only a shred ends a key of another purpose.",
        )
