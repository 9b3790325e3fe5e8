"""The example of an encrypted application runs, and shows what it claims."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from eventseal import AESCipher, SQLAlchemyActiveRecordStrategy, SQLAlchemyDatastore, SQLAlchemySettings
from eventseal.storage import IntegerSequencedItemRecord

EXAMPLE = Path(__file__).parents[2] / "examples" / "encrypted_application.py"


@pytest.fixture(scope="module")
def example():
    """The example's names, as an importer sees them."""
    return runpy.run_path(str(EXAMPLE), run_name="some_name")


@pytest.fixture
def datastore(tmp_path):
    datastore = SQLAlchemyDatastore(
        settings=SQLAlchemySettings(uri=f"sqlite:///{tmp_path / 'example.sqlite'}"),
        tables=(IntegerSequencedItemRecord,),
    )
    datastore.setup_connection()
    datastore.setup_tables()
    yield datastore
    datastore.close()


def strategy(datastore):
    return SQLAlchemyActiveRecordStrategy(
        active_record_class=IntegerSequencedItemRecord, session=datastore.session
    )


@pytest.mark.slow
def test_the_example_runs_and_says_what_it_shows():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", EXAMPLE], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert shown.count("The database does not contain 'secret info'") == 2
    assert shown.count('"foo":"no secret"') == 2
    assert "Under a static key" in shown
    assert "Under a keyring" in shown


def test_an_encrypted_and_a_plain_application_share_a_table(example, datastore, tmp_path):
    with example["ExampleApplication"](
        entity_active_record_strategy=strategy(datastore),
        always_encrypt=True,
        cipher=AESCipher(b"0123456789abcdef"),
    ) as app:
        secret = app.create_new_example(foo="secret info")
        secret.foo = "more secret info"
        items = app.entity_event_store.active_record_strategy.get_items(secret.id)
        assert all(item.key_id is not None and b"secret" not in item.data for item in items)
        assert app.example_repository[secret.id] == secret

    with example["ExampleApplication"](entity_active_record_strategy=strategy(datastore)) as app:
        plain = app.create_new_example(foo="known to all")
        item = app.entity_event_store.active_record_strategy.get_item(plain.id, eq=0)
        assert b"known to all" in item.data
        assert item.key_id is None
        assert app.example_repository[plain.id].foo == "known to all"

    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"secret" not in stored
    assert b"known to all" in stored


def test_both_applications_may_be_open_at_once(example, datastore):
    """Neither stores, in plain or sealed, what is the other's."""
    sealed = example["ExampleApplication"](
        entity_active_record_strategy=strategy(datastore), always_encrypt=True, cipher=AESCipher(bytes(32))
    )
    plain = example["ExampleApplication"](entity_active_record_strategy=strategy(datastore))
    with sealed, plain:
        secret, known = sealed.create_new_example(foo="secret info"), plain.create_new_example(foo="known")
        secret.foo, known.foo = "more secret info", "known to all"
        assert sealed.example_repository[secret.id].foo == "more secret info"
        assert plain.example_repository[known.id].foo == "known to all"
        items = {
            example_id: sealed.entity_event_store.active_record_strategy.get_items(example_id)
            for example_id in (secret.id, known.id)
        }
    assert all(item.key_id is not None for item in items[secret.id])
    assert all(item.key_id is None for item in items[known.id])
