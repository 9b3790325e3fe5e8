"""Under the library no field is sealed by itself: a class that says personal data is refused, not ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any
from uuid import uuid4

import pytest
from eventsourcing.domain import Aggregate, Snapshot, event
from eventsourcing.persistence import (
    DatetimeAsISO,
    DecimalAsStr,
    JSONTranscoder,
    Mapper,
    Transcoding,
    UUIDAsHex,
)
from tests.integrations.eventsourcing.dogs import Dog, Price

from eventseal.errors import ConfigurationError
from eventseal.integrations.eventsourcing import EncryptingMapper, EnvelopeCipher
from eventseal.items import PersonalData

Email = Annotated[str, PersonalData(subject="originator_id")]


@dataclass
class Contact:
    email: Email


class InInit(Aggregate):
    @event("Registered")
    def __init__(self, email: Email) -> None:
        self.value = email


class InMethod(Aggregate):
    @event("Moved")
    def move(self, email: Email) -> None:
        self.value = email


class InClass(Aggregate):
    class Moved(Aggregate.Event):
        email: Email

    def move(self, email: str) -> None:
        self.trigger_event(self.Moved, email=email)


class OnlyInTheMethod(Aggregate):
    class Moved(Aggregate.Event):
        email: str

    @event(Moved)
    def move(self, email: Email) -> None:
        self.value = email


class WithADefault(Aggregate):
    class Event(Aggregate.Event):
        email: str = ""

    @event("Moved")
    def move(self, email: Email = "") -> None:
        self.value = email


class Deep(Aggregate):
    @event("Moved")
    def move(self, email: str, contacts: list[Contact] | None = None) -> None:
        self.value = email


class Inherited(InMethod):
    pass


class InProperty(Aggregate):
    def __init__(self) -> None:
        self._value = ""

    @property
    def value(self) -> str:
        return self._value

    @value.setter
    @event("Moved")
    def value(self, email: Email) -> None:
        self._value = email

    def move(self, email: str) -> None:
        self.value = email


@dataclass
class DataAggregate(Aggregate):
    email: Email


class OnlyInTheState(Aggregate):
    def __init__(self) -> None:
        self.email: Email = ""


class InCommand(Aggregate):
    @event("Moved")
    def _move(self, email: str) -> None:
        self.value = email

    def move(self, email: Email) -> None:
        self._move(email)


class InFactory(Aggregate):
    @event("Moved")
    def move(self, email: str) -> None:
        self.value = email

    @classmethod
    def of(cls, email: Email) -> InFactory:
        made = cls()
        made.move(email)
        return made


class Honest(Aggregate):
    """Names that nobody can find stand where nothing is stored."""

    @event("Moved")
    def move(self, email: str) -> None:
        self.value = email

    def forward(self, to: Unknown) -> Unknown:  # noqa: F821
        raise NotImplementedError

    @property
    def view(self) -> Unknown:  # noqa: F821
        raise NotImplementedError


MOVED = [InMethod, InClass, OnlyInTheMethod, WithADefault, Deep, Inherited, InProperty,
         InCommand, InFactory]  # fmt: skip


def transcoder(*more: Transcoding) -> JSONTranscoder:
    made = JSONTranscoder()
    for one in (UUIDAsHex(), DecimalAsStr(), DatetimeAsISO(), *more):
        made.register(one)
    return made


@pytest.fixture
def mapper(sealed_process, sqlite_url) -> EncryptingMapper:
    return EncryptingMapper.using(sealed_process(sqlite_url))(transcoder())


def last_event(aggregate: Any) -> Any:
    return aggregate.collect_events()[-1]


@pytest.mark.parametrize("cls", MOVED, ids=lambda cls: cls.__name__)
def test_an_event_whose_class_or_method_says_personal_data_is_refused(mapper, cls):
    aggregate = cls()
    aggregate.move("ann@example.org")
    moved = last_event(aggregate)
    for store in (mapper.to_stored_event, lambda one: mapper.to_stored_events([one])):
        with pytest.raises(ConfigurationError, match="do not encrypt single fields") as caught:
            store(moved)
        assert "SequencedItemMapper" in caught.value.remedy
        assert "ann@example.org" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="do not encrypt single fields"):
        EncryptingMapper.protections(type(moved))


@pytest.mark.parametrize("cls", [InInit, DataAggregate], ids=lambda cls: cls.__name__)
def test_an_event_that_is_made_from_a_constructor_is_refused(mapper, cls):
    with pytest.raises(ConfigurationError, match="do not encrypt single fields"):
        mapper.to_stored_event(last_event(cls("ann@example.org")))


@pytest.mark.parametrize("make", [OnlyInTheState, lambda: InInit("ann@example.org")], ids=["state", "init"])
def test_a_snapshot_of_an_aggregate_that_says_personal_data_is_refused(mapper, make):
    aggregate = make()
    aggregate.collect_events()
    with pytest.raises(ConfigurationError, match="do not encrypt single fields"):
        mapper.to_stored_event(Snapshot.take(aggregate))


class ContactAsText(Transcoding):
    type = Contact
    name = "contact"

    def encode(self, obj: Contact) -> str:
        return obj.email

    def decode(self, data: str) -> Contact:
        return Contact(data)


def test_a_type_with_an_encoding_of_its_own_is_refused_also_if_it_came_later(mapper):
    plain = last_event(Dog("Fido"))
    assert mapper.to_stored_event(plain).originator_id == plain.originator_id
    mapper.transcoder.register(ContactAsText())
    with pytest.raises(ConfigurationError, match=r"Contact\.email is personal data"):
        mapper.to_stored_event(plain)


@pytest.mark.filterwarnings("ignore:EnvelopeCipher binds no state")
def test_a_cipher_that_sees_no_event_refuses_it_all_the_same(sealed_process, sqlite_url):
    sealed_process(sqlite_url)
    mapper = Mapper(transcoder(), cipher=EnvelopeCipher({}))  # type: ignore[arg-type]
    assert mapper.to_domain_event(mapper.to_stored_event(last_event(Dog("Fido")))).name == "Fido"
    with pytest.raises(ConfigurationError, match="do not encrypt single fields"):
        mapper.to_stored_event(last_event(InInit("ann@example.org")))


def test_classes_without_markers_are_stored_as_ever(mapper):
    dog = Dog("Fido")
    dog.add_trick("roll")
    price = Price(1, "EUR")
    honest = Honest()
    honest.move("x")
    events = [*dog.collect_events(), *price.collect_events(), *honest.collect_events(), Snapshot.take(dog)]
    assert mapper.to_domain_events(mapper.to_stored_events(events)) == events
    assert {one.protection for one in EncryptingMapper.protections(Dog.TrickAdded)} == {"sealed item"}


def test_events_that_were_stored_before_the_check_are_read(mapper, monkeypatch):
    from eventseal.integrations.eventsourcing import sealing

    moved = last_event(InInit("ann@example.org"))
    with monkeypatch.context() as patched:
        patched.setattr(sealing, "refuse_marked_event", lambda _: None)
        stored = mapper.to_stored_event(moved)
    assert mapper.to_domain_event(stored).email == "ann@example.org"


# --- mappers that would not seal ---


class Another(Mapper):
    def to_stored_event(self, domain_event: Any) -> Any:
        return super().to_stored_event(domain_event)


class AnotherFirst(Another, EncryptingMapper):
    pass


class Overrides(EncryptingMapper):
    def to_stored_events(self, domain_events: Any, *, collection: str | None = None) -> Any:
        return [Mapper.to_stored_event(self, one) for one in domain_events]


class OwnConstructorFirst(Another):
    def __init__(self, given: Any) -> None:
        Mapper.__init__(self, given)


class NoConstructor(OwnConstructorFirst, EncryptingMapper):
    pass


class Extends(EncryptingMapper):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.extra = uuid4()

    def counted(self) -> int:
        return 1


@pytest.mark.parametrize("cls", [AnotherFirst, Overrides, NoConstructor], ids=lambda cls: cls.__name__)
def test_a_mapper_whose_methods_are_replaced_is_refused(sealed_process, sqlite_url, cls):
    chosen = cls.using(sealed_process(sqlite_url))
    with pytest.raises(ConfigurationError, match=r"replaces .*to_stored_event") as caught:
        chosen(transcoder())
    assert "methods with other names" in caught.value.remedy


def test_a_mapper_with_a_constructor_and_methods_of_its_own_seals(sealed_process, sqlite_url):
    mapper = Extends.using(sealed_process(sqlite_url))(transcoder())
    plain = last_event(Dog("Fido"))
    stored = mapper.over("items").to_stored_event(plain)
    assert b"Fido" not in stored.state
    assert (mapper.counted(), mapper.to_domain_event(stored)) == (1, plain)
