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
    with pytest.raises(ConfigurationError, match="a string or a function"):
        ScopeRule(key_scope)
