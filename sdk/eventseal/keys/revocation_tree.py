"""
The revocation tree: which keys are compromised or destroyed, and which scopes were shredded. No I/O.

A Merkle tree of three levels and 256 branches (after the certificate revocation trees of P. Kocher, 1998):
each node lists the digests of the nodes below it, and the change mark, which is sealed, holds the root's. One
short path proves what is revoked, and what is not, however many keys were ever destroyed. A node that does
not exist is one that its parent does not list.
"""

from __future__ import annotations

from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from eventseal.keys.states import KeyState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

HowRevoked: TypeAlias = Literal["compromised", "retired", "shredded"]
"""Why a key is in the tree; a compromised key that is destroyed is there twice."""

RevokedAs: TypeAlias = HowRevoked | Literal["unproven"] | None
"""What is known of a key: why it is in the tree, that it is not, or that its leaf does not match the mark."""

ROOT = b""
"""The path of the root; a node has the path of its parent and one byte more, and a leaf has two bytes."""

REMEDY = (
    "Find out who changed the key tables. Restore revocation_nodes together with key_changes from the newest "
    "backup of both."
)

NODE_DIGEST_SIZE = 32
SCOPE_NAME_SIZE = 10
"""In bytes: 8 in the entry, and 2 for the path of the leaf."""

_CHILD = 1 + NODE_DIGEST_SIZE
_SCOPE = Struct(">8sI")
_ENTRY_SIZE = _SCOPE.size
_IN_ENTRY = slice(3, 14)
"""The bytes of a key's id that its entry has; the leaf's path has the last two, without their first bit."""

_HOW: Mapping[bytes, HowRevoked] = {b"c": "compromised", b"r": "retired", b"s": "shredded"}


def least_state(how: HowRevoked | None) -> KeyState:
    """Give the earliest state that a key may show that is revoked for a reason."""
    if how is None:
        return KeyState.ACTIVE
    return KeyState.COMPROMISED if how == "compromised" else KeyState.DESTROYED


class ScopeState(NamedTuple):
    """
    What the tree says of a scope in which a key was ever revoked.

    Attributes:
        closed: Whether it was shredded, and not reopened.
        number: How often it was shredded or reopened; each counts 1, and all before an upgrade together 1.
    """

    closed: bool
    number: int


NEVER_SHREDDED = ScopeState(closed=False, number=0)


class UnprovenError(Exception):
    """A node is not the one that its parent lists; the argument is its path."""


def leaf_of_key(key_id: UUID) -> bytes:
    """
    Give the path of the leaf that would hold a key, by the end of its id, which is random (RFC 9562).

    Keys are in one half of the tree and scopes in the other, so that each leaf holds entries of one kind.
    """
    branch, leaf = key_id.bytes[-2:]
    return bytes((branch & 0x7F, leaf))


def leaf_of_scope(name: bytes) -> bytes:
    """Give the path of the leaf that would hold a scope, by the end of its name in the tree."""
    branch, leaf = name[-2:]
    return bytes((branch | 0x80, leaf))


def leaves_of(keys: Iterable[UUID], scopes: Iterable[bytes]) -> set[bytes]:
    """Give the paths of the leaves that would hold some keys and, by their names, some scopes."""
    return {*map(leaf_of_key, keys), *map(leaf_of_scope, scopes)}


def node_digest(content: bytes) -> bytes:
    """Give a node's digest: SHA-256. The sealed mark, and the parents that list it, say where it stands."""
    return sha256(content).digest()


def paths_to(leaves: Iterable[bytes]) -> list[bytes]:
    """Give the paths of some leaves and of every node above them, the root's first."""
    return sorted({leaf[:size] for leaf in leaves for size in range(len(leaf) + 1)})


class RevocationTree:
    """
    A part of the tree, as its nodes were read; each is checked before it is believed.

    Args:
        nodes: By path the contents that were read; what is not there may be a node that there never was.
        root_digest: What the change mark holds, its seal checked.
        proven: By path the contents of nodes that were checked to this very root; others are added to them.

    Attributes:
        root_digest: As given.
    """

    def __init__(
        self,
        nodes: Mapping[bytes, bytes],
        root_digest: bytes,
        *,
        proven: dict[bytes, bytes] | None = None,
    ) -> None:
        self._nodes = nodes
        self.root_digest = root_digest
        self._proven = {} if proven is None else proven

    def node(self, path: bytes) -> bytes:
        """
        Give a node's content, empty if there is no such node.

        Raises:
            UnprovenError: It, or a node above it, is not what its parent lists.
        """
        proven = self._proven
        if (content := proven.get(path)) is not None:
            return content
        expected = _child(self.node(path[:-1]), path[-1]) if path else self.root_digest
        if expected is None:
            return b""
        content = self._nodes.get(path, b"")
        if (path and not content) or node_digest(content) != expected:
            raise UnprovenError(path)
        proven[path] = content
        return content

    def unread(self, keys: Iterable[UUID], scopes: Iterable[bytes]) -> set[bytes]:
        """Give the paths below the root, itself proven, that must be read to say what became of these."""
        paths: set[bytes] = set()
        for leaf in leaves_of(keys, scopes):
            above = self._proven.get(leaf[:1])
            if above is None:
                if _child(self._proven[ROOT], leaf[0]) is not None:
                    paths |= {leaf[:1], leaf}
            elif leaf not in self._proven and _child(above, leaf[1]) is not None:
                paths.add(leaf)
        return paths

    def proves(self, keys: Iterable[UUID], scopes: Iterable[bytes]) -> bool:
        """Whether it can say what became of all of these."""
        try:
            for leaf in leaves_of(keys, scopes):
                self.node(leaf)
        except UnprovenError:
            return False
        return True

    def how_revoked(self, key_id: UUID) -> HowRevoked | None:
        """Say why a key is revoked, the last reason of two; ``None``: it is not. Raises as :meth:`node`."""
        found = _find(self.node(leaf_of_key(key_id)), key_id.bytes[_IN_ENTRY])
        return _HOW[found[-1:]] if found else None

    def was_compromised(self, key_id: UUID) -> bool:
        """Say whether a key was ever marked as compromised, also if it is destroyed by now."""
        return bool(_find(self.node(leaf_of_key(key_id)), key_id.bytes[_IN_ENTRY] + b"c"))

    def scope_state(self, name: bytes) -> ScopeState | None:
        """Say what became of a scope; ``None`` if no key of it was ever revoked. Raises as :meth:`node`."""
        entry = name[:-2]
        return _scopes(_find(self.node(leaf_of_scope(name)), entry)).get(entry)

    def changed(
        self, keys: Iterable[tuple[UUID, HowRevoked]], scopes: Mapping[bytes, ScopeState]
    ) -> dict[bytes, bytes]:
        """
        Give the nodes that are to be stored after a change.

        Args:
            keys: That are revoked now.
            scopes: By name, as they are now.

        Returns:
            By path the contents that are new; the root's is among them, if anything is.

        Raises:
            UnprovenError: A node is not what its parent lists.
        """
        new_keys: dict[bytes, set[bytes]] = {}
        for key_id, how in keys:
            new_keys.setdefault(leaf_of_key(key_id), set()).add(key_id.bytes[_IN_ENTRY] + how[0].encode())
        new_scopes: dict[bytes, dict[bytes, ScopeState]] = {}
        for name, state in scopes.items():
            new_scopes.setdefault(leaf_of_scope(name), {})[name[:-2]] = state
        new = {path: _of_keys(_keys(self.node(path)) | added) for path, added in new_keys.items()}
        new |= {path: _of_scopes(_scopes(self.node(path)) | added) for path, added in new_scopes.items()}
        new = {path: content for path, content in new.items() if content != self.node(path)}
        for size in (1, 0):
            above: dict[bytes, dict[int, bytes]] = {}
            for path, content in new.items():
                if len(path) == size + 1:
                    above.setdefault(path[:-1], {})[path[-1]] = node_digest(content)
            for path, children in above.items():
                new[path] = _with_children(self.node(path), children)
        return new


def changed_branches(before: bytes, after: bytes) -> set[int]:
    """Say which nodes below the root differ between two contents of it."""
    old, new = _children(before), _children(after)
    return {index for index in old.keys() | new.keys() if old.get(index) != new.get(index)}


def _child(content: bytes, index: int) -> bytes | None:
    at = content[::_CHILD].find(index) * _CHILD
    return content[at + 1 : at + _CHILD] if at >= 0 else None


def _children(content: bytes) -> dict[int, bytes]:
    return {content[at]: content[at + 1 : at + _CHILD] for at in range(0, len(content), _CHILD)}


def _with_children(content: bytes, children: Mapping[int, bytes]) -> bytes:
    every = {**_children(content), **children}
    return b"".join([bytes((index,)) + every[index] for index in sorted(every)])


def _find(leaf: bytes, wanted: bytes) -> bytes:
    """Find the last entry that begins with something, the one that says the most; entries are sorted."""
    at = leaf.rfind(wanted)
    while at >= 0:
        if at % _ENTRY_SIZE == 0:
            return leaf[at : at + _ENTRY_SIZE]
        at = leaf.rfind(wanted, 0, at + len(wanted) - 1)
    return b""


def _keys(leaf: bytes) -> set[bytes]:
    return {leaf[at : at + _ENTRY_SIZE] for at in range(0, len(leaf), _ENTRY_SIZE)}


def _scopes(leaf: bytes) -> dict[bytes, ScopeState]:
    entries = _SCOPE.iter_unpack(leaf)
    return {name: ScopeState(bool(number & 1), number >> 1) for name, number in entries}


def _of_keys(entries: set[bytes]) -> bytes:
    return b"".join(sorted(entries))


def _of_scopes(scopes: Mapping[bytes, ScopeState]) -> bytes:
    return b"".join(
        [_SCOPE.pack(name, state.number << 1 | state.closed) for name, state in sorted(scopes.items())]
    )
