"""The row of a roll of the epoch: whoever edits it gets no receipt for that, and no key is lost by it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import insert, select, text, update
from tests.fixtures.ending_kms import EndingKms
from tests.fixtures.ledger_shops import LedgerShop

from eventseal.erasure import roll_epoch, shred
from eventseal.errors import ConfigurationError, IntegrityError, JobError
from eventseal.rotation import status
from eventseal.storage.keys.tables import encryption_keys, epochs
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.testing import FakeAwsKms

SCOPE, OTHER = "subject:customer-42", "subject:other"
LONG_AGO, LATER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


class _Killed(BaseException):
    pass


@pytest.fixture
def kms() -> EndingKms:
    return EndingKms("kek")


@pytest.fixture
def shops(tmp_path):
    made = []

    def make(url, kms):
        made.append(LedgerShop(url, kms, tmp_path))
        made[-1].append(SCOPE), made[-1].append(OTHER)
        return made[-1]

    yield make
    for shop in made:
        shop.stop()


@pytest.fixture
def shop(shops, sqlite_url, kms) -> LedgerShop:
    return shops(sqlite_url, kms)


def rows(shop) -> list[dict]:
    with shop.seal.datastore.key_engine.connect() as connection:
        return [dict(row) for row in connection.execute(select(epochs)).mappings()]


def interrupt(shop) -> dict:
    """Roll the epoch up to where KEKs are closed: a version was made and noted. Give the row."""

    def killed(*args):
        raise _Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Killed):
        patch.setattr("eventseal.erasure.epoch.close_keks", killed)
        roll_epoch(shop.seal)
    (row,) = rows(shop)
    return row


def put_back(shop, row) -> None:
    shop.execute(text("DELETE FROM eventseal_epochs"))
    shop.execute(insert(epochs).values(**row))


def epoch_entries(shop) -> int:
    return shop.kinds().count("epoch") if shop.ledger.exists("shop") else 0


def test_a_forged_row_is_no_roll(shop, kms) -> None:
    forged = {"application": "shop", "begun_at": datetime.now(UTC), "kek_versions": {kms.uri: kms.current}}
    shop.execute(insert(epochs).values(**forged))
    result = roll_epoch(shop.seal)
    assert (kms.current, kms.deleted) == ("2", {"1"})  # a new version was made, and the old one ended
    assert (result.receipt.keks[0].before, epoch_entries(shop)) == ("2", 1)


EDITS = [
    {"begun_at": LATER},
    {"begun_at": LONG_AGO},
    {"kek_versions": {"fake://kek": "1"}},
    {"kek_versions": {}},
    {"kek_versions": [1]},
    {"kek_versions": {"fake://kek": 2}},
    {"number": 7},
    {"number": -(2**63)},
    {"shreds": 7},
    {"finished_at": LONG_AGO},
    {"seal": bytes(32)},
    {"seal": b""},
]
JUNK = ["kek_versions = '{'", "begun_at = 'soon'", "number = 'one'", "shreds = 'text'", "seal = 1.5"]


@pytest.mark.slow
def test_an_edited_row_is_refused_by_name_and_nothing_is_ended(lax_tables, shop, kms) -> None:
    row = interrupt(shop)
    edits = [*(update(epochs).values(**edit) for edit in EDITS)]
    for edit in [*edits, *(text(f"UPDATE eventseal_epochs SET {junk}") for junk in JUNK)]:
        put_back(shop, row)
        shop.execute(edit)
        with pytest.raises(IntegrityError, match="of application 'shop' in eventseal_epochs") as refused:
            roll_epoch(shop.seal)
        assert "delete the row" in refused.value.remedy
    assert (kms.current, kms.deleted, epoch_entries(shop)) == ("2", set(), 0)
    shop.execute(text("DELETE FROM eventseal_epochs"))
    assert roll_epoch(shop.seal).complete
    assert (kms.current, kms.deleted) == ("3", {"1", "2"})


def test_the_number_goes_up_with_every_beginning_and_every_end(shop) -> None:
    numbers = [interrupt(shop)["number"]]
    for _ in range(2):
        roll_epoch(shop.seal)
        (row,) = rows(shop)
        assert row["finished_at"] is not None
        numbers.append(row["number"])
    assert numbers == [1, 2, 4]


def test_a_roll_is_begun_anew_after_an_erasure_whatever_its_time_is_said_to_be(shop, kms) -> None:
    interrupt(shop)
    shred(shop.seal, SCOPE)
    shop.execute(update(encryption_keys).values(destroyed_at=LONG_AGO))
    assert roll_epoch(shop.seal).complete
    assert (kms.current, kms.deleted) == ("3", {"1", "2"})


@pytest.mark.slow
def test_a_receipt_is_not_given_again_after_an_erasure_whatever_its_time_is_said_to_be(
    sqlite_url, tmp_path, shops
) -> None:
    aws = FakeAwsKms()
    old, new = (AwsKmsAdapter(aws.create_key(), client=aws.client()) for _ in range(2))
    shop = shops(sqlite_url, [old, new])
    first = roll_epoch(shop.seal, to=new)
    assert roll_epoch(shop.seal, to=new).receipt == first.receipt
    shred(shop.seal, SCOPE)
    shop.execute(update(encryption_keys).values(destroyed_at=LONG_AGO))
    with pytest.raises(ConfigurationError, match="is already scheduled for deletion on"):
        roll_epoch(shop.seal, to=new)


def test_a_run_that_ended_nothing_says_so_and_writes_no_receipt(shop, kms, monkeypatch) -> None:
    monkeypatch.setattr(kms, "versions_before", lambda version: [])
    for _ in range(2):
        with pytest.raises(JobError, match="no KMS key was ended") as refused:
            roll_epoch(shop.seal)
        assert "fake://kek" in str(refused.value)
    assert epoch_entries(shop) == 0
    monkeypatch.undo()
    assert roll_epoch(shop.seal).complete
    assert epoch_entries(shop) == 1


# --- stores of the previous release ---

ADDED = ("number", "shreds", "branch_keys", "finished_at", "seal")


@pytest.mark.slow
def test_the_columns_are_added_and_a_roll_of_the_previous_release_is_begun_anew(
    lax_tables, shops, store_url, kms
) -> None:
    shop = shops(store_url, kms)
    row = interrupt(shop)
    for column in ADDED:
        shop.execute(text(f"ALTER TABLE eventseal_epochs DROP COLUMN {column}"))
    assert status(shop.seal.key_store, shop.seal.datastore, "shop").keks
    with pytest.raises(ConfigurationError, match=r"epochs|number") as refused:
        roll_epoch(shop.seal)
    assert "eventseal upgrade" in refused.value.remedy
    for added in (["eventseal_epochs"], []):
        assert shop.seal.datastore.add_columns() == added
    assert [{name: found[name] for name in ADDED} for found in rows(shop)] == [dict.fromkeys(ADDED)]
    result = roll_epoch(shop.seal)
    assert (kms.current, kms.deleted) == ("3", {"1", "2"})
    assert result.covers_before > row["begun_at"]
