"""An event of two subjects, one of whom is erased: the other's fields open, in today's class, and project."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

import pytest
from tests.fixtures.sealed_shops import SealedShop

from eventseal.erasure import shred
from eventseal.errors import KeyDestroyedError, KmsForbiddenError, KmsKeyStateError, KmsUnavailableError
from eventseal.eventstore import EventStore
from eventseal.items import Masked, PersonalData, SequencedItemMapper, register_alias, topic_of
from eventseal.keys import CachePolicy
from eventseal.testing import FakeKms, ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

INTERVAL = 60.0


@dataclass(frozen=True)
class ReferredOnce:
    """As it was stored in an earlier release."""

    originator_id: UUID
    originator_version: int
    customer_id: str
    referrer_id: str
    name: Annotated[str, PersonalData(subject="customer_id")]
    referrer: Annotated[str, PersonalData(subject="referrer_id", mask="(erased)")]
    amount: int


@dataclass(frozen=True)
class Referred:
    """As it is read today: with an attribute that did not exist, and another kind of amount."""

    originator_id: UUID
    originator_version: int
    customer_id: str
    referrer_id: str
    name: Annotated[str, PersonalData(subject="customer_id")]
    referrer: Annotated[str, PersonalData(subject="referrer_id", mask="(erased)")]
    amount: dict[str, Any]
    tags: list[str] = field(default_factory=list)


OLD_TOPIC = topic_of(ReferredOnce)


@pytest.fixture
def start(store_url: str) -> Iterator[Callable[..., tuple[SealedShop, EventStore]]]:
    """Starts a process: its shop, and an event store over it."""
    kms, clock, started = FakeKms(), ManualClock(), []

    def start(**options: Any) -> tuple[SealedShop, EventStore]:
        shop = SealedShop(store_url, kms, clock=clock, cache=CachePolicy(refresh_interval=INTERVAL))
        started.append(shop)
        return shop, EventStore(shop.strategy, SequencedItemMapper(cipher=shop.cipher, **options))

    start.kms, start.clock = kms, clock
    start()[0].set_up()
    yield start
    for shop in started:
        shop.close()


def referred(stream: UUID) -> list[ReferredOnce]:
    """Ann is referred by Bob, then Bob by Ann: each of them is the subject of either field."""
    return [
        ReferredOnce(stream, 0, "ann", "bob", "Ann", "Bob", 10),
        ReferredOnce(stream, 1, "bob", "ann", "Bob", "Ann", 20),
        ReferredOnce(stream, 2, "cem", "bob", "Cem", "Bob", 30),
    ]


def upcast(event: Any) -> Referred:
    """What an application does with events of an earlier release: it makes others of its values."""
    values = dict(vars(event))
    if not isinstance(values["amount"], dict):
        values["amount"] = {"EUR": values["amount"]}
    return Referred(**{"tags": [values["name"].upper()[:1]], **values})


def project(events: Iterable[Referred]) -> dict[str, Any]:
    """A read model: names by customer, and what came in; it goes to JSON as it is."""
    model: dict[str, Any] = {"names": {}, "total": 0, "initials": []}
    for event in events:
        model["names"].setdefault(event.customer_id, event.name)
        model["names"].setdefault(event.referrer_id, event.referrer)
        model["total"] += event.amount["EUR"]
        model["initials"] += event.tags
    return json.loads(json.dumps(model))


@pytest.mark.slow
@pytest.mark.parametrize("always_encrypt", [True, False], ids=["items too", "fields only"])
def test_of_two_subjects_one_is_erased_and_the_log_replays(start, always_encrypt: bool) -> None:
    stream = uuid4()
    shop, events = start(always_encrypt=always_encrypt)
    _, elsewhere = start(always_encrypt=always_encrypt)
    events.append(referred(stream))
    assert [event.name for event in elsewhere.get_domain_events(stream)] == ["Ann", "Bob", "Cem"]

    assert shred(shop, "subject:bob").complete
    start.clock.advance(INTERVAL + 1)

    for store in (events, elsewhere, start(always_encrypt=always_encrypt)[1]):
        first, second, third = store.get_domain_events(stream)
        assert (first.name, first.referrer) == ("Ann", "(erased)")
        assert (type(second.name), second.referrer) == (Masked, "Ann")
        assert (third.name, third.referrer) == ("Cem", "(erased)")
        assert [event.amount for event in (first, second, third)] == [10, 20, 30]
        assert project(map(upcast, (first, second, third))) == {
            "names": {"ann": "Ann", "bob": "(erased)", "cem": "Cem"},
            "total": 60,
            "initials": ["A", "", "C"],
        }
        with pytest.raises(KeyDestroyedError):
            store.append(ReferredOnce(stream, 3, "ann", "bob", "Ann", "Bob", 1))


def test_fields_are_opened_under_the_stored_topic_before_todays_class_is_made(start, monkeypatch) -> None:
    from eventseal.items import topics

    stream = uuid4()
    shop, events = start()
    events.append(referred(stream))
    assert shred(shop, "subject:bob").complete
    monkeypatch.setattr(topics, "_classes", {**topics._classes})
    register_alias(OLD_TOPIC, Referred)

    found = events.get_domain_events(stream)

    assert {type(event) for event in found} == {Referred}
    assert [event.referrer for event in found] == ["(erased)", "Ann", "(erased)"]
    assert [event.name for event in found if not isinstance(event.name, Masked)] == ["Ann", "Cem"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (FakeKms.fail_always, KmsUnavailableError),
        (FakeKms.deny, KmsForbiddenError),
        (FakeKms.disable, KmsKeyStateError),
    ],
    ids=["down", "denied", "disabled"],
)
def test_no_outage_masks_the_subject_who_was_not_erased(start, answer, error) -> None:
    stream = uuid4()
    shop, events = start(always_encrypt=False)
    events.append(referred(stream))
    assert shred(shop, "subject:bob").complete
    other, reader = start(always_encrypt=False, on_erased="mask", erased_scope=lambda _: "subject:bob")
    other.keyring.refresh()  # it has the store key, and knows of the erasure
    answer(start.kms)

    with pytest.raises(error):  # of Ann's or Cem's field: nothing stands for those
        reader.get_domain_events(stream)

    start.kms.recover()
    assert [event.amount for event in reader.get_domain_events(stream)] == [10, 20, 30]


def test_both_erased_leave_the_event(start) -> None:
    stream = uuid4()
    shop, events = start()
    events.append(referred(stream))
    for subject in ("ann", "bob", "cem"):
        assert shred(shop, f"subject:{subject}").complete

    found = events.get_domain_events(stream)

    assert [type(event.name) for event in found] == [Masked] * 3
    assert project(map(upcast, found)) == {
        "names": {"ann": "", "bob": "(erased)", "cem": ""},
        "total": 60,
        "initials": ["", "", ""],
    }
