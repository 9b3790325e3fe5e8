"""Somebody who can write to the database and cannot call the KMS, and the scene of an attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, insert, select, true, update
from tests.lifecycle.client import EVENTS, Noted
from tests.lifecycle.model import Violation

from eventseal.cipher import inspect
from eventseal.erasure import reopen
from eventseal.errors import EventSealError, IntegrityError, KeyDestroyedError
from eventseal.rotation import verify
from eventseal.storage.keys.tables import epochs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Table
    from tests.lifecycle.audit import Place
    from tests.lifecycle.client import Client
    from tests.lifecycle.site import Site
    from tests.lifecycle.world import World

    Said = Mapping[Place, Noted | EventSealError]
    Row = Mapping[str, Any]


class Attacker:
    """
    Copies and edits rows past every client.

    Args:
        site: The database.

    Attributes:
        epoch_rows: What the table ``eventseal_epochs`` had before each roll.
    """

    def __init__(self, site: Site) -> None:
        self._engine = site.auditor.engine
        self.epoch_rows: list[Row] = []

    def copied(self, table: Table, **where: Any) -> list[Row]:
        with self._engine.connect() as connection:
            query = select(table).where(_matches(table, where))
            return [dict(row) for row in connection.execute(query).mappings()]

    def edit(self, table: Table, values: Mapping[str, Any], **where: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(table).where(_matches(table, where)).values(values))

    def put(self, table: Table, rows: Sequence[Row], **where: Any) -> None:
        """Have rows, and no others that match."""
        with self._engine.begin() as connection:
            connection.execute(delete(table).where(_matches(table, where)))
            if rows:
                connection.execute(insert(table), rows)

    def keep_epoch(self) -> None:
        """Remember the row of the newest roll: it is put back one day."""
        self.epoch_rows += self.copied(epochs)


class Scene:
    """
    A world whose database somebody edits. Afterwards all of it is put back.

    Args:
        world: Nobody stands still in it.
        slot: Whose client does what the attacker waits for. It tells no ledger, which would forget nothing.

    Attributes:
        processes: That client, which has seen much, and a process that starts now.
    """

    def __init__(self, world: World, slot: int) -> None:
        self.world = world
        self.client = world.clients[slot]
        self.client.traffic.heal()
        self.attacker = world.attacker
        self.processes = [self.client, world.process(slot)]
        for process in self.processes:
            process.ledger = None

    def sealing_key(self, scope: str) -> UUID:
        """Give the key that seals for a scope; one that is closed is reopened first."""
        keyring = self.client.keyring
        keyring.refresh()
        if self.world.model.is_closed(scope):
            reopen(self.client, scope)
        return keyring.sealing_keys({scope: 1})[scope].key_id

    def append(self, scope: str) -> Place:
        """Append an event."""
        place = self.world.place(EVENTS, scope)
        self.client.stores[EVENTS].append(Noted(place.sequence_id, place.position, scope, self.world.text()))
        return place

    def rows_of_keys(self) -> Mapping[UUID, Any]:
        return self.world.auditor.found().keys

    def opened(self) -> tuple[Said, Mapping[Place, UUID]]:
        """
        Say what each item says to a process that starts now, and which key its envelope names.

        Raises:
            Violation: That gave an untyped error, or one for all items.
        """
        found = self.world.auditor.found()
        keys = {place: inspect(item.data).key_id for place, item in found.items.items()}
        said = attempt(lambda: self.world.auditor.open_anew(found))
        if isinstance(said, EventSealError):
            raise Violation(f"nothing opens: {said!r}")
        return said, keys

    def check_items(self, before: tuple[Said, Mapping[Place, UUID]], refused: Collection[UUID] = ()) -> None:
        """
        Check that every item says what it said, or is refused as tampered with.

        Args:
            before: What they said.
            refused: The keys under which that may be.

        Raises:
            Violation: An item is lost, or erased, or says something else.
        """
        now, _ = self.opened()
        for place, said in before[0].items():
            is_refused = isinstance(now[place], IntegrityError) and before[1][place] in refused
            if not is_refused and not _is_alike(said, now[place]):
                raise Violation(f"the item at {place} gave {said!r}, and gives {now[place]!r}")

    def must_fail(self, process: Client) -> None:
        """Check that a verification says that something is wrong."""
        result = attempt(lambda: verify(process))
        if not isinstance(result, EventSealError) and not result.failed:
            raise Violation(f"somebody edited rows, and a verification found {result}")


def attempt(call: Callable[[], Any]) -> Any:
    """
    Give what a call gives, or its typed error.

    Raises:
        Violation: It gave an error of another kind.
    """
    try:
        return call()
    except EventSealError as error:
        return error
    except Exception as error:
        raise Violation(f"an edited row gave {error!r}") from error


def _matches(table: Table, where: Mapping[str, Any]) -> Any:
    return and_(true(), *(table.c[name] == value for name, value in where.items()))


def _is_alike(before: Noted | EventSealError, now: Noted | EventSealError) -> bool:
    if isinstance(before, KeyDestroyedError) and isinstance(now, KeyDestroyedError):
        return before.destroyed_by == now.destroyed_by
    return before == now


def play(world: World, slot: int, attack: Callable[[Scene], object]) -> None:
    """
    Have somebody edit rows, see what comes of it, and put all of the database back.

    Args:
        world: Nobody stands still in it, and its keys are in the database.
        slot: Whose client sees it; its process ends with that.
        attack: Raises what must not be.
    """
    assert not world.running
    world.step += 1
    copy = world.site.copy()
    world.forget(world.clients[slot])
    scene = Scene(world, slot)
    try:
        attack(scene)
    finally:
        for client in (*world.clients, *scene.processes):
            client.end()
        world.site.put_back(copy)
        world.clients[slot] = world.process(slot)
    world.look()
