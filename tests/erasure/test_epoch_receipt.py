"""The receipt of a new epoch: which backups are useless, since when, and from which date on for good."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from tests.fixtures.ledger_shops import LedgerShop
from tests.fixtures.openbao import openbao

from eventseal.configuration import EventSeal, Settings
from eventseal.erasure import DatabaseLedger, EpochReceipt, roll_epoch, shred
from eventseal.errors import ConfigurationError
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.testing import FakeAwsKms
from eventseal_kms.vault import Token, VaultSettings, VaultTransitAdapter

__all__ = ["openbao"]

SCOPE, OTHER = "subject:customer-42", "subject:other"


class MovedShop(LedgerShop):
    """A shop that has sealed under one KEK and lists another behind it."""

    def __init__(self, url, old, new, folder) -> None:
        super().__init__(url, old, folder)
        self.items = {scope: self.append(scope) for scope in (SCOPE, OTHER)}
        self.new = new
        self.kms = [old, new]
        self.restart()

    def roll(self, **options):
        return roll_epoch(self.seal, to=self.new, **options)


@pytest.fixture
def aws() -> FakeAwsKms:
    return FakeAwsKms()


@pytest.fixture
def shop(sqlite_url, aws, tmp_path):
    old, new = (AwsKmsAdapter(aws.create_key(), client=aws.client()) for _ in range(2))
    shop = MovedShop(sqlite_url, old, new, tmp_path)
    yield shop
    shop.stop()


def text_of(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


# --- AWS ---


def test_on_aws_it_has_the_date_of_the_closing_and_that_of_the_deletion(shop) -> None:
    shred(shop.seal, SCOPE)
    old, new = shop.kms
    before = datetime.now(UTC)
    receipt = shop.roll(pending_window_days=7).receipt
    after = datetime.now(UTC)

    (ended,) = receipt.keks
    assert before <= ended.closed_at <= after
    assert ended.ends_at == old.deletion_date()
    assert (receipt.open_nothing_since, receipt.useless_from) == (ended.closed_at, ended.ends_at)
    assert ended.ends_at - ended.closed_at > timedelta(days=6, hours=23)
    assert receipt.covers_before == new.created_at()
    assert receipt.staying == {new.uri: None}
    shown = json.loads(json.dumps(receipt.to_json()))
    assert shown["receipt"] == "eventseal epoch"
    assert shown["application"] == "shop"
    assert shown["open_nothing_since"] == shown["keks"][0]["closed_at"] == ended.closed_at.isoformat()
    assert shown["useless_from"] == shown["keks"][0]["ends_at"] == ended.ends_at.isoformat()
    assert shown["covers_before"] == new.created_at().isoformat()
    assert shown["keys"] == 2  # the store key and the key of the other customer
    page = receipt.to_html()
    for at in (ended.closed_at, ended.ends_at, receipt.covers_before, receipt.done_at, receipt.begun_at):
        assert text_of(at) in page
    ends = text_of(ended.ends_at)
    assert f"The KMS deletes it on {ends}. Until then, the deletion can be cancelled" in page
    assert old.uri in page
    assert new.uri in page
    assert "<script" not in page
    assert SCOPE not in page


def test_the_ledgers_entry_says_the_same(shop, aws) -> None:
    receipt = shop.roll().receipt
    entry = shop.ledger.last(shop.seal)
    assert entry.kind == "epoch"
    assert EpochReceipt.of(shop.ledger.name, entry) == receipt
    assert receipt.recorded.mac == entry.mac.hex()
    assert receipt.to_json()["ledger"] == {
        "place": shop.ledger.name,
        "id": str(entry.ledger_id),
        "epoch": {"entry": entry.number, "mac": entry.mac.hex()},
    }
    for fact in (shop.ledger.name, str(entry.ledger_id), entry.mac.hex()):
        assert fact in receipt.to_html()


def test_run_again_on_aws_it_does_nothing_and_gives_the_same_receipt(shop, aws) -> None:
    first = shop.roll(pending_window_days=7)
    entries = shop.kinds()
    aws.advance(timedelta(days=1))
    for ledger in (None, shop.ledger):
        again = shop.roll(pending_window_days=30, ledger=ledger)
        assert (again.complete, again.done, again.failed) == (True, 0, 0)
        assert again.receipt == first.receipt
        assert again.receipt.to_html() == first.receipt.to_html()
        assert (again.keks, again.covers_before) == (first.keks, first.covers_before)
    assert shop.kinds() == entries
    assert aws.count("kms:ScheduleKeyDeletion") == 1


def test_run_again_after_an_erasure_it_is_refused(shop) -> None:
    shop.roll()
    shred(shop.seal, OTHER)  # a backup from in between has the key, under the new KEK
    with pytest.raises(ConfigurationError, match="is already scheduled for deletion on"):
        shop.roll()


@pytest.mark.slow
def test_of_another_kek_it_gives_no_receipt(shop, aws) -> None:
    shop.roll()
    old, _ = shop.kms
    third = AwsKmsAdapter(aws.create_key(), client=aws.client())
    shop.new, shop.kms = third, [old, third]
    shop.restart()
    with pytest.raises(ConfigurationError, match="is already scheduled for deletion on"):
        roll_epoch(shop.seal, to=third, ledger=DatabaseLedger(f"sqlite:///{shop.folder / 'other.sqlite'}"))


def test_where_the_deletion_was_withdrawn_and_ordered_anew_it_is_refused(shop, aws) -> None:
    shop.roll(pending_window_days=30)
    old, _ = shop.kms
    aws.client().cancel_key_deletion(KeyId=str(old.uri).removeprefix("aws-kms://"))
    old.schedule_deletion(7)
    with pytest.raises(ConfigurationError, match="is already scheduled for deletion on"):
        shop.roll()


# --- Vault and OpenBao ---


@pytest.mark.slow
def test_on_vault_it_has_the_date_and_the_version(openbao, sqlite_url, tmp_path) -> None:
    name = f"key-{uuid4().hex}"
    openbao.client().write_data(f"transit/keys/{name}", data={"type": "aes256-gcm96", "derived": True})
    settings = VaultSettings(address=openbao.address, login=Token(openbao.token))
    vault = VaultTransitAdapter("transit", name, settings=settings)
    shop = LedgerShop(sqlite_url, vault, tmp_path, branches=1)
    shop.append(SCOPE)

    before = datetime.now(UTC)
    receipt = roll_epoch(shop.seal).receipt
    after = datetime.now(UTC)

    (ended,) = receipt.keks
    assert before <= ended.closed_at <= ended.ends_at <= after
    assert ended.before == vault.current_version()
    assert receipt.staying == {vault.uri: vault.current_version()}
    assert receipt.covers_before == receipt.begun_at
    facts = openbao.client().read(f"transit/keys/{name}")["data"]
    assert facts["min_decryption_version"] == facts["min_available_version"] == 2
    page = receipt.to_html()
    assert f"{vault.uri} before version {ended.before}" in page
    assert f"Permanently deleted on {text_of(ended.ends_at)}." in page
    assert "cancelled" not in page

    again = roll_epoch(shop.seal).receipt  # the next epoch: it covers the one before, too
    assert again.keks[0].before == vault.current_version() != ended.before
    assert again.covers_before > receipt.covers_before
    shop.stop()


# --- a key file; without a ledger ---


def test_of_a_key_file_no_date_is_made_up(sqlite_url, tmp_path) -> None:
    old, new = (LocalKmsAdapter.create(tmp_path / name) for name in ("old.key", "new.key"))
    shop = MovedShop(sqlite_url, old, new, tmp_path)
    receipt = shop.roll().receipt
    shown = receipt.to_json()
    assert [shown[name] for name in ("covers_before", "open_nothing_since", "useless_from")] == [None] * 3
    page = receipt.to_html()
    assert "until you delete it and every copy of it" in page
    assert page.count("the day on which you delete the ended KMS keys below") == 2
    assert "The KMS does not report when that was" in page
    shop.stop()


def test_without_a_ledger_there_is_one_too(sqlite_url, aws) -> None:
    old, new = (AwsKmsAdapter(aws.create_key(), client=aws.client()) for _ in range(2))
    with EventSeal(Settings(store_url=sqlite_url, application="shop"), kms=[old, new]) as seal:
        seal.datastore.setup_tables(application="shop")
        seal.keyring.prepare([SCOPE])
        result = roll_epoch(seal, to=new)
        assert result.receipt.to_json()["ledger"] is None
        assert "no ledger: none is configured" in result.receipt.to_html()
        assert result.receipt.useless_from == old.deletion_date()
        # Nothing tells that it was done.
        with pytest.raises(ConfigurationError, match="is already scheduled for deletion on"):
            roll_epoch(seal, to=new)


def test_an_epoch_that_was_not_rolled_has_none(shop) -> None:
    from sqlalchemy import text

    assert shop.roll(dry_run=True).receipt is None
    with shop.seal.datastore.key_engine.begin() as connection:
        connection.execute(
            text("UPDATE eventseal_key_wrappings SET wrapped = x'00' WHERE key_id = :key"),
            {"key": shop.items[SCOPE].key_id.bytes},
        )
    result = shop.roll()
    assert (result.failed, result.receipt, result.to_json()["receipt"]) == (1, None, None)
