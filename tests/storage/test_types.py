"""Columns hold a place exactly, and tell two places apart exactly when their associated data differs."""

from __future__ import annotations

import decimal
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, func, insert, select

from eventseal.cipher.context import canonical_position, canonical_sequence_id
from eventseal.errors import IntegrityError, SerializationError
from eventseal.storage.database.column_types import (
    BinaryUUID,
    DatabaseClock,
    ExactDecimal,
    ExactInteger,
    ExactText,
    UTCTimestamp,
)
from eventseal.storage.database.faults import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Connection

values = Table(
    "typed_values",
    MetaData(),
    Column("id", Integer(), primary_key=True),
    Column("uuid", BinaryUUID()),
    Column("text", ExactText()),
    Column("integer", ExactInteger()),
    Column("decimal", ExactDecimal()),
    Column("moment", UTCTimestamp()),
)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('types') / 'types.sqlite'}"
    else:
        make: Callable[[], str] = request.getfixturevalue("new_postgres_database")
        url = make()
    engine = create_engine(url)
    values.metadata.create_all(engine)
    yield engine
    engine.dispose()


def stored(connection: Connection, column: str, value: object) -> object:
    """What comes back of a value."""
    with translated("storing a value"):
        connection.execute(insert(values), {column: value})
    latest = select(values.c[column]).order_by(values.c.id.desc()).limit(1)
    return connection.execute(latest).scalar_one()


def same_to_database(engine: Engine, column: str, first: object, second: object) -> bool:
    """Whether a row with the first value is found by the second."""
    with engine.connect() as connection, translated("comparing values"):
        connection.execute(insert(values), {column: first})
        found = select(func.count()).where(values.c[column] == second)
        return bool(connection.execute(found).scalar_one())


uuids = st.uuids() | st.sampled_from([UUID(int=0), UUID(int=2**128 - 1)])
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
integers = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)
micros = st.integers(-(2**63), 2**63 - 1) | st.integers(-3_000_001, 3_000_001)


@st.composite
def spelled_numbers(draw: st.DrawFn, numbers: st.SearchStrategy[Decimal]) -> tuple[object, object]:
    """Two numbers, often one in two spellings."""

    def spell(number: Decimal) -> object:
        exact = decimal.Context(prec=60)
        spellings: list[object] = [
            number,
            number.normalize(exact),
            number.scaleb(3, exact).scaleb(-3, exact) * 1,
            exact.multiply(number, Decimal("1.0")),
        ]
        if number == number.to_integral_value():
            spellings.append(int(number))
        if not number:
            spellings.append(Decimal("-0"))
        return draw(st.sampled_from(spellings))

    first = draw(numbers)
    second = draw(st.just(first) | numbers)
    return spell(first), spell(second)


@st.composite
def spelled_ids(draw: st.DrawFn) -> tuple[object, object]:
    """Two sequence ids, often one in two spellings."""

    def spell(identifier: object) -> object:
        if isinstance(identifier, UUID):
            return draw(
                st.sampled_from([identifier, str(identifier), str(identifier).upper(), identifier.hex])
            )
        assert isinstance(identifier, str)
        forms = [unicodedata.normalize(form, identifier) for form in ("NFC", "NFD")]
        return draw(st.sampled_from([identifier, identifier.upper(), identifier + " ", *forms]))

    first = draw(uuids | texts)
    second = draw(st.just(first) | uuids | texts)
    return spell(first), spell(second)


def whole(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[Decimal]:
    return numbers.map(Decimal)


def from_micros(number: int) -> Decimal:
    return Decimal(number).scaleb(-6, decimal.Context(prec=40))


many = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@many
@given(pair=spelled_ids())
def test_text_ids_are_one_to_the_database_exactly_when_they_are_bound_as_one(engine, pair):
    first, second = pair
    bound_as_one = canonical_sequence_id(first) == canonical_sequence_id(second)
    assert same_to_database(engine, "text", first, second) == bound_as_one


@many
@given(pair=spelled_ids())
def test_uuids_are_one_to_the_database_exactly_when_they_are_bound_as_one(engine, pair):
    first, second = pair
    uuids_of = [value if isinstance(value, UUID) else _uuid_or_none(value) for value in pair]
    if not all(of is not None and value in {of, str(of)} for value, of in zip(pair, uuids_of, strict=True)):
        with pytest.raises(SerializationError):
            same_to_database(engine, "uuid", first, second)
    else:
        bound_as_one = canonical_sequence_id(first) == canonical_sequence_id(second)
        assert same_to_database(engine, "uuid", first, second) == bound_as_one


@many
@given(pair=spelled_numbers(whole(integers)))
def test_integers_are_one_to_the_database_exactly_when_they_are_bound_as_one(engine, pair):
    first, second = pair
    bound_as_one = canonical_position(first) == canonical_position(second)
    assert same_to_database(engine, "integer", first, second) == bound_as_one


@many
@given(pair=spelled_numbers(micros.map(from_micros)))
def test_decimals_are_one_to_the_database_exactly_when_they_are_bound_as_one(engine, pair):
    first, second = pair
    bound_as_one = canonical_position(first) == canonical_position(second)
    assert same_to_database(engine, "decimal", first, second) == bound_as_one


@many
@given(number=st.decimals(allow_nan=True, allow_infinity=True) | st.floats() | st.booleans() | st.integers())
def test_a_number_that_is_not_bound_is_not_stored(engine, number):
    try:
        canonical_position(number)
    except SerializationError:
        pass
    else:
        assume(False)
    for column in ("integer", "decimal"):
        with engine.connect() as connection, pytest.raises(SerializationError):
            stored(connection, column, number)


@many
@given(number=micros.map(from_micros))
def test_a_decimal_comes_back_exactly_with_six_places(engine, number):
    with engine.connect() as connection, decimal.localcontext(prec=3):
        read = stored(connection, "decimal", number)
    assert isinstance(read, Decimal)
    assert read == number
    assert read.as_tuple().exponent == -6


@pytest.mark.parametrize(
    "text", ["", "a\u00e9", "\U0001f408", "100% 'quoted' \"text\" \\ {x} :y", "x" * 10_000]
)
def test_text_comes_back_as_it_was(engine, text):
    with engine.connect() as connection:
        assert stored(connection, "text", text) == text


def test_a_uuid_comes_back_as_a_uuid_and_takes_16_bytes_on_sqlite(engine):
    identifier = uuid4()
    with engine.connect() as connection:
        assert stored(connection, "uuid", str(identifier)) == identifier
        if engine.dialect.name == "sqlite":
            raw = connection.exec_driver_sql("SELECT typeof(uuid), uuid FROM typed_values").one()
            assert raw == ("blob", identifier.bytes)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("uuid", "not a uuid"),
        ("uuid", 7),
        ("uuid", b"0" * 16),
        ("text", "nul\0"),
        ("text", "\ud800"),
        ("text", b"bytes"),
        ("text", 7),
        ("integer", "7"),
        ("integer", 2**63),
        ("integer", Decimal("1.5")),
        ("integer", Decimal("NaN")),
        ("decimal", "1.5"),
        ("decimal", Decimal("0.0000001")),
        ("decimal", Decimal(2**63)),
        ("decimal", Decimal("1E+30")),
        ("decimal", Decimal("-Infinity")),
    ],
)
def test_what_a_column_cannot_hold_exactly_is_refused(engine, column, value):
    with engine.connect() as connection, pytest.raises(SerializationError):
        stored(connection, column, value)


@pytest.mark.parametrize(
    ("column", "edited"),
    [
        ("uuid", "text"),
        ("uuid", b"15 bytes, not 16"[:15]),
        ("uuid", 7),
        ("text", b"bytes"),
        ("integer", "text"),
        ("integer", 1.5),
        ("decimal", "text"),
        ("decimal", b"bytes"),
    ],
)
def test_what_only_an_edit_can_have_put_there_is_an_integrity_error(tmp_path, column, edited):
    """SQLite lets an edit put anything anywhere."""
    engine = create_engine(f"sqlite:///{tmp_path / 'edited.sqlite'}")
    values.metadata.create_all(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"INSERT INTO typed_values (id, {column}) VALUES (1, ?)", (edited,))
        with pytest.raises(IntegrityError, match="edited"):
            connection.execute(select(values.c[column])).scalar_one()
    engine.dispose()


def test_nothing_stays_nothing(engine):
    with engine.connect() as connection:
        for column in ("uuid", "text", "integer", "decimal", "moment"):
            assert stored(connection, column, None) is None


def test_a_moment_comes_back_in_utc(engine):
    moment = datetime(2024, 2, 29, 23, 30, 15, 123456, tzinfo=timezone(timedelta(hours=-5)))
    with engine.connect() as connection:
        read = stored(connection, "moment", moment)
    assert isinstance(read, datetime)
    assert (read, read.utcoffset()) == (moment, timedelta(0))


def test_moments_sort_as_time_goes(engine):
    moments = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(microseconds=10**n) for n in range(9)]
    with engine.connect() as connection:
        connection.execute(insert(values), [{"moment": moment} for moment in reversed(moments)])
        found = connection.execute(select(values.c.moment).order_by(values.c.moment)).scalars()
        assert list(found) == moments


def test_the_clock_is_of_the_statement_and_not_of_its_transaction(engine):
    with engine.connect() as connection:
        first = connection.execute(select(DatabaseClock())).scalar_one()
        while (second := connection.execute(select(DatabaseClock())).scalar_one()) == first:
            assert datetime.now(UTC) - first < timedelta(minutes=5)
        assert first < second
        assert abs(second - datetime.now(UTC)) < timedelta(minutes=5)


def _uuid_or_none(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
