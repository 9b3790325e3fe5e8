"""Where the keys of older formats come from, and what files and variables may hold."""

import base64
import traceback

import pytest

from eventseal.configuration.old_formats import configured_formats
from eventseal.errors import ConfigurationError
from eventseal.items.formats import EventsourcingGCM

KEY = bytes(range(32))
TEXT = base64.b64encode(KEY)
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("content", [TEXT, TEXT + b"\n", TEXT + b"\r\n", BOM + TEXT + b"\r\n"])
def test_a_key_file_may_come_from_another_system(tmp_path, content):
    (tmp_path / "old.key").write_bytes(content)
    [found] = configured_formats([f"eventsourcing-gcm key=file:{tmp_path}/old.key"], max_plaintext=100)
    assert isinstance(found, EventsourcingGCM)


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_variable_is_no_variable(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("OLD_KEY", value)
    with pytest.raises(ConfigurationError, match="no such variable is set, or it is empty"):
        configured_formats(["eventsourcing-gcm key=env:OLD_KEY"], max_plaintext=100)


def test_no_frame_of_a_refusal_shows_what_may_be_a_key(monkeypatch):
    monkeypatch.setenv("OLD_KEY", "almostAKey0123456789")
    with pytest.raises(ConfigurationError, match="is not base64") as caught:
        configured_formats(["eventsourcing-gcm key=env:OLD_KEY"], max_plaintext=100)
    error = caught.value.with_traceback(caught.value.__traceback__.tb_next)
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert "almostAKey" not in "".join(shown.format())
