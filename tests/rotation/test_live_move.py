"""A store that began under a key file moves to AWS KMS and on to OpenBao while an application works."""

from __future__ import annotations

import threading
import uuid
from contextlib import contextmanager

import pytest
from tests.fixtures.openbao import openbao

from eventseal.cipher import ItemContext, Opened
from eventseal.configuration import EventSeal, Settings
from eventseal.items import SequencedItem
from eventseal.keys import KekUse
from eventseal.rotation import kek_report, refuse_needed_kek, rewrap, verify
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
from eventseal.testing import FakeKms
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.testing import FakeAwsKms
from eventseal_kms.vault import VaultTransitAdapter

__all__ = ["openbao"]

TENANTS = 5


class Application:
    """Appends and reads in a thread of its own; it is started again for another configuration."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.written: dict[tuple[uuid.UUID, int], bytes] = {}
        self.rounds = 0
        self._stream = uuid.uuid4()

    @contextmanager
    def running(self, *keks):
        """Run under these KEKs until the block ends, at least one round within it."""
        stop, errors, turned = threading.Event(), [], threading.Event()

        def work() -> None:
            try:
                with EventSeal(Settings(store_url=self.url, application="shop"), kms=list(keks)) as seal:
                    strategy = SQLAlchemyActiveRecordStrategy(
                        IntegerSequencedItemRecord, seal.datastore.session
                    )
                    while True:
                        self._append(seal, strategy)
                        self._read(seal, strategy)
                        self.rounds += 1
                        turned.set()
                        if stop.is_set():
                            return
                        stop.wait(0.01)
            except Exception as error:  # noqa: BLE001 - told to the test below
                errors.append(error)
                turned.set()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            assert turned.wait(120)
            yield
        finally:
            stop.set()
            thread.join(120)
        assert not thread.is_alive()
        assert errors == []

    def _append(self, seal, strategy) -> None:
        position, scope = self.rounds, f"tenant:{self.rounds % TENANTS}"
        plaintext = b"round %d" % position
        context = ItemContext(self._stream, position, "shop:Placed")
        sealed = seal.cipher.encrypt(plaintext, context, scope=scope)
        key = seal.keyring.sealing_keys({scope: 0})[scope]
        strategy.append([SequencedItem(self._stream, position, "shop:Placed", sealed, key.key_id)])
        self.written[self._stream, position] = plaintext

    def _read(self, seal, strategy) -> None:
        items = strategy.get_items(self._stream)
        outcomes = seal.cipher.open_many(
            [(item.data, ItemContext(item.sequence_id, item.position, item.topic)) for item in items]
        )
        found = {
            (item.sequence_id, item.position): outcome.plaintext
            for item, outcome in zip(items, outcomes, strict=True)
            if isinstance(outcome, Opened)
        }
        assert found == self.written


@pytest.fixture
def local(tmp_path):
    return LocalKmsAdapter.create(tmp_path / "dev.key")


@pytest.fixture
def aws():
    fake = FakeAwsKms()
    return AwsKmsAdapter(fake.create_key(alias="alias/shop"), client=fake.client())


@pytest.fixture
def vault(openbao):
    name = f"key-{uuid.uuid4().hex}"
    openbao.client().secrets.transit.create_key(name, derived=True)
    return VaultTransitAdapter("transit", name, client=openbao.client())


def test_a_store_goes_from_a_key_file_to_aws_to_openbao_while_the_application_works(
    store_url, local, aws, vault
) -> None:
    def admin(*keks):
        return EventSeal(Settings(store_url=store_url, application="shop"), kms=list(keks))

    with admin(local) as seal:
        seal.datastore.setup_tables(application="shop")
    application = Application(store_url)
    with application.running(local):
        pass
    first_items = stored_items(store_url)
    for old, new in ((local, aws), (aws, vault)):
        with application.running(old, new), admin(old, new) as worker:
            moved = rewrap(worker, to=new)
            assert (moved.failed, moved.complete) == (0, True)
        with application.running(new):
            for _ in range(3):
                with admin(new) as reader:
                    assert verify(reader).failed == 0
                with admin(old, new) as worker:
                    result = rewrap(worker, to=new)
                if not result.left:
                    break
            assert result.left == result.failed == 0
            assert len(result.by_kek) == 1
            with admin(old, new) as worker:
                assert refuse_needed_kek(worker, old.uri) == 0
    with admin(vault) as seal:
        uses = kek_report(seal).uses
        assert uses == (
            KekUse(kek_uri=vault.uri, kek_version="v1", wrappings=TENANTS + 1, verified=uses[0].verified),
        )
    with application.running(vault):
        pass
    assert application.rounds >= 7
    items = stored_items(store_url)
    assert items[: len(first_items)] == first_items


def stored_items(url: str) -> list[tuple]:
    """The rows as they are stored, in order of position."""
    query = "SELECT position, data, key_id FROM integer_sequenced_items ORDER BY position"
    with (
        EventSeal(Settings(store_url=url, application="shop"), kms=FakeKms("unused")) as seal,
        seal.datastore.engine.connect() as connection,
    ):
        rows = connection.exec_driver_sql(query).fetchall()
    return [tuple(row) for row in rows]
