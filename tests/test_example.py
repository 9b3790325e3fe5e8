"""The example application: what people type who come from the old library's chapter on encryption."""

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from eventseal import AESCipher, SQLAlchemyDatastore, SQLAlchemySettings
from eventseal.errors import ConfigurationError, EncryptionRequiredError, MissingTableError
from eventseal.eventstore import RepositoryKeyError
from eventseal.example import Example, ExampleApplication, ExampleRepository, construct_example_application
from eventseal.storage import IntegerSequencedItemRecord

RECORDS = (IntegerSequencedItemRecord,)


@pytest.fixture
def datastore(tmp_path):
    datastore = SQLAlchemyDatastore(
        settings=SQLAlchemySettings(uri=f"sqlite:///{tmp_path / 'example.sqlite'}"), tables=RECORDS
    )
    datastore.setup_connection()
    datastore.setup_tables()
    yield datastore
    datastore.close()


@pytest.fixture
def cipher():
    return AESCipher(b"0123456789abcdef")


def items(app, example):
    return app.entity_event_store.active_record_strategy.get_items(example.id)


def test_an_encrypted_and_a_plain_application_share_a_table(datastore, cipher, tmp_path):
    with construct_example_application(datastore.session, always_encrypt=True, cipher=cipher) as app:
        assert isinstance(app, ExampleApplication)
        assert isinstance(app.example_repository, ExampleRepository)
        secret = app.create_new_example(foo="secret info")
        secret.foo = "more secret info"
        assert all(item.key_id is not None and b"secret" not in item.data for item in items(app, secret))
        assert app.example_repository[secret.id] == secret

    with construct_example_application(datastore.session) as app:
        plain = app.create_new_example(foo="known to all")
        (item,) = items(app, plain)
        assert b"known to all" in item.data
        assert item.key_id is None
        assert app.example_repository[plain.id].foo == "known to all"

    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"secret" not in stored
    assert b"known to all" in stored


def test_both_applications_may_be_open_at_once(datastore, cipher):
    """Neither stores, in plain or sealed, what is the other's, and neither reads it."""
    with (
        construct_example_application(datastore.session, always_encrypt=True, cipher=cipher) as sealed,
        construct_example_application(datastore.session) as plain,
    ):
        secret, known = sealed.create_new_example(foo="secret info"), plain.create_new_example(foo="known")
        secret.foo, known.foo = "more secret info", "known to all"
        assert sealed.example_repository[secret.id].foo == "more secret info"
        assert plain.example_repository[known.id].foo == "known to all"
        assert all(item.key_id is not None for item in items(sealed, secret))
        assert all(item.key_id is None for item in items(sealed, known))
        with pytest.raises(EncryptionRequiredError):
            sealed.example_repository[known.id]
        with pytest.raises(ConfigurationError, match="no cipher"):
            plain.example_repository[secret.id]


def test_without_always_encrypt_a_cipher_encrypts_only_marked_events(datastore, cipher, monkeypatch):
    with construct_example_application(datastore.session, cipher=cipher) as app:
        example = app.create_new_example(foo="bar")
        monkeypatch.setattr(Example.AttributeChanged, "__always_encrypt__", True, raising=False)
        example.foo = "secret info"
        created, changed = items(app, example)
        assert b"bar" in created.data
        assert b"secret info" not in changed.data
        assert (created.key_id, changed.key_id is None) == (None, False)
        assert app.example_repository[example.id].foo == "secret info"


def test_an_example_changes_and_is_discarded(datastore):
    with construct_example_application(datastore.session) as app:
        example = app.create_new_example(foo="bar", a=1, b=["fixed"])
        example.a = 2
        found = app.example_repository[example.id]
        assert (found.foo, found.a, found.b, found.version) == ("bar", 2, ["fixed"], 2)
        found.discard()
        assert example.id not in app.example_repository
        with pytest.raises(RepositoryKeyError):
            app.example_repository[example.id]


def test_a_session_of_ones_own_engine_works_in_a_database_with_eventseals_tables(datastore, cipher):
    engine = create_engine(datastore.settings.url)
    with (
        Session(engine) as session,
        construct_example_application(session, always_encrypt=True, cipher=cipher) as app,
    ):
        example = app.create_new_example(foo="secret info")
        assert app.example_repository[example.id].foo == "secret info"
    engine.dispose()


def test_a_database_with_the_table_alone_is_refused_and_nothing_is_written(cipher):
    engine = create_engine("sqlite:///:memory:")
    IntegerSequencedItemRecord.metadata.create_all(engine)
    with (
        Session(engine) as session,
        construct_example_application(session, always_encrypt=True, cipher=cipher) as app,
    ):
        with pytest.raises(MissingTableError) as caught:
            app.create_new_example(foo="secret info")
        assert "datastore.setup_tables()" in caught.value.remedy
        assert list(app.entity_event_store.active_record_strategy.all_items()) == []
    engine.dispose()


def test_a_datastore_or_a_factory_in_place_of_its_session_is_refused(datastore):
    for other in (datastore, sessionmaker(datastore.engine)):
        with pytest.raises(ConfigurationError, match=type(other).__name__) as caught:
            construct_example_application(other)
        assert caught.value.remedy == "Pass datastore.session."


def test_always_encrypt_without_a_cipher_is_refused(datastore):
    with pytest.raises(ConfigurationError, match="always_encrypt") as caught:
        construct_example_application(datastore.session, always_encrypt=True)
    assert "cipher=EventSeal.from_settings().cipher" in caught.value.remedy


class OwnCipher:
    """A cipher as the old library let one craft it."""

    def encrypt(self, plaintext):
        return plaintext

    def decrypt(self, ciphertext):
        return ciphertext


@pytest.mark.parametrize(
    "other",
    [b"0123456789abcdef", "0123456789abcdef", OwnCipher(), AESCipher],
    ids=["bytes", "text", "own cipher", "class"],
)
def test_another_cipher_than_eventseals_is_refused_by_its_kind(datastore, other):
    with pytest.raises(ConfigurationError, match="not an AESCipher") as caught:
        construct_example_application(datastore.session, always_encrypt=True, cipher=other)
    assert "0123456789abcdef" not in str(caught.value)
    assert "AESCipher(keyring)" in caught.value.remedy
