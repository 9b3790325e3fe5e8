"""What readers do, and how that is judged: right, erased or an outage, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from tests.lifecycle.audit import Place
from tests.lifecycle.client import EVENTS, TABLES, Client, Noted, stream_of
from tests.lifecycle.model import Violation
from tests.lifecycle.operations import Operation

from eventseal.cipher import ItemContext, Opened
from eventseal.errors import EventSealError, KeyDestroyedError, KmsError, StoreError

if TYPE_CHECKING:
    from uuid import UUID

    from tests.lifecycle.world import Outcome, World


class _Reading(Operation):
    """Judges what is opened: right, or erased, or an outage, and nothing else."""

    def begin(self, world: World) -> None:
        self._before = dict(world.model.items)

    def judge_opened(
        self, world: World, client: Client, outcome: Outcome, place: Place, key_id: UUID, event: Noted
    ) -> None:
        if place in world.model.items and event != world.model.items[place]:
            raise Violation(f"{place} says {event}, not {world.model.items[place]}")
        life = world.model.keys.get(key_id)
        shredded = None if life is None else life.shredded
        if shredded is None:
            return
        if shredded.time < outcome.began.time - world.terms.opens_for:
            raise Violation(f"{place} opened at {outcome.began}, and was shredded at {shredded}")
        if shredded.step < outcome.confirmed or client.shredded.get(key_id, inf) < outcome.began.step:
            raise Violation(f"{place} opened, and this client had seen that {key_id} was shredded")

    def is_erased(self, world: World, error: EventSealError) -> bool:
        life = world.model.keys.get(error.key_id) if isinstance(error, KeyDestroyedError) else None
        return life is not None and life.shredded is not None


@dataclass
class Replay(_Reading):
    """Read a scope's stream."""

    scope: str
    table: str = EVENTS

    def run(self, client: Client) -> list[Noted]:
        return client.stores[self.table].get_domain_events(stream_of(self.scope))

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return self.is_erased(world, error)

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is None:
            return
        found = {
            Place(self.table, event.originator_id, event.originator_version): event for event in outcome.value
        }
        before = {
            place
            for place in self._before
            if (place.table, place.sequence_id) == (self.table, stream_of(self.scope))
        }
        if missing := before - found.keys():
            raise Violation(f"{missing} were not read")
        if list(found) != sorted(found):
            raise Violation(f"the events of {self.scope} came as {list(found)}")
        for place, event in found.items():
            self.judge_opened(world, client, outcome, place, world.model.found.items[place].key_id, event)


@dataclass
class ReadOne(_Reading):
    """Read one item."""

    place: Place

    def run(self, client: Client) -> Noted:
        event: Noted = client.stores[self.place.table].get_domain_event(
            self.place.sequence_id, self.place.position
        )
        return event

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return self.is_erased(world, error)

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is not None:
            key_id = world.model.found.items[self.place].key_id
            self.judge_opened(world, client, outcome, self.place, key_id, outcome.value)


@dataclass
class OpenPage(_Reading):
    """Open every item of a table at once: each has an outcome of its own."""

    table: str = EVENTS

    def run(self, client: Client) -> list[tuple[Place, UUID, Opened | EventSealError]]:
        items = list(client.strategies[self.table].all_items())
        collection = TABLES[self.table].__collection__
        contexts = [ItemContext(item.sequence_id, item.position, item.topic, collection) for item in items]
        outcomes = client.cipher.open_many(
            [(item.data, context) for item, context in zip(items, contexts, strict=True)]
        )
        return [
            (Place(self.table, item.sequence_id, item.position), item.key_id, opened)
            for item, opened in zip(items, outcomes, strict=True)
        ]

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is None:
            return
        if missing := {p for p in self._before if p.table == self.table} - {p for p, _, _ in outcome.value}:
            raise Violation(f"{missing} were not read")
        for place, key_id, opened in outcome.value:
            if isinstance(opened, Opened):
                event = world.model.items.get(place)
                if event is not None and event.text.encode() not in opened.plaintext:
                    raise Violation(f"{place} says {opened.plaintext!r}")
                if event is not None:
                    self.judge_opened(world, client, outcome, place, key_id, event)
            elif isinstance(opened, KmsError | StoreError):
                if outcome.is_clean:
                    raise Violation(f"{place} gave {opened!r} without any outage")
            elif not self.is_erased(world, opened):
                raise Violation(f"{place} gave {opened!r} after {outcome.fired}")
