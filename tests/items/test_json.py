"""The transcoder gives every value back as it was, and refuses what it cannot."""

import enum
import json
import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventseal.errors import ConfigurationError, SerializationError
from eventseal.items import JSONTranscoder
from eventseal.items.json_writer import MOST_NESTED
from eventseal.items.sealed_fields import stored_fields


class Colour(enum.Enum):
    RED = "r"
    BLUE = object()


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Kind(enum.StrEnum):
    A = "a"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Line:
    name: str
    price: Any = None


@dataclass(frozen=True, slots=True)
class Point:
    x: Any
    y: Any = field(default=0)


class Pair(NamedTuple):
    a: Any
    b: Any


OFFSETS = st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.sampled_from(["$", "$dict", "$uuid", "$tuple", ""]),
    st.binary(),
    st.uuids(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.datetimes(),
    st.datetimes(timezones=OFFSETS),
    st.dates(),
    st.times(),
    st.times(timezones=OFFSETS),
    st.timedeltas(),
    st.sampled_from([*Colour, *Level, *Kind, Rights.READ, Rights.READ | Rights.WRITE, Rights(0)]),
)
KEYS = st.recursive(
    HASHABLE, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.sets(KEYS, max_size=3),
        st.frozensets(KEYS, max_size=3),
        st.dictionaries(st.text(), inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
        st.builds(Line, st.text(), inner),
        st.builds(Point, inner, inner),
    ),
    max_leaves=12,
)

transcoder = JSONTranscoder()


def shape(value: Any) -> Any:
    """What equality forgets: 1, True and 1.0 are three things, and so are 0.0 and -0.0, in any depth."""
    name = type(value).__name__
    match value:
        case dict():
            return name, [(shape(key), shape(inner)) for key, inner in value.items()]
        case list() | tuple():
            return name, [shape(inner) for inner in value]
        case set() | frozenset():
            return name, sorted(repr(shape(inner)) for inner in value)
        case Line() | Point():
            return name, [shape(getattr(value, field)) for field in value.__dataclass_fields__]
        case datetime() | time():
            return name, value.replace(tzinfo=None), value.utcoffset(), value.fold
        case _:
            return name, repr(value)


def same(a: Any, b: Any) -> bool:
    return shape(a) == shape(b)


@given(VALUES)
def test_every_value_comes_back_as_it_was(value):
    assert same(transcoder.decode(transcoder.encode(value)), value)


@pytest.mark.slow
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_attributes_come_back_as_they_were(attributes):
    assert same(transcoder.decode(transcoder.encode_attributes(attributes, owner="owner")), attributes)


@pytest.mark.parametrize(
    "attributes", [{"$uuid": "no uuid"}, {"$": 1}, {"$dict": [[1, 2]]}, {"$a": 1, "$b": 2}, {}]
)
def test_attributes_that_look_like_a_stored_type_stay_attributes(attributes):
    assert same(transcoder.decode(transcoder.encode_attributes(attributes, owner="owner")), attributes)


@given(VALUES)
def test_what_is_written_is_compact_json(value):
    written = transcoder.encode(value)

    parsed = json.loads(written)
    assert written == json.dumps(parsed, separators=(",", ":"), ensure_ascii=False).encode()


@given(VALUES)
def test_equal_values_are_equal_bytes(value):
    assert transcoder.encode(transcoder.decode(transcoder.encode(value))) == transcoder.encode(value)


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(), st.sampled_from(["$dict", "$uuid"])
    )
    keys = st.one_of(
        st.text(), st.sampled_from(["$", "$dict", "$uuid", "$bytes", "$set", "$enum", "$dataclass"])
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=2),
        max_leaves=10,
    )


@given(json_values())
def test_a_dictionary_that_looks_like_a_stored_type_stays_a_dictionary(value):
    assert same(transcoder.decode(transcoder.encode(value)), value)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (UUID(int=1), b'{"$uuid":"00000000-0000-0000-0000-000000000001"}'),
        (datetime(2012, 1, 2, 3, 4, 5, 6), b'{"$datetime":"2012-01-02T03:04:05.000006"}'),  # noqa: DTZ001
        (datetime(2012, 1, 2, tzinfo=UTC), b'{"$datetime":"2012-01-02T00:00:00+00:00"}'),
        (datetime(2012, 1, 2, fold=1), b'{"$datetime":["2012-01-02T00:00:00",1]}'),  # noqa: DTZ001
        (date(2012, 1, 2), b'{"$date":"2012-01-02"}'),
        (time(1, 2), b'{"$time":"01:02:00"}'),
        (timedelta(days=1, microseconds=-1), b'{"$timedelta":[0,86399,999999]}'),
        (Decimal("1.50"), b'{"$decimal":"1.50"}'),
        (b"\x00\xff", b'{"$bytes":"AP8="}'),
        ((1, "a"), b'{"$tuple":[1,"a"]}'),
        ({2, 1}, b'{"$set":[1,2]}'),
        (frozenset({"é"}), '{"$frozenset":["é"]}'.encode()),
        ({1: 2}, b'{"$dict":[[1,2]]}'),
        ({"$x": 1}, b'{"$dict":[["$x",1]]}'),
        ({"$x": 1, "y": 2}, b'{"$x":1,"y":2}'),
        (Colour.RED, f'{{"$enum":["{__name__}:Colour","RED"]}}'.encode()),
        (Rights.READ | Rights.WRITE, f'{{"$enum":["{__name__}:Rights",3]}}'.encode()),
        (Point(1, 2), f'{{"$dataclass":["{__name__}:Point",{{"x":1,"y":2}}]}}'.encode()),
    ],
)
def test_what_is_stored_keeps_its_form(value, written):
    """A change here makes stored items unreadable."""
    assert transcoder.encode(value) == written
    assert same(transcoder.decode(written), value)


def test_a_zone_comes_back_as_its_offset():
    moment = datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Amsterdam"))

    found = transcoder.decode(transcoder.encode(moment))

    assert found == moment
    assert found.utcoffset() == timedelta(hours=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [float, Decimal])
def test_what_is_not_finite_is_refused(kind, value):
    with pytest.raises(SerializationError, match=r"^value\[1\] is a (float|Decimal) that is not finite$"):
        transcoder.encode([0, kind(value)])


class NoOffset(tzinfo):
    def utcoffset(self, when):
        return None


@pytest.mark.parametrize(
    "value",
    [
        datetime(2012, 1, 2, tzinfo=NoOffset()),
        time(1, tzinfo=ZoneInfo("Europe/Paris")),
        time(1, tzinfo=timezone(timedelta(microseconds=1))),
    ],
)
def test_a_time_whose_offset_would_not_come_back_is_refused(value):
    with pytest.raises(SerializationError, match="whose zone gives no offset of whole seconds"):
        transcoder.encode(value)


class Text(str):
    __slots__ = ()


class Secret:
    def __repr__(self) -> str:
        return "secret info"


@pytest.mark.parametrize(
    "value",
    [
        Text("secret info"),
        Secret(),
        Pair("secret info", 1),
        OrderedDict(x="secret info"),
        bytearray(b"secret info"),
        range(3),
        Secret,
        1j,
    ],
)
def test_a_type_without_an_encoding_is_named_and_its_value_is_not(value):
    with pytest.raises(SerializationError) as caught:
        transcoder.encode_attributes(
            {"a": 1, "lines": [0, {"secret info": Point(1, (value,))}]}, owner="shop:Order"
        )

    error = caught.value
    assert str(error).startswith("shop:Order.lines[1]{0}.y[0] is a ")
    assert type(value).__name__ in str(error)
    assert error.path == "shop:Order.lines[1]{0}.y[0]"
    assert "secret" not in str(error)
    assert error.__context__ is None
    assert error.__cause__ is None


def test_a_key_without_an_encoding_is_counted_and_not_shown():
    with pytest.raises(SerializationError, match=r"^value\{1\}\[0\] is a "):
        transcoder.encode({"secret info": 1, (Secret(),): 2})


@pytest.mark.parametrize("value", ["a\ud800", ["\udfff"], {"\ud800": 1}, {1: "\ud800"}])
def test_a_lone_surrogate_is_refused_since_it_has_no_bytes(value):
    with pytest.raises(SerializationError, match="lone surrogate") as caught:
        transcoder.encode(value)
    assert caught.value.__context__ is None


def test_an_attribute_name_with_a_lone_surrogate_is_refused():
    with pytest.raises(SerializationError, match="lone surrogate"):
        transcoder.encode_attributes({"a\ud800": 1}, owner="owner")


def test_an_integer_of_too_many_digits_is_refused():
    with pytest.raises(SerializationError, match="too many digits"):
        transcoder.encode([10**5000])


def test_what_holds_itself_is_refused():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(SerializationError, match="nested too deeply, or holds itself"):
        transcoder.encode(loop)


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = "[" * 500 + '\\"' + "{" * 500  # brackets in strings are no levels
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    ("wrap", "levels"),
    [
        (lambda value: [value], 1),
        (lambda value: {"a": value}, 1),
        (lambda value: (value,), 2),
        (lambda value: {1: value}, 3),
        (lambda value: Point(value, 0), 3),
    ],
)
def test_what_is_written_can_be_read_and_what_is_deeper_is_refused(wrap, levels):
    most = MOST_NESTED // levels
    deepest = nested(most, wrap)
    written = transcoder.encode(deepest)
    assert transcoder.decode(written) == deepest
    assert transcoder.build(transcoder.parse(written)) == deepest
    with pytest.raises(SerializationError, match="nested too deeply") as caught:
        transcoder.encode(nested(most + 1, wrap))
    assert "flatter form" in caught.value.remedy


@pytest.mark.parametrize("levels", [sys.getrecursionlimit() - 10, 100_000])
@pytest.mark.parametrize(("before", "behind"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_json_of_more_levels_than_the_stack_has_is_named_as_such(levels, before, behind):
    data = before * levels + b"1" + behind * levels
    with pytest.raises(SerializationError, match="nested too deeply"):
        transcoder.build(transcoder.parse(data))


def test_what_was_parsed_and_is_too_deep_to_be_built_is_named_as_such():
    raw: Any = 1
    for _ in range(sys.getrecursionlimit()):
        raw = [raw]
    with pytest.raises(SerializationError, match="nested too deeply"):
        transcoder.build(raw)
    with pytest.raises(SerializationError, match="nested too deeply"):
        stored_fields({"a": raw}, {})


def test_json_of_more_levels_than_the_parser_has_is_named_as_such():
    with pytest.raises(SerializationError, match="nested too deeply"):
        transcoder.decode(b"[" * 100_000 + b"]" * 100_000)


def test_an_enumeration_that_cannot_be_found_again_is_refused():
    local = enum.Enum("local", "A")
    with pytest.raises(SerializationError, match="cannot be found again"):
        transcoder.encode(local.A)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a":1}x',
        b'{"a":1}{"a":1}',
        b"\xff",
        b'"\xed\xa0\x80"',
        b"[NaN]",
        b"[Infinity]",
        b"[-Infinity]",
        b"[" * 100_000,
        b"1" * 5000,
        b'{"$unknown":1}',
        b'{"$uuid":"no uuid"}',
        b'{"$uuid":1}',
        b'{"$datetime":"yesterday"}',
        b'{"$datetime":[]}',
        b'{"$timedelta":[1e400]}',
        b'{"$decimal":"x"}',
        b'{"$bytes":"*"}',
        b'{"$set":[[]]}',
        b'{"$dict":[[[],1]]}',
        b'{"$dict":[1]}',
        b'{"$enum":["decimal:Decimal","A"]}',
        b'{"$enum":["no.such:Enum","A"]}',
        f'{{"$enum":["{__name__}:Colour","GREEN"]}}'.encode(),
        b'{"$dataclass":["decimal:Decimal",{}]}',
        f'{{"$dataclass":["{__name__}:Secret",{{}}]}}'.encode(),
        f'{{"$dataclass":["{__name__}:Point",{{"z":1}}]}}'.encode(),
        f'{{"$dataclass":["{__name__}:Point",[1]]}}'.encode(),
        f'{{"$dataclass":["{__name__}:Point",{{"__class__":1}}]}}'.encode(),
    ],
)
def test_what_was_not_written_by_the_transcoder_is_refused(data):
    with pytest.raises(SerializationError) as caught:
        transcoder.decode(data)
    assert caught.value.__cause__ is None or not isinstance(caught.value.__cause__, ValueError)


def test_an_error_of_reading_does_not_hold_what_was_read():
    for data in (b'{"a":"secret info"', b'{"$uuid":"secret info"}', b'{"$decimal":"secret info"}'):
        with pytest.raises(SerializationError) as caught:
            transcoder.decode(data)
        assert "secret" not in str(caught.value)
        assert caught.value.__context__ is None


def test_json_with_white_space_around_it_is_read():
    assert transcoder.decode(b' {"a": [1, 2]}\n') == {"a": [1, 2]}


def test_a_registered_type_is_written_and_read():
    own = JSONTranscoder()
    own.register(complex, "complex", lambda value: (value.real, value.imag), lambda value: complex(*value))

    assert own.encode([1 + 2j]) == b'[{"$complex":{"$tuple":[1.0,2.0]}}]'
    assert own.decode(own.encode([1 + 2j])) == [1 + 2j]
    with pytest.raises(SerializationError, match="no type is registered under 'complex'"):
        JSONTranscoder().decode(own.encode(1j))


def test_what_a_registered_type_cannot_encode_is_named_by_its_path():
    own = JSONTranscoder()
    own.register(complex, "complex", lambda value: Secret(), complex)

    with pytest.raises(SerializationError, match=r"^value\[0\] is a "):
        own.encode([1j])


@pytest.mark.parametrize(
    ("cls", "name"), [(complex, "uuid"), (UUID, "uid"), (str, "text"), (complex, "dict")]
)
def test_a_type_or_a_name_is_not_registered_twice(cls, name):
    with pytest.raises(ConfigurationError, match="registered already"):
        JSONTranscoder().register(cls, name, str, cls)


def test_a_type_may_be_registered_though_its_kind_has_an_encoding():
    own = JSONTranscoder()
    own.register(Point, "point", lambda value: [value.x, value.y], lambda value: Point(*value))

    assert own.encode(Point(1, 2)) == b'{"$point":[1,2]}'
    assert own.decode(b'{"$point":[1,2]}') == Point(1, 2)
    assert own.decode(transcoder.encode(Point(1, 2))) == Point(1, 2)
