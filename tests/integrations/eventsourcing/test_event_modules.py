"""What the library's mapper would import for a row in an older format: only what the program has."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from uuid import uuid4

import eventsourcing.utils
import pytest
from eventsourcing.domain import Aggregate, Snapshot
from eventsourcing.persistence import DatetimeAsISO, JSONTranscoder, StoredEvent
from tests.integrations.eventsourcing.dogs import Dog

from eventseal import AESCipher
from eventseal.errors import SerializationError
from eventseal.integrations.eventsourcing import EncryptingMapper
from eventseal.items.acceptance import AcceptedFormats
from eventseal.items.formats import PlainJSON
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemySettings


class Plain:
    originator_id: str


@pytest.fixture
def make_mapper():
    datastore = SQLAlchemyDatastore(SQLAlchemySettings())
    seal = SimpleNamespace(
        cipher=AESCipher(b"k" * 32), datastore=datastore, accepted_formats=AcceptedFormats([PlainJSON()])
    )

    def make(**options):
        transcoder = JSONTranscoder()
        transcoder.register(DatetimeAsISO())
        seal.event_modules = options.pop("of_the_seal", ())
        return EncryptingMapper.using(seal, **options)(transcoder)

    yield make
    datastore.close()


@pytest.fixture
def trap(tmp_path, monkeypatch):
    name = f"trap_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text("class Placed:\n    originator_id: str\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def stored(topic: str, /, **state) -> StoredEvent:
    return StoredEvent(str(uuid4()), 1, topic, json.dumps(state).encode())


def of(cls) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def test_a_topic_imports_nothing(make_mapper, trap):
    with pytest.raises(SerializationError, match=trap) as refused:
        make_mapper().to_domain_event(stored(f"{trap}:Placed"))
    assert f'event_modules = ["{trap}"]' in refused.value.remedy
    assert trap not in sys.modules


@pytest.mark.parametrize(
    ("cls", "state"),
    [
        (Dog.Registered, {"originator_topic": "%s:Placed"}),
        (Aggregate.Created, {"originator_topic": "%s:Placed"}),
        (Snapshot, {"topic": "%s:Placed", "state": {}}),
        (Snapshot, {"topic": ["%s:Placed"], "state": {}}),
    ],
    ids=str,
)
def test_nor_does_the_class_of_an_aggregate(make_mapper, trap, cls, state):
    named = json.loads(json.dumps(state).replace("%s", trap))
    with pytest.raises(SerializationError, match=trap):
        make_mapper().to_domain_event(stored(of(cls), **named))
    assert trap not in sys.modules


def test_imported_classes_of_the_librarys_events_and_aggregates_count(make_mapper):
    eventsourcing.utils.clear_topic_cache()
    found = make_mapper().to_domain_events(
        [
            stored(of(Dog.Registered), originator_topic=of(Dog), name="Fido"),
            stored(of(Snapshot), topic=of(Dog), state={}),
        ]
    )
    assert [type(event) for event in found] == [Dog.Registered, Snapshot]


def test_what_is_registered_with_the_library_counts(make_mapper):
    topic = f"an.older.name:{uuid4().hex}"
    eventsourcing.utils.register_topic(topic, Plain)
    assert type(make_mapper().to_domain_event(stored(topic))) is Plain


@pytest.mark.parametrize("where", ["of_the_seal", "event_modules"])
def test_the_modules_are_the_seals_unless_the_mapper_is_given_others(make_mapper, trap, where):
    event = make_mapper(**{where: [trap]}).to_domain_event(stored(f"{trap}:Placed"))
    assert of(type(event)) == f"{trap}:Placed"
    with pytest.raises(SerializationError):
        make_mapper(of_the_seal=[trap], event_modules=()).to_domain_event(stored(f"{trap}x:Placed"))


@pytest.mark.parametrize("registered", ["module", "package", "class"])
def test_what_is_registered_with_the_library_counts_for_what_is_inside_it(
    make_mapper, trap, tmp_path, registered
):
    (tmp_path / trap).mkdir()
    (tmp_path / trap / "__init__.py").touch()
    (tmp_path / trap / "orders.py").write_text(
        "class Order:\n    class Placed:\n        originator_id: str\n"
    )
    old = f"old_{trap}"
    part = {"module": ".orders", "package": "", "class": ".orders:Order"}[registered]
    with pytest.raises(SerializationError, match="not authenticated") as refused:
        make_mapper(event_modules=[trap]).to_domain_event(stored(f"{old}.orders:Order.Placed"))
    assert "event_modules = " not in refused.value.remedy  # there is no such module
    eventsourcing.utils.register_topic(old + part, eventsourcing.utils.resolve_topic(trap + part))
    event = make_mapper(event_modules=[trap]).to_domain_event(stored(f"{old}.orders:Order.Placed"))
    assert of(type(event)) == f"{trap}.orders:Order.Placed"
    with pytest.raises(SerializationError) as refused:
        make_mapper().to_domain_event(stored(f"{old}.orders:Order.Other"))
    assert f'event_modules = ["{trap}"]' in refused.value.remedy
    sys.modules.pop(f"{trap}.orders")


@pytest.mark.parametrize("name", ["mutate", "apply", "__reduce_ex__"])
def test_an_attribute_stands_before_no_method_of_an_event(make_mapper, name):
    with pytest.raises(SerializationError, match=f"attribute {name!r}"):
        make_mapper().to_domain_event(stored(of(Dog.Registered), originator_topic=of(Dog), **{name: "x"}))
