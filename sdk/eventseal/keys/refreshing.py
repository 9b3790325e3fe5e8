"""Confirms what a process knows of keys: by one small query, shared by the threads that need it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from eventseal.errors import EventSealError, IntegrityError, StoreUnavailableError
from eventseal.keys.single_flight import copied

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventseal.keys.confirmation import Confirmation
    from eventseal.keys.memory import Memory
    from eventseal.keys.resources import Resources
    from eventseal.keys.store_key import StoreKey


class Refresher:
    """Reads the application's change mark, and what changed if its counter moved."""

    def __init__(
        self, resources: Resources, memory: Memory, confirmation: Confirmation, store_key: StoreKey
    ) -> None:
        self._resources = resources
        self._memory = memory
        self._confirmation = confirmation
        self._store_key = store_key
        self._lock = threading.Lock()
        # Numbers of refreshes: the last that began, and the last that succeeded or gave the failure below.
        self._begun = self._ended = 0
        self._failure: EventSealError | None = None

    def confirm_for_opening(self) -> None:
        """
        See to it that what is known may be used to open.

        Raises:
            StoreUnavailableError: The key store has been away for longer than keys open without it.
            IntegrityError: The mark, or the root of the revocation tree, is not what a keyring sealed.
        """
        clock, confirmation = self._resources.clock, self._confirmation
        try:
            self._share(self._begun, done=lambda: clock.now() <= confirmation.opens_until)
        except StoreUnavailableError:
            if not confirmation.outlives_store(clock.now()):
                raise

    def confirm_for_sealing(self) -> None:
        """
        See to it that what is known may be used to seal.

        Raises:
            StoreUnavailableError: The key store is away.
            IntegrityError: The mark, or the root of the revocation tree, is not what a keyring sealed.
        """
        clock, confirmation = self._resources.clock, self._confirmation
        self._share(self._begun, done=lambda: clock.now() <= confirmation.seals_until)

    def refresh(self) -> None:
        """Look at once, even if everything was confirmed a moment ago."""
        self._share(self._begun, done=lambda: False)

    def _share(self, begun: int, *, done: Callable[[], bool]) -> None:
        """
        Refresh, unless one that began after the caller asked, as *begun* shows, has ended meanwhile.

        Raises:
            EventSealError: It failed, or that one did. One that any other error ended counts for nobody else.
        """
        self._memory.check_open()
        if done():
            return
        with self._lock:
            if done():
                return
            if self._ended > begun:
                if self._failure is not None:
                    raise copied(self._failure)
                return
            self._begun += 1
            try:
                self._refresh()
            except EventSealError as error:
                self._failure, self._ended = error, self._begun
                raise
            self._failure, self._ended = None, self._begun

    def _refresh(self) -> None:
        application = self._resources.application
        seals = self._store_key.seals()
        counter, held, since = self._memory.asked()
        began = self._resources.clock.now()
        changes = self._resources.store.changes(application, counter, held)
        if changes is None:
            if seals is not None:
                raise IntegrityError(
                    f"application {application!r} has a store key but no change mark: somebody deleted it",
                    remedy="Find out who changed the key tables, and restore key_changes from a backup.",
                )
            return  # no store key yet, hence no key: there is nothing to confirm
        seals = seals or self._store_key.seals()  # made meanwhile by another process
        if seals is None:
            raise IntegrityError(
                f"application {application!r} has a change mark but no store key: somebody deleted it",
                remedy="Find out who changed the key tables, and restore the store key from a backup.",
            )
        revocations = self._resources.store.revocations
        if changes.mark.has_tree or not seals.is_old(changes.mark):
            seals.check_mark(changes.mark)
        self._memory.check_mark(changes.mark, since)
        if changes.mark.counter != counter:
            revoked = revocations.learn(changes.mark, changes.root, held, seals)
            self._memory.learn(changes, seals, since, held, revoked=revoked)
        self._confirmation.confirm(began, interval=changes.refresh_interval, store_time=changes.now)
