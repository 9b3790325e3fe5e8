"""Key files: 32 bytes in base64, private to their owner."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from codecs import BOM_UTF8
from contextlib import suppress
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError
from eventseal.wording import shell_word
from eventseal_kms.outcomes import KEY_SIZE

if TYPE_CHECKING:
    from pathlib import Path

_MAX_FILE_SIZE = 1024
_FORBIDDEN_BITS = stat.S_IRWXG | stat.S_IRWXO
_NOT_A_KEY = (
    "Restore the file from a backup. In a new project, move the file away, then run `eventseal init` again."
)


def read_key_file(path: Path) -> bytes:
    """
    Read a key file. No one but its owner may have access.

    It follows a symbolic link, and checks the file that the link leads to.

    Returns:
        The 32 bytes.

    Raises:
        ConfigurationError: The file does not exist, belongs to another user, gives others access, or holds no
            key. Or this system has no file modes of POSIX.
    """
    _require_posix()
    content = _read_private(path)
    # A separate frame reads the bytes, so that no error's traceback has them among its locals.
    key = _decoded(content)
    if key is None:
        del content
        raise ConfigurationError(
            f"key file {path} does not hold {KEY_SIZE} bytes in base64", remedy=_NOT_A_KEY
        )
    return key


def create_key_file(path: Path) -> None:
    """
    Write a new random key, with mode 0600, durably.

    It creates missing directories, which only their owner can enter.

    Args:
        path: A path that does not exist. The function overwrites nothing, and does not follow a link.

    Raises:
        ConfigurationError: Something exists at the path, or the path cannot be written. Or this system has no
            file modes of POSIX.
    """
    _require_posix()
    try:
        _make_private_directories(path.parent)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        raise ConfigurationError(
            f"key file {path} is already there, and is never overwritten",
            remedy="Use it as it is, or name another path.",
        ) from None
    except OSError as error:
        raise _unusable(path, error, "written") from error
    try:
        _fill(descriptor)
        _sync_directory(path.parent)
    except BaseException as error:
        # Delete it, because half a key file would look like a damaged key. Nothing is sealed under it yet.
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise _unusable(path, error, "written") from error
        raise


def _require_posix() -> None:
    if not hasattr(os, "geteuid"):  # Windows
        raise ConfigurationError(
            "a key file needs the owners and file modes of POSIX, which this system does not have",
            remedy="Use a key of AWS KMS or Vault, or use Linux or macOS.",
        )


def _read_private(path: Path) -> bytes:
    try:
        # Checked on the descriptor that is read, so nothing can be put in its place between the two. Without
        # O_NONBLOCK a named pipe would be waited on.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no key file {path}",
            remedy="If the file was moved or lost, correct the path, or restore the file from a backup. To "
            "add a new KMS key to a project, list it in kms_key, then run `eventseal init`, which says how "
            "to create it. In a new project, run: eventseal init --kms-key "
            f"{shell_word(f'local://{path}')}",
        ) from None
    except OSError as error:
        raise _unusable(path, error, "read") from error
    try:
        _check_private(path, os.fstat(descriptor))
        return os.read(descriptor, _MAX_FILE_SIZE)
    except OSError as error:
        raise _unusable(path, error, "read") from error
    finally:
        os.close(descriptor)


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ConfigurationError(f"key file {path} is {kind}", remedy="Name the file that holds the key.")
    if status.st_uid != os.geteuid():
        raise ConfigurationError(
            f"key file {path} belongs to user {status.st_uid}, not to user {os.geteuid()} who runs this",
            remedy=f"Run as its owner, or give the file away: chown {os.geteuid()} {shell_word(str(path))}",
        )
    if status.st_mode & _FORBIDDEN_BITS:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigurationError(
            f"key file {path} has mode {mode:04o}: users other than its owner have access",
            remedy="Another user may have read the key. To protect the file from now on, run: "
            f"chmod 600 {shell_word(str(path))}",
        )


def _decoded(content: bytes) -> bytes | None:
    # An editor or a copy from another system may have added a byte order mark and a carriage return.
    text = content.removeprefix(BOM_UTF8).removesuffix(b"\n").removesuffix(b"\r")
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    # Only the canonical text counts: base64 has several for the same bytes.
    return key if len(key) == KEY_SIZE and base64.b64encode(key) == text else None


def _make_private_directories(directory: Path) -> None:
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def _fill(descriptor: int) -> None:
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(base64.b64encode(os.urandom(KEY_SIZE)) + b"\n")
        file.flush()
        os.fsync(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, error: OSError, verb: str) -> ConfigurationError:
    return ConfigurationError(
        f"key file {path} cannot be {verb}: {error.strerror or type(error).__name__}",
        remedy="Correct the path, or the rights on it.",
    )
