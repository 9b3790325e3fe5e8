"""The change mark that follows a change of states, with the nodes of the revocation tree that go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import IntegrityError
from eventseal.keys.revocation_tree import (
    NEVER_SHREDDED,
    REMEDY,
    ROOT,
    RevocationTree,
    ScopeState,
    UnprovenError,
    leaf_of_key,
    leaf_of_scope,
    paths_to,
)
from eventseal.keys.revocations import old_key_tables

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from uuid import UUID

    from eventseal.keys.known_states import Moment
    from eventseal.keys.memory import Memory
    from eventseal.keys.records import ChangeMark, KeyRecord, NextMark
    from eventseal.keys.revocation_tree import HowRevoked
    from eventseal.keys.seals import Seals
    from eventseal.keys.states import KeyPurpose


class Marks:
    """
    Gives the mark that follows the locked one, and remembers its counter.

    Args:
        memory: Has seen earlier marks.
        seals: Check and seal them.
        moves: Each key as it was, ``None`` if it was not, and as it is to be.
        since: The moment before the keys were read.
        scopes: By purpose and scope whether it is closed from now on, or reopened, for those that change.

    Attributes:
        paths: The nodes of the revocation tree that the change needs.
        written: The counter of the mark that was given last.
    """

    def __init__(
        self,
        memory: Memory,
        seals: Seals,
        moves: Iterable[tuple[KeyRecord | None, KeyRecord]],
        since: Moment,
        *,
        scopes: Mapping[tuple[KeyPurpose, str], bool] | None = None,
    ) -> None:
        self._memory = memory
        self._seals = seals
        self._since = since
        self._keys: list[tuple[UUID, HowRevoked]] = []
        self._touched: set[bytes] = set()
        for old, new in moves:
            how = new.how_revoked
            if how is not None and (old is None or old.how_revoked != how):
                self._keys.append((new.key_id, how))
                self._touched.add(seals.scope_name(new.purpose, new.scope))
        self._scopes = {
            seals.scope_name(purpose, scope): closed for (purpose, scope), closed in (scopes or {}).items()
        }
        self._touched.update(self._scopes)
        leaves = {leaf_of_key(key_id) for key_id, _ in self._keys} | set(map(leaf_of_scope, self._touched))
        self.paths: Collection[bytes] = paths_to(leaves)
        self.written = -1

    def __call__(
        self, mark: ChangeMark, nodes: Mapping[bytes, bytes]
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]]:
        """Check *mark* and *nodes*, and give what follows them."""
        if self._seals.is_old(mark):
            raise old_key_tables(mark.application)
        self._seals.check_mark(mark)
        self._memory.check_mark(mark, self._since)
        tree = RevocationTree(nodes, mark.revoked)
        try:
            scopes = {name: tree.scope_state(name) or NEVER_SHREDDED for name in self._touched}
            for name, closed in self._scopes.items():
                scopes[name] = ScopeState(closed, scopes[name].number + 1)
            changed = tree.changed(self._keys, scopes)
        except UnprovenError:
            raise IntegrityError(
                f"a node of the revocation tree of application {mark.application!r} does not match the "
                "change mark: it was edited; nothing was changed",
                remedy=REMEDY,
            ) from None
        following = self._seals.next_mark(mark, changed.get(ROOT))
        self.written = following.counter
        return following, changed


if TYPE_CHECKING:
    _: type[NextMark] = Marks
