"""
The revocation tree of compromised and destroyed keys and shredded scopes. No I/O.

It is a Merkle tree of three levels and 256 branches, after the certificate revocation trees of P. Kocher
(1998). Each node lists the digests of the nodes below it. The authenticated change mark holds the digest of
the root. One short path proves that a key is revoked or is not, however many keys were ever destroyed. If a
parent does not list a node, the node does not exist.
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
"""The reason why a key is in the tree. A compromised key that is destroyed is there twice."""

RevokedAs: TypeAlias = HowRevoked | Literal["unproven"] | None
"""
The known entry of a key in the tree.

It is the reason for the entry, or ``None`` without an entry. If the leaf does not match the mark, it is
``unproven``.
"""

ROOT = b""
"""
The path of the root. Any other node's path is its parent's path and one byte.

A leaf has two bytes.
"""

REMEDY = (
    "Find out who changed the key tables. Then restore eventseal_revocation_nodes and eventseal_key_changes "
    "together from the newest backup of both."
)

NODE_DIGEST_SIZE = 32
SCOPE_NAME_SIZE = 10
"""In bytes. The entry has 8, and the path of the leaf has 2."""

_CHILD = 1 + NODE_DIGEST_SIZE
_SCOPE = Struct(">8sI")
_ENTRY_SIZE = _SCOPE.size
_IN_ENTRY = slice(3, 14)
"""
The part of a key's id that is in its entry.

The last two bytes of the id are the path of the leaf, without their first bit.
"""

_HOW: Mapping[bytes, HowRevoked] = {b"c": "compromised", b"r": "retired", b"s": "shredded"}


def least_state(how: HowRevoked | None) -> KeyState:
    """Return the earliest state that a revoked key's row may show."""
    if how is None:
        return KeyState.ACTIVE
    return KeyState.COMPROMISED if how == "compromised" else KeyState.DESTROYED


class ScopeState(NamedTuple):
    """
    The entry of a scope in which a key was ever revoked.

    Attributes:
        closed: Whether the scope was shredded, and not reopened.
        number: How often it was shredded or reopened. Each counts 1. Everything before an upgrade counts 1
            together.
    """

    closed: bool
    number: int


NEVER_SHREDDED = ScopeState(closed=False, number=0)


class UnprovenError(Exception):
    """A node does not match its parent. The argument is the path of the node."""


def leaf_of_key(key_id: UUID) -> bytes:
    """
    Return the path of the leaf for a key.

    The path comes from the end of the key's id, which is random (RFC 9562). Keys are in one half of the tree
    and scopes in the other, so that each leaf has entries of one kind.
    """
    branch, leaf = key_id.bytes[-2:]
    return bytes((branch & 0x7F, leaf))


def leaf_of_scope(name: bytes) -> bytes:
    """Return the path of the leaf for a scope. It comes from the end of its name."""
    branch, leaf = name[-2:]
    return bytes((branch | 0x80, leaf))


def leaves_of(keys: Iterable[UUID], scopes: Iterable[bytes]) -> set[bytes]:
    """Return the paths of the leaves for keys and, by name, scopes."""
    return {*map(leaf_of_key, keys), *map(leaf_of_scope, scopes)}


def node_digest(content: bytes) -> bytes:
    """
    Return a node's digest: SHA-256.

    The position of the node comes from the authenticated mark, and from the parents that list it.
    """
    return sha256(content).digest()


def paths_to(leaves: Iterable[bytes]) -> list[bytes]:
    """Return the paths of leaves and of all nodes above them. The root is first."""
    return sorted({leaf[:size] for leaf in leaves for size in range(len(leaf) + 1)})


class RevocationTree:
    """
    A part of the tree. Each node is checked before it is trusted.

    Args:
        nodes: The contents that were read, by path. A node that is missing here may never have existed.
        root_digest: The digest in the authenticated change mark.
        proven: The contents of nodes that were checked against this root, by path. Other nodes are added when
            they are checked.

    Attributes:
        root_digest: The digest in the authenticated change mark.
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
        Return a node's content. It is empty if the node does not exist.

        Raises:
            UnprovenError: The node, or a node above it, does not match its parent.
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
        """Return the paths that must be read to find these entries. The root is already proven."""
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
        """Return whether it can find the entries of all of these."""
        try:
            for leaf in leaves_of(keys, scopes):
                self.node(leaf)
        except UnprovenError:
            return False
        return True

    def how_revoked(self, key_id: UUID) -> HowRevoked | None:
        """Return why a key is revoked, or ``None``. The last reason of two wins. Raises as :meth:`node`."""
        found = _find(self.node(leaf_of_key(key_id)), key_id.bytes[_IN_ENTRY])
        return _HOW[found[-1:]] if found else None

    def was_compromised(self, key_id: UUID) -> bool:
        """Return whether a key was ever marked as compromised. It may be destroyed now."""
        return bool(_find(self.node(leaf_of_key(key_id)), key_id.bytes[_IN_ENTRY] + b"c"))

    def scope_state(self, name: bytes) -> ScopeState | None:
        """Return a scope's entry. ``None`` if none of its keys was revoked. Raises as :meth:`node`."""
        entry = name[:-2]
        return _scopes(_find(self.node(leaf_of_scope(name)), entry)).get(entry)

    def changed(
        self, keys: Iterable[tuple[UUID, HowRevoked]], scopes: Mapping[bytes, ScopeState]
    ) -> dict[bytes, bytes]:
        """
        Return the nodes to store after a change.

        Args:
            keys: The keys that are now revoked.
            scopes: The new states of scopes, by name.

        Returns:
            The new contents by path. If anything changes, the root is among them.

        Raises:
            UnprovenError: A node does not match its parent.
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
    """Return the nodes below the root that differ between two root contents."""
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
    """Return the last entry that begins with *wanted*. It says the most, because entries are sorted."""
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
