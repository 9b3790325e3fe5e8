"""The change mark that follows a change of states, with the nodes of the revocation tree that go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import IntegrityError
from eventseal.keys.revocation_tree import (
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
        self._keys: list[tuple[UUID, HowRevoked]] = [
            (new.key_id, new.how_revoked)
            for old, new in moves
            if new.how_revoked is not None and (old is None or old.how_revoked != new.how_revoked)
        ]
        self._scopes = {
            seals.scope_name(purpose, scope): closed for (purpose, scope), closed in (scopes or {}).items()
        }
        leaves = {leaf_of_key(key_id) for key_id, _ in self._keys} | set(map(leaf_of_scope, self._scopes))
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
        tree = RevocationTree(nodes, mark.revoked, self._seals.node_digest)
        try:
            scopes = {
                name: self._next(tree.scope_state(name), closed) for name, closed in self._scopes.items()
            }
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

    def _next(self, state: ScopeState | None, closed: bool) -> ScopeState:
        return ScopeState(closed, 1 if state is None else state.number + 1)


if TYPE_CHECKING:
    _: type[NextMark] = Marks
