"""Between the library's mappers and the cipher: states in, envelopes out, and back."""

from __future__ import annotations

from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from eventseal.errors import EventSealError, IntegrityError, KeyClosedError, KeyDestroyedError
from eventseal.integrations.eventsourcing.fences import KnownFences
from eventseal.integrations.eventsourcing.process_seal import process_seal
from eventseal.items.acceptance import NO_FORMATS, AcceptedFormats, OldItem
from eventseal.keys.records import DEFAULT_SCOPE

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from eventseal.cipher import ItemContext, Opened
    from eventseal.integrations.eventsourcing.options import SealingOptions

Outcome: TypeAlias = "Opened | OldItem | EventSealError"
"""What a state was, in an envelope or in an older format that is still accepted, or why it does not open."""


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
        self._erased_items = options.erased_items()
        seal = process_seal() if options.seal is None else options.seal
        self._cipher = seal.cipher
        self._fences = KnownFences(seal.datastore)
        self._accepted: AcceptedFormats = getattr(seal, "accepted_formats", NO_FORMATS)
        self.skips_erased = self._erased_items.skips

    def seal_events(self, events: list[Any], items: Sequence[tuple[bytes, ItemContext]]) -> list[bytes]:
        """
        Seal what events were written as; see :meth:`seal`.

        Args:
            events: Say whose key seals each, and whether it is compressed.
            items: Plaintext and place of each.
        """
        compress = [_compresses(cls) for cls in map(type, events)]
        return self.seal(items, scopes=self._scope_of.of_all(events), compress=compress)

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


@lru_cache(maxsize=4096)
def _compresses(cls: Hashable) -> bool:
    return bool(getattr(cls, "__compress__", True))
