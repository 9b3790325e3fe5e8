"""Canonical values and associated data: equal exactly when the database cannot tell two places apart."""

from __future__ import annotations

import enum
from decimal import Decimal, localcontext
from fractions import Fraction
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures.untimed import untimed

from eventseal.cipher import ItemContext
from eventseal.cipher.context import ItemBinder, canonical_position, canonical_sequence_id
from eventseal.errors import SerializationError

STREAM = UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
LEAST, MOST = -(2**63), 2**63 - 1


def integer(value):
    return b"\x03" + value.to_bytes(8, "big", signed=True)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0, integer(0)),
        (1, integer(1)),
        (-1, integer(-1)),
        (MOST, integer(MOST)),
        (LEAST, integer(LEAST)),
        (Decimal(0), integer(0)),
        (Decimal("-0"), integer(0)),
        (Decimal("-0.000000"), integer(0)),
        (Decimal("0E+999999"), integer(0)),
        (Decimal("0E-999999"), integer(0)),
        (Decimal("3.000"), integer(3)),
        (Decimal("3E+2"), integer(300)),
        (Decimal(MOST), integer(MOST)),
        (Decimal(LEAST), integer(LEAST)),
        (Decimal("1.5"), b"\x041.5"),
        (Decimal("1.50"), b"\x041.5"),
        (Decimal("1.500000000000000"), b"\x041.5"),
        (Decimal("-1.5"), b"\x04-1.5"),
        (Decimal("-0.5"), b"\x04-0.5"),
        (Decimal("0.000001"), b"\x040.000001"),
        (Decimal("1E-6"), b"\x040.000001"),
        (Decimal("1317422324.546"), b"\x041317422324.546"),
        (Decimal("9223372036854775807.999999"), b"\x049223372036854775807.999999"),
    ],
    ids=str,
)
def test_a_position_has_one_canonical_value(position, expected):
    assert canonical_position(position) == expected


@pytest.mark.parametrize(
    "position",
    [
        1.0,
        True,
        False,
        None,
        "1",
        b"1",
        1j,
        Fraction(1),
        MOST + 1,
        LEAST - 1,
        10**5000,
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        Decimal("-Infinity"),
        Decimal("0.0000001"),
        Decimal("1.0000000000000000000000000000000000000000001"),
        Decimal("1E-999999"),
        Decimal("1E+999999"),
        Decimal(MOST + 1),
        Decimal(LEAST - 1),
        Decimal("9223372036854775808.5"),
        Decimal("-9223372036854775808.5"),
        Decimal("1" * 5000),
    ],
    ids=lambda value: str(value)[:12] if not isinstance(value, int) else f"{value:#x}"[:12],
)
def test_a_position_without_one_is_refused(position):
    for give in (canonical_position, lambda value: ItemBinder("shop").bind(ItemContext("s", value, "t"))):
        with pytest.raises(SerializationError) as caught:
            give(position)
        assert caught.value.remedy != SerializationError.default_remedy


@pytest.mark.parametrize("position", [MOST + 1, Decimal(LEAST - 1), Decimal("1E+40"), Decimal("1E+999999")])
def test_a_position_that_is_too_large_is_told_so(position):
    with pytest.raises(SerializationError, match="64 bits"):
        canonical_position(position)


def test_the_callers_decimal_context_changes_nothing():
    with localcontext(prec=2):
        assert canonical_position(Decimal("123456.789")) == b"\x04123456.789"


@pytest.mark.parametrize(
    ("sequence_id", "expected"),
    [
        (STREAM, b"\x01" + STREAM.bytes),
        (str(STREAM), b"\x01" + STREAM.bytes),
        (str(STREAM).upper(), b"\x02" + str(STREAM).upper().encode()),
        (STREAM.hex, b"\x02" + STREAM.hex.encode()),
        (f"{{{STREAM}}}", b"\x02" + f"{{{STREAM}}}".encode()),
        (f"urn:uuid:{STREAM}", b"\x02" + f"urn:uuid:{STREAM}".encode()),
        ("g" * 36, b"\x02" + b"g" * 36),
        ("0" * 36, b"\x02" + b"0" * 36),
        ("-" * 4 + "0" * 32, b"\x02" + b"-" * 4 + b"0" * 32),
        ("", b"\x02"),
        ("order-1", b"\x02order-1"),
        ("\u00e9", b"\x02\xc3\xa9"),
        ("e\u0301", b"\x02e\xcc\x81"),
    ],
    ids=ascii,
)
def test_a_sequence_id_has_one_canonical_value(sequence_id, expected):
    assert canonical_sequence_id(sequence_id) == expected


@pytest.mark.parametrize(
    "sequence_id",
    [None, 1, 1.5, b"x", ["x"], "a\0b", "\ud800", pytest.param(object(), id="object")],
    ids=ascii,
)
def test_a_sequence_id_without_one_is_refused(sequence_id):
    for give in (canonical_sequence_id, lambda value: ItemBinder("shop").bind(ItemContext(value, 1, "t"))):
        with pytest.raises(SerializationError):
            give(sequence_id)


@pytest.mark.parametrize("name", [None, 1, b"x", ["x"], {}, "a\0b", "\udfff", STREAM], ids=ascii)
def test_a_topic_a_collection_and_an_application_are_text(name):
    for context in (ItemContext("s", 1, name), ItemContext("s", 1, "t", collection=name)):
        with pytest.raises(SerializationError):
            ItemBinder("shop").bind(context)
    if isinstance(name, str):
        with pytest.raises(SerializationError):
            ItemBinder(name).bind(ItemContext("s", 1, "t"))


def test_a_refusal_does_not_repeat_what_it_refuses():
    """An error's text goes to logs; a stream's id may be personal data."""
    with pytest.raises(SerializationError) as caught:
        canonical_sequence_id("customer jane\0")
    assert "jane" not in str(caught.value) + caught.value.remedy


class Topic(enum.StrEnum):
    PLACED = "Placed"


class Number(enum.IntEnum):
    SEVEN = 7


class Name(str):
    __slots__ = ()


class Id(UUID):
    pass


def test_subclasses_bind_like_what_they_are():
    bind = ItemBinder("shop").bind
    plain = bind(ItemContext("stream", 7, "Placed", "items"))
    assert bind(ItemContext(Name("stream"), Number.SEVEN, Topic.PLACED, Name("items"))) == plain
    assert bind(ItemContext(Id(str(STREAM)), 7, "t")) == bind(ItemContext(STREAM, 7, "t"))


def test_associated_data_is_what_the_format_says():
    bound = ItemBinder("shop").bind(ItemContext(STREAM, 7, "shop:Placed", "snapshots"))
    assert bound == bytes.fromhex(
        "00000004" + b"item".hex() + "00000004" + b"shop".hex() + "00000009" + b"snapshots".hex()
        + "00000011" + "01" + STREAM.hex + "00000009" + "03" + "0000000000000007"
        + "0000000b" + b"shop:Placed".hex()
    )  # fmt: skip


# --- properties ---------------------------------------------------------------------------------------------

TEXT = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
IDS = st.one_of(
    st.uuids(),
    st.uuids().map(str),
    st.uuids().map(lambda value: str(value).upper()),
    st.sampled_from([STREAM, str(STREAM), str(STREAM).upper(), STREAM.hex, "a", "b", ""]),
    TEXT,
)
POSITIONS = st.one_of(
    st.integers(LEAST, MOST),
    st.integers(-3, 3),
    st.decimals(min_value=-(10**12), max_value=10**12, places=6),
    st.decimals(min_value=-3, max_value=3, places=1),
    st.sampled_from([Decimal("-0"), Decimal("1.0"), Decimal("1E+1"), Decimal("1.10"), Decimal("1.1")]),
)
CONTEXTS = st.builds(ItemContext, IDS, POSITIONS, TEXT, TEXT)


def stored(context):
    """What the database has of a place, by columns of UUID or text, and of integers or decimals."""
    sequence_id = context.sequence_id
    if isinstance(sequence_id, str):
        try:
            parsed = UUID(sequence_id)
        except ValueError:
            parsed = None
        if parsed is not None and str(parsed) == sequence_id:
            sequence_id = parsed
    return sequence_id, Fraction(context.position), context.topic, context.collection


@untimed
@given(CONTEXTS, CONTEXTS, st.sampled_from(["shop", "shops"]), st.sampled_from(["shop", "shops"]))
def test_two_places_bind_alike_only_if_the_database_cannot_tell_them_apart(left, right, one, other):
    alike = ItemBinder(one).bind(left) == ItemBinder(other).bind(right)
    assert alike == (one == other and stored(left) == stored(right))


@untimed
@given(st.tuples(TEXT, TEXT, TEXT), st.tuples(TEXT, TEXT, TEXT))
def test_no_text_moves_from_one_part_to_the_next(left, right):
    first, second = (ItemBinder("shop").bind(ItemContext(i, 0, t, c)) for i, t, c in (left, right))
    assert (first == second) == (left == right)


@untimed
@given(POSITIONS)
def test_a_canonical_position_reads_back_as_the_same_number(position):
    value = canonical_position(position)
    if value[0] == 3:
        assert int.from_bytes(value[1:], "big", signed=True) == position
    else:
        assert Decimal(value[1:].decode()) == position
        assert not value.endswith(b"0")
