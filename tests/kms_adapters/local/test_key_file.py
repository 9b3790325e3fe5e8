"""The key file: what is accepted, what is refused, and how it is made."""

from __future__ import annotations

import base64
import gc
import os
import stat
import traceback
from pathlib import Path

import pytest

from eventseal.errors import ConfigurationError
from eventseal_kms.key_file import create_key_file, read_key_file

KEY = bytes(range(32))
TEXT = base64.b64encode(KEY)
BOM = b"\xef\xbb\xbf"


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/dev/fd").iterdir()}


def refusal(path: Path) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        read_key_file(path)
    assert str(path) in str(caught.value)
    return caught.value


@pytest.mark.parametrize("content", [TEXT, TEXT + b"\n", TEXT + b"\r\n", BOM + TEXT, BOM + TEXT + b"\r\n"])
def test_thirty_two_bytes_in_base64_are_a_key(tmp_path, content):
    assert read_key_file(write(tmp_path / "dev.key", content)) == KEY


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(KEY, id="raw bytes"),
        pytest.param(KEY.hex().encode(), id="hex"),
        pytest.param(base64.b64encode(KEY[:31]), id="31 bytes"),
        pytest.param(base64.b64encode(KEY + b"x"), id="33 bytes"),
        pytest.param(base64.b64encode(KEY[:16]), id="16 bytes"),
        pytest.param(TEXT[:-1], id="padding cut"),
        pytest.param(TEXT[:-2] + b"9=", id="trailing bits set"),
        pytest.param(TEXT + b"\n\n", id="two newlines"),
        pytest.param(b" " + TEXT, id="leading space"),
        pytest.param(TEXT + b"\r\n\r\n", id="two line ends of Windows"),
        pytest.param(b"\r\n" + TEXT, id="leading line end"),
        pytest.param(BOM + BOM + TEXT, id="two byte order marks"),
        pytest.param(TEXT.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(TEXT + b"\n" + TEXT, id="two keys"),
        pytest.param(base64.urlsafe_b64encode(b"\xff" * 32), id="URL-safe alphabet"),
        pytest.param(b"\xff" * 44, id="no text"),
        pytest.param(TEXT + b"\n" * 5000, id="long tail"),
    ],
)
def test_anything_but_the_canonical_text_of_a_key_is_refused(tmp_path, content):
    error = refusal(write(tmp_path / "dev.key", content))
    assert "32 bytes in base64" in str(error)


def test_a_refused_file_shows_nothing_of_its_content(tmp_path):
    content = b"almostAKey0123456789almostAKey0123456789"
    error = refusal(write(tmp_path / "dev.key", content))
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "almostAKey" not in shown
    assert "almostAKey" not in repr(vars(error))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666])
def test_a_file_that_others_can_reach_is_refused_with_the_command_that_closes_it(tmp_path, mode):
    error = refusal(write(tmp_path / "dev.key", TEXT, mode))
    assert f"{mode:04o}" in str(error)
    assert f"chmod 600 {tmp_path}/dev.key" in error.remedy


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_for_its_owner_alone_is_read(tmp_path, mode):
    assert read_key_file(write(tmp_path / "dev.key", TEXT, mode)) == KEY


def test_a_file_of_another_user_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "dev.key", TEXT)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    error = refusal(path)
    assert f"belongs to user {owner}" in str(error)
    assert "chown" in error.remedy


def test_a_missing_file_sends_to_init(tmp_path):
    error = refusal(tmp_path / "dev.key")
    assert f"eventseal init --kms-key local://{tmp_path}/dev.key" in error.remedy


def test_a_directory_is_refused(tmp_path):
    tmp_path.chmod(0o700)
    assert "is a directory" in str(refusal(tmp_path))


def test_a_named_pipe_is_refused_without_waiting_on_it(tmp_path):
    os.mkfifo(tmp_path / "dev.key", 0o600)
    assert "not a regular file" in str(refusal(tmp_path / "dev.key"))


def test_a_path_through_a_file_is_refused(tmp_path):
    write(tmp_path / "file", b"")
    assert "cannot be read" in str(refusal(tmp_path / "file" / "dev.key"))


def test_a_symbolic_link_is_as_good_as_what_it_leads_to(tmp_path):
    target = write(tmp_path / "real.key", TEXT)
    link = tmp_path / "dev.key"
    link.symlink_to(target)
    assert read_key_file(link) == KEY
    target.chmod(0o644)
    assert "mode 0644" in str(refusal(link))


def test_a_symbolic_link_to_nothing_is_a_missing_file(tmp_path):
    link = tmp_path / "dev.key"
    link.symlink_to(tmp_path / "gone.key")
    assert "there is no key file" in str(refusal(link))


def test_a_made_file_is_a_key_for_its_owner_alone(tmp_path):
    path = tmp_path / "dev.key"
    create_key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().endswith(b"=\n")
    assert len(read_key_file(path)) == 32


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_the_umask_neither_opens_nor_closes_a_made_file(tmp_path, umask):
    previous = os.umask(umask)
    try:
        create_key_file(tmp_path / "dev.key")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "dev.key").stat().st_mode) == 0o600


def test_every_made_file_holds_another_key(tmp_path):
    for name in "ab":
        create_key_file(tmp_path / name)
    assert read_key_file(tmp_path / "a") != read_key_file(tmp_path / "b")


def test_missing_directories_are_made_for_their_owner_alone(tmp_path):
    create_key_file(tmp_path / "etc" / "app" / "dev.key")
    for directory in (tmp_path / "etc", tmp_path / "etc" / "app"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_nothing_is_ever_overwritten(tmp_path):
    path = write(tmp_path / "dev.key", TEXT)
    with pytest.raises(ConfigurationError, match="never overwritten"):
        create_key_file(path)
    assert path.read_bytes() == TEXT


def test_a_key_is_not_made_through_a_link(tmp_path):
    (tmp_path / "dev.key").symlink_to(tmp_path / "elsewhere.key")
    with pytest.raises(ConfigurationError, match="never overwritten"):
        create_key_file(tmp_path / "dev.key")
    assert not (tmp_path / "elsewhere.key").exists()


def test_a_failed_write_leaves_no_half_a_key(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="No space left on device"):
        create_key_file(tmp_path / "dev.key")
    assert not (tmp_path / "dev.key").exists()


def test_an_interrupted_write_leaves_no_half_a_key(tmp_path, monkeypatch):
    def interrupted(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create_key_file(tmp_path / "dev.key")
    assert not (tmp_path / "dev.key").exists()


def test_a_directory_that_cannot_be_made_is_a_configuration_error(tmp_path):
    write(tmp_path / "file", b"")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        create_key_file(tmp_path / "file" / "dev.key")


def test_no_descriptor_is_left_open(tmp_path):
    def refused(path):
        with pytest.raises(ConfigurationError):
            read_key_file(path)

    path = write(tmp_path / "dev.key", TEXT)
    bad = write(tmp_path / "bad.key", TEXT, 0o644)
    gc.collect()  # else what other tests left open might be closed in between
    before = open_descriptors()
    for _ in range(3):
        read_key_file(path)
        refused(bad)
        refused(tmp_path)
    create_key_file(tmp_path / "new.key")
    assert not open_descriptors() - before
