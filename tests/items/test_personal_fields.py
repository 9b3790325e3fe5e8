"""Personal-data fields: sealed under their subjects, opened in batches, masked after an erasure alone."""

import base64
import copy
import json
import pickle
import re
import sys
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from tests.fixtures.personal_events import (
    Bare,
    Contact,
    Noted,
    Point,
    Quiet,
    Referrer,
    Registered,
    Unannotated,
    Whole,
    WithList,
)

from eventseal.cipher import AESCipher, inspect
from eventseal.errors import (
    ConfigurationError,
    EncryptionRequiredError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsForbiddenError,
    KmsUnavailableError,
    SerializationError,
    StoreUnavailableError,
)
from eventseal.items import (
    JSONTranscoder,
    Masked,
    SequencedItem,
    SequencedItemMapper,
    register_alias,
    register_topic,
)
from eventseal.items.json_writer import MOST_NESTED
from eventseal.items.sealed_fields import subject_scope
from eventseal.keys import Keyring
from eventseal.keys.states import KeyPurpose

SECRETS = [
    "ann@example.org",
    "1815-12-10",
    "Countess",
    "second",
    "third",
    "555-1",
    "555-2",
    "memo",
    "Babbage",
    "fourth",
]


def registered(customer_id="c-1", **changes):
    return Registered(
        **{
            "originator_id": uuid4(),
            "originator_version": 0,
            "customer_id": customer_id,
            "email": "ann@example.org",
            "age": 36,
            "birth": "1815-12-10",
            "aliases": ["Countess", "second"],
            "pair": ("plain", "third"),
            "many": ("fourth",),
            "by_key": {"a/b~c": "second", "x": "third"},
            "contact": Contact("555-1", "London", ["memo"]),
            "contacts": [Contact("555-2", "Oxford")],
            "referrer": Referrer(7, "Babbage"),
            "anything": {"deep": (Referrer(8, "Babbage"), [Contact("555-1", "Rome")])},
        }
        | changes
    )


class WithColumn(NamedTuple):
    sequence_id: Any
    position: Any
    topic: str
    data: bytes
    email: str


def plain(make_mapper):
    return make_mapper(always_encrypt=False)


def sealed_in(item):
    return re.findall(rb'\{"\$sealed":\["([^"]*)","([^"]*)"\]\}', item.data)


def shred(keyring, subject):
    keyring.shred(f"subject:{subject}")


# --- there and back ---


def test_an_event_comes_back_as_it_was(mapper):
    event = registered()

    (item,) = mapper.to_sequenced_items([event])

    assert mapper.from_sequenced_item(item) == event


def test_no_personal_value_stands_in_an_item_in_plain(make_mapper):
    item = plain(make_mapper).to_sequenced_item(registered(plan="premium"))

    assert item.key_id is None
    assert not [secret for secret in SECRETS if secret.encode() in item.data]
    assert b"premium" in item.data
    assert b"London" in item.data
    assert b"plain" in item.data


def test_each_field_is_under_the_key_of_its_subject_of_purpose_field(make_mapper, key_store):
    item = plain(make_mapper).to_sequenced_item(registered())

    scopes = {"subject:c-1", "subject:7", "subject:8"}
    keys = key_store.active("shop", scopes, purpose=KeyPurpose.FIELD)
    assert keys.keys() == scopes
    assert {inspect(base64.b64decode(text)).key_id for _, text in sealed_in(item)} == {
        record.key_id for record in keys.values()
    }
    assert not key_store.active("shop", scopes)


def test_a_sealed_item_holds_its_fields_sealed(make_mapper, keyring):
    mapper = make_mapper()
    item = mapper.to_sequenced_item(registered())
    context = mapper._context(item)

    opened = AESCipher(keyring).open_many([(item.data, context)])[0].plaintext

    assert sealed_in(SequencedItem(None, None, "", opened))
    assert not [secret for secret in SECRETS if secret.encode() in opened]


@pytest.mark.parametrize("subject", ["c-1", 42, -1, UUID(int=7), "\u00e9"], ids=str)
def test_a_subject_is_a_string_an_integer_or_a_uuid(make_mapper, key_store, subject):
    mapper = plain(make_mapper)
    event = registered(subject)

    assert mapper.from_sequenced_item(mapper.to_sequenced_item(event)) == event
    scope = f"subject:{subject}"
    assert key_store.active("shop", [scope], purpose=KeyPurpose.FIELD).keys() == {scope}


def test_the_stream_may_be_the_subject(mapper, keyring):
    event = Noted(originator_id=uuid4(), originator_version=3, text="memo")
    item = mapper.to_sequenced_item(event)
    assert mapper.from_sequenced_item(item) == event

    shred(keyring, event.originator_id)

    assert mapper.from_sequenced_item(item).text == "(erased)"


def test_objects_in_attributes_without_annotation_are_found_by_their_class(make_mapper):
    mapper = plain(make_mapper)
    event = Unannotated(
        originator_id=uuid4(), originator_version=0, customer_id=1, held=[Referrer(7, "Babbage")]
    )

    for _ in range(2):  # the second time, it is known that the class may hold such
        item = mapper.to_sequenced_item(event)
        assert b"Babbage" not in item.data
        assert mapper.from_sequenced_item(item) == event


def test_an_object_finds_its_subject_in_itself_first_and_then_around_it(make_mapper):
    mapper = plain(make_mapper)
    item = mapper.to_sequenced_item(registered())

    subjects = {path.decode() for path, _ in sealed_in(item)}

    assert {"/customer_id", "/referrer/$dataclass/1/customer_id"} < subjects
    assert "/anything/deep/$tuple/0/$dataclass/1/customer_id" in subjects


def test_a_field_with_nothing_in_it_and_nobody_named_needs_no_key(make_mapper, key_store):
    mapper = plain(make_mapper)
    event = registered(
        None,
        email=None,
        age=None,
        birth=None,
        aliases=[],
        pair=("", None),
        many=(),
        by_key={},
        contact=None,
        contacts=[],
        referrer=None,
        anything=None,
    )

    item = mapper.to_sequenced_item(event)

    assert not sealed_in(item)
    assert mapper.from_sequenced_item(item) == event


def test_that_a_field_is_none_is_sealed_where_a_subject_is_named(make_mapper):
    mapper = plain(make_mapper)
    item = mapper.to_sequenced_item(registered(birth=None, email=None))

    assert b'"birth":{"$sealed":' in item.data
    assert mapper.from_sequenced_item(item).birth is None


def test_of_several_types_the_fitting_one_says_what_is_personal(make_mapper):
    mapper = plain(make_mapper)

    listed = mapper.to_sequenced_item(registered(extra=["memo"]))
    text = mapper.to_sequenced_item(registered(extra="not personal"))

    assert b"memo" not in listed.data
    assert mapper.from_sequenced_item(listed).extra == ["memo"]
    assert b"not personal" in text.data


def test_items_from_before_a_field_was_annotated_are_read(make_mapper):
    mapper = plain(make_mapper)
    event = registered()
    old = b'{"customer_id":"c-1","email":"ann@example.org","plan":"free","aliases":["Countess"]}'
    item = mapper.to_sequenced_item(event)._replace(data=old)

    read = mapper.from_sequenced_item(item)

    assert (read.email, read.aliases) == ("ann@example.org", ["Countess"])


# --- calls ---


def test_a_page_costs_one_question_for_its_fields(kms, key_store, keyring, make_mapper, monkeypatch):
    mapper = plain(make_mapper)
    events = [registered(f"c-{number % 5}", originator_version=number) for number in range(40)]
    sealing, opening = [], []
    seal, open_ = keyring.sealing_keys, keyring.opening_keys
    monkeypatch.setattr(keyring, "sealing_keys", lambda *a, **o: sealing.append(a) or seal(*a, **o))
    monkeypatch.setattr(keyring, "opening_keys", lambda *a, **o: opening.append(o) or open_(*a, **o))

    items = mapper.to_sequenced_items(events)
    assert len(sealing) == 1
    assert mapper.from_sequenced_items(items) == events
    assert [asked for asked in opening if asked] == [{"purpose": KeyPurpose.FIELD}]
    kms.calls.clear()
    mapper.from_sequenced_items(mapper.to_sequenced_items(events))
    assert kms.calls == []


def test_events_without_personal_data_ask_for_no_field_keys(kms, make_mapper):
    mapper = plain(make_mapper)
    mapper.from_sequenced_item(
        mapper.to_sequenced_item(Unannotated(originator_id=uuid4(), originator_version=0, x="{"))
    )
    assert kms.calls == []


def test_keys_are_made_ahead(keyring, kms, make_mapper):
    keyring.prepare(["subject:c-1", "subject:7", "subject:8"], purpose=KeyPurpose.FIELD)
    kms.calls.clear()

    plain(make_mapper).to_sequenced_item(registered())

    assert kms.calls == []


# --- after an erasure ---


def test_the_erased_subjects_fields_are_masks_and_the_others_open(mapper, keyring):
    event = registered()
    item = mapper.to_sequenced_item(event)

    shred(keyring, "c-1")
    read = mapper.from_sequenced_item(item)

    assert type(read.email) is Masked
    assert (read.age, read.plan, read.contact.city) == (0, "free", "London")
    assert [type(alias) for alias in read.aliases] == [Masked, Masked]
    assert read.pair[0] == "plain"
    assert type(read.pair[1]) is Masked
    assert type(read.contacts[0].phone) is Masked
    assert read.referrer == event.referrer
    assert read.anything["deep"][0] == Referrer(8, "Babbage")


def test_a_mask_of_ones_own_stands_in_its_place_also_in_nested_objects(mapper, keyring):
    item = mapper.to_sequenced_item(registered())

    shred(keyring, 7)

    read = mapper.from_sequenced_item(item)
    assert read.referrer == Referrer(7, "somebody")
    assert read.email == "ann@example.org"


def test_another_process_masks_what_one_has_erased(mapper, keyring, kms, key_store):
    item = mapper.to_sequenced_item(registered())
    shred(keyring, "c-1")

    another = SequencedItemMapper(
        cipher=AESCipher(Keyring(kms, key_store, application="shop")), always_encrypt=mapper.always_encrypt
    )

    assert type(another.from_sequenced_item(item).email) is Masked


def test_a_mask_is_falsy_equal_to_itself_alone_and_safe_in_json(mapper, keyring):
    item = mapper.to_sequenced_item(registered())
    other = mapper.to_sequenced_item(registered("c-2"))
    shred(keyring, "c-1")
    shred(keyring, "c-2")
    mask = mapper.from_sequenced_item(item).email

    assert not mask
    assert [mask] != [""]
    assert [mask] != [""]
    assert mask is not None
    assert mask == mapper.from_sequenced_item(item).email
    assert mask != mapper.from_sequenced_item(other).email
    assert mask != mapper.from_sequenced_item(item).birth
    assert {mask: 1}.get("") is None
    assert json.dumps({"email": mask}) == '{"email": ""}'
    assert repr(mask) == "<erased email>"
    assert pickle.loads(pickle.dumps(mask)) == copy.deepcopy(mask) == mask
    transcoder = JSONTranscoder()
    assert transcoder.decode(transcoder.encode([mask])) == [mask]


def test_the_repr_of_a_mask_shows_no_key_of_a_dictionary(mapper, keyring):
    item = mapper.to_sequenced_item(registered())
    shred(keyring, "c-1")

    assert (
        repr(list(mapper.from_sequenced_item(item).by_key.values())) == "[<erased by_key>, <erased by_key>]"
    )


def test_the_masks_of_mutable_types_are_each_readers_own(make_mapper, keyring):
    mapper = plain(make_mapper)
    item = mapper.to_sequenced_item(WithList(uuid4(), 0, "c-1", ["memo"]))
    shred(keyring, "c-1")

    mapper.from_sequenced_item(item).notes.append("mine")

    assert mapper.from_sequenced_item(item).notes == []


def test_a_masked_event_is_published_again_as_masked_and_needs_no_key(mapper, keyring):
    event = mapper.to_sequenced_item(registered())
    shred(keyring, "c-1")
    masked = mapper.from_sequenced_item(event)

    again = mapper.to_sequenced_item(replace(masked, originator_version=1))

    read = mapper.from_sequenced_item(again)
    assert read == replace(masked, originator_version=1)
    assert type(read.email) is Masked


def test_a_mask_stays_one_after_the_subject_was_reopened(make_mapper, keyring):
    mapper = plain(make_mapper)
    item = mapper.to_sequenced_item(registered())
    shred(keyring, "c-1")
    masked = mapper.from_sequenced_item(item)

    keyring.destroyer.reopen("subject:c-1")
    again = mapper.to_sequenced_item(masked)

    assert b'"email":{"$mask":["subject:c-1","email"]}' in again.data
    assert b'"age":{"$mask":["subject:c-1","age"]}' in again.data
    assert mapper.from_sequenced_item(again) == masked
    with pytest.raises(IntegrityError):  # it was in no table when its subject was reopened
        mapper.from_sequenced_item(item)


def test_nothing_is_sealed_for_a_subject_that_was_erased(mapper, keyring):
    mapper.to_sequenced_item(registered())
    shred(keyring, "c-1")

    with pytest.raises(KeyDestroyedError):
        mapper.to_sequenced_item(registered())


def test_a_mask_left_without_an_annotation_is_the_default_one(make_mapper, keyring):
    mapper = plain(make_mapper)
    item = mapper.to_sequenced_item(registered())
    shred(keyring, "c-1")
    shred_item = mapper.to_sequenced_item(Bare(uuid4(), 0, mapper.from_sequenced_item(item).email))

    assert mapper.from_sequenced_item(shred_item).email == Masked("subject:c-1", "email")


# --- what is no erasure ---


@pytest.mark.parametrize(
    "error",
    [KmsUnavailableError("away"), KmsForbiddenError("denied")],
    ids=lambda error: type(error).__name__,
)
def test_an_outage_or_a_denial_is_raised_and_masks_nothing(mapper, kms, key_store, error):
    item = mapper.to_sequenced_item(registered())
    cold = SequencedItemMapper(
        cipher=AESCipher(Keyring(kms, key_store, application="shop")), always_encrypt=mapper.always_encrypt
    )
    if mapper.always_encrypt:
        cold.from_sequenced_item(
            mapper.to_sequenced_item(Unannotated(originator_id=uuid4(), originator_version=0))
        )
    kms.fail_always(error)

    with pytest.raises(type(error)):
        cold.from_sequenced_item(item)


def test_a_database_that_is_away_masks_nothing(make_mapper, kms, key_store, monkeypatch):
    item = plain(make_mapper).to_sequenced_item(registered())
    cold = SequencedItemMapper(
        cipher=AESCipher(Keyring(kms, key_store, application="shop")), always_encrypt=False
    )
    monkeypatch.setattr(key_store, "get", lambda _: (_ for _ in ()).throw(StoreUnavailableError("away")))

    with pytest.raises(StoreUnavailableError):
        cold.from_sequenced_item(item)


def test_a_key_that_is_missing_is_raised(make_mapper, kms, key_store):
    item = plain(make_mapper).to_sequenced_item(registered())
    record = next(iter(key_store.active("shop", ["subject:c-1"], purpose=KeyPurpose.FIELD).values()))
    del key_store._records[record.key_id]
    cold = Keyring(kms, key_store, application="shop")

    with pytest.raises(KeyNotFoundError, match=str(record.key_id)) as caught:
        SequencedItemMapper(cipher=AESCipher(cold), always_encrypt=False).from_sequenced_item(item)
    assert any("field: email" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("changes", [{"destroyed_by": "retired"}, {"scope": "subject:c-2"}], ids=str)
def test_a_tombstone_of_another_kind_or_subject_masks_nothing(make_mapper, keyring, monkeypatch, changes):
    mapper = plain(make_mapper)
    item = mapper.to_sequenced_item(registered(referrer=None, anything=None))
    facts = {"scope": "subject:c-1", "destroyed_by": "shredded"} | changes
    real = keyring.opening_keys

    def destroyed(key_ids, *, purpose=KeyPurpose.DATA):
        if purpose is KeyPurpose.DATA:
            return real(key_ids)
        return {key_id: KeyDestroyedError("gone", key_id=key_id, **facts) for key_id in key_ids}

    monkeypatch.setattr(keyring, "opening_keys", destroyed)

    with pytest.raises(KeyDestroyedError):
        mapper.from_sequenced_item(item)


def test_a_tombstone_that_was_forged_masks_nothing(make_mapper, kms, key_store):
    item = plain(make_mapper).to_sequenced_item(registered())
    for record in list(key_store._records.values()):
        if record.purpose is KeyPurpose.FIELD:
            key_store._records[record.key_id] = replace(
                record, state="destroyed", destroyed_by="shredded", wrappings=()
            )
    cold = Keyring(kms, key_store, application="shop")

    with pytest.raises(IntegrityError):
        SequencedItemMapper(cipher=AESCipher(cold), always_encrypt=False).from_sequenced_item(item)


def test_a_header_rewritten_to_another_subjects_tombstone_masks_nothing(make_mapper, keyring):
    mapper = plain(make_mapper)
    item, other = (
        mapper.to_sequenced_item(registered(name, referrer=None, anything=None)) for name in ("c-1", "c-2")
    )
    shred(keyring, "c-2")
    foreign = base64.b64decode(sealed_in(other)[0][1])[:19]

    def rewritten(match):
        envelope = base64.b64decode(match[2])
        return match[0].replace(match[2], base64.b64encode(foreign + envelope[19:]))

    data = re.sub(rb'\{"\$sealed":\["([^"]*)","([^"]*)"\]\}', rewritten, item.data, count=1)

    with pytest.raises(KeyDestroyedError):
        mapper.from_sequenced_item(item._replace(data=data))


def test_a_field_under_a_key_for_items_is_refused(make_mapper, keyring):
    mapper = plain(make_mapper)
    item = mapper.to_sequenced_item(registered())
    data_key = keyring.sealing_keys({"subject:c-1": 1})["subject:c-1"].key_id
    (_, text), *_ = sealed_in(item)
    envelope = bytearray(base64.b64decode(text))
    envelope[3:19] = data_key.bytes
    data = item.data.replace(text, base64.b64encode(envelope))

    with pytest.raises(IntegrityError, match="does not encrypt or decrypt fields"):
        mapper.from_sequenced_item(item._replace(data=data))


# --- what is bound ---


def swapped(item, first, second):
    one, two = (text for _, text in (sealed_in(item)[first], sealed_in(item)[second]))
    return item._replace(data=item.data.replace(one, b"*").replace(two, one).replace(b"*", two))


@pytest.mark.parametrize("first", range(6))
def test_two_fields_of_an_event_cannot_change_places(make_mapper, first):
    mapper = plain(make_mapper)
    item = mapper.to_sequenced_item(registered())

    with pytest.raises(IntegrityError):
        mapper.from_sequenced_item(swapped(item, first, first + 1))


@pytest.mark.parametrize(
    "moved",
    [
        {"sequence_id": uuid4()},
        {"position": 9},
        {"topic": "tests:RegisteredToo"},
    ],
    ids=lambda moved: next(iter(moved)),
)
def test_a_plain_item_that_moves_takes_no_field_along(make_mapper, moved):
    register_alias("tests:RegisteredToo", Registered)
    mapper = plain(make_mapper)
    item = mapper.to_sequenced_item(registered())

    with pytest.raises(IntegrityError):
        mapper.from_sequenced_item(item._replace(**moved))


def test_a_field_does_not_open_in_another_collection(make_mapper):
    item = plain(make_mapper).to_sequenced_item(registered())

    with pytest.raises(IntegrityError):
        make_mapper(always_encrypt=False, collection="archive").from_sequenced_item(item)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"customer_id":"c-1"', b'"customer_id":"c-2"'),
        (b'["/customer_id",', b'["/plan",'),
        (b'["/customer_id",', b'["/nowhere",'),
        (b'["/customer_id",', b'["customer_id",'),
        (b'["/customer_id",', b'["x/customer_id",'),
        (b'["/customer_id",', b'["/contacts",'),
        (b'["/customer_id",', b'["/contacts/9",'),
        (b'["/customer_id",', b'["",'),
        (b'{"$sealed":["/customer_id",', b'{"$sealed":["/customer_id","",'),
        (b'{"$sealed":["/customer_id","', b'{"$sealed":["/customer_id","*'),
        (b'{"$sealed":["/customer_id",', b'{"$sealed":[["/customer_id"],'),
        (b'{"$sealed":["/customer_id",', b'{"$sealed":[7,'),
    ],
    ids=lambda part: part.decode(),
)
def test_a_marker_that_was_edited_is_refused(make_mapper, old, new):
    mapper = plain(make_mapper)
    item = mapper.to_sequenced_item(registered())
    mapper.to_sequenced_item(registered("c-2"))
    edited = item._replace(data=item.data.replace(old, new, 1))
    assert edited != item

    with pytest.raises(IntegrityError):
        mapper.from_sequenced_item(edited)


def test_a_user_can_store_what_looks_like_a_marker(mapper):
    event = Unannotated(
        originator_id=uuid4(),
        originator_version=0,
        x={"$sealed": ["/x", ""]},
        y='{"$sealed":',
        z={"$mask": 1},
    )

    assert mapper.from_sequenced_item(mapper.to_sequenced_item(event)) == event


def test_the_first_item_that_fails_is_the_one_that_is_raised(make_mapper):
    mapper = plain(make_mapper)
    items = [mapper.to_sequenced_item(registered(originator_version=number)) for number in range(4)]
    items[1] = swapped(items[1], 0, 1)
    items[2] = items[2]._replace(data=b"{")

    with pytest.raises(IntegrityError) as caught:
        mapper.from_sequenced_items(items)
    assert caught.value.position == 1


# --- bad input: nothing is written ---


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        (None, "'customer_id' is None"),
        (1.5, "must be a string, an integer or a UUID"),
        (True, "must be a string, an integer or a UUID"),
        (b"c-1", "must be a string, an integer or a UUID"),
        (["c-1"], "must be a string, an integer or a UUID"),
        (Masked("subject:c-1", "customer_id"), "must be a string, an integer or a UUID"),
        ("", "an empty subject"),
        ("x" * 193, "takes 201 bytes"),
        ("e\u0301", "normal form C"),
        ("c\0", "NUL"),
        ("\ud800", "surrogate"),
    ],
    ids=lambda part: (
        repr(part)[:30] if not isinstance(part, str) else part.encode("unicode_escape").decode()[:30]
    ),
)
def test_a_subject_that_cannot_be_one_is_refused(mapper, kms, subject, reason):
    with pytest.raises(SerializationError, match=reason) as caught:
        mapper.to_sequenced_item(registered(subject, referrer=None, anything=None))
    assert "email" in str(caught.value)
    assert "ann@example.org" not in str(caught.value)
    assert "xxxx" not in str(caught.value)
    assert "PersonalData(subject=...)" in caught.value.remedy
    assert kms.calls == []


def test_a_subject_that_is_nowhere_is_named(mapper):
    event = Unannotated(originator_id=uuid4(), originator_version=0, held=Contact("555-1", "Rome"))

    with pytest.raises(
        SerializationError, match=r"held\.phone has no subject: 'customer_id' is missing"
    ) as caught:
        mapper.to_sequenced_item(event)
    assert "PersonalData(subject=...)" in caught.value.remedy


def test_the_longest_subject_is_taken(mapper):
    event = registered("x" * 192)
    assert mapper.from_sequenced_item(mapper.to_sequenced_item(event)) == event


def test_a_subject_is_read_once_whatever_an_attribute_says_next(make_mapper, key_store):
    class Fickle(Unannotated):
        @property
        def customer_id(self):
            raise AssertionError("asked again")

        @customer_id.setter
        def customer_id(self, value):
            raise AssertionError("set")

    register_topic("tests:Fickle", Fickle)
    event = Fickle(originator_id=uuid4(), originator_version=0)
    vars(event).update(customer_id=1, held=[Contact("555-1", "Rome"), Contact("555-2", "Rome")])

    plain(make_mapper).to_sequenced_item(event)

    assert key_store.active("shop", ["subject:1"], purpose=KeyPurpose.FIELD)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"aliases": "Countess"}, "aliases"),
        ({"aliases": {"Countess"}}, "aliases"),
        ({"by_key": ["Countess"]}, "by_key"),
        ({"pair": ("a", "b", "c")}, "pair"),
        ({"many": "Countess"}, "many"),
        ({"extra": {"a": "Countess"}}, "extra"),
    ],
    ids=lambda part: str(part)[:20],
)
def test_a_value_that_its_annotation_does_not_allow_is_not_written_in_plain(make_mapper, changes, where):
    mapper = plain(make_mapper)
    with pytest.raises(SerializationError, match=rf"{where} is a \w+, which its annotation") as caught:
        mapper.to_sequenced_item(registered(**changes))
    assert "Countess" not in str(caught.value)
    assert "of the annotated type" in caught.value.remedy


@pytest.mark.parametrize("held", [{Referrer(7, "Babbage")}, {Referrer(7, "Babbage"): 1}], ids=["set", "key"])
def test_personal_data_where_they_cannot_be_sealed_are_refused(mapper, held):
    with pytest.raises(SerializationError, match="only a mapper seals") as caught:
        mapper.to_sequenced_item(Unannotated(originator_id=uuid4(), originator_version=0, held=held))
    assert "Babbage" not in str(caught.value)
    assert "a list, a tuple or a dictionary's values" in caught.value.remedy


def test_a_transcoder_alone_writes_no_personal_data():
    with pytest.raises(SerializationError, match="only a mapper seals"):
        JSONTranscoder().encode(Referrer(7, "Babbage"))
    with pytest.raises(SerializationError, match="only a mapper opens"):
        JSONTranscoder().decode(b'{"$sealed":["/a","b"]}')


def test_no_encoding_of_ones_own_passes_personal_data_by():
    with pytest.raises(ConfigurationError, match="would write it as plaintext"):
        JSONTranscoder().register(
            Referrer, "referrer", lambda value: value.name, lambda name: Referrer(1, name)
        )


def test_without_a_cipher_nothing_personal_is_written_or_read(make_mapper):
    item = plain(make_mapper).to_sequenced_item(registered())
    bare = SequencedItemMapper()

    with pytest.raises(EncryptionRequiredError, match="has personal-data fields"):
        bare.to_sequenced_item(registered())
    with pytest.raises(ConfigurationError, match="has no cipher"):
        bare.from_sequenced_item(item)


def test_a_static_key_keeps_no_subjects_apart():
    mapper = SequencedItemMapper(cipher=AESCipher(bytes(range(32))))

    with pytest.raises(ConfigurationError, match="no keys of purpose field"):
        mapper.to_sequenced_item(registered())


def test_personal_data_are_not_copied_into_columns(make_mapper):
    mapper = make_mapper(sequenced_item_class=WithColumn, always_encrypt=False)

    with pytest.raises(ConfigurationError, match="copies it unencrypted"):
        mapper.to_sequenced_item(registered())


def test_a_streams_id_is_no_personal_data(make_mapper):
    mapper = make_mapper(sequence_id_attr_name="email", position_attr_name="originator_version")

    with pytest.raises(ConfigurationError, match="it is the event's place"):
        mapper.to_sequenced_item(registered())


# --- more of what a mapper does ---


def test_a_list_that_is_sealed_as_one_is_sealed_also_if_it_is_empty(make_mapper):
    mapper = plain(make_mapper)
    event = Whole(uuid4(), 0, "c-1", [])

    item = mapper.to_sequenced_item(event)

    assert len(sealed_in(item)) == 1
    assert mapper.from_sequenced_item(item) == event


def test_encodings_of_ones_own_hold_beside_personal_data(keyring):
    transcoder = JSONTranscoder()
    transcoder.register(Point, "point", lambda point: [point.x], lambda stored: Point(*stored))
    mapper = SequencedItemMapper(cipher=AESCipher(keyring), always_encrypt=False, json=transcoder)
    event = Whole(uuid4(), 0, "c-1", ["memo"], point=[Point(7)])

    item = mapper.to_sequenced_item(event)

    assert b'"point":[{"$point":[7]}]' in item.data
    assert mapper.from_sequenced_item(item) == event


def test_the_fields_of_a_plain_item_that_is_refused_are_not_opened(make_mapper, keyring, monkeypatch):
    item = plain(make_mapper).to_sequenced_item(registered())
    asked = []
    real = keyring.opening_keys
    monkeypatch.setattr(keyring, "opening_keys", lambda *a, **o: asked.append(o) or real(*a, **o))

    with pytest.raises(EncryptionRequiredError):
        make_mapper().from_sequenced_item(item)
    assert {"purpose": KeyPurpose.FIELD} not in asked


def test_large_fields_are_compressed_unless_the_class_forbids_it(make_mapper):
    mapper = plain(make_mapper)
    text = "a long story " * 100

    long = mapper.to_sequenced_item(registered(email=text))
    sealed = [base64.b64decode(text) for _, text in sealed_in(long)]

    assert inspect(sealed[0]).compression == 2
    assert {inspect(one).compression for one in sealed[1:]} == {0}
    event = Quiet(uuid4(), 0, "c-1", text)
    quiet = mapper.to_sequenced_item(event)
    assert inspect(base64.b64decode(sealed_in(quiet)[0][1])).compression == 0
    assert mapper.from_sequenced_item(quiet) == event


def test_a_scope_of_the_whole_item_and_subjects_of_fields_go_together(make_mapper, keyring):
    mapper = make_mapper(key_scope=lambda event: f"tenant:{event.plan}")
    item = mapper.to_sequenced_item(registered())

    shred(keyring, "c-1")

    assert type(mapper.from_sequenced_item(item).email) is Masked
    keyring.shred("tenant:free")
    with pytest.raises(KeyDestroyedError):
        mapper.from_sequenced_item(item)


def test_scopes_of_subjects_have_one_form():
    assert subject_scope(UUID(int=7)) == f"subject:{UUID(int=7)}"
    assert subject_scope(42) == subject_scope("42") == "subject:42"


@pytest.mark.parametrize(("before", "behind"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_json_that_is_nested_too_deeply_beside_a_field_costs_its_item(make_mapper, before, behind):
    levels = sys.getrecursionlimit() - 10
    deep = before * levels + b"1" + behind * levels
    mapper = make_mapper(always_encrypt=False)
    good, other = mapper.to_sequenced_items([registered(), registered()])
    bad = other._replace(data=b'{"deep":' + deep + b"," + other.data[1:])
    with pytest.raises(SerializationError, match="nested too deeply") as caught:
        mapper.from_sequenced_items([good, bad])
    assert caught.value.sequence_id == bad.sequence_id
    assert len(mapper.from_sequenced_items([good])) == 1


def test_deep_json_beside_a_field_takes_no_more_of_the_stack_than_it_must(make_mapper):
    mapper = make_mapper(always_encrypt=False)
    item = mapper.to_sequenced_item(registered())
    levels = sys.getrecursionlimit() * 6 // 10
    deep = b"[" * levels + b"]" * levels
    restored = mapper.from_sequenced_item(item._replace(data=b'{"deep":' + deep + b"," + item.data[1:]))
    assert restored.email == "ann@example.org"


def test_an_event_that_no_reader_could_follow_is_refused_before_anything_is_sealed(make_mapper, kms):
    deep: Any = 1
    for _ in range(MOST_NESTED):
        deep = {1: deep}
    calls = len(kms.calls)
    for event in (registered(anything=deep), registered(email=deep)):
        with pytest.raises(SerializationError, match="nested too deeply"):
            make_mapper().to_sequenced_items([event])
    assert len(kms.calls) == calls
