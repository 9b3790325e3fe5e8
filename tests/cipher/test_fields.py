"""Fields of items: one question for keys, everything about their place bound, purposes kept apart."""

import os
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from eventseal.cipher import AESCipher, FieldContext, ItemContext, NoCompression, Opened, inspect
from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    ItemTooLargeError,
    KeyNotFoundError,
    SerializationError,
    UnknownFormatError,
)
from eventseal.keys import InMemoryKeyStore, Keyring
from eventseal.keys.states import KeyPurpose
from eventseal.testing import FakeKms

ITEM = ItemContext(UUID(int=7), 3, "shop:Registered")
PLACE = FieldContext(ITEM, "/email", "subject:c-1")


@pytest.fixture
def keyring():
    return Keyring(FakeKms(), InMemoryKeyStore(), application="shop")


@pytest.fixture
def cipher(keyring):
    return AESCipher(keyring)


def seal(cipher, *fields, compress=True):
    return cipher.seal_fields(fields, compress=[compress] * len(fields))


def test_fields_come_back_each_under_its_subjects_key(cipher):
    places = [replace(PLACE, path=f"/{number}", scope=f"subject:{number % 3}") for number in range(9)]
    texts = [f'"{number}"'.encode() for number in range(9)]
    sealed = seal(cipher, *zip(texts, places, strict=True))

    opened = cipher.open_fields(list(zip(sealed, places, strict=True)))

    assert [one.plaintext for one in opened] == texts
    assert [one.scope for one in opened] == [place.scope for place in places]
    assert len({inspect(one).key_id for one in sealed}) == 3
    assert seal(cipher) == cipher.open_fields([]) == []


@pytest.mark.parametrize(
    "moved",
    [
        replace(PLACE, path="/phone"),
        replace(PLACE, path="/email/"),
        replace(PLACE, scope="subject:c-2"),
        replace(PLACE, path="/emai", scope="lsubject:c-1"),
        *[
            replace(PLACE, item=replace(ITEM, **change))
            for change in (
                {"sequence_id": UUID(int=8)},
                {"position": 4},
                {"topic": "shop:Moved"},
                {"collection": "snapshots"},
            )
        ],
    ],
    ids=str,
)
def test_a_field_opens_only_at_its_place(cipher, moved):
    (sealed,) = seal(cipher, (b'"a"', PLACE))

    (outcome,) = cipher.open_fields([(sealed, moved)])

    assert type(outcome) is IntegrityError


def test_an_item_is_no_field_and_a_field_is_no_item(cipher):
    (field,) = seal(cipher, (b'"a"', PLACE))
    item = cipher.encrypt(b'"a"', ITEM, scope="subject:c-1")

    assert "wraps" not in str(cipher.open_many([(field, ITEM)])[0])
    assert type(cipher.open_many([(field, ITEM)])[0]) is IntegrityError
    assert type(cipher.open_fields([(item, PLACE)])[0]) is IntegrityError


def test_keys_of_another_purpose_neither_seal_nor_open_fields(keys):
    wrong = keys.make("subject:c-1")
    cipher = AESCipher(keys)
    (sealed,) = seal(cipher, (b"1", PLACE))
    renamed = sealed[:3] + wrong.key_id.bytes + sealed[19:]

    assert "only field keys" in str(cipher.open_fields([(renamed, PLACE)])[0])
    keys.by_scope["subject:c-1"] = wrong
    with pytest.raises(IntegrityError, match="only field keys"):
        seal(cipher, (b"1", PLACE))


def test_the_key_of_another_subject_that_sealed_for_this_one_is_refused(keyring, cipher):
    other = keyring.sealing_keys({"subject:c-2": 1}, purpose=KeyPurpose.FIELD)["subject:c-2"]

    class Wrong(Keyring):
        def sealing_keys(self, items_by_scope, **options):
            return dict.fromkeys(items_by_scope, other)

    wrong = object.__new__(Wrong)
    wrong.__dict__.update(vars(keyring))
    (sealed,) = seal(AESCipher(wrong), (b'"a"', PLACE))

    assert type(cipher.open_fields([(sealed, PLACE)])[0]) is IntegrityError


def test_each_field_has_an_outcome_of_its_own(cipher):
    (sealed,) = seal(cipher, (b'"a"', PLACE))
    unknown = sealed[:3] + uuid4().bytes + sealed[19:]
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])

    outcomes = cipher.open_fields([(one, PLACE) for one in (b"", unknown, flipped, sealed)])

    assert [type(one) for one in outcomes] == [UnknownFormatError, KeyNotFoundError, IntegrityError, Opened]


def test_large_fields_are_compressed_where_it_may_be(cipher):
    text = b'"' + b"a story " * 100 + b'"'
    (compressed,), (not_allowed,) = seal(cipher, (text, PLACE)), seal(cipher, (text, PLACE), compress=False)
    (random,) = seal(cipher, (os.urandom(1000), PLACE))
    (short,) = seal(cipher, (b"a" * 255, PLACE))

    assert [inspect(one).compression for one in (compressed, not_allowed, random, short)] == [2, 0, 0, 0]
    assert cipher.open_fields([(compressed, PLACE)])[0].plaintext == text
    bare = AESCipher(Keyring(FakeKms(), InMemoryKeyStore()), compression=NoCompression())
    assert inspect(seal(bare, (text, PLACE))[0]).compression == 0


def test_a_field_over_the_limit_is_refused(keyring):
    cipher = AESCipher(keyring, max_plaintext=10)
    (sealed,) = seal(AESCipher(keyring), (b"a" * 11, PLACE))

    with pytest.raises(ItemTooLargeError):
        seal(cipher, (b"a" * 11, PLACE))
    assert type(cipher.open_fields([(sealed, PLACE)])[0]) is ItemTooLargeError


@pytest.mark.parametrize("place", [replace(PLACE, path="/a\0"), replace(PLACE, path="/\ud800")], ids=ascii)
def test_a_path_that_has_no_bytes_is_refused(cipher, place):
    with pytest.raises(SerializationError, match="path"):
        seal(cipher, (b"1", place))


def test_a_key_that_is_closed_meanwhile_is_asked_for_once_more(keyring, cipher, monkeypatch):
    (sealed,) = seal(cipher, (b"1", PLACE))
    real_open, real_seal = keyring.opening_keys, keyring.sealing_keys
    asked = []

    def closing(real):
        def ask(*arguments, **options):
            found = real(*arguments, **options)
            if not asked:
                for key in found.values():
                    key.close()
            asked.append(options["purpose"])
            return found

        return ask

    monkeypatch.setattr(keyring, "opening_keys", closing(real_open))
    assert cipher.open_fields([(sealed, PLACE)])[0].plaintext == b"1"
    assert asked == [KeyPurpose.FIELD] * 2
    asked.clear()
    monkeypatch.setattr(keyring, "sealing_keys", closing(real_seal))
    assert cipher.open_fields([(seal(cipher, (b"2", PLACE))[0], PLACE)])[0].plaintext == b"2"
    asked.clear()

    def always_closed(key_ids, **options):
        found = real_open(key_ids, **options)
        for key in found.values():
            key.close()
        return found

    monkeypatch.setattr(keyring, "opening_keys", always_closed)
    assert type(cipher.open_fields([(sealed, PLACE)])[0]) is KeyNotFoundError


def test_a_static_key_has_no_keys_for_fields():
    cipher = AESCipher(bytes(range(32)))

    with pytest.raises(ConfigurationError, match="no keys of purpose field"):
        seal(cipher, (b"1", PLACE))
    sealed = cipher.encrypt(b"1", ITEM)
    assert type(cipher.open_fields([(sealed, PLACE)])[0]) is KeyNotFoundError
