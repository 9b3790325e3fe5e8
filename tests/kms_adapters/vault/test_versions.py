"""Rewrapping, and the versions of the transit key."""

import os

import pytest

from eventseal.errors import ConfigurationError, IntegrityError, KmsKeyStateError

KEY = bytes(range(32))


def test_rotating_makes_the_version_that_wraps_from_then_on(adapter, context):
    old = adapter.wrap(KEY, context)
    assert adapter.current_version() == "v1"
    assert adapter.rotate() == "v2"
    assert adapter.current_version() == "v2"
    assert adapter.wrap(KEY, context).kek_version == "v2"
    assert adapter.unwrap(old, context) == KEY


def test_rotating_is_tried_once(adapter, counting, monkeypatch):
    monkeypatch.setattr("requests.Session.send", lambda *_, **__: _no_connection())
    with pytest.raises(Exception, match="connection"):
        adapter.rotate()
    assert len(counting.tries) == 1


def _no_connection():
    import requests

    raise requests.ConnectionError("gone")


def test_rewrapping_moves_to_the_newest_version_and_keeps_the_key_and_its_context(adapter, make_context):
    keys = [(os.urandom(32), make_context()) for _ in range(5)]
    old = adapter.wrap_many(keys)
    adapter.rotate()
    new = adapter.rewrap_many([(wrapped, context) for wrapped, (_, context) in zip(old, keys, strict=True)])
    assert {wrapped.kek_version for wrapped in old} == {"v1"}
    assert {wrapped.kek_version for wrapped in new} == {"v2"}
    for wrapped, (key, context) in zip(new, keys, strict=True):
        assert adapter.unwrap(wrapped, context) == key
        with pytest.raises(IntegrityError):
            adapter.unwrap(wrapped, make_context())


def test_forbidden_versions_neither_open_nor_move_until_they_are_allowed_again(adapter, context):
    old = adapter.wrap(KEY, context)
    adapter.rotate()
    adapter.forbid_versions_before("v2")
    with pytest.raises(KmsKeyStateError, match="min_decryption_version") as caught:
        adapter.unwrap(old, context)
    assert "min_decryption_version=1" in caught.value.remedy
    assert isinstance(adapter.rewrap_many([(old, context)])[0], KmsKeyStateError)
    adapter.forbid_versions_before("v1")
    assert adapter.unwrap(old, context) == KEY
    assert adapter.rewrap_many([(old, context)])[0].kek_version == "v2"


def test_only_forbidden_versions_are_deleted(adapter, context):
    old = adapter.wrap(KEY, context)
    adapter.rotate()
    with pytest.raises(KmsKeyStateError, match="can still unwrap keys"):
        adapter.delete_versions_before("v2")
    assert adapter.unwrap(old, context) == KEY


def test_deleted_versions_are_gone_and_told_from_forbidden_ones(adapter, context):
    first = adapter.wrap(KEY, context)
    adapter.rotate()
    second = adapter.wrap(KEY, context)
    adapter.rotate()
    adapter.forbid_versions_before("v3")
    adapter.delete_versions_before("v2")
    outcomes = adapter.unwrap_many([(first, context), (second, context)])
    assert [type(outcome) for outcome in outcomes] == [KmsKeyStateError] * 2
    assert "trimmed" in str(outcomes[0])
    assert "from a backup of Vault" in outcomes[0].remedy
    assert "min_decryption_version" in str(outcomes[1])
    adapter.forbid_versions_before("v2")
    assert adapter.unwrap(second, context) == KEY
    with pytest.raises(KmsKeyStateError):
        adapter.unwrap(first, context)
    adapter.delete_versions_before("v2")  # again changes nothing
    adapter.rotate()
    adapter.forbid_versions_before("v4")  # and the next round works as the first one
    adapter.delete_versions_before("v4")
    assert adapter.unwrap(adapter.wrap(KEY, context), context) == KEY


def test_versions_that_do_not_exist_are_refused(adapter):
    for call in (adapter.forbid_versions_before, adapter.delete_versions_before):
        with pytest.raises(ConfigurationError, match="not a version"):
            call("2")
    with pytest.raises(Exception, match="latest key version is 1"):
        adapter.forbid_versions_before("v9")


def test_a_wrapping_from_the_future_says_that_vault_is_older(adapter, context, openbao, key_name):
    transit = openbao.client().secrets.transit
    adapter.rotate()
    wrapped = adapter.wrap(KEY, context)
    transit.update_key_configuration(key_name, deletion_allowed=True)
    transit.delete_key(key_name)
    transit.create_key(key_name, derived=True)
    with pytest.raises(KmsKeyStateError, match="later version") as caught:
        adapter.unwrap(wrapped, context)
    assert "older backup" in caught.value.remedy
