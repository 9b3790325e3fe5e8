"""Topics name classes, and are found again."""

import sys
from types import ModuleType

import pytest

from eventseal.errors import ConfigurationError, SerializationError
from eventseal.items import register_alias, register_topic, resolve_topic, topic_of


class Outer:
    class Inner:
        pass


class Renamed:
    pass


class Moved:
    pass


class Kept:
    pass


class Heir:
    pass


NOT_A_CLASS = 3


def test_a_topic_is_the_module_and_the_qualified_name():
    assert topic_of(Outer.Inner) == f"{__name__}:Outer.Inner"
    assert resolve_topic(f"{__name__}:Outer.Inner") is Outer.Inner
    assert resolve_topic("decimal:Decimal").__name__ == "Decimal"


def test_a_local_class_is_refused_since_it_cannot_be_found_again():
    class Local:
        pass

    with pytest.raises(SerializationError, match=r"Local cannot be found again") as caught:
        topic_of(Local)
    assert "register_topic" in caught.value.remedy


def test_a_class_that_another_one_replaced_under_its_name_is_refused():
    impostor = type("Outer", (), {"__module__": __name__, "__qualname__": "Outer"})

    with pytest.raises(SerializationError, match="Outer cannot be found"):
        topic_of(impostor)


def test_a_class_whose_name_is_longer_than_a_topic_may_be_is_refused():
    long = type("L" * 300, (), {"__module__": __name__})
    globals()["L" * 300] = long

    with pytest.raises(SerializationError, match="cannot be found"):
        topic_of(long)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "no separator",
        ":Outer",
        f"{__name__}:",
        f"{__name__}:Missing",
        f"{__name__}:Outer.Missing",
        f"{__name__}:NOT_A_CLASS",
        f"{__name__}:Outer..Inner",
        "no.such.module:Thing",
        "..relative:Thing",
        "decimal\0:Decimal",
    ],
)
def test_a_topic_that_names_no_class_is_refused(topic):
    with pytest.raises(SerializationError) as caught:
        resolve_topic(topic)
    assert "register_alias" in caught.value.remedy


def test_an_alias_is_read_and_not_written():
    register_alias("old.module#Renamed", Renamed)

    assert resolve_topic("old.module#Renamed") is Renamed
    assert topic_of(Renamed) == f"{__name__}:Renamed"


def test_a_registered_topic_is_read_and_written():
    class Local:
        pass

    register_topic("tests:Local", Local)

    assert topic_of(Local) == "tests:Local"
    assert resolve_topic("tests:Local") is Local


def test_a_class_gets_its_registered_topic_though_it_had_another_before():
    assert topic_of(Moved) == f"{__name__}:Moved"
    register_topic("tests:Moved", Moved)

    assert topic_of(Moved) == "tests:Moved"
    assert resolve_topic(f"{__name__}:Moved") is Moved


def test_a_class_has_one_topic_and_any_number_of_aliases():
    class Local:
        pass

    register_topic("tests:One", Local)
    register_topic("tests:One", Local)
    register_alias("tests:Zero", Local)

    with pytest.raises(ConfigurationError, match="stored under 'tests:One'"):
        register_topic("tests:Two", Local)
    with pytest.raises(SerializationError):
        resolve_topic("tests:Two")
    assert topic_of(Local) == "tests:One"


def test_a_topic_is_not_given_to_a_second_class():
    register_alias("tests:Taken", Outer)

    for register in (register_alias, register_topic):
        with pytest.raises(ConfigurationError, match="belongs to"):
            register("tests:Taken", Kept)
    assert resolve_topic("tests:Taken") is Outer


@pytest.mark.parametrize("topic", ["", "x" * 256])
def test_a_topic_of_no_or_too_many_characters_is_not_registered(topic):
    with pytest.raises(ConfigurationError, match="1 to 255"):
        register_topic(topic, Outer)


def test_a_class_that_its_own_name_does_not_find_any_more_gives_way():
    first, second = (type("Gone", (), {"__module__": module}) for module in ("no_such_module", __name__))

    register_topic("tests:Gone", first)
    register_topic("tests:Gone", second)
    assert resolve_topic("tests:Gone") is second
    register_topic("tests:Gone", Heir)
    with pytest.raises(ConfigurationError, match="belongs to"):
        register_topic("tests:Gone", first)


def test_a_module_that_is_loaded_again_gives_its_new_class():
    module = ModuleType("reloaded_shop")
    sys.modules[module.__name__] = module
    try:
        for _ in range(2):
            module.Order = type("Order", (), {"__module__": module.__name__})
            module.Item = type("Item", (), {"__module__": module.__name__})
            register_topic("tests:Order", module.Order)
            assert topic_of(module.Item) == "reloaded_shop:Item"
            assert resolve_topic("reloaded_shop:Item") is module.Item
            assert resolve_topic("tests:Order") is module.Order
    finally:
        del sys.modules[module.__name__]
