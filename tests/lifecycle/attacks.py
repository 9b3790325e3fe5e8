"""Attacks of a database writer on a scene, and what must hold after each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.lifecycle.attacker import Scene, attempt
from tests.lifecycle.audit import ACTIVE, BRANCH, DATA, DESTROYED
from tests.lifecycle.client import TABLES
from tests.lifecycle.model import Violation
from tests.lifecycle.site import APPLICATION

from eventseal.erasure import reopen, shred
from eventseal.errors import EventSealError, IntegrityError, KeyDestroyedError
from eventseal.keys import DataKey
from eventseal.keys.revocation_tree import leaf_of_key
from eventseal.keys.wrapping.branches import named_branch_in
from eventseal.rotation import mark_compromised, reencrypt, retire, rotate_keys, verify
from eventseal.storage.keys.tables import encryption_keys, key_wrappings, revocation_nodes, sealed_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from uuid import UUID

    from tests.lifecycle.client import Client

LONG_AGO, AHEAD = datetime(1971, 1, 1, tzinfo=UTC), datetime(2998, 1, 1, tzinfo=UTC)
AFTER_ALL = datetime(9999, 12, 31, tzinfo=UTC)
"""Times of a key that somebody may set: two that are read, and one that is not."""


@dataclass(frozen=True)
class BringBack:
    """
    Put back what the key tables had of a key before it was destroyed; it must not open.

    Attributes:
        scope: Whose key.
        end: How it ends: ``retired``, ``compromised`` and retired, or ``shredded``.
        rows: Whether its row and its wrappings are put back.
        nodes: What becomes of the key's nodes in the revocation tree: ``older``, ``deleted``, or as they are.
        depth: The first of them: 1, or 2 for the leaf alone.
    """

    scope: str
    end: str = "compromised"
    rows: bool = True
    nodes: str | None = None
    depth: int = 2

    def __call__(self, scene: Scene) -> None:
        key_id = scene.sealing_key(self.scope)
        scene.client.keyring.rotate(self.scope)
        old = {
            table: scene.attacker.copied(table, key_id=key_id) for table in (encryption_keys, key_wrappings)
        }
        nodes = {row["path"]: row for row in scene.attacker.copied(revocation_nodes)}
        self._destroy(scene, key_id)
        if scene.rows_of_keys()[key_id].state != DESTROYED:
            return  # a key that is used up after a few items may have to stay
        before = scene.opened()
        refused = {key_id}
        if self.rows:
            scene.attacker.put(key_wrappings, [], key_id=key_id)
            for table, rows in old.items():
                scene.attacker.put(table, rows, key_id=key_id)
        if self.nodes is not None:
            leaf = leaf_of_key(key_id)
            for size in range(self.depth, len(leaf) + 1):
                there = [nodes[leaf[:size]]] if self.nodes == "older" and leaf[:size] in nodes else []
                scene.attacker.put(revocation_nodes, there, application=APPLICATION, path=leaf[:size])
            below = leaf[: self.depth]
            refused |= {each for each in scene.rows_of_keys() if leaf_of_key(each).startswith(below)}
        for process in scene.processes:
            attempt(process.keyring.refresh)
            said = attempt(lambda ring=process.keyring: ring.opening_keys([key_id])[key_id])
            if isinstance(said, DataKey):
                raise Violation(f"{self} opens again")
        scene.check_items(before, refused)
        scene.must_fail(scene.processes[1])
        for process in scene.processes:
            attempt(lambda client=process: retire(client))
        scene.check_items(before, refused)

    def _destroy(self, scene: Scene, key_id: UUID) -> None:
        if self.end == "shredded":
            shred(scene.client, self.scope)
            return
        if self.end == "compromised":
            mark_compromised(scene.client, [key_id])
        reencrypt(scene.client)
        retire(scene.client)


@dataclass(frozen=True)
class FreeSlots:
    """Take the slots of a closed scope from its tombstones: it stays closed, and can be shredded again."""

    scope: str

    def __call__(self, scene: Scene) -> None:
        if not scene.world.model.is_closed(self.scope):
            scene.sealing_key(self.scope)
            shred(scene.client, self.scope)
        before, keys = scene.opened(), scene.rows_of_keys()
        self._free(scene)
        for process in scene.processes:
            process.keyring.refresh()
            self._refuse(scene, process, keys)
        for process in reversed(scene.processes):
            again = attempt(lambda client=process: shred(client, self.scope))
            if isinstance(again, EventSealError) or not again.complete:
                raise Violation(f"{self}: a second shred gave {again!r}")
            if live := [row for row in self._rows(scene.rows_of_keys()) if row.state != DESTROYED]:
                raise Violation(f"{self}: a second shred left {live}")
            self._refuse(scene, process, scene.rows_of_keys())
            self._free(scene)
        scene.check_items(before, {row.key_id for row in self._rows(keys)})

    def _free(self, scene: Scene) -> None:
        scene.attacker.edit(encryption_keys, {"active_scope": None}, scope=self.scope, state=DESTROYED)

    def _refuse(self, scene: Scene, process: Client, keys: Mapping[UUID, Any]) -> None:
        said = attempt(lambda: process.keyring.sealing_keys({self.scope: 1}))
        if not (isinstance(said, KeyDestroyedError) and said.destroyed_by == "shredded"):
            raise Violation(f"{self}: a first use gave {said!r}")
        if new := scene.rows_of_keys().keys() - keys.keys():
            raise Violation(f"{self}: a first use made {new}")

    def _rows(self, keys: Mapping[UUID, Any]) -> list[Any]:
        return [row for row in keys.values() if row.scope == self.scope and row.purpose == DATA]


@dataclass(frozen=True)
class HideTable:
    """Delete the registry's row of a table, or give it to another application: its items keep their keys."""

    scope: str
    table: str
    delete: bool

    def __call__(self, scene: Scene) -> None:
        scene.sealing_key(self.scope)
        scene.append(self.scope)
        rotate_keys(scene.client)
        before = scene.opened()
        if self.delete:
            scene.attacker.put(sealed_tables, [], table_name=self.table)
        else:
            scene.attacker.edit(sealed_tables, {"application": "another"}, table_name=self.table)
        for process in scene.processes:
            attempt(lambda client=process: retire(client))
            scene.check_items(before)


@dataclass(frozen=True)
class MisleadColumn:
    """Set the key id beside an item to NULL, or to another key's: both keys stay, and ``verify`` fails."""

    scope: str
    null: bool

    def __call__(self, scene: Scene) -> None:
        scene.sealing_key(self.scope)
        place = scene.append(self.scope)
        before = scene.opened()
        needed = {before[1][place]}
        other = scene.client.keyring.rotate(self.scope).key_id
        scene.client.keyring.rotate(self.scope)
        if not self.null:
            needed.add(other)
        at = {"sequence_id": place.sequence_id, "position": place.position}
        items = TABLES[place.table].__table__
        scene.attacker.edit(items, {"key_id": None if self.null else other}, **at)
        for process in scene.processes:
            attempt(lambda client=process: reencrypt(client))
            attempt(lambda client=process: retire(client))
            keys = scene.rows_of_keys()
            if gone := [key_id for key_id in needed if keys[key_id].state == DESTROYED]:
                raise Violation(f"{self}: {gone} were destroyed")
            scene.must_fail(process)
        scene.attacker.edit(items, {"key_id": before[1][place]}, **at)
        scene.check_items(before)


@dataclass(frozen=True)
class JunkOverItem:
    """Name a destroyed key over an item of a scope that was reopened: that is tampering, and no erasure."""

    scope: str

    def __call__(self, scene: Scene) -> None:
        scene.sealing_key(self.scope)
        erased = scene.append(self.scope)
        shred(scene.client, self.scope)
        reopen(scene.client, self.scope)
        place = scene.append(self.scope)
        before, keys = scene.opened()
        count = verify(scene.client).by_table[place.table]["erased"]
        item = scene.world.auditor.found().items[place]
        junk = item.data[:3] + keys[erased].bytes + item.data[19:]
        scene.attacker.edit(
            TABLES[place.table].__table__,
            {"data": junk, "key_id": keys[erased]},
            sequence_id=place.sequence_id,
            position=place.position,
        )
        for process in scene.processes:
            store = process.stores[place.table]
            said = attempt(lambda store=store: store.get_domain_event(place.sequence_id, place.position))
            if not isinstance(said, IntegrityError):
                raise Violation(f"{self}: the item gave {said!r}")
            result = attempt(lambda client=process: verify(client))
            if isinstance(result, EventSealError) or not result.failed:
                raise Violation(f"{self}: a verification gave {result!r}")
            if result.by_table[place.table]["erased"] != count:
                raise Violation(f"{self}: a verification counted it as erased: {result}")
        del before[place]
        scene.check_items((before, keys))


@dataclass(frozen=True)
class DateKey:
    """Set when a key was made: that costs its own row at most, and destroys nothing."""

    number: int
    created_at: datetime

    def __call__(self, scene: Scene) -> None:
        scene.append("application")
        keys = sorted(row for row in scene.rows_of_keys().values() if row.purpose in {DATA, BRANCH})
        row = keys[self.number % len(keys)]
        before = scene.opened()
        refused = {row.key_id, *_wrapped_by(scene, row.key_id)} if self.created_at == AFTER_ALL else set()
        scene.attacker.edit(encryption_keys, {"created_at": self.created_at}, key_id=row.key_id)
        scene.check_items(before, refused)
        for process in scene.processes:
            attempt(process.keyring.refresh)
            attempt(lambda ring=process.keyring: ring.sealing_keys({row.scope: 1}))
            rotated = attempt(lambda client=process: rotate_keys(client))
            is_told = isinstance(rotated, EventSealError) or rotated.failed > 0
            if row.purpose == DATA and not is_told and scene.rows_of_keys()[row.key_id].state == ACTIVE:
                raise Violation(f"{self} kept {row} from its rotation, and nobody says so")
            attempt(lambda client=process: retire(client))
            attempt(lambda client=process: verify(client))
        scene.check_items(before, refused)


def _wrapped_by(scene: Scene, branch_id: UUID) -> Iterator[UUID]:
    for wrapped in scene.attacker.copied(key_wrappings):
        if named_branch_in(wrapped["kek_uri"]) == branch_id:
            yield wrapped["key_id"]
