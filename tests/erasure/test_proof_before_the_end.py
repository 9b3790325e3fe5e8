"""What ends a KEK, a branch key or a wrapping opens every key without it first, whatever the rows say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, insert, select, text, update
from tests.fixtures.ending_kms import EndingKms
from tests.fixtures.ledger_shops import LedgerShop

from eventseal.erasure import roll_epoch, shred
from eventseal.errors import JobError, KmsForbiddenError, KmsUnavailableError
from eventseal.keys import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import branch_uri
from eventseal.rotation import refuse_needed_kek, retire, rewrap
from eventseal.storage.keys.tables import encryption_keys, key_changes, key_wrappings
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from eventseal.kms import WrappedKey

SCOPES = ("subject:a", "subject:b")


class EditedShop(LedgerShop):
    """A shop whose key tables somebody edits who has no KMS."""

    def forge(self, key_id, kek_uri, version="1", *, verified=True) -> None:
        """Add a wrapping that opens nothing, and say that somebody has seen it open."""
        now = datetime.now(UTC)
        values = {"key_id": key_id, "kek_uri": kek_uri, "kek_version": version, "wrapped": bytes(60)}
        verified_at = now if verified else None
        self.execute(insert(key_wrappings).values(**values, created_at=now, verified_at=verified_at))

    def rows(self, query) -> list[dict]:
        with self.seal.datastore.key_engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def lose(self, key_id, kek_uri) -> None:
        """Take a wrapping away."""
        columns = key_wrappings.c
        self.execute(delete(key_wrappings).where(columns.key_id == key_id, columns.kek_uri == kek_uri))

    def wrappings(self, key_id) -> list[WrappedKey]:
        return list(self.seal.key_store.get([key_id])[key_id].wrappings)

    def processes_are_quick(self) -> None:
        self.execute(update(key_changes).values(refresh_interval=0))


@pytest.fixture
def old() -> FakeKms:
    return FakeKms("old")


@pytest.fixture
def new() -> FakeKms:
    return FakeKms("new")


@pytest.fixture
def shops(sqlite_url, tmp_path):
    made = []

    def make(kms, **options):
        made.append(EditedShop(sqlite_url, kms, tmp_path, **options))
        return made[-1]

    yield make
    for shop in made:
        shop.stop()


@pytest.fixture
def moving(shops, old, new):
    """A shop that has sealed under one KEK and lists another behind it, with two items."""
    shop = shops(old)
    shop.items = {scope: shop.append(scope) for scope in SCOPES}
    shop.kms = [old, new]
    shop.restart()
    return shop


# --- rewrap ---


def test_a_rewrap_drops_nothing_for_the_sake_of_a_wrapping_that_only_says_it_opens(moving, old, new) -> None:
    for scope in SCOPES:
        moving.forge(moving.key(scope), new.uri)
    result = rewrap(moving.seal, to=new)
    assert (result.failed, result.done) == (2, 1)  # the store key has no forged wrapping
    assert {failure.error for failure in result.failures} == {"IntegrityError"}
    moving.restart()
    assert all(moving.opens(item) for item in moving.items.values())


def test_a_rewrap_under_branch_keys_does_not_either(shops, old) -> None:
    shop = shops(old, branches=1)
    item = shop.append(SCOPES[0])
    key_id = item.key_id
    (active,) = shop.seal.keyring.rotate_branches()
    shop.forge(key_id, branch_uri(active.key_id), "")
    (real,) = [w for w in shop.wrappings(key_id) if w.ciphertext != bytes(60)]
    result = rewrap(shop.seal)
    assert [failure.key_id for failure in result.failures] == [key_id]
    assert real in shop.wrappings(key_id)


def test_who_may_not_unwrap_drops_nothing(moving, old, new) -> None:
    worker = LedgerShop(moving.url, old, moving.folder)
    rewrap(worker.seal, to=new)  # `new` is not configured there: the old wrappings stay
    moving.restart()
    assert all(moving.opens(item) for item in moving.items.values())
    for key_id in (item.key_id for item in moving.items.values()):
        moving.execute(update(key_wrappings).values(verified_at=datetime.now(UTC)))
        assert len(moving.wrappings(key_id)) == 2
    new.deny()
    denied = rewrap(worker.seal, to=new)
    assert (denied.left, denied.by_table["eventseal_key_wrappings"]["dropped"]) == (3, 0)
    new.recover()
    new.fail_always()
    with pytest.raises(KmsUnavailableError):
        rewrap(worker.seal, to=new)
    new.recover()
    assert rewrap(worker.seal, to=new).by_table["eventseal_key_wrappings"]["dropped"] == 3
    worker.stop()


# --- the end of a KEK ---


def test_no_kek_ends_for_the_sake_of_wrappings_that_only_say_they_open(moving, old, new) -> None:
    for scope in SCOPES:
        moving.forge(moving.key(scope), new.uri)
    result = roll_epoch(moving.seal, to=new)
    assert (result.complete, result.failed, result.keks, result.receipt) == (False, 2, (), None)
    moving.restart()
    assert all(moving.opens(item) for item in moving.items.values())


@pytest.mark.slow
@pytest.mark.parametrize("state", ["deactivated", "weird", "destroyed"])
@pytest.mark.parametrize("wrapping", ["deleted", "replaced"])
@pytest.mark.parametrize("purpose", ["data", "store"])
def test_no_kek_ends_that_a_key_needs_whose_row_was_hidden_and_wrapping_lost(
    moving, old, new, state, wrapping, purpose
) -> None:
    lost = moving.key(SCOPES[0])
    moving.seal.keyring.rotate(SCOPES[0])
    rewrap(moving.seal, to=new)
    columns = encryption_keys.c
    hidden = update(encryption_keys).where(columns.key_id == lost)
    moving.execute(hidden.values(application="ghost", purpose=purpose))
    moving.execute(
        text(f"UPDATE eventseal_encryption_keys SET state = '{state}' WHERE application = 'ghost'")
    )
    moving.lose(lost, new.uri)
    moving.lose(lost, old.uri)
    if wrapping == "replaced":
        moving.forge(lost, "fake://elsewhere")
    result = roll_epoch(moving.seal, to=new)
    assert (result.complete, result.failed, result.keks, result.receipt) == (False, 1, (), None)
    assert [failure.key_id for failure in result.failures] == [lost]
    with pytest.raises(JobError, match=f"without it, 1 key cannot be opened. The first error: key {lost}"):
        refuse_needed_kek(moving.seal, old.uri)


def test_no_kek_ends_that_a_backup_needs_for_a_key_whose_wrapping_was_replaced(moving, old, new) -> None:
    (lost, kept) = (moving.key(scope) for scope in SCOPES)
    moving.lose(lost, old.uri)
    moving.forge(lost, new.uri)
    result = roll_epoch(moving.seal, to=new)
    assert (result.complete, result.failed, result.keks) == (False, 1, ())
    assert [failure.key_id for failure in result.failures] == [lost]
    assert kept in moving.seal.key_store.get([kept])


def test_no_kek_ends_that_a_key_needs_which_only_says_it_was_destroyed(moving, old, new) -> None:
    key_id = moving.key(SCOPES[0])
    moving.lose(key_id, old.uri)
    forged = {"state": KeyState.DESTROYED, "destroyed_by": "retired", "active_scope": None}
    moving.execute(update(encryption_keys).where(encryption_keys.c.key_id == key_id).values(**forged))
    result = roll_epoch(moving.seal, to=new)
    assert (result.complete, [failure.key_id for failure in result.failures]) == (False, [key_id])


@pytest.mark.parametrize("to", ["another KEK", "a new version"])
def test_no_new_epoch_has_a_key_that_was_erased_and_whose_old_row_was_put_back(shops, new, to) -> None:
    old = EndingKms("old")  # it moves keys to its new version by itself
    shop = shops(old)
    item = shop.append(SCOPES[0])
    (row,), wrapped = (
        shop.rows(select(table).where(table.c.key_id == item.key_id))
        for table in (encryption_keys, key_wrappings)
    )
    shred(shop.seal, SCOPES[0])
    shop.execute(update(encryption_keys).where(encryption_keys.c.key_id == item.key_id).values(row))
    shop.execute(insert(key_wrappings).values(wrapped))
    there = shop.wrappings(item.key_id)
    shop.kms = [old, new] if to == "another KEK" else [old]
    shop.restart()
    result = roll_epoch(shop.seal, to=new if to == "another KEK" else None)
    assert (result.complete, result.receipt) == (False, None)
    assert [failure.key_id for failure in result.failures] == [item.key_id]
    assert shop.wrappings(item.key_id) == there


def test_a_wrapping_without_a_key_counts_as_needed(moving, old, new) -> None:
    key_id = moving.key(SCOPES[0])
    moving.execute(delete(encryption_keys).where(encryption_keys.c.key_id == key_id))
    with pytest.raises(JobError, match="is still needed"):
        roll_epoch(moving.seal, to=new)


def test_no_version_ends_for_a_data_key_whose_branch_wrapping_was_replaced(shops) -> None:
    kms = EndingKms("kek")
    shop = shops(kms, branches=1)
    item = shop.append(SCOPES[0])
    (wrapped,) = shop.wrappings(item.key_id)
    shop.lose(item.key_id, wrapped.kek_uri)
    shop.forge(item.key_id, wrapped.kek_uri, "")
    result = roll_epoch(shop.seal)
    assert (result.complete, [failure.key_id for failure in result.failures]) == (False, [item.key_id])
    assert (kms.forbidden, kms.deleted) == (set(), set())


# --- the end of a branch key ---


@pytest.fixture
def rotated(shops, old):
    """A shop whose branch key was rotated, and whose data key is said to be under the new one."""
    shop = shops(old, branches=1)
    shop.item = shop.append(SCOPES[0])
    (shop.real,) = shop.wrappings(shop.item.key_id)
    (active,) = shop.seal.keyring.rotate_branches()
    shop.lose(shop.item.key_id, shop.real.kek_uri)
    shop.forge(shop.item.key_id, branch_uri(active.key_id), "")
    shop.restart()
    return shop


def branch_states(shop) -> list[str]:
    page = shop.seal.key_store.page("shop")
    return [str(record.state) for record in page if record.purpose is KeyPurpose.BRANCH]


def test_no_branch_key_is_retired_that_a_backup_needs(rotated) -> None:
    result = retire(rotated.seal)
    assert (result.done, result.left, result.failed) == (0, 1, 1)
    assert [failure.key_id for failure in result.failures] == [rotated.item.key_id]
    assert branch_states(rotated) == ["deactivated", "active"]
    (old_branch,) = result.by_key
    with pytest.raises(JobError, match="1 key") as refused:
        retire(rotated.seal, keys=[old_branch])
    assert "eventseal_key_wrappings" in refused.value.remedy


@pytest.mark.parametrize("state", ["deactivated", "destroyed"])
def test_no_branch_key_is_retired_that_a_key_needs_whose_row_was_hidden(rotated, state) -> None:
    hidden = update(encryption_keys).where(encryption_keys.c.key_id == rotated.item.key_id)
    rotated.execute(hidden.values(application="ghost", state=state))
    result = retire(rotated.seal)
    assert (result.done, result.failed) == (0, 1)
    assert branch_states(rotated) == ["deactivated", "active"]


def test_a_roll_does_not_end_it_either(rotated, old) -> None:
    rotated.processes_are_quick()
    rotated.execute(delete(key_wrappings).where(key_wrappings.c.key_id == rotated.item.key_id))
    rotated.forge(rotated.item.key_id, old.uri)
    rotated.kms = [old, FakeKms("new")]
    rotated.restart()
    result = roll_epoch(rotated.seal, to=rotated.kms[1])
    assert (result.complete, [failure.key_id for failure in result.failures]) == (
        False,
        [rotated.item.key_id],
    )
    assert "destroyed" not in branch_states(rotated)


# --- whether a KEK may go ---


def test_a_kek_may_not_go_because_of_wrappings_that_only_say_they_open(moving, old, new) -> None:
    rewrap(moving.seal)
    assert refuse_needed_kek(moving.seal, old.uri) == 3
    key_id = moving.key(SCOPES[0])
    moving.lose(key_id, new.uri)
    moving.forge(key_id, new.uri)
    with pytest.raises(JobError, match="1 key cannot be opened") as refused:
        refuse_needed_kek(moving.seal, old.uri)
    assert str(key_id) in str(refused.value)
    moving.lose(key_id, old.uri)  # and not because the row that needs it is gone, either
    with pytest.raises(JobError, match="1 key cannot be opened"):
        refuse_needed_kek(moving.seal, old.uri)


def test_a_kek_may_not_go_that_a_key_needs_which_only_says_it_was_destroyed(moving, old) -> None:
    rewrap(moving.seal)
    key_id = moving.key(SCOPES[0])
    moving.execute(delete(key_wrappings).where(key_wrappings.c.key_id == key_id))
    forged = {"state": KeyState.DESTROYED, "destroyed_by": "retired", "active_scope": None}
    moving.execute(update(encryption_keys).where(encryption_keys.c.key_id == key_id).values(**forged))
    with pytest.raises(JobError, match="1 key cannot be opened"):
        refuse_needed_kek(moving.seal, old.uri)


def test_whether_a_kek_may_go_is_not_said_without_the_right_to_unwrap(moving, old, new) -> None:
    rewrap(moving.seal)
    moving.restart()
    moving.seal.keyring.refresh()
    new.deny()
    with pytest.raises(KmsForbiddenError):
        refuse_needed_kek(moving.seal, old.uri)
