"""Snapshots seal what the events of their entity seal, under the same subjects and scopes, or are refused."""

from __future__ import annotations

import functools
import re
from uuid import uuid4

import pytest
from tests.fixtures.personal_entities import (
    Account,
    Address,
    Annotating,
    Customer,
    Disputed,
    Foreign,
    Forgetful,
    Guest,
    Joined,
    Order,
    Renaming,
    Ticket,
)

from eventseal.cipher import AESCipher
from eventseal.errors import (
    ConfigurationError,
    EncryptionRequiredError,
    IntegrityError,
    KeyDestroyedError,
    SerializationError,
)
from eventseal.eventstore import (
    EventSourcedRepository,
    EventSourcedSnapshotStrategy,
    EventStore,
    PersistencePolicy,
    Snapshot,
    SnapshottingPolicy,
    publish,
)
from eventseal.eventstore.entities import state_of
from eventseal.eventstore.personal_state import protected_state
from eventseal.items import Erased, Masked, SequencedItemMapper, register_topic, topics
from eventseal.items.markers import Sealed
from eventseal.items.topics import topic_of
from eventseal.keys import InMemoryKeyStore, Keyring
from eventseal.storage import SnapshotRecord
from eventseal.testing import FakeKms

SECRETS = ["ann@example.org", "Ann", "555-1", "1 Row", "memo"]


@pytest.fixture
def keyring():
    return Keyring(FakeKms(), InMemoryKeyStore(), application="shop")


@pytest.fixture
def shop(strategy, keyring):
    """Makes a repository with snapshots, whose events are stored when they are published."""
    policies = []

    def make(*, snapshots=None, **options):
        cipher = AESCipher(keyring)
        snapshots = {"cipher": cipher, "always_encrypt": False} if snapshots is None else snapshots
        events = EventStore(
            strategy(), SequencedItemMapper(cipher=cipher, **{"always_encrypt": False, **options})
        )
        kept = EventStore(strategy(SnapshotRecord), SequencedItemMapper(collection="snapshots", **snapshots))
        policies.append(PersistencePolicy(events))
        return EventSourcedRepository(events, snapshot_strategy=EventSourcedSnapshotStrategy(kept))

    yield make
    for policy in policies:
        policy.close()


@pytest.fixture
def repository(shop):
    return shop()


def stored(repository, entity):
    items = repository.snapshot_strategy.event_store.active_record_strategy.get_items(entity.id)
    return items[-1]


def a_customer(cls=Customer):
    customer = cls.create(email="ann@example.org", name="Ann")
    customer._trigger_event(Customer.Noted, note="memo")
    customer._trigger_event(Customer.PhoneAdded, telephone="555-1")
    customer._trigger_event(Customer.Moved, address=Address("c-2", "1 Row", "London"))
    return customer


# --- fields ---


def test_a_snapshot_holds_no_personal_data_in_plain_and_comes_back(repository):
    customer = a_customer()

    snapshot = repository.take_snapshot(customer.id)

    data = stored(repository, customer).data
    assert not [secret for secret in SECRETS if secret.encode() in data]
    assert b"London" in data
    assert snapshot.state["_email"] == "ann@example.org"
    assert repository.snapshot_strategy.get_snapshot(customer.id) == snapshot
    assert repository[customer.id] == customer


def test_after_an_erasure_a_snapshot_is_masked_as_the_events_are(repository, keyring):
    customer = a_customer()
    repository.take_snapshot(customer.id)

    keyring.shred(f"subject:{customer.id}")

    found = repository[customer.id]
    assert found._email == "(gone)"
    assert (type(found.name), type(found._phones), found.plan) == (Masked, Masked, "free")
    assert found.addresses == [Address("c-2", "1 Row", "London")]
    without = EventSourcedRepository(repository.event_store)[customer.id]
    assert (found._email, found.name) == (without._email, without.name)


class Second(Customer):
    """The second form of the class."""

    class_version = 2

    @staticmethod
    def upcast_v1_v2(state):
        state["tariff"] = state.pop("plan")
        state["addresses"].append(type(state["_email"]).__name__)


def test_a_snapshot_of_an_older_form_of_its_class_is_upcast_before_masks_are_put_in(
    repository, keyring, monkeypatch
):
    customer = a_customer()
    repository.take_snapshot(customer.id)
    assert b"class_version" not in stored(repository, customer).data
    monkeypatch.setitem(topics._classes, topic_of(Customer), Second)

    found = repository[customer.id]
    assert (type(found), found.tariff, found.addresses[1:]) == (Second, "free", ["str"])
    assert state_of(found)["class_version"] == 2

    keyring.shred(f"subject:{customer.id}")
    found = repository[customer.id]
    assert (found._email, found.addresses[1:]) == ("(gone)", ["Masked"])


def test_what_an_entity_computes_is_not_in_its_snapshot(repository):
    class Counting(Customer):
        @functools.cached_property
        def domain(self):
            return self._email.partition("@")[2]

    register_topic("tests:Counting", Counting)
    customer = a_customer(Counting)
    assert customer.domain == "example.org"
    assert "domain" not in state_of(customer)
    repository.take_snapshot(customer.id)
    assert b"example.org" not in stored(repository, customer).data


def test_each_subject_in_a_snapshot_is_erased_alone(repository, keyring):
    customer = a_customer()
    repository.take_snapshot(customer.id)

    keyring.shred("subject:c-2")

    found = repository[customer.id]
    assert (found._email, found.name) == ("ann@example.org", "Ann")
    assert type(found.addresses[0].street) is Masked


def test_a_snapshot_taken_of_masked_state_stays_masked_also_after_a_reopening(repository, keyring):
    customer = a_customer()
    scope = f"subject:{customer.id}"
    keyring.shred(scope)
    repository.take_snapshot(customer.id)
    keyring.destroyer.reopen(scope)

    data = stored(repository, customer).data
    found = repository[customer.id]

    assert b'"_email":{"$mask":' in data
    assert (found._email, type(found.name)) == ("(gone)", Masked)
    found._trigger_event(Customer.EmailChanged, email="new@example.org")
    repository.take_snapshot(customer.id)
    assert repository[customer.id]._email == "new@example.org"
    assert b"new@example.org" not in stored(repository, customer).data


def test_what_is_empty_needs_no_key_so_an_erased_customer_has_snapshots(repository, keyring):
    customer = Customer.create(email="ann@example.org", name="Ann")
    keyring.shred(f"subject:{customer.id}")

    snapshot = repository.take_snapshot(customer.id)

    assert snapshot.state["_phones"] == []
    assert b'"_phones":[]' in stored(repository, customer).data
    assert repository[customer.id]._email == "(gone)"


def test_a_field_that_is_kept_in_another_form_is_sealed_as_one():
    shapes = protected_state(Joined, {"_id": 1, "_names": "Ann, Augusta"}, [Joined.Named]).shapes
    assert type(shapes["_names"]) is Sealed
    assert shapes["_names"].data.subject == "originator_id"


def test_a_snapshot_whose_key_was_retired_is_no_erased_one(repository, monkeypatch):
    store = repository.snapshot_strategy.event_store

    def retired(*arguments, **options):
        raise KeyDestroyedError("gone", destroyed_by="retired")

    monkeypatch.setattr(store, "get_most_recent_event", retired)
    with pytest.raises(KeyDestroyedError):
        repository.snapshot_strategy.get_snapshot(uuid4())


def test_an_entity_in_memory_brings_nothing_back(repository, keyring):
    customer = a_customer()
    strategy = repository.snapshot_strategy
    keyring.shred(f"subject:{customer.id}")

    with pytest.raises(KeyDestroyedError):
        strategy.take_snapshot(customer.id, customer, 3)
    assert strategy.get_snapshot(customer.id) is None


def test_a_snapshot_on_a_snapshot_still_knows_what_is_personal(repository, keyring):
    guest = Guest.create()
    publish(Foreign(originator_id=guest.id, originator_version=1, text="memo"))
    repository.take_snapshot(guest.id)
    publish(Guest.AttributeChanged(originator_id=guest.id, originator_version=2, name="plan", value="x"))

    repository.take_snapshot(guest.id)

    assert b"memo" not in stored(repository, guest).data
    assert stored(repository, guest).position == 2
    keyring.shred(f"subject:{guest.id}")
    assert type(repository[guest.id].text) is Masked


def test_an_entitys_own_annotations_come_first(repository, keyring):
    entity = Annotating.create(alias="Lovelace", held="memo", customer_id="c-9")

    repository.take_snapshot(entity.id)

    assert not re.search(rb"Lovelace|memo", stored(repository, entity).data)
    keyring.shred("subject:c-9")
    found = repository[entity.id]
    assert (type(found._held), found._alias) == (Masked, "Lovelace")
    keyring.shred(f"subject:{entity.id}")
    assert repository[entity.id]._alias == "?"


def test_a_snapshot_can_be_read_after_the_class_has_forgotten_an_attribute(repository, monkeypatch):
    customer = a_customer()
    repository.take_snapshot(customer.id)

    monkeypatch.delattr(Customer, "__personal_data__")

    assert repository[customer.id]._email == "ann@example.org"
    with pytest.raises(ConfigurationError, match="does not keep"):
        customer._trigger_event(Customer.Noted, note="memo")
        repository.take_snapshot(customer.id)


# --- what fails closed ---


def test_personal_data_that_nothing_explains_are_refused(repository):
    entity = Forgetful.create(note="memo")

    with pytest.raises(ConfigurationError, match="does not keep 'note'") as caught:
        repository.take_snapshot(entity.id)
    assert "__personal_data__ = {'note': '_attribute'}" in caught.value.remedy
    assert repository.snapshot_strategy.get_snapshot(entity.id) is None


def test_a_declared_attribute_that_is_not_there_is_refused(repository, monkeypatch):
    monkeypatch.setattr(Forgetful, "__personal_data__", {"note": "_nowhere"}, raising=False)
    entity = Forgetful.create(note="memo")

    with pytest.raises(ConfigurationError, match="'note' as '_nowhere'"):
        repository.take_snapshot(entity.id)
    monkeypatch.setattr(Forgetful, "__personal_data__", {"note": "remembered"})
    repository.take_snapshot(entity.id)
    assert b"memo" not in stored(repository, entity).data


def test_an_attribute_of_two_subjects_is_refused(repository):
    entity = Disputed.create(held="memo")

    with pytest.raises(ConfigurationError, match="of several subjects"):
        repository.take_snapshot(entity.id)


def test_data_whose_subject_has_changed_since_are_refused(repository):
    order = Order.create(customer_id="c-1", contact="Ann")
    order._trigger_event(Order.GivenTo, customer_id="c-2")

    with pytest.raises(ConfigurationError, match="another subject than the event that set it"):
        repository.take_snapshot(order.id)


def test_that_is_noticed_across_a_snapshot_too(repository):
    order = Order.create(customer_id="c-1", contact="Ann")
    repository.take_snapshot(order.id)
    order._trigger_event(Order.GivenTo, customer_id="c-2")

    with pytest.raises(ConfigurationError, match="another subject than the event that set it"):
        repository.take_snapshot(order.id)


def test_a_subject_that_the_state_does_not_hold_is_named(repository):
    order = Order.create(customer_id="c-1", contact="Ann")
    del order.customer_id

    with pytest.raises(SerializationError, match="_contact has no subject: 'customer_id' is missing"):
        repository.snapshot_strategy.take_snapshot(order.id, order, 0)


def test_without_a_cipher_no_snapshot_of_personal_data_is_taken(shop):
    repository = shop(snapshots={})
    customer = a_customer()

    with pytest.raises(EncryptionRequiredError):
        repository.take_snapshot(customer.id)


def test_personal_data_are_not_changed_by_an_event_that_would_show_them(repository):
    customer = a_customer()

    for name in ("_email", "name", "_phones"):
        with pytest.raises(ConfigurationError, match="holds personal data"):
            customer.change_attribute(name, "x")
    customer.change_attribute("plan", "premium")
    renaming = a_customer(Renaming)
    renaming.change_attribute("name", "Augusta")
    item = repository.event_store.active_record_strategy.get_items(renaming.id)[-1]
    assert b"Augusta" not in item.data


# --- whole snapshots ---


def test_a_snapshot_has_the_scope_of_its_entitys_events(shop, keyring):
    repository = shop(always_encrypt=True, snapshots={"cipher": AESCipher(keyring)})
    account = Account.create(holder="c-1", secret="memo")
    account._trigger_event(Account.Used)

    snapshot = repository.take_snapshot(account.id)

    assert snapshot.key_scope == "subject:c-1"
    assert (
        stored(repository, account).key_id == keyring.sealing_keys({"subject:c-1": 0})["subject:c-1"].key_id
    )
    assert repository[account.id] == account


def test_erasing_the_events_reaches_the_snapshot_and_the_events_tell_the_rest(shop, keyring):
    of_holder = {"erased_scope": lambda item: "subject:c-1"}
    repository = shop(
        always_encrypt=True, on_erased="mask", snapshots={"cipher": AESCipher(keyring)}, **of_holder
    )
    account = Account.create(holder="c-1", secret="memo")
    repository.take_snapshot(account.id)
    keyring.shred("subject:c-1")

    assert repository.snapshot_strategy.get_snapshot(account.id) is None
    assert repository.get_entity(account.id) is None
    assert [type(event) for event in repository.event_store.get_domain_events(account.id)] == [Erased]


def test_a_snapshot_of_events_of_two_scopes_is_refused(shop, keyring):
    repository = shop(always_encrypt=True, snapshots={"cipher": AESCipher(keyring)})
    account = Account.create(holder="c-1", secret="memo")
    repository.take_snapshot(account.id)
    account._trigger_event(Account.HandedOver, holder="c-2")

    with pytest.raises(ConfigurationError, match="2 scopes other than the application's"):
        repository.take_snapshot(account.id)


@pytest.mark.parametrize(
    "options", [{}, {"key_scope": lambda event: "tenant:acme"}], ids=["plain", "another"]
)
def test_snapshots_that_an_erasure_would_not_reach_are_refused(shop, keyring, options):
    snapshots = {"cipher": AESCipher(keyring), **options} if options else {}
    repository = shop(always_encrypt=True, snapshots=snapshots)
    account = Account.create(holder="c-1", secret="memo")

    with pytest.raises(ConfigurationError, match="erasing the one would not reach the other"):
        repository.take_snapshot(account.id)


def test_a_mapper_whose_rule_agrees_decides_what_is_expected(shop, keyring):
    agreeing = {
        "cipher": AESCipher(keyring),
        "key_scope": lambda snapshot: f"subject:{snapshot.state['holder']}",
    }
    repository = shop(always_encrypt=True, snapshots=agreeing)
    account = Account.create(holder="c-1", secret="memo")

    repository.take_snapshot(account.id)

    assert repository[account.id] == account


def test_without_history_an_entity_with_scopes_of_its_own_is_refused(shop, keyring):
    repository = shop(always_encrypt=True, snapshots={"cipher": AESCipher(keyring)})
    account = Account.create(holder="c-1", secret="memo")

    with pytest.raises(ConfigurationError, match="which a snapshot must have too"):
        repository.snapshot_strategy.take_snapshot(account.id, account, 0)


def test_a_snapshot_that_claims_another_scope_than_its_keys_is_refused(shop, keyring):
    repository = shop(always_encrypt=True, snapshots={"cipher": AESCipher(keyring)})
    account = Account.create(holder="c-1", secret="memo")
    snapshot = repository.take_snapshot(account.id)
    mapper = repository.snapshot_strategy.event_store.sequenced_item_mapper
    forged = Snapshot(**{**vars(snapshot), "key_scope": "subject:c-2"})
    context = mapper._context(stored(repository, account))
    plaintext = mapper._json.encode_attributes(
        {name: value for name, value in vars(forged).items() if not name.startswith("originator")}, owner="x"
    )
    data = AESCipher(keyring).encrypt(plaintext, context, scope="subject:c-1")

    with pytest.raises(IntegrityError):
        mapper.from_sequenced_item(stored(repository, account)._replace(data=data))


def test_an_older_snapshot_without_a_scope_is_read_but_not_built_upon(repository, monkeypatch):
    customer = a_customer()
    older = Snapshot(
        originator_id=customer.id, originator_version=0, topic="tests.fixtures.personal_entities:Customer",
        state={"_id": customer.id, "_version": 1, "_is_discarded": False, "_email": "old", "name": "Ann",
               "plan": "free", "_phones": [], "addresses": []},
    )  # fmt: skip
    repository.snapshot_strategy.event_store.append(older)
    assert repository.get_entity(customer.id, lte=0)._email == "old"

    repository.take_snapshot(customer.id)

    assert repository[customer.id]._email == "ann@example.org"


def test_the_policy_leaves_a_snapshot_out_whose_subject_is_being_erased(repository, keyring, caplog):
    policy = SnapshottingPolicy(repository, period=2)
    try:
        customer = Customer.create(email="ann@example.org", name="Ann")
        repository.event_store.sequenced_item_mapper.cipher.refresh()
        monkey = repository.take_snapshot
        repository.take_snapshot = lambda *a, **o: (keyring.shred(f"subject:{customer.id}"), monkey(*a, **o))[
            1
        ]
        original = repository.event_store.iterate_domain_events
        held = list(original(customer.id))
        repository.event_store.iterate_domain_events = lambda *a, **o: iter(held)
        customer._trigger_event(Customer.Moved, address=Address("c-2", "1 Row", "London"))
    finally:
        policy.close()

    assert "no snapshot of" in caplog.text
    assert "ann@example.org" not in caplog.text


# --- erased events in streams ---


def test_an_entity_goes_on_where_one_of_its_events_was_erased(shop, keyring):
    repository = shop(
        always_encrypt=True, on_erased="mask", erased_scope=lambda item: "subject:c-2",
        snapshots={"cipher": AESCipher(keyring)},
    )  # fmt: skip
    account = Account.create(holder="c-1", secret="memo")
    account._trigger_event(Account.HandedOver, holder="c-2")
    account._trigger_event(Account.Used)
    keyring.shred("subject:c-2")

    found = repository[account.id]

    assert (found.version, found.holder) == (3, "c-1")
    snapshot = repository.take_snapshot(account.id)
    assert snapshot.key_scope == "subject:c-1"


def test_an_erased_event_has_no_time(shop, keyring):
    repository = shop(always_encrypt=True, on_erased="mask", erased_scope=lambda item: "subject:c-2")
    ticket = Ticket.create()
    ticket._trigger_event(Ticket.Held, holder="c-2")
    keyring.shred("subject:c-2")

    found = repository[ticket.id]

    assert (found.version, found.last_modified) == (2, ticket.created_on)


def test_the_most_recent_event_is_the_last_one_that_is_not_skipped(shop, keyring):
    store = shop(always_encrypt=True, on_erased="skip", erased_scope=lambda item: "subject:c-2").event_store
    entity_id = uuid4()
    publish(Account.Used(originator_id=entity_id, originator_version=0))
    for version in (1, 2, 3):
        publish(Account.HandedOver(originator_id=entity_id, originator_version=version, holder="c-2"))
    keyring.shred("subject:c-2")

    assert store.get_most_recent_event(entity_id).originator_version == 0
    assert store.get_most_recent_event(entity_id, lte=2).originator_version == 0
    assert store.get_most_recent_event(uuid4()) is None
    assert store.get_domain_event(entity_id, eq=2) is None
    assert [event.originator_version for event in store.get_domain_events(entity_id)] == [0]
    assert [event.originator_version for event in store.all_domain_events(page_size=2)] == [0]
    only = uuid4()
    publish(Account.HandedOver(originator_id=only, originator_version=0, holder="c-3"))
    assert store.get_most_recent_event(only).holder == "c-3"
