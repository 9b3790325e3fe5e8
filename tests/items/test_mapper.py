"""The mapper: events to items and back, sealed or in plain."""

import pickle
import sys
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest

from eventseal.cipher import AESCipher, inspect
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    ConfigurationError,
    EncryptionRequiredError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsUnavailableError,
    SerializationError,
    UnknownFormatError,
    WrongApplicationError,
)
from eventseal.items import JSONTranscoder, SequencedItem, SequencedItemMapper, topic_of
from eventseal.keys import InMemoryKeyStore, Keyring
from eventseal.suites.envelope import CompressionId
from eventseal.testing import FakeKms

KEY = bytes(range(32))
SECRET = "secret info"


class Plain:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None


class AlwaysSealed(Plain):
    __always_encrypt__ = True


class Uncompressed(Plain):
    __compress__ = False


class OfASubject(Plain):
    def __key_scope__(self) -> str:
        return f"subject:{self.customer}"


@dataclass(frozen=True)
class Placed:
    originator_id: UUID
    originator_version: int
    customer: str = SECRET


@dataclass(frozen=True, slots=True)
class Paid:
    originator_id: UUID
    originator_version: int
    amount: Decimal = Decimal("1.50")


class Spy:
    """A cipher that counts its calls."""

    def __init__(self, cipher: AESCipher) -> None:
        self.cipher = cipher
        self.calls: list[tuple[str, int]] = []

    def encrypt_many(self, items, **options):
        self.calls.append(("encrypt_many", len(items)))
        return self.cipher.encrypt_many(items, **options)

    def open_many(self, items):
        self.calls.append(("open_many", len(items)))
        return self.cipher.open_many(items)


def static(**options: Any) -> SequencedItemMapper:
    return SequencedItemMapper(cipher=AESCipher(KEY), **options)


def keyring(
    application: str = "shop", store: InMemoryKeyStore | None = None, kms: FakeKms | None = None
) -> Keyring:
    return Keyring(kms=kms or FakeKms(), key_store=store or InMemoryKeyStore(), application=application)


def plain(**attributes: Any) -> Plain:
    return Plain(**{"originator_id": uuid4(), "originator_version": 0, **attributes})


# --- there and back ---


@pytest.mark.parametrize(
    "cipher", [None, AESCipher(b"0123456789abcdef"), AESCipher(KEY), AESCipher(keyring())]
)
@pytest.mark.parametrize(
    "make", [Placed, Paid, lambda stream, n: plain(originator_id=stream, originator_version=n, a={1: (2,)})]
)
def test_an_event_comes_back_whole(cipher, make):
    mapper = SequencedItemMapper(cipher=cipher)
    event = make(uuid4(), 7)

    item = mapper.to_sequenced_item(event)

    assert type(item) is SequencedItem
    assert (item.sequence_id, item.position, item.topic) == (event.originator_id, 7, topic_of(type(event)))
    assert mapper.from_sequenced_item(item) == event
    assert type(mapper.from_sequenced_item(item)) is type(event)


def test_a_sealed_item_shows_nothing_of_the_event_and_says_its_key():
    item = static().to_sequenced_item(Placed(uuid4(), 0))

    assert b"secret" not in item.data
    assert b"customer" not in item.data
    assert item.key_id == inspect(item.data).key_id


def test_a_plain_item_shows_the_event_but_for_its_place_and_has_no_key():
    item = SequencedItemMapper().to_sequenced_item(Placed(uuid4(), 0))

    assert item.data == b'{"customer":"secret info"}'
    assert item.key_id is None


def test_a_place_is_what_the_database_cannot_tell_apart():
    mapper = static(sequence_id_attr_name="originator_id", position_attr_name="originator_version")
    item = mapper.to_sequenced_item(Placed(uuid4(), 3))

    as_text = item._replace(sequence_id=str(item.sequence_id), position=Decimal("3.000000"))

    assert mapper.from_sequenced_item(as_text).originator_version == 3


def test_events_are_positioned_by_time_too():
    mapper = static()
    event = Plain(originator_id=uuid4(), timestamp=Decimal("1700000000.000001"), a=1)

    item = mapper.to_sequenced_item(event)

    assert item.position == event.timestamp
    assert mapper.from_sequenced_item(item) == event


def test_names_of_attributes_can_be_given():
    mapper = static(sequence_id_attr_name="order", position_attr_name="line")
    event = Plain(order="order 1", line=3, originator_id=4)

    item = mapper.to_sequenced_item(event)

    assert (item.sequence_id, item.position) == ("order 1", 3)
    assert mapper.from_sequenced_item(item) == event


def test_a_page_is_one_call_of_the_cipher():
    mapper = static()
    mapper.cipher = spy = Spy(mapper.cipher)
    events = [Placed(uuid4(), n) for n in range(100)]

    items = mapper.to_sequenced_items(iter(events))
    assert mapper.from_sequenced_items(iter(items)) == events

    assert spy.calls == [("encrypt_many", 100), ("open_many", 100)]


def test_an_empty_page_is_empty():
    assert static().to_sequenced_items([]) == []
    assert static().from_sequenced_items([]) == []


def test_another_transcoder_can_be_given():
    json = JSONTranscoder()
    json.register(complex, "complex", lambda value: [value.real, value.imag], lambda value: complex(*value))
    mapper = static(json=json)
    event = plain(number=1 + 2j)

    assert mapper.from_sequenced_item(mapper.to_sequenced_item(event)) == event
    with pytest.raises(SerializationError):
        static().to_sequenced_item(event)


class Row(NamedTuple):
    stream: Any
    number: Any
    name: str
    content: bytes
    customer: str
    key_id: Any


class Bare(NamedTuple):
    originator_id: Any
    originator_version: Any
    event_type: str
    state: bytes


def test_an_item_class_may_have_other_attributes_which_are_not_bound():
    mapper = static(sequenced_item_class=Row)
    event = Placed(uuid4(), 0)

    row = mapper.to_sequenced_item(event)

    assert (row.stream, row.number, row.customer) == (event.originator_id, 0, SECRET)
    assert row.key_id == inspect(row.content).key_id
    assert mapper.from_sequenced_item(row._replace(customer="edited")) == event


def test_an_item_class_may_have_no_key_id():
    mapper = static(sequenced_item_class=Bare)
    event = Placed(uuid4(), 0)

    item = mapper.to_sequenced_item(event)

    assert mapper.from_sequenced_item(item) == event
    with pytest.raises(KeyNotFoundError):
        SequencedItemMapper(Bare, cipher=AESCipher(KEY[::-1])).from_sequenced_item(item)


# --- what is sealed ---


def test_without_a_word_everything_is_sealed_if_there_is_a_cipher():
    assert static().to_sequenced_item(plain()).key_id is not None
    assert SequencedItemMapper().to_sequenced_item(plain()).key_id is None


def test_always_encrypt_needs_a_cipher():
    with pytest.raises(ConfigurationError, match="always_encrypt needs a cipher"):
        SequencedItemMapper(always_encrypt=True)


def test_a_class_can_ask_to_be_sealed_and_the_rest_of_the_batch_stays_plain():
    mapper = static(always_encrypt=False)
    mapper.cipher = spy = Spy(mapper.cipher)
    events = [plain(a=1), AlwaysSealed(originator_id=uuid4(), originator_version=1, a=SECRET), plain(a=2)]

    items = mapper.to_sequenced_items(events)

    assert [item.key_id is None for item in items] == [True, False, True]
    assert items[0].data == b'{"a":1}'
    assert mapper.from_sequenced_items(items) == events
    assert spy.calls == [("encrypt_many", 1), ("open_many", 3)]


def test_a_class_that_asks_to_be_sealed_is_not_written_without_a_cipher():
    with pytest.raises(EncryptionRequiredError, match="AlwaysSealed requires encryption"):
        SequencedItemMapper().to_sequenced_item(AlwaysSealed(originator_id=uuid4(), originator_version=0))


@pytest.mark.parametrize("options", [{}, {"cipher": AESCipher(KEY), "always_encrypt": False}])
def test_a_class_that_asks_to_be_sealed_is_not_read_in_plain(options):
    item = SequencedItem(uuid4(), 0, topic_of(AlwaysSealed), b'{"a":1}')

    with pytest.raises(EncryptionRequiredError, match="AlwaysSealed requires encryption"):
        SequencedItemMapper(**options).from_sequenced_item(item)


def test_a_class_can_ask_not_to_be_compressed():
    items = static().to_sequenced_items(
        [
            kind(originator_id=uuid4(), originator_version=0, text="compressible " * 20)
            for kind in (Plain, Uncompressed)
        ]
    )

    assert [inspect(item.data).compression for item in items] == [CompressionId.ZSTD, CompressionId.NONE]
    assert len(items[0].data) < len(items[1].data)


# --- bad input ---

BAD_POSITIONS = [
    0.0,
    1.5,
    True,
    None,
    "1",
    Decimal("NaN"),
    Decimal("Infinity"),
    Decimal("0.0000001"),
    2**63,
    -(2**63) - 1,
]


@pytest.mark.parametrize("position", BAD_POSITIONS)
@pytest.mark.parametrize("cipher", [None, AESCipher(KEY)])
def test_a_position_that_no_stream_can_have_is_refused_in_plain_too(position, cipher):
    mapper = SequencedItemMapper(cipher=cipher, sequence_id_attr_name="id", position_attr_name="n")

    with pytest.raises(SerializationError) as caught:
        mapper.to_sequenced_items([Plain(id=uuid4(), n=0), Plain(id=uuid4(), n=position)])
    assert caught.value.__notes__ == [f"event: {topic_of(Plain)}"]


@pytest.mark.parametrize("sequence_id", [None, 1, 1.5, b"bytes", "a\0b", "\ud800"])
@pytest.mark.parametrize("cipher", [None, AESCipher(KEY)])
def test_a_sequence_id_that_no_stream_can_have_is_refused_in_plain_too(sequence_id, cipher):
    with pytest.raises(SerializationError):
        SequencedItemMapper(cipher=cipher).to_sequenced_item(plain(originator_id=sequence_id))


def test_an_attribute_that_cannot_be_written_is_named_before_anything_is_sealed():
    mapper = static()
    mapper.cipher = spy = Spy(mapper.cipher)

    with pytest.raises(
        SerializationError, match=r":Plain\.lines\[1\] is a builtins\.object, which has no encoding"
    ):
        mapper.to_sequenced_items([plain(), plain(lines=[1, object()])])
    assert spy.calls == []


def test_an_event_of_a_class_that_cannot_be_found_again_is_refused():
    class Local(Plain):
        pass

    with pytest.raises(SerializationError, match="cannot be found again"):
        static().to_sequenced_item(Local(originator_id=uuid4(), originator_version=0))


@pytest.mark.parametrize("event", [1, "text", object(), (1, 2)])
def test_what_is_no_event_is_refused(event):
    with pytest.raises(SerializationError):
        static().to_sequenced_item(event)


def test_a_collection_has_a_name():
    with pytest.raises(ConfigurationError, match="an empty name"):
        SequencedItemMapper(collection="")


# --- tampering ---


def refused(mapper: SequencedItemMapper, item: Any) -> EventSealError:
    with pytest.raises(EventSealError) as caught:
        mapper.from_sequenced_item(item)
    return caught.value


def test_no_edit_of_an_items_place_is_accepted_and_all_are_one_error():
    mapper = static()
    item = mapper.to_sequenced_item(Placed(uuid4(), 3))

    for edit in (
        {"sequence_id": uuid4()},
        {"position": 4},
        {"position": Decimal("3.000001")},
        {"topic": topic_of(Paid)},
        {"topic": "no.such:Topic"},
        {"key_id": None},
        {"key_id": uuid4()},
    ):
        error = refused(mapper, item._replace(**edit))
        assert type(error) is IntegrityError, edit
        assert str(error) == OPAQUE_INTEGRITY_MESSAGE, edit
    for other in (
        static(collection="snapshots"),
        SequencedItemMapper(cipher=AESCipher(KEY, application="other")),
    ):
        assert type(refused(other, item)) is IntegrityError


def test_no_edit_of_a_byte_is_accepted():
    mapper = static()
    item = mapper.to_sequenced_item(Placed(uuid4(), 3))

    for index in range(len(item.data)):
        edited = bytearray(item.data)
        edited[index] ^= 1
        error = refused(mapper, item._replace(data=bytes(edited)))
        expected: Any = UnknownFormatError if index == 0 else IntegrityError
        if index in (1, 2):  # maybe another suite or compression that is known
            expected = (UnknownFormatError, IntegrityError)
        assert isinstance(error, expected), (index, error)
        assert type(refused(mapper, item._replace(data=bytes(edited), key_id=None))) in (
            IntegrityError,
            EncryptionRequiredError,
        )


def test_a_header_edited_together_with_its_column_finds_no_key_or_does_not_authenticate():
    store, kms = InMemoryKeyStore(), FakeKms()
    mapper = SequencedItemMapper(
        cipher=AESCipher(keyring(store=store, kms=kms)), key_scope=lambda e: f"tenant:{e.tenant}"
    )
    one, two = mapper.to_sequenced_items([plain(tenant="a"), plain(tenant="b")])

    forged = one._replace(data=one.data[:3] + two.key_id.bytes + one.data[19:], key_id=two.key_id)
    assert type(refused(mapper, forged)) is IntegrityError
    unknown = uuid4()
    forged = one._replace(data=one.data[:3] + unknown.bytes + one.data[19:], key_id=unknown)
    assert type(refused(mapper, forged)) is KeyNotFoundError


def test_a_destroyed_key_is_told_from_a_key_id_that_was_edited():
    class Destroyed:
        def open_many(self, items):
            return [KeyDestroyedError("gone", key_id=inspect(data).key_id) for data, _ in items]

    mapper = static()
    item = mapper.to_sequenced_item(Placed(uuid4(), 0))
    mapper.cipher = Destroyed()

    assert type(refused(mapper, item)) is KeyDestroyedError
    for key_id in (None, uuid4()):
        assert type(refused(mapper, item._replace(key_id=key_id))) is IntegrityError


def test_an_error_of_reading_tells_which_item_and_leaves_its_message_opaque():
    mapper = static()
    items = mapper.to_sequenced_items([Placed(uuid4(), n) for n in range(3)])
    items[1] = items[1]._replace(position=5)

    with pytest.raises(IntegrityError) as caught:
        mapper.from_sequenced_items(items)

    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == OPAQUE_INTEGRITY_MESSAGE
    assert (error.sequence_id, error.position) == (items[1].sequence_id, 5)
    assert error.__notes__ == [f"item: position 5 of {items[1].sequence_id}, topic {items[1].topic!r}"]


def test_an_outcome_that_items_share_is_told_of_each_item_apart():
    shared = KmsUnavailableError("away", kek_uri="fake://kek", retry_after=1.5)

    class Away:
        def open_many(self, items):
            return [shared] * len(items)

    mapper = static()
    items = mapper.to_sequenced_items([Placed(uuid4(), n) for n in range(2)])
    mapper.cipher = Away()

    errors = [refused(mapper, item) for item in items for _ in range(2)]

    assert {(type(error), str(error), error.retry_after) for error in errors} == {
        (KmsUnavailableError, "away", 1.5)
    }
    assert {len(error.__notes__) for error in errors} == {1}
    assert [error.position for error in errors] == [0, 0, 1, 1]
    assert not hasattr(shared, "__notes__")


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A topic whose module must not be imported."""
    (tmp_path / "trapped_module.py").write_text("class Event: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "trapped_module:Event"
    assert "trapped_module" not in sys.modules


def test_the_topic_of_an_item_that_does_not_open_is_not_imported(trap):
    mapper = static()
    item = mapper.to_sequenced_item(Placed(uuid4(), 0))

    assert type(refused(mapper, item._replace(topic=trap))) is IntegrityError


def test_the_topic_of_a_plain_item_is_not_imported_where_encryption_is_required(trap):
    item = SequencedItem(uuid4(), 0, trap, b"{}")

    assert type(refused(static(), item)) is EncryptionRequiredError


# --- plain items, and what only looks like an envelope ---


@pytest.mark.parametrize(
    "data", [b'{"customer":"x"}', b"", b"\x01\x03\x00", b"\x01\x03\x00" + bytes(80), b"garbage"]
)
def test_anything_but_an_envelope_is_refused_where_encryption_is_required(data):
    item = SequencedItem(uuid4(), 0, topic_of(Placed), data)

    assert type(refused(static(), item)) is EncryptionRequiredError


@pytest.mark.parametrize(
    ("data", "error"),
    [(b'{"customer":"x"}', UnknownFormatError), (b"\x01\x03\x00" + bytes(80), IntegrityError)],
)
def test_a_key_id_beside_what_is_no_envelope_says_that_it_was_one(data, error):
    for always_encrypt in (True, False):
        item = SequencedItem(uuid4(), 0, topic_of(Placed), data, uuid4())
        assert type(refused(static(always_encrypt=always_encrypt), item)) is error


def test_plain_bytes_beside_a_key_id_say_that_the_row_was_edited():
    key_id = uuid4()
    error = refused(static(), SequencedItem(uuid4(), 0, topic_of(Placed), b'{"customer":"Ada King"}', key_id))

    assert type(error) is UnknownFormatError
    assert f"But its row says that key {key_id} sealed it" in str(error)
    assert "the row was edited, or its key id is wrong" in error.remedy
    assert error.offset == 0
    assert "customer" not in str(error)


@pytest.mark.parametrize("mapper", [static(), SequencedItemMapper()], ids=["sealed", "plain"])
@pytest.mark.parametrize("data", ["text", None, 3])
def test_a_sealed_item_whose_data_are_no_bytes_any_more_was_changed(mapper, data):
    item = static().to_sequenced_item(Placed(uuid4(), 3))

    error = refused(mapper, item._replace(data=data))
    assert type(error) is IntegrityError
    assert str(error) == OPAQUE_INTEGRITY_MESSAGE
    assert (error.sequence_id, error.position) == (item.sequence_id, 3)


@pytest.mark.parametrize("item", ["abc", None, (1, 2, 3, 4), {"data": b""}])
def test_what_is_no_item_is_refused_by_the_name_of_the_item_class(item):
    error = refused(static(), item)

    assert type(error) is SerializationError
    assert type(item).__name__ in str(error)
    assert "SequencedItem" in error.remedy


def test_plain_items_are_read_beside_sealed_ones_where_it_is_allowed():
    mapper = static(always_encrypt=False)
    event = Placed(uuid4(), 0)

    plain_item = SequencedItemMapper().to_sequenced_item(event)
    assert mapper.from_sequenced_items([plain_item, static().to_sequenced_item(event)]) == [event, event]


def test_bytes_that_are_neither_an_envelope_nor_json_are_refused_in_plain_mode():
    item = SequencedItem(uuid4(), 0, topic_of(Placed), b"\x01\x03\x00" + bytes(80))

    for mapper in (static(always_encrypt=False), SequencedItemMapper()):
        assert type(refused(mapper, item)) is SerializationError


def test_json_that_is_no_object_is_refused():
    item = SequencedItem(uuid4(), 0, topic_of(Placed), b"[1]")

    assert "not an object's attributes" in str(refused(SequencedItemMapper(), item))


def test_a_sealed_item_without_a_cipher_names_the_key():
    item = static().to_sequenced_item(Placed(uuid4(), 0))

    error = refused(SequencedItemMapper(), item)
    assert type(error) is ConfigurationError
    assert str(item.key_id) in str(error)


def test_a_plain_item_of_a_class_that_is_gone_says_how_to_name_it():
    error = refused(SequencedItemMapper(), SequencedItem(uuid4(), 0, "no.such:Event", b"{}"))

    assert type(error) is SerializationError
    assert "register_alias" in error.remedy


# --- scopes and applications ---


def tenant_of(event: Any) -> str:
    return f"tenant:{event.tenant}"


def of_a_subject(**attributes: Any) -> OfASubject:
    return OfASubject(originator_id=uuid4(), originator_version=0, **attributes)


def test_each_scope_has_its_key():
    mapper = SequencedItemMapper(cipher=AESCipher(keyring()), key_scope=tenant_of)
    events = [plain(tenant=tenant) for tenant in ("a", "b", "a")]

    items = mapper.to_sequenced_items(events)

    assert items[0].key_id == items[2].key_id != items[1].key_id
    assert mapper.from_sequenced_items(items) == events


def test_an_item_under_another_scopes_key_is_refused_after_it_opened():
    cipher = AESCipher(keyring())
    forged = SequencedItemMapper(cipher=cipher, key_scope="tenant:b").to_sequenced_item(plain(tenant="a"))

    for key_scope in (tenant_of, "tenant:a"):
        error = refused(SequencedItemMapper(cipher=cipher, key_scope=key_scope), forged)
        assert type(error) is IntegrityError
        assert str(forged.key_id) in str(error)
        assert "tenant:" not in str(error)


def test_a_function_that_gives_no_scope_is_refused_before_anything_is_sealed():
    mapper = static(key_scope=lambda event: event.tenant)
    mapper.cipher = spy = Spy(mapper.cipher)

    with pytest.raises(ConfigurationError, match="key scope"):
        mapper.to_sequenced_items([plain(tenant="a"), plain(tenant="")])
    assert spy.calls == []


def test_an_event_class_says_whose_key_seals_its_events():
    mapper = SequencedItemMapper(cipher=AESCipher(keyring()), key_scope="tenant:a")
    events = [of_a_subject(customer="1"), plain(), of_a_subject(customer="2")]

    items = mapper.to_sequenced_items(events)

    assert len({item.key_id for item in items}) == 3
    assert mapper.from_sequenced_items(items) == events


def test_an_event_whose_classs_rule_gives_another_scope_on_reading_is_refused(monkeypatch):
    mapper = SequencedItemMapper(cipher=AESCipher(keyring()))
    item = mapper.to_sequenced_item(of_a_subject(customer="1"))
    for changed in (lambda event: "subject:2", "application", None):
        with monkeypatch.context() as patch:
            patch.setattr(OfASubject, "__key_scope__", changed)
            error = refused(mapper, item)
        assert type(error) is IntegrityError
        assert "__key_scope__" in error.remedy
    assert mapper.from_sequenced_item(item).customer == "1"


def test_another_applications_item_is_an_error_that_names_both():
    store, kms = InMemoryKeyStore(), FakeKms()
    item = SequencedItemMapper(cipher=AESCipher(keyring("shop", store, kms))).to_sequenced_item(plain())

    error = refused(SequencedItemMapper(cipher=AESCipher(keyring("bank", store, kms))), item)

    assert type(error) is WrongApplicationError
    assert (error.expected, error.found) == ("bank", "shop")


def test_a_keyring_in_another_process_opens_what_the_first_sealed():
    store, kms = InMemoryKeyStore(), FakeKms()
    event = Placed(uuid4(), 0)
    item = SequencedItemMapper(cipher=AESCipher(keyring(store=store, kms=kms))).to_sequenced_item(event)

    assert (
        SequencedItemMapper(cipher=AESCipher(keyring(store=store, kms=kms))).from_sequenced_item(item)
        == event
    )
    assert replace(event, customer="x") != event


# --- subclasses ---


class Loud:
    def to_sequenced_items(self, domain_events):
        return list(domain_events)


class LoudFirst(Loud, SequencedItemMapper):
    pass


class Lenient(SequencedItemMapper):
    def is_sealed(self, event_class):
        return False


class Private(SequencedItemMapper):
    def _sealed(self, events, drafts):
        return [(draft.data, None) for draft in drafts]


class Extended(SequencedItemMapper):
    def __init__(self, **options):
        super().__init__(**options)

    def counted(self):
        return 1


@pytest.mark.parametrize(
    ("cls", "name"), [(LoudFirst, "to_sequenced_items"), (Lenient, "is_sealed"), (Private, "_sealed")]
)
def test_a_mapper_whose_methods_are_replaced_is_refused(cls, name):
    with pytest.raises(ConfigurationError, match=f"replaces {name} of SequencedItemMapper") as caught:
        cls()
    assert "methods with other names" in caught.value.remedy


def test_a_mapper_with_a_constructor_and_methods_of_its_own_is_fine():
    assert Extended().over("timestamp_items").counted() == 1
