"""Subjects whose ids are personal: their ids are nowhere among the keys, in ledgers, or where a KMS logs."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from uuid import UUID, uuid4

import pytest
from sqlalchemy import MetaData, select
from tests.fixtures.ledger_shops import LedgerShop

from eventseal import SequencedItemMapper
from eventseal.cipher import ItemContext, Opened
from eventseal.configuration import EventSeal, Settings
from eventseal.erasure import FileLedger, after_restore, erased_subjects, reopen, shred
from eventseal.errors import ConfigurationError, IntegrityError, KeyDestroyedError
from eventseal.items import Erased, Masked, PersonalData, SequencedItem, register_topic
from eventseal.keys import KeyPurpose
from eventseal.rotation import reencrypt, retire, rewrap, rotate_keys, verify
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLAIN_ID = "zoe@example.org"
SCOPE = f"subject:{PLAIN_ID}"


@dataclass(frozen=True)
class AddressChanged:
    originator_id: UUID
    originator_version: int
    customer: str
    address: str

    def __key_scope__(self) -> str:
        return f"subject:{self.customer}"


@dataclass(frozen=True)
class NameChanged:
    originator_id: UUID
    originator_version: int
    customer: str
    name: Annotated[str, PersonalData(subject="customer")]


for _class in (AddressChanged, NameChanged):
    register_topic(f"digests:{_class.__name__}", _class)


class Shop:
    """One process of an application whose scopes are digests."""

    def __init__(self, url: str, folder: Path, kms: FakeKms, *, scope_digest: bool = True) -> None:
        settings = Settings(
            store_url=url,
            application="shop",
            ledger=str(folder / "ledger.jsonl"),
            scope_digest=scope_digest,
            branches=2,
        )
        self.folder = folder
        self.seal = EventSeal(settings, kms=kms)
        self.strategy = SQLAlchemyActiveRecordStrategy(
            IntegerSequencedItemRecord, self.seal.datastore.session
        )
        self.mapper = self.seal.mapper

    def append(self, event: object) -> SequencedItem:
        (item,) = self.mapper.to_sequenced_items([event])
        self.strategy.append([item])
        return item

    def read(self, item: SequencedItem, **options) -> object:
        mapper = SequencedItemMapper(cipher=self.seal.cipher, **options) if options else self.mapper
        return mapper.from_sequenced_item(self.strategy.get_item(item.sequence_id, 0))

    def rows(self) -> str:
        """Everything in every table of the database."""
        tables = MetaData()
        with self.seal.datastore.engine.connect() as connection:
            tables.reflect(connection)
            found = [connection.execute(select(table)).all() for table in tables.sorted_tables]
        return repr(found)


@pytest.fixture
def kms() -> FakeKms:
    return FakeKms()


@pytest.fixture
def start(store_url, tmp_path, kms) -> Iterator:
    shops = []

    def start(**options) -> Shop:
        shops.append(Shop(store_url, tmp_path, kms, **options))
        return shops[-1]

    yield start
    for shop in shops:
        shop.seal.close()


@pytest.fixture
def shop(start) -> Shop:
    shop = start()
    shop.seal.datastore.setup_tables(application="shop")
    return shop


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_nothing_but_sealed_items_holds_the_id(shop, start, kms, store_url, tmp_path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    whole = shop.append(AddressChanged(uuid4(), 0, PLAIN_ID, "1 Analytical Row"))
    named = shop.append(NameChanged(uuid4(), 0, PLAIN_ID, "Zoe"))
    rotate_keys(shop.seal, scopes=[SCOPE])
    rotate_keys(shop.seal)
    assert reencrypt(shop.seal).failed == 0
    assert rewrap(shop.seal).complete
    assert retire(shop.seal).done > 0
    other = start()
    assert other.read(whole).address == "1 Analytical Row"
    assert other.read(named).name == "Zoe"
    told = []
    result = shred(shop.seal, SCOPE, notify=told.append)
    with pytest.raises(KeyDestroyedError):
        start().read(whole)
    assert reopen(shop.seal, SCOPE).done == 1
    shop.append(AddressChanged(uuid4(), 0, PLAIN_ID, "2 Analytical Row"))
    assert verify(shop.seal).complete

    ledger = (tmp_path / "ledger.jsonl").read_text()
    told_anywhere = [
        shop.rows(),
        ledger,
        json.dumps(result.to_json()),
        result.receipt.to_html(),
        repr(told),
        repr(kms.calls),
        caplog.text,
    ]
    for place in told_anywhere:
        assert PLAIN_ID not in place
    assert result.scope == told[0].scope == result.receipt.scope == shop.seal.keyring.stored_scope(SCOPE)
    assert result.scope in ledger
    if store_url.startswith("sqlite"):
        shop.seal.close()
        for file in tmp_path.iterdir():
            assert PLAIN_ID.encode() not in file.read_bytes()


def test_what_was_erased_is_masked_in_every_form(shop, start) -> None:
    whole = shop.append(AddressChanged(uuid4(), 0, PLAIN_ID, "1 Analytical Row"))
    named = shop.append(NameChanged(uuid4(), 0, PLAIN_ID, "Zoe"))
    others = shop.append(NameChanged(uuid4(), 0, "ada", "Ada"))
    shred(shop.seal, SCOPE)
    for process in (shop, start()):
        erased = process.read(whole, on_erased="mask", erased_scope=lambda _: SCOPE)
        assert type(erased) is Erased
        assert (erased.scope, erased.key_id) == (SCOPE, whole.key_id)
        assert process.read(whole, on_erased="skip", erased_scope=lambda _: SCOPE) is None
        with pytest.raises(KeyDestroyedError):
            process.read(whole, on_erased="mask", erased_scope=lambda _: "subject:ada")
        assert process.read(named).name == Masked(SCOPE, "name")
        assert process.read(others).name == "Ada"
        assert process.mapper.key_scope_of(erased) == SCOPE


def test_the_item_of_another_subject_is_refused(shop) -> None:
    place = ItemContext(uuid4(), 0, "digests:AddressChanged")
    event = AddressChanged(place.sequence_id, 0, PLAIN_ID, "1 Analytical Row")
    item = shop.mapper.to_sequenced_item(event)
    assert shop.mapper.from_sequenced_item(item) == event
    (opened,) = shop.seal.cipher.open_many([(item.data, place)])
    forged = shop.seal.cipher.encrypt(opened.plaintext, place, scope="subject:mallory")
    item = item._replace(data=forged, key_id=UUID(bytes=forged[3:19]))
    with pytest.raises(IntegrityError, match="not a key of the event's scope"):
        shop.mapper.from_sequenced_item(item)


class RestoredShop(LedgerShop):
    """A shop with backups whose scopes are digests."""

    def start(self) -> None:
        super().start()
        settings = self.seal.settings.model_copy(update={"scope_digest": True})
        self.seal.close()
        self.seal = EventSeal(settings, kms=self.kms)
        self.strategy = SQLAlchemyActiveRecordStrategy(
            IntegerSequencedItemRecord, self.seal.datastore.session
        )


def test_a_restored_key_is_destroyed_again_by_the_ledgers_digest(sqlite_url, tmp_path, kms) -> None:
    shop = RestoredShop(sqlite_url, kms, tmp_path)
    item, other = shop.append(SCOPE), shop.append("subject:ada")
    shop.back_up()
    stored = shop.seal.keyring.stored_scope(SCOPE)
    shred(shop.seal, SCOPE)
    (erased,) = erased_subjects(shop.seal, FileLedger(shop.place))
    assert erased.scope == stored
    assert item.key_id in erased.key_ids
    shop.restore()
    assert shop.opens(item)

    result = after_restore(shop.seal)

    assert (result.failed, [scope.scope for scope in result.scopes]) == (0, [stored])
    assert not shop.opens(item)
    assert shop.opens(other)
    with pytest.raises(KeyDestroyedError):
        shop.append(SCOPE)
    shop.stop()


@pytest.mark.parametrize("began_with", [True, False], ids=["digests first", "plain first"])
def test_an_application_keeps_what_it_began_with(start, began_with) -> None:
    first = start(scope_digest=began_with)
    first.seal.datastore.setup_tables(application="shop")
    item = first.append(AddressChanged(uuid4(), 0, PLAIN_ID, "1 Analytical Row"))
    other = start(scope_digest=not began_with)
    for use in (
        lambda: other.append(AddressChanged(uuid4(), 0, PLAIN_ID, "2 Analytical Row")),
        lambda: other.read(item),
        lambda: shred(other.seal, SCOPE),
        lambda: rotate_keys(other.seal, scopes=[SCOPE]),
        lambda: rotate_keys(other.seal),
        lambda: reopen(other.seal, SCOPE),
    ):
        with pytest.raises(ConfigurationError, match="have been stored"):
            use()
    assert shred(first.seal, SCOPE).done == 1
    subjects = [row for row in first.seal.key_store.page("shop") if row.scope.startswith("subject")]
    assert {row.purpose for row in subjects} == {KeyPurpose.DATA, KeyPurpose.FIELD, KeyPurpose.INDEX}
    assert all(row.destroyed_by == "shredded" for row in subjects)


def test_a_scope_named_twice_is_rotated_once(shop) -> None:
    shop.append(AddressChanged(uuid4(), 0, PLAIN_ID, "1 Analytical Row"))
    stored = shop.seal.keyring.stored_scope(SCOPE)
    assert rotate_keys(shop.seal, scopes=[SCOPE, stored]).done == 1
    with pytest.raises(ConfigurationError, match="never had a key") as caught:
        rotate_keys(shop.seal, scopes=["subject:nobody@example.org"])
    assert "nobody" not in str(caught.value)


def test_compromised_keys_are_moved_away_from(shop) -> None:
    item = shop.append(AddressChanged(uuid4(), 0, PLAIN_ID, "1 Analytical Row"))
    rotate_keys(shop.seal, scopes=[SCOPE], compromised=True)
    moved = reencrypt(shop.seal)
    assert (moved.done, moved.failed) == (1, 0)
    found = shop.strategy.get_item(item.sequence_id, 0)
    assert found.key_id != item.key_id
    place = ItemContext(found.sequence_id, 0, found.topic)
    assert isinstance(shop.seal.cipher.open_many([(found.data, place)])[0], Opened)
    assert shop.read(item).customer == PLAIN_ID
