"""Reads the revocation tree where needed, and checks it against the mark."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import EventSealError, IntegrityError, StoreReadOnlyError
from eventseal.keys.authentication.key_tables import read_old_rows
from eventseal.keys.authentication.row_checks import mark_deleted
from eventseal.keys.revocation_tree import (
    NEVER_SHREDDED,
    REMEDY,
    ROOT,
    RevocationTree,
    UnprovenError,
    changed_branches,
    leaf_of_key,
    leaf_of_scope,
    leaves_of,
    node_digest,
    paths_to,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from uuid import UUID

    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.records import Admission, ChangeMark, KeyRecord
    from eventseal.keys.revocation_tree import RevokedAs, ScopeState
    from eventseal.keys.ring.held_keys import Held, HeldKeys
    from eventseal.keys.states import KeyPurpose
    from eventseal.keys.store import KeyStore


NEW_KEY_TABLES = 2
"""The format of key tables with the revocation tree."""


_MOST_NODES = 2304
"""
How many nodes are held. If there are more, their leaves are dropped.

This is about 8 MB at 10,000,000 destroyed keys.
"""


@dataclass(slots=True)
class _Known:
    """
    The newest tree, as far as it was read.

    Attributes:
        root_digest: The digest of its root.
        proven: The root and nodes below it, each checked against the root. The next question is often about
            the same nodes.
    """

    root_digest: bytes
    proven: dict[bytes, bytes]

    def drop_leaves(self) -> None:
        """Keep only the inner nodes. A thread that reads the earlier dictionary keeps that one."""
        self.proven = {path: node for path, node in dict(self.proven).items() if len(path) <= 1}


class ScopeStates(NamedTuple):
    """
    The states of scopes.

    Attributes:
        closed: For each scope, whether it was shredded and is closed. If its leaf does not match the mark, an
            error for this scope only.
        admission: Admits keys of these scopes while they are not closed.
    """

    closed: Mapping[str, bool | IntegrityError]
    admission: Admission


class _OpenScopes:
    """Admits new keys if the revocation tree has all their scopes open."""

    def __init__(self, names: Collection[bytes], revoked: bytes, seals: Seals) -> None:
        self._names = names
        self._seals = seals
        self.revoked = revoked

    @property
    def paths(self) -> Collection[bytes]:
        """The leaves of the scopes, and the nodes above them."""
        return paths_to(leaves_of((), self._names))

    def __call__(self, mark: ChangeMark, nodes: Mapping[bytes, bytes]) -> bool:
        """Check the scopes under another mark."""
        self._seals.check_mark(mark)
        tree = RevocationTree(nodes, mark.revoked)
        try:
            states = [tree.scope_state(name) for name in self._names]
        except UnprovenError:  # the nodes may be later than the mark: the caller checks again
            return False
        return not any(state is not None and state.closed for state in states)


class Revocations:
    """
    Reports which keys and scopes are revoked.

    Its knowledge is at least as new as the last refresh. An entry that the refresh showed to be absent is not
    looked up again.

    Args:
        application: The application that owns the keys.
        store: The store that holds the tree.
        held_keys: Knows earlier marks.
        key_tables: The lowest accepted format of the key tables: 1, or 2 with the revocation tree.

    Attributes:
        are_old: Whether the mark that was read last has the format before the tree.
    """

    def __init__(
        self,
        application: str,
        store: KeyStore,
        held_keys: HeldKeys,
        *,
        key_tables: int,
    ) -> None:
        self._application = application
        self._key_tables = key_tables
        self._is_new = False
        self.are_old = False
        self._store = store
        self._held_keys = held_keys
        self._publishing = threading.Lock()
        self._known: _Known | None = None

    def learn(self, mark: ChangeMark, root: bytes, held: Held, seals: Seals) -> dict[UUID, RevokedAs]:
        """
        Adopt the root that a refresh has read.

        Args:
            mark: The mark that was read with it and is authentic, or a mark of the format before the tree.
            root: The root's content.
            held: The keys that the process holds, and their scopes.
            seals: The MACs of the application.

        Returns:
            The answer of :meth:`of_keys` for the held keys below changed nodes. A key whose scope is closed
            counts as shredded, because its row may have been hidden from the shred.

        Raises:
            IntegrityError: The mark does not cover the root, or an old mark was put back.
            StoreError: The key store refused or failed.
        """
        if not mark.has_tree and seals.is_old(mark):
            self._learn_old(mark, seals)
            return self.of_keys(held, seals)
        self._check_root(mark, root)
        with self._publishing:
            self._is_new, self.are_old = True, False
            known_before = self._known
            before = known_before or _Known(b"", {ROOT: b""})
            if before.root_digest == mark.revoked:
                return {}
            changed = changed_branches(before.proven[ROOT], root)
            nodes = dict(before.proven).items()  # copied in one call, because other threads add to it
            kept = {path: node for path, node in nodes if path and path[0] not in changed}
            self._known = known = _Known(mark.revoked, {ROOT: root, **kept})
        if not held:
            return {}
        try:
            return self._below(changed, held, seals)
        except EventSealError:
            with self._publishing:
                if self._known is known:  # so that the next refresh reads the changes again
                    self._known = known_before
            raise

    def _below(self, changed: Collection[int], held: Held, seals: Seals) -> dict[UUID, RevokedAs]:
        """
        Return the states of held keys below some changed nodes.

        A key is also below a node if its scope is.
        """
        keys = [key_id for key_id in held if leaf_of_key(key_id)[0] in changed]
        names = {key_id: seals.scope_name(*scope) for key_id, scope in held.items() if scope}
        names = {key_id: name for key_id, name in names.items() if leaf_of_scope(name)[0] in changed}
        tree = self._tree(seals, keys=keys, scopes=names.values())
        found = _revoked_as(tree, keys)
        for key_id, name in names.items():
            try:
                state = tree.scope_state(name)
            except UnprovenError:
                found[key_id] = "unproven"
            else:
                if state is not None and state.closed:
                    found[key_id] = "shredded"  # its row may have been hidden (docs/decisions/0025)
        return found

    def has_changed(self) -> None:
        """
        Read leaves again, because this process has changed the tree.

        A new leaf is known after the next refresh.
        """
        if self._known is not None:
            self._known.drop_leaves()

    def refuse_old(self) -> None:
        """
        Refuse to change key tables of the release before the tree.

        Raises:
            StoreReadOnlyError: The key tables are of that release.
        """
        if self.are_old:
            raise old_key_tables(self._application)

    def of_keys(self, key_ids: Collection[UUID], seals: Seals) -> dict[UUID, RevokedAs]:
        """
        Return each key's entry, as :attr:`eventseal.keys.KeyRecord.revoked_as` defines it.

        Raises:
            IntegrityError: The mark is not authentic, or it is earlier than a known mark.
            StoreError: The key store refused or failed.
        """
        return _revoked_as(self._tree(seals, keys=key_ids), key_ids)

    def of_rows(self, rows: Mapping[UUID, KeyRecord], seals: Seals) -> dict[UUID, RevokedAs]:
        """
        Return the same for rows whose MACs are checked next.

        The tree has an entry for each scope in which a key was ever revoked. If a scope has no entry, no leaf
        of its keys is read. If somebody edited the scope or purpose in a row, the answer is wrong, but then
        the row does not match its MAC.
        """
        scope_of = {key_id: (row.purpose, row.scope) for key_id, row in rows.items()}
        names = {scope: seals.scope_name(*scope) for scope in set(scope_of.values())}
        tree = self._tree(seals, scopes=names.values())
        if self.are_old:  # such a tree lacks the scopes of rows that were edited
            return self.of_keys(rows, seals)
        # So a store with few destroyed keys needs no read for its other keys (docs/decisions/0025).
        untouched = {scope for scope, name in names.items() if _is_untouched(tree, name)}
        touched = [key_id for key_id, scope in scope_of.items() if scope not in untouched]
        return {**dict.fromkeys(rows), **(self.of_keys(touched, seals) if touched else {})}

    def scopes(self, purpose: KeyPurpose, scopes: Iterable[str], seals: Seals) -> ScopeStates:
        """
        Return the states of scopes.

        Raises:
            IntegrityError: The mark is not authentic, or it is earlier than a known mark.
            StoreError: The key store refused or failed.
        """
        names = {scope: seals.scope_name(purpose, scope) for scope in scopes}
        tree = self._tree(seals, scopes=names.values())
        closed: dict[str, bool | IntegrityError] = {}
        for scope, name in names.items():
            try:
                state = tree.scope_state(name)
            except UnprovenError:
                closed[scope] = _edited(f"the leaf of scope {scope!r} in the revocation tree")
            else:
                closed[scope] = state is not None and state.closed
        return ScopeStates(closed, _OpenScopes(list(names.values()), tree.root_digest, seals))

    def pasts(self, rows: Iterable[KeyRecord], seals: Seals) -> dict[UUID, tuple[bool, bool]]:
        """
        Return the earlier states of keys and of their scopes.

        Args:
            rows: Rows whose MACs were checked.
            seals: The MACs of the application. They name the scopes in the tree.

        Returns:
            For each key, whether it was ever marked as compromised, and whether its scope was ever shredded,
            even if the scope is open again.

        Raises:
            IntegrityError: A leaf or the mark is not authentic.
            StoreError: The key store refused or failed.
        """
        names = {row.key_id: seals.scope_name(row.purpose, row.scope) for row in rows}
        tree = self._tree(seals, keys=names, scopes=names.values())
        try:
            return {
                key_id: (
                    tree.was_compromised(key_id),
                    bool((tree.scope_state(name) or NEVER_SHREDDED).number),
                )
                for key_id, name in names.items()
            }
        except UnprovenError:
            raise _edited("a leaf of the revocation tree") from None

    def entry(self, name: bytes, seals: Seals) -> ScopeState | None:
        """Return an entry of the tree by its name, or ``None``. Raises as :meth:`scopes`."""
        try:
            return self._tree(seals, scopes=[name]).scope_state(name)
        except UnprovenError:
            raise _edited("a leaf of the revocation tree") from None

    def _tree(
        self, seals: Seals, *, keys: Collection[UUID] = (), scopes: Collection[bytes] = ()
    ) -> RevocationTree:
        """Return a tree with the leaves of *keys* and *scopes*. If they were edited, the tree shows it."""
        known = self._known
        if known is not None:
            tree = RevocationTree({}, known.root_digest, proven=known.proven)
            missing = tree.unread(keys, scopes)
            if not missing:
                return tree
            _, nodes = self._read(missing)
            tree = RevocationTree(nodes, known.root_digest, proven=known.proven)
            if tree.proves(keys, scopes):
                if len(known.proven) > _MOST_NODES:
                    known.drop_leaves()
                return tree
        since = self._held_keys.moment()
        mark, nodes = self._read(paths_to(leaves_of(keys, scopes)))
        if seals.is_old(mark):
            self._learn_old(mark, seals)
            return self._tree(seals, keys=keys, scopes=scopes)
        seals.check_mark(mark)
        self._held_keys.check_mark(mark, since)
        root = nodes.get(ROOT, b"")
        self._check_root(mark, root)
        with self._publishing:
            self._is_new, self.are_old = True, False
            if self._known is None:  # otherwise a refresh may have read a later one
                self._known = _Known(mark.revoked, {ROOT: root})
        return RevocationTree(nodes, mark.revoked)

    def _check_root(self, mark: ChangeMark, root: bytes) -> None:
        if node_digest(root) != mark.revoked:
            raise _edited(f"the root of the revocation tree of application {self._application!r}")

    def _learn_old(self, mark: ChangeMark, seals: Seals) -> None:
        """Create and hold the tree from the rows of old key tables."""
        # A new process has not seen the new mark. It knows of the upgrade only from its settings
        # (docs/decisions/0025).
        if self._is_new or self._key_tables >= NEW_KEY_TABLES:
            raise IntegrityError(
                f"the change mark of application {self._application!r} has the format of an earlier release, "
                "although the key tables were upgraded before: old tables were put back",
                remedy="Find out who changed the key tables, or which backup was restored. Then restore "
                "the newest backup.",
            )
        nodes = read_old_rows(self._store, mark, seals).nodes
        with self._publishing:
            if not self._is_new:  # upgraded in the meantime
                self.are_old = True
                self._known = _Known(node_digest(nodes.get(ROOT, b"")), {ROOT: b"", **nodes})

    def _read(self, paths: Collection[bytes]) -> tuple[ChangeMark, Mapping[bytes, bytes]]:
        found = self._store.revocations(self._application, paths)
        if found is None:
            raise mark_deleted(self._application)
        return found


def _revoked_as(tree: RevocationTree, key_ids: Iterable[UUID]) -> dict[UUID, RevokedAs]:
    found: dict[UUID, RevokedAs] = {}
    for key_id in key_ids:
        try:
            found[key_id] = tree.how_revoked(key_id)
        except UnprovenError:
            found[key_id] = "unproven"
    return found


def _is_untouched(tree: RevocationTree, name: bytes) -> bool:
    try:
        return tree.scope_state(name) is None
    except UnprovenError:
        return False  # then the leaf of the key shows its state


def _edited(what: str) -> IntegrityError:
    return IntegrityError(f"{what} was edited: it does not match the change mark", remedy=REMEDY)


def old_key_tables(application: str) -> StoreReadOnlyError:
    """Return the error of a change to key tables before the tree."""
    return StoreReadOnlyError(
        f"the key tables of application {application!r} are of an earlier release: keys can be used, but not "
        "created, rotated, marked or destroyed",
        remedy="Stop all processes of the earlier release. Then run `eventseal upgrade`.",
    )
