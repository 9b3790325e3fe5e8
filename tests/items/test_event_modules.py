"""What nobody authenticated names no code: an item's topic, the types inside it, the classes of entities."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from uuid import uuid4

import pytest

from eventseal.cipher import AESCipher, ItemContext
from eventseal.errors import ConfigurationError, SerializationError
from eventseal.eventstore import EventSourcedEntity, Snapshot, VersionedEntity
from eventseal.eventstore.application import ApplicationWithEventStores
from eventseal.eventstore.entities import WithReflexiveMutator
from eventseal.eventstore.events import DomainEvent
from eventseal.items import (
    JSONTranscoder,
    SequencedItem,
    SequencedItemMapper,
    register_alias,
    register_topic,
    resolve_topic,
    topic_of,
)
from eventseal.items.event_modules import EventModules
from eventseal.items.formats import PlainJSON, StaticKeyEnvelope
from eventseal.suites.envelope import parse_envelope

OLD_KEY = b"o" * 32
EVENTS = """
from collections import namedtuple
from dataclasses import dataclass
from enum import Enum
from subprocess import Popen
import subprocess

class Placed:
    class Inside:
        pass

class Colour(Enum):
    RED = "r"

@dataclass
class Line:
    sku: str
"""


class Renamed:
    pass


class Paid:
    pass


class Shipped(DomainEvent):
    pass


class Parcel(EventSourcedEntity):
    pass


class Size(Enum):
    BIG = "b"


@dataclass
class Label:
    text: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """On the path: ``shop``, ``shop.events``, ``shopping`` and ``trap``; each says that it was run."""
    names = [f"n{uuid4().hex}_{name}" for name in ("shop", "shopping", "trap")]
    for name in names:
        package = tmp_path / name
        package.mkdir()
        for module in ("__init__", "__main__", "events"):
            said = f"with open({str(tmp_path / 'ran')!r}, 'a') as f:\n    f.write(__name__ + ' ')\n"
            (package / f"{module}.py").write_text(said + EVENTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Folder(tmp_path, *names)
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]


class Folder:
    def __init__(self, path, shop, shopping, trap):
        self.path, self.shop, self.shopping, self.trap = path, shop, shopping, trap

    def ran(self) -> list[str]:
        said = self.path / "ran"
        return said.read_text().split() if said.exists() else []


def plain(topic: str, data: bytes | str = b"{}") -> SequencedItem:
    return SequencedItem(uuid4(), 0, topic, data if isinstance(data, bytes) else data.encode())


MAPPERS = {
    "no cipher": SequencedItemMapper,
    "plain beside sealed": lambda **options: SequencedItemMapper(
        cipher=AESCipher(b"k" * 32), always_encrypt=False, **options
    ),
    "an older format": lambda **options: SequencedItemMapper(
        cipher=AESCipher(b"k" * 32), accept=[PlainJSON()], **options
    ),
}


@pytest.fixture(params=MAPPERS.values(), ids=list(MAPPERS))
def make_mapper(request):
    return request.param


def test_a_class_that_the_program_never_meant_is_not_made(make_mapper, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    data = {"name": str(victim), "delete": True, "close_called": False, "file": None}
    item = plain("tempfile:_TemporaryFileCloser", json.dumps(data))
    with pytest.raises(SerializationError, match="tempfile:_TemporaryFileCloser"):
        make_mapper().from_sequenced_item(item)
    gc.collect()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("marker", ["$dataclass", "$enum", "\\u0024enum", "$\\u0065num"])
@pytest.mark.parametrize("nesting", ["%s", '[{"$tuple":[{"a":%s}]}]', '{"$dict":[["a",%s]]}'])
def test_a_type_inside_the_json_imports_nothing_at_any_depth(make_mapper, folder, marker, nesting):
    named = f'{{"{marker}":["{folder.trap}:Colour","RED"]}}'
    with pytest.raises(SerializationError, match=folder.trap):
        make_mapper().from_sequenced_item(plain(topic_of(Paid), f'{{"x":{nesting % named}}}'))
    assert folder.ran() == []


@pytest.mark.parametrize(
    "stored",
    [
        '{"%s:Colour":1,"more":2}',
        '{"$tuple":["%s:Colour","RED"]}',
        '["%s:Colour","RED",1]',
    ],
)
def test_a_type_that_is_written_in_another_way_is_none(folder, stored):
    data = f'{{"$enum":{stored % folder.trap}}}'.encode()
    for resolve in (EventModules().resolve, resolve_topic):
        with pytest.raises(SerializationError, match="does not name its class"):
            JSONTranscoder().decode(data, resolve=resolve)
    assert folder.ran() == []


def test_the_transcoder_alone_is_as_strict(folder):
    data = f'{{"$enum":["{folder.trap}:Colour","RED"]}}'.encode()
    with pytest.raises(SerializationError, match="not authenticated"):
        JSONTranscoder().decode(data)
    with pytest.raises(SerializationError, match="not authenticated"):
        JSONTranscoder().build(json.loads(data))
    assert folder.ran() == []
    assert JSONTranscoder().decode(data, resolve=resolve_topic).value == "r"


def test_the_error_names_the_topic_and_the_line_to_add(make_mapper, folder):
    topic = f"{folder.shop}.events:Placed"
    with pytest.raises(SerializationError) as refused:
        make_mapper().from_sequenced_item(plain(topic))
    assert repr(topic) in str(refused.value)
    assert f'event_modules = ["{folder.shop}"] in eventseal.toml' in refused.value.remedy
    assert "event_modules= of the mapper" in refused.value.remedy


def test_a_package_covers_its_submodules_and_no_other_that_begins_like_it(make_mapper, folder):
    mapper = make_mapper(event_modules=[folder.shop])
    for topic in (f"{folder.shop}:Placed", f"{folder.shop}.events:Placed.Inside"):
        assert type(mapper.from_sequenced_item(plain(topic))).__module__ == topic.partition(":")[0]
    line = f'{{"lines":[{{"$dataclass":["{folder.shop}.events:Line",{{"sku":"a"}}]}}]}}'
    assert mapper.from_sequenced_item(plain(f"{folder.shop}:Placed", line)).lines[0].sku == "a"
    with pytest.raises(SerializationError):
        mapper.from_sequenced_item(plain(f"{folder.shopping}:Placed"))
    assert folder.ran() == [folder.shop, f"{folder.shop}.events"]


@pytest.mark.parametrize(
    "name",
    [
        ":subprocess.Popen",  # through a module
        ":Popen",  # defined elsewhere
        ":subprocess",
        ":__builtins__",
        ":Placed.__class__",
        ":Placed.nothing",
        ":",
        "",
        ".__main__:Placed",
        ".events.__main__:Placed",
        ".nothing:Placed",
        "..events:Placed",
        ".__init__:Placed",  # would run it again
        ".events.__init__:Placed",
        "." + ".".join("a" * 2000) + ":Placed",
        ":" + ".".join("a" * 2000),
    ],
)
def test_what_is_no_class_of_the_modules_own_is_not_found_in_them(folder, name):
    modules = EventModules([folder.shop])
    with pytest.raises(SerializationError):
        modules.resolve(folder.shop + name)
    assert folder.ran() == [folder.shop]


def test_registered_classes_and_those_that_were_stored_need_no_module(make_mapper):
    register_alias("an.older.name#Renamed", Renamed)
    mapper = make_mapper()
    assert type(mapper.from_sequenced_item(plain("an.older.name#Renamed"))) is Renamed
    event = Paid()
    event.size, event.label, event.originator_id, event.originator_version = Size.BIG, Label("x"), uuid4(), 0
    SequencedItemMapper().to_sequenced_item(event)
    named = f'{{"size":{{"$enum":["{topic_of(Size)}","BIG"]}}}}'
    assert mapper.from_sequenced_item(plain(topic_of(Paid), named)).size is Size.BIG


def test_a_topic_of_its_own_counts_as_well():
    class Local:
        pass

    topic = f"local {uuid4()}"
    register_topic(topic, Local)
    assert EventModules().resolve(topic) is Local


def test_the_modules_are_imported_before_a_topic_is_refused_so_their_aliases_count(folder):
    alias = f"gone.{folder.shop}#Placed"
    with (folder.path / folder.shop / "__init__.py").open("a") as module:
        module.write(f"from eventseal.items import register_alias\nregister_alias({alias!r}, Placed)\n")
    assert EventModules([folder.shop]).resolve(alias).__name__ == "Placed"


def test_imported_classes_of_events_and_entities_count_and_nothing_is_run_to_find_them(monkeypatch):
    for cls in (Shipped, Parcel, Parcel.Created, Snapshot):
        assert EventModules().resolve(f"{cls.__module__}:{cls.__qualname__}") is cls

    class Lazy(ModuleType):
        def __getattribute__(self, name):
            raise AssertionError(name)

    module = ModuleType("asked")
    asked = []
    module.__getattr__ = lambda name: asked.append(name) or Shipped
    monkeypatch.setitem(sys.modules, "asked", module)
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    for topic in ("asked:Shipped", "lazy:Shipped", "not_imported_yet:Shipped"):
        with pytest.raises(SerializationError):
            EventModules().resolve(topic)
    assert asked == []


def test_a_class_that_is_only_imported_does_not_count():
    with pytest.raises(SerializationError):
        EventModules().resolve("subprocess:Popen")


@pytest.mark.parametrize(
    ("cls", "attributes"),
    [
        (Shipped, '"originator_topic":"%s:Placed"'),
        (Parcel.Created, '"originator_topic":"%s:Placed"'),
        (Parcel.Created, '"originator_topic":{"$state":"%s:Placed"}'),
        (Parcel.Created, '"originator_topic":["%s:Placed"]'),
        (Parcel.Created, '"originator_topic":{"$tuple":["%s:Placed"]}'),
        (Snapshot, '"originator_topic":"%s:Placed"'),
        (Snapshot, '"topic":"%s:Placed","state":{},"personal_topics":[]'),
        (Snapshot, '"topic":null,"state":null,"personal_topics":["%s:Placed"]'),
        (Snapshot, '"topic":null,"state":null,"personal_topics":{"$tuple":["%s:Placed"]}'),
    ],
    ids=str,
)
def test_the_class_of_an_entity_is_looked_up_when_its_event_is_mapped(make_mapper, folder, cls, attributes):
    topic = f"{cls.__module__}:{cls.__qualname__}"
    with pytest.raises(SerializationError):
        make_mapper().from_sequenced_item(plain(topic, f"{{{attributes % folder.trap}}}"))
    assert folder.ran() == []


def test_an_entity_of_the_programs_may_be_named(make_mapper, folder):
    mapper = make_mapper(event_modules=[folder.shop])
    topic = f"{Parcel.Created.__module__}:{Parcel.Created.__qualname__}"
    for named in (f"{Parcel.__module__}:{Parcel.__qualname__}", f"{folder.shop}:Placed"):
        event = mapper.from_sequenced_item(plain(topic, f'{{"originator_topic":"{named}"}}'))
        assert resolve_topic(event.originator_topic).__name__ == named.partition(":")[2]


def test_what_is_authenticated_names_whatever_it_was_sealed_with(folder):
    cipher = AESCipher(b"k" * 32)
    topic = f"{folder.shop}.events:Placed"
    stream = uuid4()
    data = cipher.encrypt(
        f'{{"c":{{"$enum":["{folder.shop}:Colour","RED"]}}}}'.encode(), ItemContext(stream, 0, topic)
    )
    item = SequencedItem(stream, 0, topic, data, parse_envelope(data).key_id)
    event = SequencedItemMapper(cipher=cipher).from_sequenced_item(item)
    assert event.c.value == "r"


def test_an_envelope_of_an_older_key_is_not_trusted_either(folder):
    old = AESCipher(OLD_KEY)
    stream, topic = uuid4(), f"{folder.trap}:Placed"
    data = old.encrypt(b"{}", ItemContext(stream, 0, topic))
    mapper = SequencedItemMapper(cipher=AESCipher(b"k" * 32), accept=[StaticKeyEnvelope(OLD_KEY)])
    with pytest.raises(SerializationError):
        mapper.from_sequenced_item(SequencedItem(stream, 0, topic, data))
    assert folder.ran() == []


def test_an_application_gives_its_mappers_the_modules(folder):
    class Strategy:
        sequenced_item_class, collection = SequencedItem, "items"

    with ApplicationWithEventStores(event_modules=[folder.shop]) as application:
        mapper = application.construct_sequenced_item_mapper(Strategy(), "originator_version")
    assert mapper.from_sequenced_item(plain(f"{folder.shop}:Placed")) is not None


@pytest.mark.parametrize("names", ["shop", ["shop:Placed"], [""], ["shop."], [b"shop"], ["shop-x"]])
def test_what_names_no_module_is_refused_at_once(names):
    with pytest.raises(ConfigurationError, match="event_modules"):
        SequencedItemMapper(event_modules=names)


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ConfigurationError, match="no module no_such_shop"):
        SequencedItemMapper(event_modules=["no_such_shop"]).from_sequenced_item(plain("no_such_shop:Placed"))


# --- modules that cannot be imported ---

FAILING = {
    "SyntaxError": "x = = 1",
    "RuntimeError": "raise RuntimeError('password=hunter2')",
    "ImportError": "raise ImportError('password=hunter2')",
    "SystemExit": "import sys; sys.exit('password=hunter2')",
    "GeneratorExit": "raise GeneratorExit('password=hunter2')",
}


@pytest.mark.parametrize("name", FAILING)
def test_a_module_that_cannot_be_imported_refuses_its_row_and_shows_no_secret(make_mapper, folder, name):
    (folder.path / folder.shop / "failing.py").write_text(FAILING[name])
    topic = f"{folder.shop}.failing:Placed"
    for read in (
        lambda: make_mapper(event_modules=[folder.shop]).from_sequenced_item(plain(topic)),
        lambda: resolve_topic(topic),
    ):
        with pytest.raises(SerializationError, match=rf"{folder.shop}\.failing.* raised {name}\b") as refused:
            read()
        assert "hunter2" not in str(refused.value) + refused.value.remedy
        assert refused.value.__cause__ is refused.value.__context__ is None


@pytest.mark.parametrize("name", FAILING)
def test_a_listed_module_that_cannot_be_imported_is_an_error_of_the_setting(folder, name):
    (folder.path / folder.shop / "__init__.py").write_text(FAILING[name])
    with pytest.raises(ConfigurationError, match=f"module {folder.shop} raised {name}$") as refused:
        EventModules([folder.shop]).load()
    assert "hunter2" not in str(refused.value) + refused.value.remedy
    assert refused.value.__cause__ is refused.value.__context__ is None


def test_a_module_that_a_listed_one_imports_and_that_is_not_there_is_named(folder):
    (folder.path / folder.shop / "__init__.py").write_text("import no_such_dependency")
    with pytest.raises(
        ConfigurationError, match=f"no module no_such_dependency, which {folder.shop} imports"
    ):
        EventModules([folder.shop]).load()


def test_an_interruption_from_the_keyboard_ends_the_import(folder):
    (folder.path / folder.shop / "failing.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        EventModules([folder.shop]).resolve(f"{folder.shop}.failing:Placed")


# --- classes under another name ---


def test_a_name_gets_another_class_when_one_is_registered_after_all(folder):
    modules, topic = EventModules([folder.shop]), f"{folder.shop}:Placed"
    assert modules.resolve(topic).__module__ == folder.shop
    register_alias(topic, Renamed)
    assert modules.resolve(topic) is Renamed
    assert EventModules([folder.shop]).resolve(topic) is Renamed


def test_what_is_advised_is_only_a_module_that_is_there(folder, tmp_path, monkeypatch):
    for module, is_advised in ((folder.shop, True), ("no_such_shop", False), ("in_working_directory", True)):
        (tmp_path / "cwd").mkdir(exist_ok=True)
        (tmp_path / "cwd" / "in_working_directory.py").touch()
        monkeypatch.chdir(tmp_path / "cwd")
        with pytest.raises(SerializationError) as refused:
            EventModules().resolve(f"{module}:Placed")
        assert ("event_modules = " in refused.value.remedy) is is_advised
    assert folder.ran() == []


# --- attributes in place of methods ---


@dataclass
class Command:
    arg: str

    def __call__(self, *_: object) -> None:
        raise AssertionError("called")


@dataclass(frozen=True)
class Rule:
    limit: int = 3

    def __call__(self) -> int:
        return self.limit


class Done(DomainEvent):
    rule: Rule = Rule()

    def mutate(self, entity):
        return entity

    @classmethod
    def of(cls):
        return cls()

    @property
    def shown(self):
        return "shown"

    class Inside:
        pass


@dataclass
class Line:
    sku: str
    rule: Rule = Rule()

    def total(self):
        return 1


class Versioned(DomainEvent):
    class_version = 2

    def total(self):
        return 2

    @staticmethod
    def upcast_v1_v2(state):
        state["amount"] = state.pop("total")


def topic_here(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


COMMAND = f'{{"$dataclass":["{topic_here(Command)}",{{"arg":"x"}}]}}'


@pytest.mark.parametrize("name", ["mutate", "of", "Inside", "__reduce_ex__", "__init__"])
def test_an_attribute_stands_before_no_method(make_mapper, name):
    mapper = make_mapper(event_modules=[__name__])
    with pytest.raises(SerializationError, match=f"attribute {name!r}"):
        mapper.from_sequenced_item(plain(topic_here(Done), f'{{"{name}":{COMMAND}}}'))


@pytest.mark.parametrize("nesting", ["%s", '[{"$tuple":[{"a":%s}]}]'])
def test_nor_does_one_of_an_object_inside(make_mapper, nesting):
    line = f'{{"$dataclass":["{topic_here(Line)}",{{"sku":"a","total":{COMMAND}}}]}}'
    mapper = make_mapper(event_modules=[__name__])
    with pytest.raises(SerializationError, match="attribute 'total'"):
        mapper.from_sequenced_item(plain(topic_here(Done), f'{{"x":{nesting % line}}}'))


class Box(WithReflexiveMutator, VersionedEntity):
    class Bare(VersionedEntity.Event):
        pass

    def weight(self):
        return 1


def test_nor_one_of_an_entity_in_a_snapshot(make_mapper):
    data = f'{{"topic":"{topic_here(Box)}","state":{{"weight":{COMMAND}}},"personal_topics":[]}}'
    with pytest.raises(SerializationError, match="attribute 'weight'"):
        make_mapper(event_modules=[__name__]).from_sequenced_item(plain(topic_here(Snapshot), data))


def test_nor_one_that_an_entity_sets(make_mapper):
    item = plain(topic_here(Box.AttributeChanged), f'{{"name":"weight","value":{COMMAND}}}')
    event = make_mapper(event_modules=[__name__]).from_sequenced_item(item)
    box = Box(id=event.originator_id)
    with pytest.raises(SerializationError, match="attribute 'weight'"):
        Box._mutate(box, event)


def test_an_event_is_its_own_mutator_only_if_its_class_says_so(make_mapper):
    item = plain(topic_here(Box.Bare), f'{{"mutate":{COMMAND}}}')
    event = make_mapper(event_modules=[__name__]).from_sequenced_item(item)
    with pytest.raises(ConfigurationError, match="no mutator function"):
        Box._mutate(Box(id=event.originator_id), event)


def test_fields_that_are_declared_may_have_something_to_call_as_their_default(make_mapper):
    mapper = make_mapper(event_modules=[__name__])
    rule = f'{{"$dataclass":["{topic_here(Rule)}",{{"limit":5}}]}}'
    line = f'{{"$dataclass":["{topic_here(Line)}",{{"sku":"a","rule":{rule}}}]}}'
    event = mapper.from_sequenced_item(plain(topic_here(Done), f'{{"rule":{rule},"line":{line},"shown":1}}'))
    assert event.rule() == event.line.rule() == 5
    assert event.shown == "shown"


def test_an_attribute_that_an_upcast_replaces_is_none(make_mapper):
    mapper = make_mapper(event_modules=[__name__])
    assert mapper.from_sequenced_item(plain(topic_here(Versioned), '{"total":5}')).amount == 5


def test_what_is_authenticated_keeps_its_attributes():
    cipher = AESCipher(b"k" * 32)
    stream, topic = uuid4(), topic_here(Done)
    data = cipher.encrypt(b'{"mutate":1}', ItemContext(stream, 0, topic))
    item = SequencedItem(stream, 0, topic, data, parse_envelope(data).key_id)
    assert SequencedItemMapper(cipher=cipher).from_sequenced_item(item).mutate == 1
