"""Cipher suites: what each must do, and its cipher contexts, which are prepared once a key."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.hmac import HMAC

from eventseal.errors import EventSealError, KeyNotFoundError
from eventseal.suites.envelope import BLOCK_SIZE, TAG_SIZES, SuiteId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.ciphers import CipherContext
    from cryptography.hazmat.primitives.hashes import HashAlgorithm


@dataclass(frozen=True, slots=True, eq=False)
class Suite:
    """
    One row of the table of suites; there is one object of each, compared by identity.

    Attributes:
        id: Its byte in the envelope.
        name: As RFC 7518 has it; part of the key derivation.
        key_size: Bytes: the MAC key, then the AES key, half each.
        tag_size: Bytes: the first half of the HMAC.
        hash: Of the HMAC.
    """

    id: SuiteId
    name: str
    key_size: int
    tag_size: int
    hash: HashAlgorithm


def _suite(suite_id: SuiteId, name: str, key_size: int, algorithm: HashAlgorithm) -> Suite:
    return Suite(suite_id, name, key_size, TAG_SIZES[suite_id], algorithm)


A128CBC_HS256 = _suite(SuiteId.A128CBC_HS256, "A128CBC-HS256", 32, SHA256())
A192CBC_HS384 = _suite(SuiteId.A192CBC_HS384, "A192CBC-HS384", 48, SHA384())
A256CBC_HS512 = _suite(SuiteId.A256CBC_HS512, "A256CBC-HS512", 64, SHA512())

SUITES: Mapping[int, Suite] = MappingProxyType(
    {int(suite.id): suite for suite in (A128CBC_HS256, A192CBC_HS384, A256CBC_HS512)}
)
"""The suites that this release seals and opens with, by id."""


MAX_UPDATE = 2**20
"""Bytes that one call gives to a context at most."""

FIRST_BLOCK = bytes(BLOCK_SIZE)
"""What a fresh context chains from; it needs no secrecy, since a fresh random block follows it."""

_KEPT = os.cpu_count() or 1


class ContextPool:
    """
    The keyed contexts of one suite's key. Methods may be called from several threads at once.

    Args:
        suite: Whose key it is.
        suite_key: ``suite.key_size`` bytes: the MAC key, then the AES key (RFC 7518 section 5.2.2.1).

    Raises:
        EventSealError: The key has not the suite's size.
    """

    __slots__ = ("_cipher", "_decryptors", "_encryptors", "_mac", "suite")

    def __init__(self, suite: Suite, suite_key: bytes) -> None:
        if len(suite_key) != suite.key_size:
            raise EventSealError(
                f"{suite.name} takes a key of {suite.key_size} bytes, not of {len(suite_key)}"
            )
        half = suite.key_size // 2
        self.suite = suite
        self._mac: HMAC | None = HMAC(suite_key[:half], suite.hash)
        self._cipher: Cipher[CBC] | None = Cipher(AES(suite_key[half:]), CBC(FIRST_BLOCK))
        self._encryptors: deque[CipherContext] = deque(maxlen=_KEPT)
        self._decryptors: deque[CipherContext] = deque(maxlen=_KEPT)

    @property
    def closed(self) -> bool:
        """Whether the pool gives nothing any more."""
        return self._cipher is None

    def encrypt(self, blocks: bytes) -> bytes:
        """
        Encrypt whole blocks, chained behind whatever this pool encrypted before.

        Args:
            blocks: A positive multiple of 16 bytes, the first 16 random: their ciphertext is the rest's IV.

        Returns:
            As many bytes.

        Raises:
            KeyNotFoundError: The pool is closed.
        """
        cipher = self._cipher
        if cipher is None:
            _refuse_closed()
        try:
            context = self._encryptors.pop()
        except IndexError:
            context = cipher.encryptor()
        return self._used(context, blocks, self._encryptors)

    def decrypt(self, blocks: bytes) -> bytes:
        """
        Decrypt whole blocks whose tag was verified.

        Args:
            blocks: A positive multiple of 16 bytes: an IV and its ciphertext, once or several times.

        Returns:
            As many bytes; the 16 in the place of each IV mean nothing.

        Raises:
            KeyNotFoundError: The pool is closed.
        """
        cipher = self._cipher
        if cipher is None:
            _refuse_closed()
        try:
            context = self._decryptors.pop()
        except IndexError:
            context = cipher.decryptor()
        return self._used(context, blocks, self._decryptors)

    def keyed_mac(self) -> HMAC:
        """
        Give the keyed HMAC, to be copied for each item and never updated itself.

        Raises:
            KeyNotFoundError: The pool is closed.
        """
        mac = self._mac
        if mac is None:
            _refuse_closed()
        return mac

    def close(self) -> None:
        """Drop the keys and every idle context."""
        self._cipher = self._mac = None
        self._encryptors.clear()
        self._decryptors.clear()

    def _used(self, context: CipherContext, blocks: bytes, idle: deque[CipherContext]) -> bytes:
        size = len(blocks)
        if not size or size % BLOCK_SIZE:
            raise EventSealError(f"{size} bytes are not a positive multiple of {BLOCK_SIZE}")
        if size <= MAX_UPDATE:
            output = context.update(blocks)
        else:
            starts = range(0, size, MAX_UPDATE)
            output = b"".join([context.update(blocks[start : start + MAX_UPDATE]) for start in starts])
        if len(output) != size:
            raise EventSealError(f"the cipher gave {len(output)} bytes for {size}")
        idle.append(context)
        if self._cipher is None:  # closed meanwhile: what came back late is not kept
            idle.clear()
        return output


def _refuse_closed() -> NoReturn:
    raise KeyNotFoundError("the key was closed while it was in use", remedy="Ask the keyring once more.")
