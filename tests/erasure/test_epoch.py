"""Rolling the epoch: backups of the key tables open nothing any more, and every live item opens."""

from __future__ import annotations

import pkgutil
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text, update
from tests.fixtures.ending_kms import EndingKms
from tests.fixtures.openbao import openbao

from eventseal.cipher import ItemContext
from eventseal.cipher.aes import Opened
from eventseal.configuration import EventSeal, Settings
from eventseal.erasure import Ending, roll_epoch, shred
from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    JobError,
    KeyDestroyedError,
    KmsForbiddenError,
    StoreUnavailableError,
)
from eventseal.items import SequencedItem
from eventseal.keys import DataKey, KeyPurpose, KeyState
from eventseal.keys.data_key import unwrapped_key
from eventseal.keys.wrapping.branches import named_branch, unwrap_under
from eventseal.kms import EncryptionContext
from eventseal.rotation import rewrap
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
from eventseal.storage.keys.epochs import begin_epoch, finish_epoch, is_rolling, note_version
from eventseal.storage.keys.kek_fences import close_keks
from eventseal.storage.keys.tables import encryption_keys
from eventseal.testing import FakeKms
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.testing import FakeAwsKms
from eventseal_kms.vault import Token, VaultSettings, VaultTransitAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from eventseal.keys.records import KeyRecord
    from eventseal.kms import KmsAdapter

__all__ = ["openbao"]

TABLES = (
    "eventseal_encryption_keys",
    "eventseal_key_wrappings",
    "eventseal_key_changes",
    "eventseal_revocation_nodes",
)
SUBJECTS = [f"subject:customer-{number}" for number in range(6)]
ERASED, LIVE = SUBJECTS[:3], SUBJECTS[3:]


class Shop:
    """A process of an application, and the backups that its operator takes."""

    def __init__(
        self,
        url: str,
        kms: object,
        *,
        application: str = "shop",
        branches: int | None = None,
        ledger: str | None = None,
    ) -> None:
        settings = Settings(store_url=url, application=application, branches=branches, ledger=ledger)
        self.url, self.kms, self.branches = url, kms, branches
        self.seal = EventSeal(settings, kms=kms)
        self.strategy = SQLAlchemyActiveRecordStrategy(
            IntegerSequencedItemRecord, self.seal.datastore.session
        )
        self.seal.datastore.setup_tables(application=application)

    def again(self, kms: object = None) -> Shop:
        return Shop(self.url, kms or self.kms, branches=self.branches)

    def append(self, scope: str) -> SequencedItem:
        place = ItemContext(uuid4(), 0, "shop:Placed")
        data = self.seal.cipher.encrypt(b"personal", place, scope=scope)
        key_id = self.seal.keyring.sealing_keys({scope: 0})[scope].key_id
        item = SequencedItem(place.sequence_id, 0, place.topic, data, key_id)
        self.strategy.append([item])
        return item

    def opens(self, item: SequencedItem) -> bool:
        place = ItemContext(item.sequence_id, item.position, item.topic)
        (outcome,) = self.seal.cipher.open_many([(item.data, place)])
        assert isinstance(outcome, Opened | EventSealError)
        return isinstance(outcome, Opened)

    def backup(self, *tables: str) -> dict[str, list[dict[str, object]]]:
        with self.seal.datastore.key_engine.connect() as connection:
            return {
                table: [dict(row) for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()]
                for table in tables or TABLES
            }

    def restore(self, backup: dict[str, list[dict[str, object]]]) -> None:
        """Put the key tables back as they were."""
        with self.seal.datastore.key_engine.begin() as connection:
            for table in reversed(TABLES):
                connection.execute(text(f"DELETE FROM {table}"))
            for table, rows in backup.items():
                for row in rows:
                    names = ", ".join(row)
                    values = ", ".join(f":{name}" for name in row)
                    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)

    def records(self) -> list[KeyRecord]:
        return self.seal.key_store.page("shop", limit=1000)

    def items(self) -> list[tuple[object, ...]]:
        with self.seal.datastore.engine.connect() as connection:
            rows = connection.execute(text("SELECT * FROM integer_sequenced_items ORDER BY 1, 2"))
            return [tuple(row) for row in rows]

    def branch_rows(self) -> list[tuple[str, str]]:
        with self.seal.datastore.key_engine.connect() as connection:
            rows = connection.execute(
                text(
                    "SELECT scope, state FROM eventseal_encryption_keys WHERE purpose = 'branch' ORDER "
                    "BY key_id"
                )
            )
            return [(row.scope, row.state) for row in rows]


@pytest.fixture
def shops() -> Iterator[Callable[..., Shop]]:
    made: list[Shop] = []

    def make(*args: object, **options: object) -> Shop:
        made.append(Shop(*args, **options))
        return made[-1]

    yield make
    for shop in made:
        shop.seal.close()


@pytest.fixture(params=[None, 2], ids=["no-branches", "branches"])
def branches(request) -> int | None:
    return request.param


@pytest.fixture
def vault(openbao) -> Callable[[], VaultTransitAdapter]:
    """Makes adapters of one new transit key."""
    return _transit_key(openbao)


def _transit_key(openbao) -> Callable[[], VaultTransitAdapter]:
    name = f"key-{uuid4().hex}"
    openbao.client().write_data(f"transit/keys/{name}", data={"type": "aes256-gcm96", "derived": True})
    settings = VaultSettings(address=openbao.address, login=Token(openbao.token))

    def make() -> VaultTransitAdapter:
        return VaultTransitAdapter("transit", name, settings=settings)

    make.name = name
    return make


def _filled(shop: Shop) -> dict[str, SequencedItem]:
    return {scope: shop.append(scope) for scope in (*SUBJECTS, "application")}


def _opened_in(shop: Shop, items: dict[str, SequencedItem]) -> set[str]:
    """Which scopes' items a new process opens."""
    other = shop.again()
    try:
        return {scope for scope, item in items.items() if other.opens(item)}
    finally:
        other.seal.close()


def _reachable(records: Sequence[KeyRecord], keks: Sequence[KmsAdapter]) -> set[UUID]:
    """Which keys somebody gets at who has all these rows, and may ask the KEKs for anything."""
    opened: dict[UUID, DataKey] = {}
    for record in records:
        for wrapped in record.wrappings:
            context = EncryptionContext(record.key_id, str(record.purpose), record.application)
            for kek in keks:
                with suppress(EventSealError):
                    key = unwrapped_key(kek.unwrap(wrapped, context), record, giver="a thief")
                    if isinstance(key, DataKey):
                        opened[record.key_id] = key
    for record in records:
        for wrapped in record.wrappings:
            branch = opened.get(named_branch(wrapped) or record.key_id)
            if branch is not None and branch.purpose is KeyPurpose.BRANCH and branch.key_id != record.key_id:
                (key,) = unwrap_under(branch, [(record, wrapped)])
                if isinstance(key, DataKey):
                    opened[record.key_id] = key
    return set(opened)


# --- Vault and OpenBao ---


@pytest.mark.slow
def test_a_backup_of_before_opens_nothing_after_the_roll_and_every_live_item_opens(
    shops, store_url, vault, branches
) -> None:
    shop = shops(store_url, vault(), branches=branches)
    items = _filled(shop)
    stolen, stolen_keys = shop.backup(), shop.records()
    sealed = shop.items()
    for scope in ERASED:
        shred(shop.seal, scope)
    kept = shop.backup()
    shop.restore(stolen)
    assert _opened_in(shop, items) == {*SUBJECTS, "application"}  # a restore undoes a shred, until the roll
    shop.restore(kept)
    assert _reachable(stolen_keys, [shop.kms]) >= {items[scope].key_id for scope in SUBJECTS}

    result = roll_epoch(shop.seal)

    assert (result.complete, result.failed, result.leftover) == (True, 0, "")
    assert [kek.ending for kek in result.keks] == [Ending.DELETED]
    assert result.covers_before is not None
    assert result.finished_at is not None
    assert _opened_in(shop, items) == {*LIVE, "application"}
    assert shop.items() == sealed  # no item was touched
    fresh = shop.backup()
    shop.restore(stolen)
    assert _opened_in(shop, items) == set()
    shop.restore(fresh)
    assert _opened_in(shop, items) == {*LIVE, "application"}
    assert _reachable(stolen_keys, [shop.kms]) == set()
    everything = _reachable([*stolen_keys, *shop.records()], [shop.kms])  # old rows beside those of now
    assert not everything & {items[scope].key_id for scope in ERASED}
    assert everything >= {items[scope].key_id for scope in LIVE}


@pytest.mark.slow
def test_with_branches_the_calls_of_the_kms_do_not_grow_with_the_data_keys(
    shops, sqlite_url, openbao
) -> None:
    shop = shops(sqlite_url, _transit_key(openbao)(), branches=2)
    shop.seal.keyring.prepare([f"subject:{number}" for number in range(300)])
    with openbao.counted("transit") as calls:
        result = roll_epoch(shop.seal)
    assert result.done > 300
    assert len(calls) < 30


def test_only_what_the_policy_of_the_page_grants_is_needed(shops, sqlite_url, openbao) -> None:
    make = _transit_key(openbao)
    shop = shops(sqlite_url, make(), branches=2)
    items = _filled(shop)
    page = (Path(__file__).parents[2] / "docs" / "vault.md").read_text()
    policy = re.search(r"^```hcl\n# roller\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert policy is not None
    openbao.client().sys.create_or_update_policy(make.name, policy[1].replace("/orders", f"/{make.name}"))
    token = openbao.client().auth.token.create(policies=[make.name])["auth"]["client_token"]
    settings = VaultSettings(address=openbao.address, login=Token(token))
    roller = shop.again(VaultTransitAdapter("transit", make.name, settings=settings))
    try:
        assert roll_epoch(roller.seal).complete
    finally:
        roller.seal.close()
    assert _opened_in(shop, items) == set(items)


# --- AWS ---


@pytest.fixture
def aws() -> FakeAwsKms:
    return FakeAwsKms()


@pytest.mark.slow
def test_on_aws_all_moves_to_a_new_key_and_the_old_one_is_deleted_on_a_date(
    shops, store_url, aws, branches
) -> None:
    old = AwsKmsAdapter(aws.create_key(), client=aws.client())
    shop = shops(store_url, old, branches=branches)
    items = _filled(shop)
    stolen, stolen_keys = shop.backup(), shop.records()
    for scope in ERASED:
        shred(shop.seal, scope)
    new_arn = aws.create_key()
    new = AwsKmsAdapter(new_arn, client=aws.client())
    roller = shop.again([old, new])

    result = roll_epoch(roller.seal, to=new, pending_window_days=7)

    (ended,) = result.keks
    assert (ended.kek_uri, ended.ending) == (old.uri, Ending.SCHEDULED)
    assert ended.ends_at is not None
    assert timedelta(days=6) < ended.ends_at - datetime.now(UTC) <= timedelta(days=7)
    assert result.covers_before is not None
    assert result.finished_at is not None
    with pytest.raises(ConfigurationError, match="is already scheduled for deletion on"):
        roll_epoch(roller.seal, to=new)
    roller.seal.close()
    alone = shop.again(new)
    assert _opened_in(alone, items) == {*LIVE, "application"}
    assert _reachable(stolen_keys, [old, new]) == set()
    aws.advance(timedelta(days=8))
    assert _reachable([*stolen_keys, *alone.records()], [old, new]) >= {items[scope].key_id for scope in LIVE}
    assert not _reachable([*stolen_keys, *alone.records()], [old, new]) & {
        items[scope].key_id for scope in ERASED
    }
    shop.restore(stolen)
    assert _opened_in(alone, items) == set()
    alone.seal.close()


@pytest.mark.slow
def test_on_aws_the_policy_of_the_page_is_enough(shops, sqlite_url, aws) -> None:
    arns = [aws.create_key() for _ in range(2)]
    old, new = (AwsKmsAdapter(arn, client=aws.client()) for arn in arns)
    shop = shops(sqlite_url, old, branches=2)
    items = _filled(shop)
    mixed = shops(sqlite_url, [old, new])
    items["tenant:direct"] = mixed.append("tenant:direct")
    page = (Path(__file__).parents[2] / "docs" / "aws-kms.md").read_text()
    found = re.search(r"<!-- policy: roller -->\n```json\n(.*?)```", page, re.DOTALL)
    assert found is not None
    policy = found[1]
    for begins_with, arn in zip(("1234abcd", "5678efab"), arns, strict=True):
        policy = re.sub(rf"arn:aws:kms:[^\"]*key/{begins_with}[^\"]*", arn, policy)
    role = "arn:aws:iam::111122223333:role/roller"
    aws.attach_policy(role, policy)
    client = aws.client(role)
    keks = [AwsKmsAdapter(arn, client=client) for arn in arns]
    roller = shop.again(keks)
    assert roll_epoch(roller.seal, to=keks[1]).complete
    roller.seal.close()
    alone = shop.again(new)
    assert _opened_in(alone, items) == set(items)
    alone.seal.close()


def test_a_deletion_that_was_scheduled_before_the_crash_keeps_its_date(
    shops, sqlite_url, aws, monkeypatch, branches
) -> None:
    old, new = (AwsKmsAdapter(aws.create_key(), client=aws.client()) for _ in range(2))
    shop = shops(sqlite_url, [old, new], branches=branches)
    items = _filled(shop)
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr("eventseal.erasure.epoch.finish_epoch", _dying(finish_epoch, "before"))
        roll_epoch(shop.seal, to=new, pending_window_days=7)
    ends_at = old.deletion_date()
    aws.advance(timedelta(days=1))
    (ended,) = roll_epoch(shop.seal, to=new, pending_window_days=30).keks
    assert ended.ends_at == ends_at
    alone = shop.again(new)
    assert _opened_in(alone, items) == set(items)
    alone.seal.close()


def test_a_backup_counts_only_if_it_is_older_than_the_new_key(shops, sqlite_url, aws) -> None:
    old, new = (AwsKmsAdapter(aws.create_key(), client=aws.client()) for _ in range(2))
    shop = shops(sqlite_url, [old, new])
    shop.append("application")
    result = roll_epoch(shop.seal, to=new)
    assert result.covers_before == new.created_at()


def test_on_aws_a_new_key_must_be_named(shops, sqlite_url, aws) -> None:
    shop = shops(sqlite_url, AwsKmsAdapter(aws.create_key(), client=aws.client()))
    shop.append("application")
    with pytest.raises(ConfigurationError, match="cannot end its older versions alone") as refused:
        roll_epoch(shop.seal)
    assert "--to" in refused.value.remedy


def test_the_new_kek_must_be_listed(shops, sqlite_url) -> None:
    shop = shops(sqlite_url, FakeKms("old"))
    with pytest.raises(ConfigurationError, match="not among the KMS keys"):
        roll_epoch(shop.seal, to=FakeKms("new"))


def test_a_key_is_not_ended_under_another_name_of_the_one_that_stays(shops, sqlite_url, aws) -> None:
    alias = aws.create_key(alias="alias/shop")
    old = AwsKmsAdapter(alias, client=aws.client())
    shop = shops(sqlite_url, old)
    item = shop.append("application")
    new_arn = aws.create_key()
    aws.client().update_alias(AliasName="alias/shop", TargetKeyId=new_arn.rpartition("/")[2])
    new = AwsKmsAdapter(new_arn, client=aws.client())
    roller = shop.again([AwsKmsAdapter(alias, client=aws.client()), new])
    with pytest.raises(ConfigurationError, match="are the same KMS key"):
        roll_epoch(roller.seal, to=new)
    roller.seal.close()
    assert aws.count("kms:ScheduleKeyDeletion") == 0
    assert shop.opens(item)


@pytest.mark.parametrize("days", [6, 31, 7.5])
def test_aws_takes_7_to_30_days(aws, days) -> None:
    adapter = AwsKmsAdapter(aws.create_key(), client=aws.client(), grant_tokens=["a-token"])
    with pytest.raises(ConfigurationError, match="7 to 30"):
        adapter.schedule_deletion(days)
    assert adapter.deletion_date() is None
    assert adapter.schedule_deletion(30) == adapter.deletion_date()


# --- a key file ---


def test_a_key_file_is_replaced_and_its_owner_deletes_it(shops, sqlite_url, tmp_path) -> None:
    with pytest.warns(UserWarning, match="development"):
        old, new = (LocalKmsAdapter.create(tmp_path / name) for name in ("old.key", "new.key"))
    shop = shops(sqlite_url, old, branches=2)
    items = _filled(shop)
    stolen = shop.records()
    shred(shop.seal, ERASED[0])
    roller = shop.again([old, new])
    result = roll_epoch(roller.seal, to=new)
    roller.seal.close()
    (ended,) = result.keks
    assert (ended.kek_uri, ended.ending, ended.ends_at) == (old.uri, Ending.BY_HAND, None)
    assert result.covers_before is None  # nobody tells when the file was made
    alone = shop.again(new)
    assert _opened_in(alone, items) == {*SUBJECTS, "application"} - {ERASED[0]}
    assert _reachable([*stolen, *alone.records()], [new]) >= {items[scope].key_id for scope in LIVE}
    assert items[ERASED[0]].key_id not in _reachable([*stolen, *alone.records()], [new])
    alone.seal.close()


# --- guards ---


@pytest.fixture
def kms() -> EndingKms:
    return EndingKms("kek")


def test_nothing_is_ended_if_a_key_cannot_be_moved(shops, store_url, kms, branches) -> None:
    shop = shops(store_url, kms, branches=branches)
    items = _filled(shop)
    with shop.seal.datastore.key_engine.begin() as connection:
        connection.execute(
            text("UPDATE eventseal_key_wrappings SET wrapped = :forged WHERE key_id = :key_id"),
            {"forged": b"1|" + bytes(60), "key_id": _stored(shop, items[LIVE[0]].key_id)},
        )
    result = roll_epoch(shop.seal)
    assert (result.complete, result.failed, result.keks, result.finished_at) == (False, 1, (), None)
    assert (kms.forbidden, kms.deleted) == (set(), set())
    assert _opened_in(shop, items) == {*SUBJECTS, "application"} - {LIVE[0]}


@pytest.mark.slow
def test_another_application_in_the_same_tables_rewraps_first(shops, store_url, kms) -> None:
    shop, other = shops(store_url, kms), shops(store_url, kms, application="crm")
    items, theirs = _filled(shop), other.append("application")
    assert roll_epoch(shop.seal, dry_run=True).others == {"crm": 2}  # the store key and a data key
    with pytest.raises(JobError, match="2 wrappings of application crm") as refused:
        roll_epoch(shop.seal)
    assert "eventseal rewrap" in refused.value.remedy
    assert (kms.forbidden, kms.current) == (set(), "2")
    assert shop.backup("eventseal_kek_fences") == {"eventseal_kek_fences": []}  # nothing is closed halfway
    rewrap(other.seal)
    other.seal.keyring.rewrap(verify=True)
    assert roll_epoch(shop.seal).complete  # goes on
    assert (kms.deleted, kms.current) == ({"1"}, "2")
    assert _opened_in(shop, items) == set(items)
    assert other.opens(theirs)


def test_a_dry_run_changes_nothing_and_tells_what_it_costs(shops, store_url, kms, branches) -> None:
    shop = shops(store_url, kms, branches=branches)
    _filled(shop)
    before = shop.backup()
    calls = kms.count()
    foreseen = roll_epoch(shop.seal, dry_run=True)
    direct = foreseen.by_table["eventseal_key_wrappings"]["under_keks"]
    assert foreseen.by_table["eventseal_key_wrappings"]["under_branch_keys"] == (7 if branches else 0)
    assert direct == (3 if branches else 8)  # the store key, and two branch keys or seven data keys
    assert shop.backup() == before
    assert kms.count() == calls


def test_a_wrapping_made_before_the_end_is_not_stored_after_it(shops, store_url, kms) -> None:
    shop = shops(store_url, kms)
    shop.append("application")
    late = shop.again()
    waits = kms.generate_data_key

    def during_the_roll(context):
        made = waits(context)  # the version that is about to end has wrapped it
        kms.generate_data_key = waits
        roll_epoch(shop.seal)
        return made

    kms.generate_data_key = during_the_roll
    item = late.append("subject:late")  # is refused once, and wrapped again
    assert late.opens(item)
    assert {use.kek_version for use in shop.seal.key_store.kek_uses("shop")} == {"2"}
    late.seal.close()


def test_who_still_wraps_under_a_kek_that_ended_is_told(shops, store_url) -> None:
    old, new = FakeKms("old"), FakeKms("new")
    shop = shops(store_url, [old, new])
    shop.append("application")
    stale = shop.again(old)
    roll_epoch(shop.seal, to=new)
    both = shop.again([old, new])
    for process in (stale, both):
        with pytest.raises(EventSealError) as refused:
            process.append("subject:late")
    assert "was closed" in str(refused.value)
    assert "roll-epoch" in refused.value.remedy
    with pytest.raises(KeyDestroyedError, match="was closed"):
        both.seal.keyring.rewrap()
    for process in (stale, both):
        process.seal.close()


@pytest.mark.slow
@pytest.mark.parametrize("step", ["wrappings.prove_without", "destroyer.retire"])
def test_what_a_branch_key_wraps_meanwhile_is_moved_too(shops, store_url, kms, monkeypatch, step) -> None:
    shop = shops(store_url, kms, branches=1)
    shop.append("application")
    stale = shop.again()
    stale.append("subject:before")  # it has the old branch key at hand
    late: list[SequencedItem] = []
    part, name = step.split(".")
    part = getattr(shop.seal.keyring, part)
    take = getattr(part, name)

    def with_a_stale_writer(*given, **options):
        if not late:
            late.append(stale.append("subject:late"))
        return take(*given, **options)

    monkeypatch.setattr(part, name, with_a_stale_writer)
    assert roll_epoch(shop.seal).complete
    assert shop.branch_rows() == [("branch:0", "destroyed"), ("branch:0", "active")]
    assert shop.opens(late[0])
    stale.seal.close()


@pytest.mark.slow
def test_no_old_branch_key_is_ever_wrapped_under_what_stays(shops, store_url, monkeypatch) -> None:
    old, new = FakeKms("old"), FakeKms("new")
    shop = shops(store_url, old, branches=2)
    _filled(shop)
    roller = shop.again([old, new])
    replaced = {r.key_id: r.wrappings for r in shop.records() if r.purpose is KeyPurpose.BRANCH}
    assert len(replaced) == 2
    seen: list[object] = []
    retire = roller.seal.keyring.destroyer.retire

    def looked_at(keys, **options):
        seen.extend(r.wrappings == replaced[r.key_id] for r in shop.records() if r.key_id in replaced)
        return retire(keys, **options)

    monkeypatch.setattr(roller.seal.keyring.destroyer, "retire", looked_at)
    assert roll_epoch(roller.seal, to=new).complete
    assert seen == [True, True]
    roller.seal.close()


@pytest.mark.slow
def test_applications_write_on_while_the_epoch_is_rolled(shops, store_url, kms, branches) -> None:
    shop = shops(store_url, kms, branches=branches)
    written = _filled(shop)
    with shop.seal.datastore.key_engine.begin() as connection:
        connection.execute(text("UPDATE eventseal_key_changes SET refresh_interval = 0.3"))
    ended = threading.Event()

    def write(number: int) -> dict[str, SequencedItem]:
        process = shop.again()
        mine = {}
        try:
            while not ended.is_set() or len(mine) < 5:
                scope = f"subject:new-{number}-{len(mine)}"
                mine[scope] = process.append(scope)
                ended.wait(0.02)  # SQLite has one writer at a time, and no queue
        finally:
            process.seal.close()
        return mine

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, number) for number in range(2)]
        try:
            for _ in range(3):
                assert roll_epoch(shop.seal).complete
        finally:
            ended.set()
        for writer in writers:
            written |= writer.result()
    assert _opened_in(shop, written) == set(written)
    assert kms.deleted == {"1", "2", "3"}


def test_a_process_that_never_notices_keeps_the_old_branch_key_alive(
    shops, sqlite_url, kms, monkeypatch
) -> None:
    shop = shops(sqlite_url, kms, branches=1)
    shop.append("application")
    with shop.seal.datastore.key_engine.begin() as connection:
        connection.execute(text("UPDATE eventseal_key_changes SET refresh_interval = 0"))
    monkeypatch.setattr("eventseal.erasure.epoch._LONGEST_PAUSE", 0)
    destroyed: list[object] = []

    def refused(keys, **options):
        destroyed.append(keys)
        raise JobError("it has wrapped other keys")

    monkeypatch.setattr(shop.seal.keyring.destroyer, "retire", refused)
    with pytest.raises(JobError, match="has wrapped other keys"):
        roll_epoch(shop.seal)
    assert len(destroyed) == 5
    assert kms.current == "1"


@pytest.mark.slow
def test_branches_of_before_are_renewed_though_the_setting_is_gone(shops, store_url, kms) -> None:
    shop = shops(store_url, kms, branches=3)
    items = _filled(shop)
    stolen = shop.records()
    shred(shop.seal, ERASED[0])
    without = shops(store_url, kms)
    assert roll_epoch(without.seal).complete
    assert not [row for row in without.branch_rows() if row[1] == "deactivated"]
    assert _opened_in(without, items) == {*SUBJECTS, "application"} - {ERASED[0]}
    assert items[ERASED[0]].key_id not in _reachable([*stolen, *without.records()], [kms])


@pytest.mark.slow
@pytest.mark.postgres
def test_closing_waits_for_who_is_storing_a_wrapping(shops, postgres_url, kms) -> None:
    shop = shops(postgres_url, kms)
    shop.append("application")
    engine = shop.seal.datastore.key_engine
    with engine.connect() as writer:
        writer.execute(
            text(
                "INSERT INTO eventseal_key_wrappings SELECT key_id, 'fake://other', '1', wrapped, "
                "created_at, NULL "
                "FROM eventseal_key_wrappings LIMIT 1"
            )
        )
        with pytest.raises(StoreUnavailableError):  # after 2 seconds
            close_keks(engine, {"fake://other": None})
        writer.commit()
    assert close_keks(engine, {"fake://other": ["2"]}) == {}
    assert close_keks(engine, {"fake://other": ["1"]}) == {"shop": 1}


# --- crashes ---

STEPS = [
    "eventseal.keys.rewrap.key_wrappings.KeyWrappings.renew_branches",
    "eventseal.keys.rewrap.key_wrappings.KeyWrappings.rewrap_under_branches",
    "eventseal.keys.ring.destroying.Destroyer.retire",
    "tests.fixtures.ending_kms.EndingKms.rotate",
    "eventseal.erasure.epoch.note_version",
    "eventseal.keys.rewrap.key_wrappings.KeyWrappings.rewrap",
    "eventseal.erasure.epoch.close_keks",
    "eventseal.erasure.ledger.ledger.Ledger.rewrap",
    "tests.fixtures.ending_kms.EndingKms.forbid_versions_before",
    "tests.fixtures.ending_kms.EndingKms.delete_versions_before",
    "eventseal.erasure.ledger.ledger.Ledger.append",
    "eventseal.erasure.epoch.finish_epoch",
]


class _Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=[step.rpartition(".")[2] for step in STEPS])
def test_a_crash_between_any_two_steps_is_harmless(
    shops, sqlite_url, kms, tmp_path, monkeypatch, step, when
) -> None:
    ledger = str(tmp_path / "ledger.jsonl")
    shop = shops(sqlite_url, kms, branches=2, ledger=ledger)
    items = _filled(shop)
    direct = shops(sqlite_url, kms, ledger=ledger)  # was without branches: a mixture
    items["tenant:direct"] = direct.append("tenant:direct")
    stolen = shop.records()
    for scope in ERASED:
        shred(shop.seal, scope)
    live = set(items) - set(ERASED)
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(step, _dying(pkgutil.resolve_name(_as_name(step)), when))
        roll_epoch(shops(sqlite_url, kms, branches=2, ledger=ledger).seal)
    assert _opened_in(shop, items) == live
    again = shops(sqlite_url, kms, branches=2, ledger=ledger)
    assert roll_epoch(again.seal).complete
    assert _opened_in(shop, items) == live
    assert _reachable(stolen, [kms]) == set()
    erased = {items[scope].key_id for scope in ERASED}
    assert not _reachable([*stolen, *again.records()], [kms]) & erased
    entries = [entry.kind for entry in again.seal.ledger.entries(again.seal)]
    assert entries[-1] == "epoch"
    assert {state for _, state in again.branch_rows()} == {"active", "destroyed"}


def _as_name(step: str) -> str:
    """Separate the module from what is in it, as ``pkgutil`` wants it."""
    module, _, name = step.rpartition(".")
    if module.rpartition(".")[2][0].isupper():
        module, _, owner = module.rpartition(".")
        name = f"{owner}.{name}"
    return f"{module}:{name}"


def _dying(step: Callable[..., object], when: str) -> Callable[..., object]:
    def die(*args: object, **options: object) -> object:
        if when == "after":
            step(*args, **options)
        raise _Killed

    return die


@pytest.mark.slow
def test_an_interrupted_roll_keeps_what_it_has_made(shops, store_url, kms, monkeypatch) -> None:
    shop = shops(store_url, kms, branches=2)
    _filled(shop)
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr("eventseal.erasure.epoch.close_keks", _dying(close_keks, "before"))
        roll_epoch(shop.seal)
    branches = shop.branch_rows()
    first = roll_epoch(shop.seal)
    assert shop.branch_rows() == branches
    assert kms.current == "2"
    assert first.covers_before is not None
    roll_epoch(shop.seal)  # the next one begins anew
    assert kms.current == "3"
    assert len(shop.branch_rows()) == len(branches) + 2


@pytest.mark.slow
def test_an_interrupted_roll_is_begun_anew_if_somebody_was_erased_since(
    shops, store_url, kms, monkeypatch
) -> None:
    shop = shops(store_url, kms, branches=2)
    items = _filled(shop)
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr("eventseal.erasure.epoch.close_keks", _dying(close_keks, "before"))
        roll_epoch(shop.seal)
    stolen = shop.records()  # the erased key is under what the roll has made
    shred(shop.seal, ERASED[0])
    assert roll_epoch(shop.seal).complete
    assert items[ERASED[0]].key_id not in _reachable([*stolen, *shop.records()], [kms])


@pytest.mark.slow
def test_the_time_in_a_row_spares_no_branch_key(shops, store_url, kms) -> None:
    shop = shops(store_url, kms, branches=2)
    _filled(shop)
    old = {record.key_id for record in shop.records() if record.purpose is KeyPurpose.BRANCH}
    assert old
    stolen = shop.records()
    with shop.seal.datastore.key_engine.begin() as connection:
        connection.execute(update(encryption_keys).values(created_at=datetime(2998, 1, 1, tzinfo=UTC)))
    assert roll_epoch(shop.seal).complete
    states = {record.key_id: record.state for record in shop.records()}
    assert {states[key_id] for key_id in old} == {KeyState.DESTROYED}
    assert _reachable(stolen, [kms]) == set()


def test_a_version_is_not_noted_in_a_roll_that_was_begun_anew_meanwhile(
    shops, store_url, kms, monkeypatch
) -> None:
    shop = shops(store_url, kms)
    _filled(shop)
    late: list[UUID] = []
    stolen: list[KeyRecord] = []

    def stalling(engine, application, seals, *noted) -> None:
        item = shop.append("tenant:late")  # under the version that was just made
        late.append(item.key_id)
        stolen.extend(shop.records())
        shred(shop.seal, "tenant:late")
        shreds = shop.seal.keyring.tables.count_shreds()
        begin_epoch(engine, application, seals, shreds=shreds)  # another run begins, anew
        note_version(engine, application, seals, *noted)
        raise _Killed

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr("eventseal.erasure.epoch.note_version", stalling)
        roll_epoch(shop.seal)
    assert _reachable(stolen, [kms]) >= {*late}
    assert roll_epoch(shop.seal).complete
    assert not _reachable([*stolen, *shop.records()], [kms]) & {*late}
    assert _reachable(stolen, [kms]) == set()


@pytest.mark.slow
def test_a_run_that_is_done_leaves_the_roll_that_another_one_has_begun_anew(
    shops, store_url, kms, monkeypatch
) -> None:
    shop = shops(store_url, kms)
    _filled(shop)

    def stalling(engine, application, seals, number) -> datetime:
        shred(shop.seal, ERASED[0])
        shreds = shop.seal.keyring.tables.count_shreds()
        assert begin_epoch(engine, application, seals, shreds=shreds).number == number + 1
        return finish_epoch(engine, application, seals, number)

    with monkeypatch.context() as patch:
        patch.setattr("eventseal.erasure.epoch.finish_epoch", stalling)
        assert roll_epoch(shop.seal).complete
    assert is_rolling(shop.seal.datastore.key_engine, "shop")
    assert roll_epoch(shop.seal).complete
    assert not is_rolling(shop.seal.datastore.key_engine, "shop")


@pytest.mark.slow
def test_an_outage_in_the_middle_ends_it_and_the_next_run_goes_on(shops, store_url, kms) -> None:
    shop = shops(store_url, kms)
    items = _filled(shop)
    kms.denied.add("rewrap_many")
    with pytest.raises(KmsForbiddenError):
        roll_epoch(shop.seal)
    assert kms.deleted == set()
    kms.denied.clear()
    assert roll_epoch(shop.seal, batch=2).complete
    assert _opened_in(shop, items) == set(items)


def test_progress_goes_up_to_the_end(shops, store_url, kms) -> None:
    shop = shops(store_url, kms, branches=2)
    _filled(shop)
    told: list[int] = []
    roll_epoch(shop.seal, batch=3, progress=lambda result: told.append(result.left))
    assert told == sorted(told, reverse=True)
    assert told[-1] < told[0]


def _stored(shop: Shop, key_id: UUID) -> object:
    return key_id.bytes if shop.url.startswith("sqlite") else key_id
