"""
A KEK in a file, for development and tests.

Anyone who can read the file can decrypt everything.

A wrapped key is an envelope of 115 bytes::

    01 03 00 | the KEK's id (16) | IV (16) | ciphertext (48) | tag (32)

The suite is A256CBC-HS512, keyed with HKDF-SHA-512(KEK, salt=id, info="eventseal/v1/wrap/A256CBC-HS512").
The associated data are the header, the domain ``wrapped-key`` and the encryption context. Each of the last
two follows its length.
"""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from eventseal.errors import ConfigurationError, EventSealError, IntegrityError, UnknownFormatError
from eventseal.kms import PermissionCheck, WrappedKey
from eventseal.suites import A256CBC_HS512, CompressionId
from eventseal.suites.cbc_hmac import ContextPool, open_many, seal_many
from eventseal.suites.envelope import build_header, parse_envelope
from eventseal.suites.hkdf import hkdf_sha512, key_check_id, length_prefixed
from eventseal_kms.key_file import create_key_file, read_key_file
from eventseal_kms.outcomes import KEY_SIZE, refusal_of_another_kek, value_of, wrong_size_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Self
    from uuid import UUID

    from eventseal.kms import (
        EncryptionContext,
        KmsAdapter,
        KmsUse,
        SupportsBatch,
        SupportsCheck,
        SupportsPolicy,
    )

SCHEME = "local://"
_SUITE = A256CBC_HS512
_INFO = b"eventseal/v1/wrap/" + _SUITE.name.encode()
_DOMAIN = b"wrapped-key"


class DevelopmentKeyWarning(UserWarning):
    """A key file is used as the KEK. Use it for development and tests, and a KMS in production."""


class LocalKmsAdapter:
    """
    Wraps keys under a key in a file.

    Use it for development and tests only. It warns once for each key. It needs no server, and no permission
    except to read the file. Several threads can share an adapter.

    Args:
        path: The key file: 32 bytes in base64, mode 0600, owned by the user that runs the process. The
            adapter reads it when it is created, and again only in :meth:`check`.

    Raises:
        ConfigurationError: The file does not exist, belongs to another user, is open to other users, or holds
            no key.
    """

    __slots__ = ("_header", "_path", "_pool", "_uri")

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        key_id, self._pool = _opened(self._path)
        self._header = build_header(_SUITE.id, CompressionId.NONE, key_id)
        self._uri = f"{SCHEME}{key_id}"
        _warn_once(self._uri, self._path)

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """
        Create a key file with a new key, and return its adapter.

        Args:
            path: The path of the file. It must not exist: nothing is overwritten. Missing directories are
                created with mode 0700.

        Raises:
            ConfigurationError: The path exists already, or cannot be written.
        """
        create_key_file(Path(path))
        return cls(path)

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """
        Create the adapter that a key URI names.

        Args:
            uri: ``local:///absolute/path``, or ``local://path`` from the working directory. A percent sign
                has no special meaning.

        Raises:
            ConfigurationError: The URI names no file, or the file is refused.
        """
        return cls(_path_of(uri))

    @classmethod
    def exists(cls, uri: str) -> bool:
        """
        Return whether anything exists at the path of a key URI.

        Args:
            uri: A key URI as for :meth:`from_uri`.

        Raises:
            ConfigurationError: The URI names no file.
        """
        return os.path.lexists(_path_of(uri))

    @classmethod
    def stored_uri(cls, uri: str) -> str:
        """
        Return the URI that wrappings store for a key file.

        It gives no warning.

        Args:
            uri: A key URI as for :meth:`from_uri`.

        Raises:
            ConfigurationError: The URI names no file, or the file is refused.
        """
        return f"{SCHEME}{key_check_id(read_key_file(_path_of(uri)))}"

    @classmethod
    def policy(cls, uri: str, _uses: Collection[KmsUse], _application: str, /) -> str:
        """
        Return the rights on a key file, as a comment.

        Raises:
            ConfigurationError: The URI names no file.
        """
        return (
            f"# {_path_of(uri)}: owned by the user that runs the process, mode 0600.\n"
            "# This user can do everything that the key can do: a file tells no roles apart."
        )

    @classmethod
    def create_from_uri(cls, uri: str) -> Self:
        """
        Create the key file of a key URI, and return its adapter.

        Args:
            uri: A key URI as for :meth:`from_uri`.

        Raises:
            ConfigurationError: The URI names no file, or the path exists already or cannot be written.
        """
        return cls.create(_path_of(uri))

    @property
    def uri(self) -> str:
        """The stored URI: ``local://`` and the key's check value, without the path."""
        return self._uri

    def generate_data_key(self, context: EncryptionContext) -> tuple[bytes, WrappedKey]:
        """Generate 32 random bytes and wrap them."""
        key = os.urandom(KEY_SIZE)
        return key, self.wrap(key, context)

    def wrap(self, key: bytes, context: EncryptionContext) -> WrappedKey:
        """
        Wrap a key.

        Raises:
            ConfigurationError: The key is not 32 bytes long.
        """
        return self._wrapped([(key, context)])[0]

    def unwrap(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes:
        """
        Unwrap a key to its 32 bytes.

        Raises:
            NotMyKeyError: Another KEK wrapped the key.
            IntegrityError: The wrapping was changed, or belongs to another key.
        """
        return value_of(self.unwrap_many([(wrapped, context)])[0])

    def wrap_many(self, keys: Sequence[tuple[bytes, EncryptionContext]]) -> list[WrappedKey | EventSealError]:
        """
        Wrap every key.

        Raises:
            ConfigurationError: A key is not 32 bytes long. No key was wrapped.
        """
        return list(self._wrapped(keys))

    def unwrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[bytes | EventSealError]:
        """Unwrap every key. If a key cannot be unwrapped, the list has its error in its place."""
        refusals = [self._refusal(wrapped, context) for wrapped, context in keys]
        bodies = [
            (wrapped.ciphertext[len(self._header) :], self._associated_data(context))
            for (wrapped, context), refusal in zip(keys, refusals, strict=True)
            if refusal is None
        ]
        opened = iter(open_many(self._pool, bodies))
        return [
            refusal or _checked(next(opened), context)
            for (_, context), refusal in zip(keys, refusals, strict=True)
        ]

    def check(self, _application: str = "default", /) -> list[PermissionCheck]:
        """Check that the file still holds the key that this adapter uses."""
        detail = ""
        try:
            key_id, pool = _opened(self._path)
            pool.close()
            if self._uri != f"{SCHEME}{key_id}":
                detail = f"the file now holds {SCHEME}{key_id}, not {self._uri}. Restore the first key."
        except ConfigurationError as error:
            detail = f"{error} ({error.remedy})"
        return [PermissionCheck(action=f"read {self._path}", granted=not detail, detail=detail)]

    def __repr__(self) -> str:
        return f"<LocalKmsAdapter {self._uri}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LocalKmsAdapter cannot be pickled or copied: pass its URI")

    def _wrapped(self, keys: Sequence[tuple[bytes, EncryptionContext]]) -> list[WrappedKey]:
        wrong = wrong_size_of(keys)
        if wrong is not None:
            raise wrong
        sealed = seal_many(self._pool, [(key, self._associated_data(context)) for key, context in keys])
        return [
            WrappedKey(kek_uri=self._uri, kek_version=None, ciphertext=self._header + body) for body in sealed
        ]

    def _associated_data(self, context: EncryptionContext) -> bytes:
        return self._header + length_prefixed(_DOMAIN, context.canonical())

    def _refusal(self, wrapped: WrappedKey, context: EncryptionContext) -> EventSealError | None:
        another = refusal_of_another_kek(wrapped, context, kek_uri=self._uri)
        if another is not None:
            return another
        try:
            parse_envelope(wrapped.ciphertext)
        except UnknownFormatError:
            return _changed(context)
        return None if wrapped.ciphertext.startswith(self._header) else _changed(context)


def _path_of(uri: str) -> Path:
    path = uri.removeprefix(SCHEME)
    if not uri.startswith(SCHEME) or not path or "\0" in path:
        raise ConfigurationError(
            f"{uri!r} does not name a key file",
            remedy="Write local:///absolute/path, or local://path for a path from the working directory.",
        )
    return Path(path)


def _opened(path: Path) -> tuple[UUID, ContextPool]:
    key = read_key_file(path)
    key_id = key_check_id(key)
    return key_id, ContextPool(
        _SUITE, hkdf_sha512(key, salt=key_id.bytes, info=_INFO, length=_SUITE.key_size)
    )


def _checked(outcome: bytes | IntegrityError, context: EncryptionContext) -> bytes | EventSealError:
    if isinstance(outcome, IntegrityError) or len(outcome) != KEY_SIZE:
        return _changed(context)
    return outcome


def _changed(context: EncryptionContext) -> IntegrityError:
    return IntegrityError(
        f"the wrapping of key {context.key_id} does not authenticate: it was changed, or wraps another key",
        remedy="Find out who changed the wrapping, and restore the key's row in "
        "eventseal_key_wrappings from a backup.",
    )


_warned: set[str] = set()
_warned_lock = threading.Lock()


def _warn_once(uri: str, path: Path) -> None:
    with _warned_lock:
        if uri in _warned:
            return
        _warned.add(uri)
    warnings.warn(
        f"key file {path} is for development only: anyone who can read the file can decrypt every item",
        DevelopmentKeyWarning,
        stacklevel=3,
    )


if TYPE_CHECKING:
    _adapter: type[KmsAdapter] = LocalKmsAdapter
    _batch: type[SupportsBatch] = LocalKmsAdapter
    _check: type[SupportsCheck] = LocalKmsAdapter
    _policy: SupportsPolicy = LocalKmsAdapter
