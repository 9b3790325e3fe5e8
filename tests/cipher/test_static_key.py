"""A static key: one key, one scope, an id that is a check value."""

from __future__ import annotations

import copy
import pickle
import traceback
from uuid import uuid4

import pytest

from eventseal.cipher import AESCipher
from eventseal.errors import ConfigurationError, KeyNotFoundError
from eventseal.keys.source import KeySource, StaticKey
from eventseal.suites import A128CBC_HS256, A256CBC_HS512
from eventseal.suites.hkdf import key_check_id

KEY = bytes(range(50, 82))


def test_it_is_a_key_source():
    assert isinstance(StaticKey(KEY), KeySource)


def test_its_id_is_the_check_value_of_its_bytes():
    assert StaticKey(KEY).key_id == StaticKey(KEY, application="other").key_id == key_check_id(KEY)


def test_it_seals_for_the_one_scope_and_opens_its_own_items():
    static = StaticKey(KEY)
    key = static.sealing_keys({"application": 3})["application"]
    assert static.opening_keys([static.key_id]) == {static.key_id: key}
    assert (key.scope, key.purpose, key.application) == ("application", "data", "default")


def test_it_cannot_keep_scopes_apart_and_says_so():
    with pytest.raises(ConfigurationError, match="tenant:acme") as caught:
        StaticKey(KEY).sealing_keys({"application": 1, "tenant:acme": 1})
    assert "Keyring" in caught.value.remedy


def test_every_other_id_is_unknown():
    static, other = StaticKey(KEY), uuid4()
    found = static.opening_keys([static.key_id, other])
    assert isinstance(found[other], KeyNotFoundError)
    assert found[other].key_id == other


def test_the_suite_is_the_keys_or_the_callers():
    assert StaticKey(KEY).suite is A256CBC_HS512
    assert StaticKey(KEY[:16]).suite is A128CBC_HS256
    assert StaticKey(KEY[:16], suite=A256CBC_HS512).suite is A256CBC_HS512


@pytest.mark.parametrize("application", ["", "a\0b", "\ud800", "e\u0301", "x" * 201, None, 7], ids=ascii)
def test_an_applications_name_that_databases_would_change_is_refused(application):
    with pytest.raises(ConfigurationError):
        StaticKey(KEY, application=application)


def test_its_bytes_do_not_show_and_do_not_travel():
    static = StaticKey(KEY)
    assert KEY.hex() not in repr(static)
    assert str(static.key_id) in repr(static)
    for way in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled"):
            way(static)


OLD_KEY = "0123456789abcdef"


def all_that_an_error_shows(error):
    """Its text, its attributes, and the locals of each frame below the caller's."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
    assert frames
    assert (error.__cause__, error.__context__) == (None, None)
    return f"{error!r} {vars(error)} {[frame.f_locals for frame in frames]}"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((OLD_KEY,), {}),
        ((bytearray(OLD_KEY, "ascii"),), {}),
        ((OLD_KEY[:15].encode(),), {}),
        ((), {"aes_key": OLD_KEY}),
        ((), {"cipher_key": OLD_KEY.encode()}),
    ],
    ids=["text", "bytearray", "size", "aes_key", "cipher_key"],
)
def test_a_key_as_the_old_library_took_it_is_refused_and_shown_nowhere(given, named):
    with pytest.raises(ConfigurationError) as caught:
        AESCipher(*given, **named)
    remedy = caught.value.remedy
    assert "bytes" in remedy
    assert "secrets.token_bytes(32)" in remedy
    assert "`eventseal init`" in remedy
    assert OLD_KEY[:15] not in all_that_an_error_shows(caught.value)


@pytest.mark.parametrize("named", [{"application": ""}, {"max_plaintext": 0}], ids=str)
def test_another_wrong_argument_does_not_show_the_key(named):
    with pytest.raises(ConfigurationError) as caught:
        AESCipher(OLD_KEY.encode(), **named)
    assert OLD_KEY not in all_that_an_error_shows(caught.value)


def test_other_arguments_that_do_not_exist_are_still_pythons_type_error():
    with pytest.raises(TypeError, match="compresion"):
        AESCipher(KEY, compresion=None)
