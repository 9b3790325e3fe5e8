"""The process's own EventSeal: made once, from the settings, for whatever the library makes by a topic."""

from __future__ import annotations

import threading
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from eventsourcing.utils import TopicError, register_topic

from eventseal.configuration import EventSeal
from eventseal.errors import EventSealError, IntegrityError, KeyClosedError, KeyDestroyedError
from eventseal.integrations.eventsourcing.personal import refuse_marked_event
from eventseal.integrations.eventsourcing.stored_events import event_class
from eventseal.items.acceptance import NO_FORMATS, AcceptedFormats, OldItem
from eventseal.items.event_modules import EventModules
from eventseal.keys.concurrency import renew_in_children
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.rotation.sealed_store import event_modules_of
from eventseal.storage.database.transactions import write
from eventseal.storage.items.fences import CLOSED, fence_states, open_fences
from eventseal.suites.envelope import HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.cipher import ItemContext, Opened
    from eventseal.integrations.eventsourcing.options import SealingOptions
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage import SQLAlchemyDatastore


class ProcessSeal:
    """
    Makes an EventSeal when it is first asked for, and keeps it.

    What is inside of it renews itself in a forked process; only the lock is this class's own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seal: EventSeal | None = None
        renew_in_children(self)

    def __call__(self) -> SealedStore:
        """
        Give the process's EventSeal.

        Raises:
            ConfigurationError: The settings name no KEK or no database, or are wrong.
        """
        with self._lock:
            if self._seal is None:
                self._seal = EventSeal.from_settings()
            return self._seal

    def close(self) -> None:
        """Forget it, its keys and its connections: whoever asks next reads the settings anew."""
        with self._lock:
            seal, self._seal = self._seal, None
        if seal is not None:
            seal.close()

    def renew_in_child(self) -> None:
        """Take no lock of the parent's."""
        self._lock = threading.Lock()


process_seal = ProcessSeal()
"""Reads ``eventseal.toml`` and ``EVENTSEAL_*`` of the process: the library does not show its own ``env``."""


MOST_REMEMBERED = 100_000
"""Keys whose fence is known to be there; when there are more, all are forgotten and asked for again."""

_KEY_ID = slice(3, HEADER_SIZE)


class KnownFences:
    """
    Makes an open fence for each key that this process seals under, before anything under it is handed out.

    So the row that a retirement closes is there, and the trigger on the table refuses whatever comes late.

    Args:
        datastore: Of the database that the library writes to.
    """

    def __init__(self, datastore: SQLAlchemyDatastore) -> None:
        self._datastore = datastore
        self._known: set[bytes] = set()

    def is_known(self, envelope: bytes) -> bool:
        """Whether the fence of an envelope's key is known to be there."""
        return envelope[_KEY_ID] in self._known

    def closed_among(self, envelopes: Iterable[bytes]) -> list[UUID]:
        """
        Make the fences that are not known yet.

        Returns:
            The envelopes' keys that were retired already.

        Raises:
            StoreError: The database refused or failed; a missing table is a ``MissingTableError``.
        """
        unknown = {envelope[_KEY_ID] for envelope in envelopes} - self._known
        if not unknown:
            return []
        key_ids = [UUID(bytes=raw) for raw in unknown]
        states = write(
            self._datastore.engine,
            lambda own: _opened(own, key_ids),
            doing="making the fences of keys",
            filtered=True,
        )
        closed = sorted(key_id for key_id, state in states.items() if state == CLOSED)
        if len(self._known) + len(unknown) > MOST_REMEMBERED:
            self._known.clear()
        self._known |= unknown - {key_id.bytes for key_id in closed}
        return closed


def _opened(connection: Connection, key_ids: Collection[UUID]) -> dict[UUID, str]:
    open_fences(connection, key_ids)
    return fence_states(connection, key_ids)


Outcome: TypeAlias = "Opened | OldItem | EventSealError"
"""What a state was, in an envelope or in an older format that is still accepted, or why it does not open."""


class LibraryEventModules(EventModules):
    """Looks up classes, and registers them with the library, so that it finds the very same ones."""

    def resolve(self, topic: str) -> type[Any]:
        """Find the class that *topic* names; see the base."""
        found = super().resolve(topic)
        with suppress(TopicError):  # the library knows the topic, and keeps what it knows
            register_topic(topic, found)
        return found


class Sealing:
    """
    Seals and opens for one mapper. Methods may be called from several threads at once.

    Args:
        options: The application's choices.

    Raises:
        ConfigurationError: They, or the process's settings, are wrong.
    """

    def __init__(self, options: SealingOptions) -> None:
        self._scope_of = options.scope_rule()
        self._one_scope = options.key_scope if isinstance(options.key_scope, str) else None
        self._erased_items = options.erased_items()
        seal = process_seal() if options.seal is None else options.seal
        self._cipher = seal.cipher
        self._fences = KnownFences(seal.datastore)
        names = event_modules_of(seal) if options.event_modules is None else options.event_modules
        self.event_modules = LibraryEventModules(names)
        self._accepted: AcceptedFormats = getattr(seal, "accepted_formats", NO_FORMATS)
        self.skips_erased = self._erased_items.skips

    def seal_events(self, events: list[Any], items: Sequence[tuple[bytes, ItemContext]]) -> list[bytes]:
        """
        Seal what events were written as; see :meth:`seal`.

        Args:
            events: Say whose key seals each, and whether it is compressed.
            items: Plaintext and place of each.
        """
        for event in events:
            refuse_marked_event(event)
        compress = [known.compress for known in map(event_class, map(type, events))]
        return self.seal(items, scopes=self._scope_of.of_all(events), compress=compress)

    def seal_event(self, event: Any, plaintext: bytes, context: ItemContext) -> bytes:
        """Seal what one event was written as, with less ado than :meth:`seal_events`."""
        refuse_marked_event(event)
        known = event_class(type(event))
        scope = self._scope_of(event) if self._one_scope is None or known.has_scope else self._one_scope
        envelope = self._cipher.encrypt(plaintext, context, scope=scope, compress=known.compress)
        if self._fences.is_known(envelope):
            return envelope
        return self.seal(((plaintext, context),), scopes=scope, compress=known.compress)[0]

    def seal(
        self,
        items: Sequence[tuple[bytes, ItemContext]],
        *,
        scopes: str | Sequence[str] = DEFAULT_SCOPE,
        compress: bool | Sequence[bool] = True,
    ) -> list[bytes]:
        """
        Seal states: all, or none.

        Args:
            items: Plaintext and place of each.
            scopes: One for all, or one for each.
            compress: For all, or for each.

        Returns:
            The envelopes, in order, each under a key whose fence is there.

        Raises:
            KeyClosedError: A key was retired and still is the scope's.
            StoreError: The items' database refused or failed.
            EventSealError: What ``AESCipher.encrypt_many`` raises.
        """
        for _ in range(2):
            envelopes = self._cipher.encrypt_many(items, scopes=scopes, compress=compress)
            closed = self._fences.closed_among(envelopes)
            if not closed:
                return envelopes
            self.refresh()
        raise KeyClosedError(
            f"nothing was sealed: retired meanwhile: {', '.join(map(str, closed))}", key_ids=tuple(closed)
        )

    def open_envelopes(self, items: Sequence[tuple[bytes, ItemContext]]) -> list[Opened | EventSealError]:
        """Open envelopes, each with an outcome of its own; see ``AESCipher.open_many``."""
        return self._cipher.open_many(items)

    def open(self, items: Sequence[tuple[bytes, ItemContext]]) -> list[Outcome]:
        """
        Open states, each with an outcome of its own.

        What is no envelope is tried in the older formats that are accepted while a migration lasts.
        """
        outcomes: list[Outcome] = [*self._cipher.open_many(items)]
        if self._accepted:
            for index, outcome in enumerate(outcomes):
                if isinstance(outcome, EventSealError):
                    outcomes[index] = self._accepted.open(*items[index], outcome)
        return outcomes

    def refresh(self) -> None:
        """Look at once for keys whose state changed."""
        self._cipher.refresh()

    def check_scope(self, event: Any, opened: Opened) -> None:
        """
        Compare the scope that an event belongs to with that of the key that sealed it.

        Raises:
            IntegrityError: They differ.
        """
        if opened.scope == self._one_scope and not event_class(type(event)).has_scope:
            return
        scope = self._scope_of(event)
        if opened.scope != scope and opened.scope != self._cipher.stored_scope(scope):
            raise IntegrityError(
                f"key {opened.key_id} sealed the item, but is no key of the scope that the event belongs to",
                remedy="If key_scope, or the class's __key_scope__, was changed, change it back; "
                "else find out who holds that scope's key.",
            )

    def erased_scope(self, stored: Any, error: EventSealError) -> str | None:
        """
        Give the scope that was erased, if what was stored is to be shown as erased.

        Args:
            stored: As the library stores it.
            error: Why it does not open.
        """
        if not isinstance(error, KeyDestroyedError):
            return None
        scope = self._erased_items.scope_of(stored, error)
        if scope is None or error.scope not in (scope, self._cipher.stored_scope(scope)):
            return None
        return scope


def placed(error: EventSealError, context: ItemContext) -> EventSealError:
    """Give a copy of an outcome, which may be other items' too, that says where its item stands."""
    own = copy(error)
    own.__dict__.update(sequence_id=context.sequence_id, position=context.position)
    own.add_note(f"item: position {context.position} of {context.sequence_id}, topic {context.topic!r}")
    return own
