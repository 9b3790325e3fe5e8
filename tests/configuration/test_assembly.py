"""EventSeal: assembled from settings, without a network call, a file or a table."""

from __future__ import annotations

import socket
import subprocess
import sys
import traceback
from pathlib import Path
from uuid import uuid4

import pytest

from eventseal.cipher import ItemContext, Opened
from eventseal.configuration import EventSeal, Settings
from eventseal.errors import ConfigurationError, EventSealError, KmsUnavailableError
from eventseal.items import SequencedItem
from eventseal.rotation import SealedStore
from eventseal.storage import (
    IntegerSequencedItemRecord,
    SnapshotRecord,
    SQLAlchemyActiveRecordStrategy,
    TimestampSequencedItemRecord,
)
from eventseal.storage.jobs.tables import job_metadata
from eventseal.storage.keys.tables import key_metadata
from eventseal.testing import FakeKms
from eventseal_kms.local import LocalKmsAdapter

CONTEXT = ItemContext(sequence_id=uuid4(), position=0, topic="shop:Order.Placed")


@pytest.fixture
def key(tmp_path):
    LocalKmsAdapter.create(tmp_path / "dev.key")
    return f"local://{tmp_path}/dev.key"


def settings(**values) -> dict[str, object]:
    return {"store_url": "sqlite:///events.sqlite", "application": "shop", **values}


def test_it_has_what_a_program_needs_and_seals(key):
    with EventSeal.from_settings(**settings(kms_key=key)) as seal:
        seal.datastore.setup_tables()
        sealed = seal.cipher.encrypt(b"amount: 5", CONTEXT)
        assert seal.cipher.decrypt(sealed, CONTEXT) == b"amount: 5"
        assert seal.cipher.application == seal.keyring.application == seal.settings.application == "shop"
        assert seal.mapper.cipher is seal.cipher
        assert seal.key_store.active("shop", ["application"])
        assert isinstance(seal, SealedStore)


def test_assembling_calls_nobody_and_makes_nothing(tmp_path, key, monkeypatch):
    def called(*_arguments, **_named):
        raise AssertionError("it opened a connection")

    monkeypatch.setattr(socket.socket, "connect", called)
    before = sorted(path.name for path in tmp_path.iterdir())
    EventSeal.from_settings(**settings(kms_key=key, store_url="postgresql://nobody@192.0.2.1/none")).close()
    EventSeal.from_settings(**settings(kms_key=key)).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_it_reads_the_file_and_the_environment(tmp_path, key, monkeypatch):
    Path("eventseal.toml").write_text('store_url = "sqlite:///a.sqlite"\napplication = "file"')
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", key)
    with EventSeal.from_settings() as seal:
        assert seal.cipher.application == "file"
        assert seal.datastore.settings.url.database == "a.sqlite"
    Path("other.toml").write_text('store_url = "sqlite:///b.sqlite"')
    with EventSeal.from_settings("other.toml") as seal:
        assert seal.datastore.settings.url.database == "b.sqlite"


def test_branches_wrap_its_data_keys(key, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_BRANCHES", "4")
    with EventSeal.from_settings(**settings(kms_key=key)) as seal:
        seal.datastore.setup_tables()
        seal.keyring.prepare(["tenant:a", "tenant:b"])
        for record in seal.key_store.active("shop", ["tenant:a", "tenant:b"]).values():
            assert record.wrappings[0].kek_uri.startswith("branch:")


def test_the_quorum_and_the_fallback_reach_the_keyring():
    class Away(FakeKms):
        def wrap(self, key, context):
            raise KmsUnavailableError("away", kek_uri=self.uri)

    first, second = FakeKms(), Away()
    for quorum, made in ((None, False), (2, False), (1, True)):
        asked = Settings(**settings(wrap_quorum=quorum, store_url=f"sqlite:///{quorum}.sqlite"))
        with EventSeal(asked, kms=[first, second]) as seal:
            seal.datastore.setup_tables()
            if made:
                seal.keyring.prepare(["application"])
            else:
                with pytest.raises(KmsUnavailableError):
                    seal.keyring.prepare(["application"])
    second, third = FakeKms(), FakeKms()
    with EventSeal(Settings(**settings()), kms=[second, third]) as seal:
        seal.datastore.setup_tables()
        sealed = seal.cipher.encrypt(b"x", CONTEXT)
    second.fail_always()
    for falls_back in (False, True):
        with EventSeal(Settings(**settings(fall_back_on_outage=falls_back)), kms=[second, third]) as seal:
            (outcome,) = seal.cipher.open_many([(sealed, CONTEXT)])
        assert isinstance(outcome, Opened if falls_back else KmsUnavailableError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"branches": 0},
        {"branches": 4097},
        {"branches": "many"},
        {"branches": True},
        {"wrap_quorum": 0},
        {"wrap_quorum": 2},
        {"wrap_quorum": True},
    ],
    ids=str,
)
def test_a_number_of_branches_or_keks_that_cannot_be_is_refused(key, wrong):
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=name):
        EventSeal.from_settings(**settings(kms_key=key, **wrong))


def test_without_a_kek_it_says_which_lines_to_add():
    with pytest.raises(ConfigurationError, match="no KMS key is configured") as caught:
        EventSeal.from_settings(**settings())
    assert '    kms_key = "local:///' in caught.value.remedy
    assert "    EVENTSEAL_KMS_KEY=local:///" in caught.value.remedy


def test_an_empty_kek_is_no_kek(monkeypatch):
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "")
    with pytest.raises(ConfigurationError, match="no KMS key is configured"):
        EventSeal.from_settings(**settings())


def test_without_a_database_it_says_which_lines_to_add(key):
    with pytest.raises(ConfigurationError, match="no database is configured") as caught:
        EventSeal.from_settings(kms_key=key)
    assert "    store_url = " in caught.value.remedy
    assert "    EVENTSEAL_STORE_URL=" in caught.value.remedy


def test_an_unknown_scheme_names_the_installed_ones():
    with pytest.raises(ConfigurationError, match="'hsm'") as caught:
        EventSeal.from_settings(**settings(kms_key="hsm://key"))
    assert "local" in caught.value.remedy


def test_a_key_file_that_others_can_read_is_refused_on_assembly(key):
    Path("dev.key").chmod(0o644)
    with pytest.raises(ConfigurationError, match="users other than its owner have access"):
        EventSeal.from_settings(**settings(kms_key=key))


@pytest.mark.parametrize("setting", ["store_url", "key_store_url"])
@pytest.mark.parametrize(
    "url", ["mysql://app:hunter2@db/shop", "hunter2 no url", "postgresql://app:hunter2@db:port/x"]
)
def test_a_wrong_url_is_refused_and_never_shown(key, setting, url):
    with pytest.raises(ConfigurationError, match=f"^{setting}: ") as caught:
        EventSeal.from_settings(**settings(**{"kms_key": key, setting: url}))
    error = caught.value.with_traceback(caught.value.__traceback__.tb_next)
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "hunter2" not in shown + repr(error) + error.remedy


def test_its_repr_shows_no_url(key):
    with EventSeal.from_settings(
        **settings(kms_key=key, store_url="postgresql://app:hunter2@db/shop")
    ) as seal:
        assert "hunter2" not in repr(seal) + repr(vars(seal))


def test_own_tables_are_always_there_and_the_users_beside_them(key, tmp_path, monkeypatch):
    write_shop_models(tmp_path, monkeypatch)
    with EventSeal.from_settings(**settings(kms_key=key, tables="shop_models:OrderRecord")) as seal:
        from shop_models import OrderRecord

        assert set(seal.datastore.tables) == {
            IntegerSequencedItemRecord,
            TimestampSequencedItemRecord,
            SnapshotRecord,
            OrderRecord,
        }


def write_shop_models(tmp_path, monkeypatch):
    (tmp_path / "shop_models.py").write_text(
        "from eventseal.storage import ActiveRecord, IntegerSequencedColumns\n"
        "class OrderRecord(IntegerSequencedColumns, ActiveRecord):\n"
        "    __tablename__ = 'orders'\n"
        "    __collection__ = 'orders'\n"
        "NOT_A_CLASS = 5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_shop:OrderRecord", "there is no module no_such_shop"),
        ("os.no_such:OrderRecord", "there is no module os.no_such"),
        ("decimal:OrderRecord", "module decimal has no class OrderRecord"),
        ("os:sep", "module os has no class sep"),
    ],
)
def test_a_record_class_that_is_not_there_is_named(key, name, said):
    with pytest.raises(ConfigurationError, match=said):
        EventSeal.from_settings(**settings(kms_key=key, tables=name))


def test_a_module_that_fails_inside_says_so_itself(key, tmp_path, monkeypatch):
    (tmp_path / "half_shop.py").write_text("import no_such_library_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match="no_such_library_at_all, which half_shop imports"):
        EventSeal.from_settings(**settings(kms_key=key, tables="half_shop:OrderRecord"))


def test_ready_adapters_stand_in_for_configured_ones():
    kms = FakeKms()
    with EventSeal(Settings(store_url="sqlite:///a.sqlite"), kms=kms) as seal:
        seal.datastore.setup_tables()
        seal.keyring.prepare(["application"])
        (record,) = seal.key_store.active("default", ["application"]).values()
        assert [wrapped.kek_uri for wrapped in record.wrappings] == [kms.uri]


def test_several_keks_wrap_every_key_and_one_of_them_opens(key, tmp_path):
    other = LocalKmsAdapter.create(tmp_path / "other.key")
    both = settings(kms_key=[key, f"local://{tmp_path}/other.key"])
    with EventSeal.from_settings(**both) as seal:
        seal.datastore.setup_tables()
        sealed = seal.cipher.encrypt(b"x", CONTEXT)
        (record,) = seal.key_store.active("shop", ["application"]).values()
        assert len(record.wrappings) == 2
    Path("dev.key").unlink()
    with EventSeal.from_settings(**settings(kms_key=f"local://{tmp_path}/other.key")) as seal:
        assert seal.cipher.decrypt(sealed, CONTEXT) == b"x"
        assert other.uri in {wrapped.kek_uri for wrapped in record.wrappings}


@pytest.mark.parametrize(("compression", "code"), [("zstd", 4), ("zlib", 1), ("none", 0)])
def test_the_compression_is_the_configured_one(key, compression, code):
    with EventSeal.from_settings(**settings(kms_key=key, compression=compression)) as seal:
        seal.datastore.setup_tables()
        assert seal.cipher.encrypt(b"a" * 500, CONTEXT)[2] == code


def test_the_size_limit_is_the_configured_one(key):
    with EventSeal.from_settings(**settings(kms_key=key, max_plaintext=100)) as seal:
        seal.datastore.setup_tables()
        seal.cipher.encrypt(b"a" * 100, CONTEXT)
        with pytest.raises(EventSealError, match="100"):
            seal.cipher.encrypt(b"a" * 101, CONTEXT)


def test_the_policies_are_the_configured_ones(key):
    given = settings(
        kms_key=key,
        rotation_max_age="never",
        rotation_max_items=1000,
        cache_ttl="5m",
        cache_max_keys=7,
        cache_refresh_interval=3,
        cache_open_grace="4s",
        cache_outage_grace=5,
    )
    from eventseal.configuration.assembly import _cache_policy, rotation_policy
    from eventseal.configuration.loading import load_settings
    from eventseal.keys import CachePolicy, RotationPolicy

    loaded = load_settings(**given)
    assert rotation_policy(loaded) == RotationPolicy(max_age=None, max_items=1000)
    assert _cache_policy(loaded) == CachePolicy(
        ttl=300, max_keys=7, refresh_interval=3, open_grace=4, outage_grace=5
    )


def test_the_defaults_are_those_of_the_policies():
    from eventseal.cipher.aes import MAX_PLAINTEXT
    from eventseal.configuration.assembly import _cache_policy, rotation_policy
    from eventseal.keys import CachePolicy, RotationPolicy

    assert rotation_policy(Settings()) == RotationPolicy()
    assert _cache_policy(Settings()) == CachePolicy()
    assert Settings().max_plaintext == MAX_PLAINTEXT


class Placed:
    def __init__(self, originator_id, originator_version, customer):
        self.originator_id = originator_id
        self.originator_version = originator_version
        self.customer = customer


@pytest.mark.parametrize("always", [True, False])
def test_plain_items_are_a_matter_of_configuration(key, always):
    with EventSeal.from_settings(**settings(kms_key=key, always_encrypt=always)) as seal:
        seal.datastore.setup_tables()
        item = seal.mapper.to_sequenced_item(Placed(uuid4(), 0, "Ada"))
        assert (item.key_id is None) is not always
        assert (b"Ada" in item.data) is not always


def test_keys_can_have_a_database_of_their_own(key):
    elsewhere = settings(kms_key=key, key_store_url="sqlite:///keys.sqlite")
    with EventSeal.from_settings(**elsewhere) as seal:
        seal.datastore.setup_tables(application="shop")
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
        item = seal.mapper.to_sequenced_item(Placed(uuid4(), 0, "Ada"))
        strategy.append(item)
        assert isinstance(item, SequencedItem)
    assert tables_of("events.sqlite") == {
        "integer_sequenced_items",
        "timestamp_sequenced_items",
        "snapshots",
        "eventseal_key_fences",
        *job_metadata.tables,
    }
    assert tables_of("keys.sqlite") == set(key_metadata.tables)
    with EventSeal.from_settings(**elsewhere) as seal:
        found = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session).get_items(
            item.sequence_id
        )
        assert [seal.mapper.from_sequenced_item(row).customer for row in found] == ["Ada"]


def tables_of(file: str) -> set[str]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(file)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_a_closed_one_has_no_keys_in_memory(key):
    seal = EventSeal.from_settings(**settings(kms_key=key))
    seal.datastore.setup_tables()
    handle = seal.keyring.sealing_keys({"application": 1})["application"]
    seal.close()
    assert handle.closed


@pytest.mark.slow
def test_the_root_package_stays_light_and_finds_it_lazily():
    program = (
        "import sys, eventseal\n"
        "assert not {'pydantic', 'sqlalchemy'} & set(sys.modules)\n"
        "eventseal.EventSeal\n"
        "assert {'pydantic', 'sqlalchemy'} <= set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
