"""
The swap matrix: rows of a real table, any field of any row edited or exchanged with any other row's.

Whoever can write the database, and has no key, gets none of it accepted.
"""

from decimal import Decimal
from itertools import permutations
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from sqlalchemy import delete, insert, select, update

from eventseal.cipher import AESCipher
from eventseal.errors import EventSealError, IntegrityError, WrongApplicationError
from eventseal.eventstore import DomainEvent, EventStore
from eventseal.items import SequencedItemMapper
from eventseal.keys import Keyring
from eventseal.storage import (
    IntegerSequencedItemRecord,
    SnapshotRecord,
    SQLAlchemyActiveRecordStrategy,
    SQLAlchemyKeyStore,
    TimestampSequencedItemRecord,
)
from eventseal.testing import FakeKms

HEADER_SIZE = 19
STREAMS = (UUID(int=1), UUID(int=2))
CONTENT = ("topic", "data", "key_id")


class Placed(DomainEvent):
    pass


class Paid(DomainEvent):
    pass


class Place(NamedTuple):
    """Where a row stands, and whose it is."""

    record_class: Any
    application: str
    sequence_id: UUID
    position: Any


class Matrix:
    """Three tables of two applications' sealed items, each stream under its own key."""

    def __init__(self, datastore):
        self.session = datastore.session
        kms, keys = FakeKms(), SQLAlchemyKeyStore(datastore)
        self.stores = {}
        for application in ("shop", "bank"):
            cipher = AESCipher(Keyring(kms=kms, key_store=keys, application=application))
            for record_class, position_name in (
                (IntegerSequencedItemRecord, "originator_version"),
                (SnapshotRecord, "originator_version"),
                (TimestampSequencedItemRecord, "timestamp"),
            ):
                mapper = SequencedItemMapper(
                    cipher=cipher,
                    sequence_id_attr_name="originator_id",
                    position_attr_name=position_name,
                    collection=record_class.__collection__,
                    key_scope=lambda event: f"stream:{event.originator_id}",
                )
                strategy = SQLAlchemyActiveRecordStrategy(record_class, datastore.session)
                self.stores[record_class, application] = EventStore(strategy, mapper)
        self.places = [
            self._seal(record_class, application, stream, number)
            for record_class, application in self.stores
            for stream in STREAMS
            for number in range(2)
        ]
        self.rows = {place: self._row(place) for place in self.places}

    def _seal(self, record_class, application, stream, number):
        # The two applications share the tables, so they have positions of their own.
        number += 10 * (application == "bank")
        event_class = (Placed, Paid)[number % 2]
        timed = record_class is TimestampSequencedItemRecord
        position = Decimal(number) + Decimal("0.5") if timed else number
        attributes = {"timestamp" if timed else "originator_version": position}
        self.stores[record_class, application].append(
            event_class(originator_id=stream, secret=number, **attributes)
        )
        return Place(record_class, application, stream, position)

    def _at(self, place):
        record_class = place.record_class
        return (record_class.sequence_id == place.sequence_id) & (record_class.position == place.position)

    def _row(self, place):
        query = select(place.record_class.__table__).where(self._at(place))
        return self.session.connection().execute(query).one()._asdict()

    def read(self, place):
        return self.stores[place.record_class, place.application].get_domain_event(
            place.sequence_id, place.position
        )

    def write(self, place, **values):
        self.session.connection().execute(update(place.record_class).where(self._at(place)).values(**values))

    def move(self, place, to):
        """Put the row of *place* in the place of another one, with all that is in it."""
        row = {**self.rows[place], "sequence_id": to.sequence_id, "position": to.position}
        self.session.connection().execute(delete(to.record_class).where(self._at(to)))
        self.session.connection().execute(insert(to.record_class).values(**row))

    def refused(self, place):
        """Whether the edited row is refused; the edit is undone."""
        try:
            self.read(place)
        except EventSealError as error:
            return type(error)
        finally:
            self.session.rollback()
        return None


@pytest.fixture
def matrix(datastore):
    matrix = Matrix(datastore)
    matrix.session.rollback()
    for place in matrix.places:
        assert matrix.read(place).secret == int(place.position) % 100
    return matrix


def with_header_of(one, other):
    return other["data"][:HEADER_SIZE] + one["data"][HEADER_SIZE:]


EDITS = {
    "data": lambda one, other: {"data": other["data"]},
    "data behind the header": lambda one, other: {"data": with_header_of(other, one)},
    "header": lambda one, other: {"data": with_header_of(one, other)},
    "header and key id": lambda one, other: {"data": with_header_of(one, other), "key_id": other["key_id"]},
    "key id": lambda one, other: {"key_id": other["key_id"]},
    "data and key id": lambda one, other: {"data": other["data"], "key_id": other["key_id"]},
    "topic": lambda one, other: {"topic": other["topic"]},
    "topic and data": lambda one, other: {"topic": other["topic"], "data": other["data"]},
    "topic, data and key id": lambda one, other: {name: other[name] for name in CONTENT},
    "no key id": lambda one, other: {"key_id": None},
    "no key id, other data": lambda one, other: {"key_id": None, "data": other["data"]},
    "plain data": lambda one, other: {"key_id": None, "data": b'{"secret":0}'},
}


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS)
def test_no_field_of_any_row_is_exchanged_with_any_others(matrix, edit):
    tried = 0
    for one, other in permutations(matrix.places, 2):
        before = matrix.rows[one]
        values = EDITS[edit](before, matrix.rows[other])
        if all(before[name] == value for name, value in values.items()):
            continue  # both rows have the same there
        matrix.write(one, **values)
        tried += 1
        refusal = matrix.refused(one)
        assert refusal is not None, (one, other)
        if edit != "plain data":
            assert refusal in (IntegrityError, WrongApplicationError), (one, other, refusal)
    assert tried > len(matrix.places)


@pytest.mark.slow
def test_no_row_is_moved_to_any_others_place(matrix):
    """Another position, stream, table, application, or several of these at once."""
    for one, other in permutations(matrix.places, 2):
        matrix.move(one, to=other)
        assert matrix.refused(other) in (IntegrityError, WrongApplicationError), (one, other)


def test_no_row_is_copied_to_an_empty_place(matrix):
    for place in matrix.places:
        for edit in ({"position": place.position + 100}, {"sequence_id": UUID(int=3)}):
            matrix.write(place, **edit)
            moved = place._replace(**edit)
            assert matrix.refused(moved) is IntegrityError, moved


@pytest.mark.slow
def test_no_two_rows_are_exchanged(matrix):
    for one, other in permutations(matrix.places, 2):
        matrix.write(one, **{name: matrix.rows[other][name] for name in CONTENT})
        matrix.write(other, **{name: matrix.rows[one][name] for name in CONTENT})
        with pytest.raises((IntegrityError, WrongApplicationError)):
            matrix.read(one)
        assert matrix.refused(other) in (IntegrityError, WrongApplicationError), (one, other)


def test_no_row_is_read_by_the_other_application(matrix):
    for place in matrix.places:
        other = "bank" if place.application == "shop" else "shop"
        assert matrix.refused(place._replace(application=other)) is WrongApplicationError


def test_no_row_is_read_as_another_collections(matrix):
    store = matrix.stores[IntegerSequencedItemRecord, "shop"]
    place = next(
        place
        for place in matrix.places
        if place.record_class is SnapshotRecord and place.application == "shop"
    )
    snapshots = matrix.stores[SnapshotRecord, "shop"]

    item = snapshots.active_record_strategy.get_item(place.sequence_id, place.position)
    assert snapshots.sequenced_item_mapper.from_sequenced_item(item)
    with pytest.raises(IntegrityError):
        store.sequenced_item_mapper.from_sequenced_item(item)


def test_no_scopes_key_seals_for_another_scope(matrix):
    """Even one who may seal for a stream cannot write into another's."""
    honest = matrix.stores[IntegerSequencedItemRecord, "shop"]
    rogue = SequencedItemMapper(
        cipher=honest.sequenced_item_mapper.cipher,
        sequence_id_attr_name="originator_id",
        position_attr_name="originator_version",
        key_scope=f"stream:{STREAMS[1]}",
    )
    EventStore(honest.active_record_strategy, rogue).append(
        Placed(originator_id=STREAMS[0], originator_version=50, secret=0)
    )

    with pytest.raises(IntegrityError, match="not a key of the event's scope"):
        honest.get_domain_event(STREAMS[0], 50)
