"""Older formats: each opens what its library wrote, and refuses everything else without saying why."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventseal.cipher import AESCipher, ItemContext
from eventseal.errors import (
    ConfigurationError,
    EncryptionRequiredError,
    IntegrityError,
    ItemTooLargeError,
    KeyNotFoundError,
    UnknownFormatError,
    WrongApplicationError,
)
from eventseal.items import SequencedItem, SequencedItemMapper, topic_of
from eventseal.items.acceptance import AcceptedFormats, Before, OldItem
from eventseal.items.formats import (
    EventsourcingCBC,
    EventsourcingGCM,
    EventsourcingGCMText,
    PlainJSON,
    StaticKeyEnvelope,
)
from eventseal.keys.source import StaticKey

KEY = b"0123456789abcdef"
OTHER_KEY = b"fedcba9876543210"
PLAIN = json.dumps({"name": "Ada", "amount": 5}).encode()
PLACE = ItemContext(UUID(int=7), 3, "shop:Placed")


def cbc(plaintext: bytes, key: bytes = KEY, *, pad: bytes | None = None) -> bytes:
    body = base64.b64encode(zlib.compress(plaintext))
    size = 16 - len(body) % 16
    padded = body + (bytes((size,)) * size if pad is None else pad)
    encryptor = Cipher(algorithms.AES(key), modes.CBC(b"i" * 16)).encryptor()
    return base64.b64encode(b"i" * 16 + encryptor.update(padded) + encryptor.finalize())


def gcm(plaintext: bytes, key: bytes = KEY, *, zipped: bool = False, nonce: bytes = b"n" * 12) -> bytes:
    sealed = AESGCM(key).encrypt(nonce, zlib.compress(plaintext) if zipped else plaintext, None)
    return nonce + sealed[-16:] + sealed[:-16]


WRITTEN = {
    "plain-json": (PlainJSON(), PLAIN),
    "plain-json+zlib": (PlainJSON(compressed=True), zlib.compress(PLAIN)),
    "eventsourcing-cbc": (EventsourcingCBC(KEY), cbc(PLAIN)),
    "eventsourcing-gcm": (EventsourcingGCM(KEY), gcm(PLAIN)),
    "eventsourcing-gcm+zlib": (EventsourcingGCM(KEY, compressed=True), gcm(PLAIN, zipped=True)),
    "eventsourcing-gcm-base64": (EventsourcingGCMText(KEY), base64.b64encode(gcm(PLAIN, zipped=True))),
    "static-key": (StaticKeyEnvelope(KEY), AESCipher(KEY).encrypt(PLAIN, PLACE)),
}
KEYED = {name: pair for name, pair in WRITTEN.items() if not name.startswith("plain")}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_format_opens_what_it_names(name):
    old, data = WRITTEN[name]
    assert old.name == name
    assert old.open(data, PLACE) == PLAIN


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("written", WRITTEN)
def test_no_format_opens_another_one(name, written):
    if name != written:
        with pytest.raises((UnknownFormatError, IntegrityError)):
            WRITTEN[name][0].open(WRITTEN[written][1], PLACE)


@pytest.mark.parametrize("name", KEYED)
def test_another_key_opens_nothing_and_a_handle_shows_and_travels_nothing(name):
    old, data = KEYED[name]
    other = type(old)(OTHER_KEY)
    if name.endswith("+zlib"):
        other = type(old)(OTHER_KEY, compressed=True)
    with pytest.raises((UnknownFormatError, IntegrityError)):
        other.open(data, PLACE)
    assert other.key_id != old.key_id
    shown = repr(old)
    assert KEY.decode() not in shown
    assert KEY.hex() not in shown
    assert str(old.key_id) in shown
    with pytest.raises(TypeError):
        pickle.dumps(old)


def test_the_format_of_static_envelopes_keeps_the_key_in_its_cipher_alone():
    assert KEY not in vars(StaticKeyEnvelope(KEY)).values()


def test_static_envelopes_of_the_table_of_events_in_time_may_be_bound_to_its_former_collection():
    place = replace(PLACE, collection="timestamp_items")
    for collection in ("items", "timestamp_items"):
        sealed = AESCipher(KEY).encrypt(PLAIN, replace(PLACE, collection=collection))
        assert StaticKeyEnvelope(KEY).open(sealed, place) == PLAIN
    for collection in ("items", "snapshots"):
        with pytest.raises(IntegrityError):
            StaticKeyEnvelope(KEY).open(sealed, replace(PLACE, collection=collection))


@pytest.mark.parametrize("key", [b"", b"short", b"x" * 33, "0123456789abcdef", None], ids=repr)
@pytest.mark.parametrize(
    "kind", [EventsourcingCBC, EventsourcingGCM, EventsourcingGCMText, StaticKeyEnvelope]
)
def test_a_key_of_another_size_is_refused_unseen(kind, key):
    with pytest.raises(ConfigurationError) as refused:
        kind(key)
    assert "short" not in str(refused.value)


def failures_of_cbc():
    """What can go wrong behind the key, one by one."""
    good = base64.b64decode(cbc(PLAIN))
    yield "the last block is changed", base64.b64encode(good[:-1] + bytes((good[-1] ^ 1,)))
    yield "the IV is changed", base64.b64encode(bytes((good[0] ^ 1,)) + good[1:])
    yield "a block is missing", base64.b64encode(good[:-16])
    body = base64.b64encode(zlib.compress(PLAIN))
    fits = 16 - len(body) % 16
    yield "the padding says nothing", cbc(PLAIN, pad=bytes(fits))
    yield "the padding says too much", cbc(PLAIN, pad=bytes((fits,)) * (fits - 1) + b"\xff")
    yield "one byte of the padding differs", cbc(PLAIN, pad=b"\0" + bytes((fits,)) * (fits - 1))
    yield "what is in it is no JSON", cbc(b"no json")
    yield "what is in it is a list", cbc(b"[]")
    yield "the key is another one", cbc(PLAIN, OTHER_KEY)


@pytest.mark.parametrize(("how", "data"), [pytest.param(*case, id=case[0]) for case in failures_of_cbc()])
def test_whatever_fails_in_cbc_looks_the_same(how, data):
    errors = set()
    for _ in range(2):
        with pytest.raises(IntegrityError) as refused:
            EventsourcingCBC(KEY).open(data, PLACE)
        error = refused.value
        errors.add((type(error), str(error), error.remedy, error.__cause__, error.__context__))
    with pytest.raises(IntegrityError) as changed_tag:
        EventsourcingGCM(KEY).open(b"x" * 60, PLACE)
    assert errors == {(IntegrityError, str(changed_tag.value), changed_tag.value.remedy, None, None)}


def test_each_item_of_cbc_has_a_context_of_its_own():
    old = EventsourcingCBC(KEY)
    first, second = cbc(PLAIN), cbc(b'{"other":1}')
    with pytest.raises(IntegrityError):
        old.open(base64.b64encode(b"x" * 48), PLACE)
    assert [old.open(data, PLACE) for data in (first, second, first)] == [PLAIN, b'{"other":1}', PLAIN]


@pytest.mark.parametrize("name", [n for n in WRITTEN if n != "static-key"])
def test_nothing_is_opened_over_the_limit(name):
    bomb = b'{"a":"' + b"a" * 5000 + b'"}'
    kinds = {
        "plain-json": (PlainJSON(max_plaintext=1000), bomb),
        "eventsourcing-gcm": (EventsourcingGCM(KEY, max_plaintext=1000), gcm(bomb)),
        "plain-json+zlib": (PlainJSON(compressed=True, max_plaintext=1000), zlib.compress(bomb)),
        "eventsourcing-cbc": (EventsourcingCBC(KEY, max_plaintext=1000), cbc(bomb)),
        "eventsourcing-gcm+zlib": (
            EventsourcingGCM(KEY, compressed=True, max_plaintext=1000),
            gcm(bomb, zipped=True),
        ),
        "eventsourcing-gcm-base64": (
            EventsourcingGCMText(KEY, max_plaintext=1000),
            base64.b64encode(gcm(bomb, zipped=True)),
        ),
    }
    old, data = kinds[name]
    with pytest.raises(ItemTooLargeError):
        old.open(data, PLACE)


@pytest.mark.parametrize(
    "data",
    [b'{"a":' + b"1" * 5000 + b"}", b'{"a":' * 100_000, b'{"\xff":1}', b"{"],
    ids=["a-long-number", "deep", "no-utf-8", "cut"],
)
def test_json_that_python_does_not_read_is_refused_like_any_other(data):
    for old, stored, refusal in (
        (PlainJSON(), data, UnknownFormatError),
        (EventsourcingGCM(KEY), gcm(data), IntegrityError),
        (EventsourcingCBC(KEY), cbc(data), IntegrityError),
    ):
        with pytest.raises(refusal):
            old.open(stored, PLACE)


# --- acceptance ---


class Placed:
    def __init__(self, originator_id: UUID, originator_version: int, name: str) -> None:
        self.originator_id = originator_id
        self.originator_version = originator_version
        self.name = name


NEW_KEY = b"k" * 32


def stored(data: bytes, position: int = 3, key_id: UUID | None = None) -> SequencedItem:
    return SequencedItem(PLACE.sequence_id, position, topic_of(Placed), data, key_id)


def mapper(*accept, **named) -> SequencedItemMapper:
    return SequencedItemMapper(cipher=AESCipher(NEW_KEY), accept=accept, **named)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_mapper_reads_what_it_accepts_beside_envelopes_and_writes_envelopes_only(name):
    old, data = WRITTEN[name]
    key_id = None
    if name == "static-key":
        data = AESCipher(KEY).encrypt(PLAIN, ItemContext(PLACE.sequence_id, 3, topic_of(Placed)))
        key_id = StaticKey(KEY).key_id
    both = mapper(old)
    new = both.to_sequenced_item(Placed(PLACE.sequence_id, 4, "Bob"))
    assert AESCipher(NEW_KEY).decrypt(new.data, ItemContext(PLACE.sequence_id, 4, topic_of(Placed)))
    names = [event.name for event in both.from_sequenced_items([stored(data, key_id=key_id), new])]
    assert names == ["Ada", "Bob"]
    with pytest.raises((EncryptionRequiredError, KeyNotFoundError)):
        mapper().from_sequenced_item(stored(data, key_id=key_id))


def test_a_key_id_beside_an_old_item_says_that_it_was_an_envelope():
    with pytest.raises(UnknownFormatError):
        mapper(PlainJSON()).from_sequenced_item(stored(PLAIN, key_id=uuid4()))
    sealed = AESCipher(KEY).encrypt(PLAIN, ItemContext(PLACE.sequence_id, 3, topic_of(Placed)))
    with pytest.raises(IntegrityError):
        mapper(StaticKeyEnvelope(KEY)).from_sequenced_item(stored(sealed, key_id=uuid4()))


def test_several_formats_are_told_apart_row_by_row():
    accept = [
        EventsourcingCBC(KEY),
        EventsourcingGCM(KEY, compressed=True),
        EventsourcingGCM(KEY),
        PlainJSON(),
    ]
    rows = [cbc(PLAIN), gcm(PLAIN), gcm(PLAIN, zipped=True), PLAIN]
    assert [event.name for event in mapper(*accept).from_sequenced_items(map(stored, rows))] == ["Ada"] * 4
    with pytest.raises(IntegrityError) as refused:
        mapper(*accept).from_sequenced_item(stored(cbc(PLAIN, OTHER_KEY)))
    assert refused.value.position == 3


def test_an_item_of_release_9_that_begins_like_an_envelope_is_still_read():
    # Version, suite and compression: one in two million does, where its length fits too.
    body = b'{"name":"' + b"A" * (67 + 16 - 28 - 11) + b'"}'
    data = gcm(body, nonce=bytes((1, 3, 2)) + b"n" * 9)
    assert (len(data) - 67) % 16 == 0
    (outcome,) = AESCipher(NEW_KEY).open_many([(data, PLACE)])
    assert isinstance(outcome, KeyNotFoundError)
    assert mapper(EventsourcingGCM(KEY)).from_sequenced_item(stored(data)).name.startswith("AAAA")
    # Whatever else names a key that is not there keeps its error: it may be an envelope after all.
    refusal = AcceptedFormats([EventsourcingGCM(OTHER_KEY)]).open(data, PLACE, outcome)
    assert isinstance(refusal, KeyNotFoundError)
    assert refusal.key_id == outcome.key_id
    assert "eventsourcing-gcm" in str(refusal)


def test_a_tampered_envelope_is_never_tried_in_an_older_format():
    sealed = AESCipher(NEW_KEY).encrypt(PLAIN, PLACE)
    changed = sealed[:-1] + bytes((sealed[-1] ^ 1,))
    (outcome,) = AESCipher(NEW_KEY).open_many([(changed, PLACE)])
    assert AcceptedFormats([PlainJSON(), EventsourcingGCM(KEY)]).open(changed, PLACE, outcome) is outcome


def test_a_static_key_of_another_application_is_named():
    sealed = AESCipher(KEY, application="bank").encrypt(PLAIN, PLACE)
    outcome = AESCipher(NEW_KEY).open_many([(sealed, PLACE)])[0]
    refusal = AcceptedFormats([StaticKeyEnvelope(KEY)]).open(sealed, PLACE, outcome)
    assert isinstance(refusal, IntegrityError | WrongApplicationError | KeyNotFoundError)
    opened = AcceptedFormats([StaticKeyEnvelope(KEY, application="bank")]).open(sealed, PLACE, outcome)
    assert isinstance(opened, OldItem)
    assert opened.plaintext == PLAIN


def test_positions_behind_the_migration_take_no_old_item():
    both = mapper(Before(PlainJSON(), 10))
    assert both.from_sequenced_item(stored(PLAIN, position=9)).name == "Ada"
    with pytest.raises(EncryptionRequiredError):
        both.from_sequenced_item(stored(PLAIN, position=10))
    streams = {PLACE.sequence_id: 4}
    by_stream = mapper(Before(PlainJSON(), lambda place: place.position < streams.get(place.sequence_id, 0)))
    assert by_stream.from_sequenced_item(stored(PLAIN, position=3)).name == "Ada"
    with pytest.raises(EncryptionRequiredError):
        by_stream.from_sequenced_item(stored(PLAIN, position=4))


def test_what_is_accepted_ends_while_the_mapper_lives():
    accepted = {"items": {"plain-json"}}
    both = SequencedItemMapper(
        cipher=AESCipher(NEW_KEY),
        accept=AcceptedFormats([PlainJSON()], current=lambda collection: accepted.get(collection, ())),
    )
    assert both.from_sequenced_item(stored(PLAIN)).name == "Ada"
    accepted.clear()
    with pytest.raises(EncryptionRequiredError):
        both.from_sequenced_item(stored(PLAIN))


def test_where_nothing_old_is_accepted_any_more_an_envelope_whose_key_is_missing_says_so():
    ended = AcceptedFormats([PlainJSON()], current=lambda collection: ())
    (missing,) = AESCipher(NEW_KEY).open_many([(AESCipher(KEY).encrypt(PLAIN, PLACE), PLACE)])
    assert isinstance(missing, KeyNotFoundError)
    assert ended.open(AESCipher(KEY).encrypt(PLAIN, PLACE), PLACE, missing) is missing
    assert isinstance(ended.open(PLAIN, PLACE, UnknownFormatError("no envelope")), EncryptionRequiredError)


def test_where_plain_events_are_allowed_they_need_no_older_format():
    both = mapper(EventsourcingCBC(KEY), always_encrypt=False)
    assert [e.name for e in both.from_sequenced_items([stored(PLAIN), stored(cbc(PLAIN))])] == ["Ada", "Ada"]
    with pytest.raises(IntegrityError):
        both.from_sequenced_item(stored(cbc(PLAIN, OTHER_KEY)))


def test_what_is_no_format_or_has_no_cipher_beside_it_is_refused():
    with pytest.raises(ConfigurationError, match="str"):
        mapper("plain-json")
    with pytest.raises(ConfigurationError, match="accept"):
        SequencedItemMapper(accept=[PlainJSON()])
