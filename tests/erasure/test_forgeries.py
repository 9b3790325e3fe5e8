"""Whoever can write the tables, but has no KMS, cannot make live data look erased, nor erased data live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, insert, select, update
from tests.fixtures.sealed_shops import SealedShop

from eventseal.erasure import FileLedger, after_restore, shred
from eventseal.errors import EventSealError, IntegrityError, KeyDestroyedError, KeyNotFoundError
from eventseal.eventstore import EventStore
from eventseal.items import Erased, Masked, PersonalData, SequencedItemMapper
from eventseal.keys import CachePolicy, KeyPurpose
from eventseal.storage import IntegerSequencedItemRecord
from eventseal.storage.keys.tables import encryption_keys, key_changes, key_wrappings, revocation_nodes
from eventseal.testing import FakeKms, ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Executable

INTERVAL = 60.0
AFTER_TTL = 1_000.0
MINE, OTHERS = "tenant:acme", "tenant:globex"
"""Of whole events."""
SUBJECT, OTHER_SUBJECT = "subject:c-1", "subject:c-2"
"""Of a field in each."""

ITEM, FIELD = "an item's key", "a field's key"
SCOPES = {ITEM: (KeyPurpose.DATA, MINE, OTHERS), FIELD: (KeyPurpose.FIELD, SUBJECT, OTHER_SUBJECT)}
on_either_key = pytest.mark.parametrize("which", [ITEM, FIELD])


@dataclass(frozen=True)
class Ordered:
    originator_id: UUID
    originator_version: int
    tenant: str
    customer_id: str
    name: Annotated[str, PersonalData(subject="customer_id")]


class Site:
    """A store with an event of mine and one of somebody else's, and readers that accept erasures."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._kms = FakeKms()
        self._shops: list[SealedShop] = []
        self.clock = ManualClock()
        self.streams = {MINE: uuid4(), OTHERS: uuid4()}
        self.owner = self.process().set_up()
        for scope, customer in ((MINE, "c-1"), (OTHERS, "c-2")):
            event = Ordered(self.streams[scope], 0, scope.removeprefix("tenant:"), customer, "Ann")
            self.reader(self.owner).append(event)

    def process(self) -> SealedShop:
        policy = CachePolicy(refresh_interval=INTERVAL)
        self._shops.append(SealedShop(self._url, self._kms, clock=self.clock, cache=policy))
        return self._shops[-1]

    def reader(self, shop: SealedShop) -> EventStore:
        """Reads in a process; the scope that it expects of an item is told by the item's stream."""
        scopes = {stream: scope for scope, stream in self.streams.items()}
        mapper = SequencedItemMapper(
            cipher=shop.cipher,
            key_scope=lambda event: f"tenant:{event.tenant}",
            on_erased="mask",
            erased_scope=lambda item: scopes[item.sequence_id],
        )
        return EventStore(shop.strategy, mapper)

    def read(self, shop: SealedShop, scope: str = MINE) -> str:
        """Say what a process is shown of an event: its name, that it or its field is erased, or an error."""
        try:
            event = self.reader(shop).get_domain_event(self.streams[scope], 0)
        except EventSealError as error:
            return type(error).__name__
        if isinstance(event, Erased):
            return "erased"
        return "erased" if isinstance(event.name, Masked) else event.name

    def everybody(self) -> list[SealedShop]:
        """Give the processes that run, and one that has just started."""
        return [*self._shops, self.process()]

    def shows(self, scope: str = MINE) -> set[str]:
        return {self.read(shop, scope) for shop in self.everybody()}

    def execute(self, statement: Executable) -> Any:
        with self.owner.datastore.key_engine.begin() as connection:
            found = connection.execute(statement)
            return [dict(row) for row in found.mappings()] if found.returns_rows else found.rowcount

    # --- what somebody with a database client does ---

    def key_row(self, which: str, *, others: bool = False) -> dict[str, Any]:
        purpose, mine, theirs = SCOPES[which]
        columns = encryption_keys.c
        (row,) = self.execute(
            select(encryption_keys).where(
                columns.purpose == purpose, columns.scope == (theirs if others else mine)
            )
        )
        return row

    def edit_key(self, key_id: UUID, **values: Any) -> None:
        assert (
            self.execute(update(encryption_keys).where(encryption_keys.c.key_id == key_id).values(values))
            == 1
        )

    def wrappings(self, key_id: UUID) -> list[dict[str, Any]]:
        return self.execute(select(key_wrappings).where(key_wrappings.c.key_id == key_id))

    def drop_wrappings(self, key_id: UUID) -> None:
        self.execute(delete(key_wrappings).where(key_wrappings.c.key_id == key_id))

    def mark(self) -> dict[str, Any]:
        (row,) = self.execute(select(key_changes))
        return row

    def set_mark(self, **values: Any) -> None:
        assert self.execute(update(key_changes).values(values)) == 1

    def rewrite_item(self, *, header: UUID | None = None, column: UUID | None = None) -> None:
        """Have my item name another key."""
        table = IntegerSequencedItemRecord.__table__
        is_mine = table.c.sequence_id == self.streams[MINE]
        with self.owner.datastore.engine.begin() as connection:
            data = connection.execute(select(table.c.data).where(is_mine)).scalar_one()
            values: dict[str, Any] = {} if column is None else {"key_id": column}
            if header is not None:
                values["data"] = data[:3] + header.bytes + data[19:]
            connection.execute(update(table).where(is_mine).values(values))

    def close(self) -> None:
        for shop in self._shops:
            shop.close()


@pytest.fixture
def site(store_url: str) -> Iterator[Site]:
    site = Site(store_url)
    yield site
    site.close()


# --- live data are not made to look erased ---


@on_either_key
def test_a_forged_tombstone_is_refused_and_shown_as_no_erasure(site: Site, which: str) -> None:
    row = site.key_row(which)
    site.edit_key(
        row["key_id"], state="destroyed", destroyed_by="shredded", row_version=row["row_version"] + 1
    )
    site.drop_wrappings(row["key_id"])
    assert site.read(site.process()) == "IntegrityError"
    site.clock.advance(AFTER_TTL)
    assert site.shows() == {"IntegrityError"}
    assert site.shows(OTHERS) == {"Ann"}  # other keys are in order


@on_either_key
def test_no_more_so_with_a_change_of_the_counter(site: Site, which: str) -> None:
    row = site.key_row(which)
    site.edit_key(
        row["key_id"], state="destroyed", destroyed_by="shredded", change=site.mark()["counter"] + 1
    )
    site.set_mark(counter=site.mark()["counter"] + 1)
    site.clock.advance(INTERVAL + 1)
    assert site.shows() == {"IntegrityError"}


@pytest.mark.slow
@on_either_key
@pytest.mark.parametrize("with_its_scope", [False, True])
def test_the_tombstone_of_another_scope_put_in_its_place_is_refused(
    site: Site, which: str, with_its_scope: bool
) -> None:
    assert shred(site.owner, SCOPES[which][2]).complete
    tombstone = site.key_row(which, others=True)
    copied = ["state", "destroyed_by", "destroyed_at", "row_version", "seal", "binding", "change"]
    mine = site.key_row(which)["key_id"]
    if with_its_scope:  # its slot stays free: somebody else's tombstone has that one
        copied.append("scope")
        site.edit_key(mine, active_scope=None)
    site.edit_key(mine, **{name: tombstone[name] for name in copied})
    site.drop_wrappings(mine)
    assert site.read(site.process()) == "IntegrityError"
    site.clock.advance(AFTER_TTL)
    assert site.shows() == {"IntegrityError"}


@on_either_key
def test_a_key_whose_row_is_withheld_is_missing_and_not_erased(site: Site, which: str) -> None:
    key_id = site.key_row(which)["key_id"]
    site.drop_wrappings(key_id)
    site.execute(delete(encryption_keys).where(encryption_keys.c.key_id == key_id))
    assert site.read(site.process()) == KeyNotFoundError.__name__
    site.clock.advance(AFTER_TTL)
    assert site.shows() == {KeyNotFoundError.__name__}


@pytest.mark.slow
def test_an_item_whose_header_names_a_tombstone_is_no_erased_one(site: Site) -> None:
    assert shred(site.owner, OTHERS).complete
    assert shred(site.owner, OTHER_SUBJECT).complete
    rows = site.execute(select(encryption_keys).where(encryption_keys.c.destroyed_by == "shredded"))
    of_items = {row["key_id"] for row in rows if row["purpose"] == KeyPurpose.DATA}
    assert len(rows) == 6
    assert len(of_items) == 2
    mine = site.key_row(ITEM)["key_id"]
    for row in rows:
        site.rewrite_item(header=row["key_id"], column=row["key_id"])
        # A real tombstone, but of another scope, or of no key of items: an error, which says what it is.
        told = "KeyDestroyedError" if row["key_id"] in of_items else "IntegrityError"
        assert site.shows() == {told}
        site.rewrite_item(header=row["key_id"], column=mine)
        assert site.shows() == {"IntegrityError"}
        site.rewrite_item(header=mine, column=row["key_id"])
        assert site.shows() == {"IntegrityError"}
    site.rewrite_item(column=mine)
    assert site.shows() == {"Ann"}


# --- erased data are not made to live ---


@dataclass(frozen=True)
class Copy:
    """The rows of a key, the change mark and the revocation tree, as they were once."""

    row: dict[str, Any]
    wrappings: list[dict[str, Any]]
    mark: dict[str, Any]
    nodes: list[dict[str, Any]]

    @classmethod
    def of(cls, site: Site, which: str) -> Copy:
        row = site.key_row(which)
        nodes = site.execute(select(revocation_nodes))
        return cls(row, site.wrappings(row["key_id"]), site.mark(), nodes)

    def put_back(self, site: Site) -> None:
        values = {name: value for name, value in self.row.items() if name != "key_id"}
        site.edit_key(self.row["key_id"], **values)
        self.put_wrappings_back(site)

    def put_set_back(self, site: Site) -> None:
        """Put all of it back, and take away what is newer."""
        columns = encryption_keys.c
        site.execute(
            delete(encryption_keys).where(
                columns.scope == self.row["scope"], columns.key_id != self.row["key_id"]
            )
        )
        self.put_back(site)
        site.set_mark(**{name: value for name, value in self.mark.items() if name != "application"})
        site.execute(delete(revocation_nodes))
        if self.nodes:
            site.execute(insert(revocation_nodes).values(self.nodes))

    def put_wrappings_back(self, site: Site) -> None:
        site.execute(insert(key_wrappings).values(self.wrappings))


@on_either_key
def test_wrappings_put_beside_a_tombstone_open_nothing(site: Site, which: str) -> None:
    copy = Copy.of(site, which)
    assert shred(site.owner, SCOPES[which][1]).complete
    copy.put_wrappings_back(site)
    site.clock.advance(INTERVAL + 1)
    assert site.shows() == {"erased"}


@pytest.mark.slow
@on_either_key
def test_a_row_put_back_is_refused_by_whoever_runs_and_whoever_starts(site: Site, which: str) -> None:
    unaware = site.process()
    assert site.read(unaware) == "Ann"
    copy = Copy.of(site, which)
    assert shred(site.owner, SCOPES[which][1]).complete
    assert site.read(site.owner) == "erased"
    copy.put_back(site)
    site.clock.advance(INTERVAL + 1)
    shown = {shop: site.read(shop) for shop in site.everybody()}
    # Who has seen the tombstone may go on to say so; nobody is shown the event.
    assert set(shown.values()) <= {"IntegrityError", "erased"}
    assert shown[unaware] == "IntegrityError"
    assert shown[site.everybody()[-2]] == "IntegrityError"
    site.clock.advance(AFTER_TTL)
    assert site.shows() == {"IntegrityError"}
    purpose, scope, _ = SCOPES[which]
    for shop in site.everybody():
        with pytest.raises(KeyDestroyedError, match="closed"):  # whatever row holds the slot
            shop.keyring.sealing_keys({scope: 1}, purpose=purpose)


@on_either_key
def test_an_older_set_put_back_is_refused_by_whoever_saw_a_later_one(site: Site, which: str) -> None:
    witness = site.process()
    copy = Copy.of(site, which)
    purpose, scope, _ = SCOPES[which]
    assert shred(site.owner, scope).complete
    assert site.read(witness) == "erased"
    copy.put_set_back(site)
    site.clock.advance(INTERVAL + 1)
    for shop in (site.owner, witness):
        assert site.read(shop) == "IntegrityError"
        with pytest.raises(IntegrityError):
            shop.keyring.sealing_keys({scope: 1}, purpose=purpose)


@on_either_key
def test_what_a_new_process_cannot_tell_the_ledger_does(site: Site, which: str, tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path / "erasures.jsonl")
    copy = Copy.of(site, which)
    scope = SCOPES[which][1]
    assert shred(site.owner, scope, ledger=ledger).complete
    copy.put_set_back(site)
    started = site.process()
    assert site.read(started) == "Ann"  # nothing in the tables tells that they are old
    after = site.process()
    result = after_restore(after, ledger=ledger)
    assert result.complete
    assert [found.scope for found in result.scopes] == [scope]
    assert site.read(after) == "erased"
    site.clock.advance(INTERVAL + 1)
    assert {site.read(shop) for shop in (started, after, site.process())} == {"erased"}


def test_an_erased_item_is_shown_as_such_only_to_who_expects_its_scope(site: Site) -> None:
    assert shred(site.owner, MINE).complete
    assert site.read(site.owner) == "erased"
    site.streams = {OTHERS: site.streams[MINE], MINE: site.streams[OTHERS]}  # another scope is expected of it
    with pytest.raises(KeyDestroyedError):
        site.reader(site.owner).get_domain_event(site.streams[OTHERS], 0)


# --- a row that was hidden while its scope was shredded ---


@pytest.mark.slow
@pytest.mark.parametrize("column", ["application", "scope"])
def test_a_key_that_was_hidden_from_a_shred_opens_nothing_until_the_next_one_destroys_it(
    site: Site, column: str
) -> None:
    key_id = site.key_row(ITEM)["key_id"]
    site.owner.keyring.rotate(MINE)
    site.edit_key(key_id, **{column: "elsewhere"})
    shred(site.owner, MINE)
    site.edit_key(key_id, **{column: {"application": site.owner.keyring.application, "scope": MINE}[column]})
    newcomer = site.process()
    assert site.read(newcomer) == "IntegrityError"
    refusal = newcomer.keyring.opening_keys([key_id])[key_id]
    assert isinstance(refusal, IntegrityError)
    assert refusal.key_id == key_id
    assert f"eventseal shred {MINE}" in refusal.remedy
    assert site.read(newcomer, OTHERS) == "Ann"
    shred(newcomer, MINE)
    assert site.read(site.process()) == "erased"


def test_a_process_that_has_not_noticed_a_reopening_opens_the_new_key(site: Site) -> None:
    shred(site.owner, MINE)
    stale = site.process()
    assert site.read(stale) == "erased"
    site.owner.keyring.destroyer.reopen(MINE)
    key = site.owner.keyring.sealing_keys({MINE: 1})[MINE]
    assert not isinstance(stale.keyring.opening_keys([key.key_id])[key.key_id], EventSealError)


def test_an_active_key_that_the_ledger_does_not_name_keeps_its_scope_open(site: Site) -> None:
    site.owner.keyring.destroyer.shred_again(MINE, {}, closed=True)
    assert site.read(site.process()) == "Ann"
    site.owner.keyring.destroyer.reopen(MINE)
    assert site.read(site.process()) == "Ann"
