"""Each cell of what a process holds, what became of the key, how the KMS answers, and what is done."""

from __future__ import annotations

from itertools import count, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from sqlalchemy import delete
from tests.fixtures.sealed_shops import Noted, SealedShop, datastore_at, scope_of, stream_of

from eventseal.erasure import shred
from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
)
from eventseal.eventstore import EventStore
from eventseal.items import Erased, SequencedItemMapper
from eventseal.storage.keys.tables import encryption_keys, key_claims, key_wrappings
from eventseal.testing import FakeKms, ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

TABLE = Path(__file__).with_name("cells.txt")
KMS_ANSWERS = ("ok", "down", "denied", "disabled")
OPERATIONS = ("read", "append", "rotate", "shred")
CACHES = ("fresh", "stale", "absent", "negative")
STATES = ("active", "deactivated", "destroyed", "missing")
AFTER_TTL = 1_000.0

OUTCOMES: dict[type[EventSealError], str] = {
    KeyDestroyedError: "destroyed",
    KeyNotFoundError: "no key",
    ConfigurationError: "no such scope",
    KmsUnavailableError: "outage",
    KmsForbiddenError: "denied",
    KmsKeyStateError: "disabled",
    IntegrityError: "tampered",
}
FAILURES = {"down": "outage", "denied": "denied", "disabled": "disabled"}
"""What each answer of the KMS is called, where it is what somebody gets."""


class Cell(NamedTuple):
    operation: str
    cache: str
    state: str
    kms: str


class Expected(NamedTuple):
    outcome: str
    calls: int


def read_table() -> dict[Cell, Expected]:
    cells: dict[Cell, Expected] = {}
    for line in TABLE.read_text().splitlines():
        row, *columns = (part.strip() for part in line.split("|"))
        if row.startswith(("#", "operation")) or not columns:
            continue
        operation, cache, state = row.split()
        for kms, column in zip(KMS_ANSWERS, columns, strict=True):
            outcome, calls = column.rsplit(" ", 1)
            cell = Cell(operation, cache, state, kms)
            assert cell not in cells, f"{cell} is there twice"
            cells[cell] = Expected(outcome, int(calls))
    return cells


CELLS = read_table()


class Site:
    """A database and a KMS, on which each cell has a scope and processes of its own."""

    def __init__(self) -> None:
        self.datastore = datastore_at("sqlite://")
        self.kms = FakeKms()
        self.clock = ManualClock()
        self._numbers = count()
        self.process().set_up()

    def process(self) -> SealedShop:
        return SealedShop(self.datastore, self.kms, clock=self.clock)

    def new_tenant(self) -> str:
        return f"t{next(self._numbers)}"

    def set_answer(self, kms: str) -> None:
        self.kms.recover()
        actions: dict[str, Callable[[], object]] = {
            "ok": lambda: None,
            "down": self.kms.fail_always,
            "denied": self.kms.deny,
            "disabled": self.kms.disable,
        }
        actions[kms]()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.datastore.close()


def an_event(tenant: str, position: int) -> Noted:
    return Noted(originator_id=stream_of(tenant), originator_version=position, tenant=tenant, text="noted")


def bring_about(site: Site, state: str, tenant: str, key_id: UUID, other: SealedShop) -> None:
    """Have another process, or a person with a database client, do something to the key."""
    if state == "deactivated":
        other.keyring.rotate(scope_of(tenant))
    elif state == "destroyed":
        assert shred(other, scope_of(tenant)).complete
    elif state == "missing":
        with site.datastore.key_engine.begin() as connection:
            connection.execute(delete(key_wrappings).where(key_wrappings.c.key_id == key_id))
            connection.execute(delete(encryption_keys).where(encryption_keys.c.key_id == key_id))
            connection.execute(delete(key_claims))  # of the key that held the slot


def note_refusal(process: SealedShop, key_id: UUID, state: str) -> None:
    """Have a process ask for the key, which it does not find, unless it is destroyed."""
    with pytest.MonkeyPatch.context() as patch:
        if state != "destroyed":
            patch.setattr(process.key_store, "get", lambda _: {})
        found = process.keyring.opening_keys([key_id])[key_id]
    assert isinstance(found, KeyDestroyedError if state == "destroyed" else KeyNotFoundError)


def prepare(site: Site, cell: Cell, tenant: str) -> SealedShop:
    """Give the process of a cell, with what it holds, after the key came into its state."""
    other, process = site.process(), site.process()
    if cell.cache != "cold":
        process.events.append(an_event(f"{tenant} beside", 0))  # so that it holds the store key
    writer = process if cell.cache in ("fresh", "stale") else other
    writer.events.append(an_event(tenant, 0))
    scope = scope_of(tenant)
    key_id = writer.keyring.sealing_keys({scope: 0})[scope].key_id
    bring_about(site, cell.state, tenant, key_id, other)
    if cell.cache == "stale":
        site.clock.advance(AFTER_TTL)
    elif cell.cache in ("absent", "negative"):
        process.keyring.refresh()
    if cell.cache == "negative":
        note_refusal(process, key_id, cell.state)
    other.close()
    return process


def perform(process: SealedShop, operation: str, tenant: str) -> object:
    if operation == "read":
        # It may be shown erased items as such: so an outage has every occasion to look like an erasure.
        mapper = SequencedItemMapper(
            cipher=process.cipher,
            key_scope=lambda event: scope_of(event.tenant),
            on_erased="mask",
            erased_scope=lambda _: scope_of(tenant),
        )
        return EventStore(process.strategy, mapper).get_domain_event(stream_of(tenant), 0)
    if operation == "append":
        process.events.append(an_event(tenant, 1))
        return process.events.active_record_strategy.get_item(stream_of(tenant), 1)
    if operation == "rotate":
        return process.keyring.rotate(scope_of(tenant))
    result = shred(process, scope_of(tenant))
    assert result.complete
    return result


def outcome_of(process: SealedShop, operation: str, tenant: str) -> str:
    try:
        value = perform(process, operation, tenant)
    except EventSealError as error:
        return OUTCOMES.get(type(error), repr(error))
    if isinstance(value, Erased):
        return "erased"
    assert operation != "read" or value == an_event(tenant, 0)
    return "value"


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
def test_each_cell_has_its_outcome_and_its_calls_of_the_kms(site: Site, cell: Cell) -> None:
    tenant = site.new_tenant()
    process = prepare(site, cell, tenant)
    site.set_answer(cell.kms)
    before = site.kms.count()
    try:
        outcome = outcome_of(process, cell.operation, tenant)
        calls = site.kms.count() - before
    finally:
        site.set_answer("ok")
        process.close()
    assert Expected(outcome, calls) == CELLS[cell]


# --- what the table must say, whatever else it says ---


def test_the_table_has_every_cell() -> None:
    wanted = {Cell(*cell) for cell in product(OPERATIONS, CACHES, STATES, KMS_ANSWERS)}
    assert len(wanted) == 256
    cold = {Cell(operation, "cold", state, kms) for operation, _, state, kms in wanted}
    assert CELLS.keys() == wanted | cold


def test_no_outage_looks_like_tampering_or_erasure() -> None:
    """With a KMS that fails, everybody gets what they would get without, or is told of that failure."""
    told = 0
    for cell, (outcome, _) in CELLS.items():
        if cell.kms == "ok":
            assert outcome not in FAILURES.values()
            continue
        without = CELLS[cell._replace(kms="ok")].outcome
        assert outcome in (without, FAILURES[cell.kms]), cell
        assert outcome not in ("erased", "destroyed") or cell.state == "destroyed", cell
        told += outcome == FAILURES[cell.kms]
    assert told


def test_a_kms_that_says_no_is_never_outlived() -> None:
    """What an outage may be outlived by, a denied or disabled KEK ends: they differ in nothing else."""
    for cell, (outcome, _) in CELLS.items():
        if cell.kms == "down" and CELLS[cell._replace(kms="denied")].outcome == "denied":
            assert outcome == "outage" or (outcome == "value" and cell.cache == "stale"), cell
            assert CELLS[cell._replace(kms="disabled")].outcome == "disabled"


def test_nothing_of_a_destroyed_key_opens_beyond_the_bound() -> None:
    for cell, (outcome, _) in CELLS.items():
        if cell.state == "destroyed" and cell.operation != "shred":
            assert (outcome == "value") == (cell.operation == "read" and cell.cache == "fresh"), cell
