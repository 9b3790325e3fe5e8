"""The key scope of an event."""

from types import SimpleNamespace

import pytest

from eventseal.errors import ConfigurationError
from eventseal.items.scopes import ScopeRule

EVENT = SimpleNamespace(tenant="acme")


def test_one_scope_is_that_of_all_events():
    rule = ScopeRule("tenant:acme")

    assert rule(EVENT) == "tenant:acme"
    assert rule.of_all([EVENT, EVENT]) == "tenant:acme"


def test_a_function_gives_each_event_its_scope():
    rule = ScopeRule(lambda event: f"tenant:{event.tenant}")

    assert rule(EVENT) == "tenant:acme"
    assert rule.of_all([EVENT, SimpleNamespace(tenant="b")]) == ["tenant:acme", "tenant:b"]


BAD = ["", "x" * 201, "é" * 101, "a\0b", "\ud800", "e\u0301"]


@pytest.mark.parametrize("scope", BAD)
def test_a_scope_that_databases_might_compare_differently_is_refused_at_once(scope):
    with pytest.raises(ConfigurationError):
        ScopeRule(scope)


@pytest.mark.parametrize("scope", [*BAD, None, 3, b"bytes", ["list"], {"a": 1}])
def test_a_function_that_gives_no_scope_is_refused_at_the_event(scope):
    rule = ScopeRule(lambda event: scope)

    for give in (rule, lambda event: rule.of_all([event])):
        with pytest.raises(ConfigurationError, match="key scope"):
            give(EVENT)


@pytest.mark.parametrize("key_scope", [None, 3, b"bytes"])
def test_a_rule_is_a_string_or_a_function(key_scope):
    with pytest.raises(ConfigurationError, match="a string or function"):
        ScopeRule(key_scope)


# --- the rule of an event class ---


class OfOneScope:
    __key_scope__ = "tenant:of the class"


class OfItsSubject:
    def __init__(self, customer="42"):
        self.customer = customer

    def __key_scope__(self):
        return f"subject:{self.customer}"


class Inherits(OfItsSubject):
    pass


class TakesItBack(OfItsSubject):
    __key_scope__ = None


class ByAStaticMethod(OfItsSubject):
    @staticmethod
    def __key_scope__(event):
        return f"static:{event.customer}"


class ByAClassMethod(OfItsSubject):
    @classmethod
    def __key_scope__(cls, event):
        return f"{cls.__name__}:{event.customer}"


class ByALambda(OfItsSubject):
    __key_scope__ = lambda event: f"lambda:{event.customer}"  # noqa: E731


RULES = {
    OfOneScope: "tenant:of the class",
    OfItsSubject: "subject:42",
    Inherits: "subject:42",
    TakesItBack: "application",
    ByAStaticMethod: "static:42",
    ByAClassMethod: "ByAClassMethod:42",
    ByALambda: "lambda:42",
    SimpleNamespace: "application",
}


@pytest.mark.parametrize("cls", RULES, ids=lambda cls: cls.__name__)
def test_an_event_classs_rule_comes_before_the_mappers(cls):
    for key_scope in ("application", lambda event: "application"):
        rule = ScopeRule(key_scope)

        assert rule(cls()) == RULES[cls]
        assert [*rule.of_all([cls(), cls()])] in ([RULES[cls]] * 2, [*RULES[cls]])


def test_events_of_several_classes_have_each_its_scope():
    rule = ScopeRule("application")

    assert rule.of_all([EVENT, OfItsSubject("1"), OfItsSubject("2"), OfOneScope()]) == [
        "application",
        "subject:1",
        "subject:2",
        "tenant:of the class",
    ]


@pytest.mark.parametrize("scope", BAD)
def test_a_class_whose_scope_is_not_allowed_is_refused_at_the_event(scope):
    event = type("Bad", (), {"__key_scope__": scope})()

    for give in (ScopeRule("application"), lambda event: ScopeRule("application").of_all([event])):
        with pytest.raises(ConfigurationError, match="key scope"):
            give(event)


@pytest.mark.parametrize("rule", [3, b"bytes", ["list"], property(lambda event: "property")])
def test_a_class_whose_rule_is_none_is_named(rule):
    event = type("Bad", (), {"__key_scope__": rule})()

    with pytest.raises(ConfigurationError, match=r"__key_scope__ of .*:Bad is a (int|bytes|list|property)"):
        ScopeRule("application")(event)
