"""What a personal-data field costs beside the same event without one, in memory, with keys at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID, uuid4

import pytest

from eventseal.cipher import AESCipher
from eventseal.items import PersonalData, SequencedItemMapper
from eventseal.keys import InMemoryKeyStore, Keyring
from eventseal.testing import FakeKms

pytestmark = pytest.mark.slow

EVENTS, SUBJECTS = 500, 100
OF_CUSTOMER = PersonalData(subject="customer_id")


@dataclass(frozen=True)
class Without:
    originator_id: UUID
    originator_version: int
    customer_id: str
    email: str
    name: str
    street: str


@dataclass(frozen=True)
class WithOne(Without):
    email: Annotated[str, OF_CUSTOMER]


@dataclass(frozen=True)
class WithThree(WithOne):
    name: Annotated[str, OF_CUSTOMER]
    street: Annotated[str, OF_CUSTOMER]


@pytest.fixture
def mapper():
    return SequencedItemMapper(cipher=AESCipher(Keyring(FakeKms(), InMemoryKeyStore(), branches=4)))


def events(cls):
    return [
        cls(uuid4(), number, f"c-{number % SUBJECTS}", "ann@example.org", "Ann Lovelace", "1 Analytical Row")
        for number in range(EVENTS)
    ]


def test_write_personal_fields(mapper, side_by_side):
    made = {cls: events(cls) for cls in (WithThree, WithOne, Without)}
    work = {
        "EventSeal": lambda: mapper.to_sequenced_items(made[WithThree]),
        "with one field": lambda: mapper.to_sequenced_items(made[WithOne]),
        "without": lambda: mapper.to_sequenced_items(made[Without]),
    }
    side_by_side("write an event with three personal fields", work, EVENTS)


def test_read_personal_fields(mapper, side_by_side):
    items = {cls: mapper.to_sequenced_items(events(cls)) for cls in (WithThree, WithOne, Without)}
    work = {
        "EventSeal": lambda: mapper.from_sequenced_items(items[WithThree]),
        "with one field": lambda: mapper.from_sequenced_items(items[WithOne]),
        "without": lambda: mapper.from_sequenced_items(items[Without]),
    }
    side_by_side("read an event with three personal fields", work, EVENTS)
