"""The cipher suites, AES-CBC with HMAC, with contexts prepared once per key."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from hmac import compare_digest
from os import urandom
from struct import Struct
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.hmac import HMAC

from eventseal.errors import OPAQUE_INTEGRITY_MESSAGE, EventSealError, IntegrityError, KeyNotFoundError
from eventseal.suites.envelope import BLOCK_SIZE, IV_SIZE, TAG_SIZES, SuiteId
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cryptography.hazmat.primitives.ciphers import CipherContext
    from cryptography.hazmat.primitives.hashes import HashAlgorithm


@dataclass(frozen=True, slots=True, eq=False)
class Suite:
    """
    A cipher suite.

    Each suite is one object. Suites are compared by identity.

    Attributes:
        id: The suite's byte in the envelope.
        name: The name in RFC 7518, which is part of the key derivation.
        key_size: The size of the key in bytes. The first half is the MAC key, the second the AES key.
        tag_size: The size of the tag in bytes. The tag is the first half of the HMAC.
        hash: The hash function that HMAC uses.
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
"""The suites of this release, by id."""


MAX_UPDATE = 2**20
"""The most bytes that one call passes to a context."""

FIRST_BLOCK = bytes(BLOCK_SIZE)
"""The first IV of a new context. It need not be secret, since a new random block follows it."""

_KEPT = os.cpu_count() or 1


class ContextPool:
    """
    The keyed contexts of one suite's key.

    Several threads may call its methods at the same time.

    Args:
        suite: The suite of the key.
        suite_key: ``suite.key_size`` bytes: the MAC key, then the AES key (RFC 7518 section 5.2.2.1).

    Raises:
        EventSealError: The key does not have the suite's size.
    """

    __slots__ = ("_cipher", "_decryptors", "_encryptors", "_mac", "suite")

    def __init__(self, suite: Suite, suite_key: bytes) -> None:
        if len(suite_key) != suite.key_size:
            raise EventSealError(
                f"{suite.name} needs a key of {suite.key_size} bytes, but this key has {len(suite_key)}"
            )
        half = suite.key_size // 2
        self.suite = suite
        self._mac: HMAC | None = HMAC(suite_key[:half], suite.hash)
        self._cipher: Cipher[CBC] | None = Cipher(AES(suite_key[half:]), CBC(FIRST_BLOCK))
        self._encryptors: deque[CipherContext] = deque(maxlen=_KEPT)
        self._decryptors: deque[CipherContext] = deque(maxlen=_KEPT)

    @property
    def closed(self) -> bool:
        """Whether the pool is closed."""
        return self._cipher is None

    def encrypt(self, blocks: bytes) -> bytes:
        """
        Encrypt whole blocks, chained to earlier blocks of this pool.

        Args:
            blocks: A positive multiple of 16 bytes. The first 16 are random. Their ciphertext is the IV of
                the rest.

        Returns:
            The same number of bytes.

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
            The same number of bytes. The 16 bytes in the place of each IV have no meaning.

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
        Return the keyed HMAC. Copy it for each item, and never update it.

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
            raise EventSealError(
                f"the cipher got {counted(size, 'byte')}, but needs a positive multiple of {BLOCK_SIZE}"
            )
        if size <= MAX_UPDATE:
            output = context.update(blocks)
        else:
            starts = range(0, size, MAX_UPDATE)
            output = b"".join([context.update(blocks[start : start + MAX_UPDATE]) for start in starts])
        if len(output) != size:
            raise EventSealError(f"the cipher returned {counted(len(output), 'byte')} for {size:,}")
        idle.append(context)
        if self._cipher is None:  # closed in the meantime: a context that returns late is not kept
            idle.clear()
        return output


def _refuse_closed() -> NoReturn:
    raise KeyNotFoundError(
        "the key was closed while it was in use", remedy="Get the key from the keyring again."
    )


_BITS = Struct(">Q").pack
_PADDINGS = [bytes([count]) * count for count in range(BLOCK_SIZE, 0, -1)]
"""The PKCS#7 padding by the length of the plaintext modulo 16."""


def seal_many(
    pool: ContextPool, items: Sequence[tuple[bytes, bytes]], *, _random: Callable[[int], bytes] = urandom
) -> list[bytes]:
    """
    Encrypt and authenticate items under one key.

    Args:
        pool: The contexts of the key, which also determine the suite.
        items: The plaintext, of any length, and the associated data of each item.

    Returns:
        For each item, in order: IV (16 bytes), ciphertext (a positive multiple of 16 bytes), tag
        (``suite.tag_size`` bytes).

    Raises:
        KeyNotFoundError: The pool is closed.
    """
    # Drawn and used up here: if random bytes were kept for later, a forked process would use them again.
    random = _random(IV_SIZE * len(items))
    if len(random) != IV_SIZE * len(items):
        raise EventSealError(
            f"the random source returned {counted(len(random), 'byte')}, not {IV_SIZE * len(items):,}"
        )
    sealed: list[bytes] = []
    for first, last in _pages([_body_size(plaintext) for plaintext, _ in items]):
        sealed += _seal_page(pool, items[first:last], random[first * IV_SIZE : last * IV_SIZE])
    return sealed


def _seal_page(pool: ContextPool, items: Sequence[tuple[bytes, bytes]], random: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    start = 0
    for plaintext, _ in items:
        pieces += (random[start : start + IV_SIZE], plaintext, _PADDINGS[len(plaintext) % BLOCK_SIZE])
        start += IV_SIZE
    output = pool.encrypt(b"".join(pieces))
    keyed, tag_size = pool.keyed_mac(), pool.suite.tag_size
    sealed: list[bytes] = []
    start = 0
    for plaintext, aad in items:
        end = start + _body_size(plaintext)
        body = output[start:end]
        start = end
        mac = keyed.copy()
        mac.update(aad + body + _BITS(8 * len(aad)))
        sealed.append(body + mac.finalize()[:tag_size])
    return sealed


def _body_size(plaintext: bytes) -> int:
    # The IV, the plaintext's whole blocks, and one more, which padding always fills.
    return (1 + len(plaintext) // BLOCK_SIZE + 1) * BLOCK_SIZE


def open_many(pool: ContextPool, items: Sequence[tuple[bytes, bytes]]) -> list[bytes | IntegrityError]:
    """
    Verify and decrypt items under one key.

    Every tag is checked, in constant time, before anything is decrypted. Only bytes under a good tag are
    decrypted. Then all bytes of the padding are checked. All failures have the same error.

    Args:
        pool: The contexts of the key, which also determine the suite.
        items: The sealed bytes (IV, ciphertext, tag) and the associated data of each item.

    Returns:
        For each item, in order, its plaintext or its error.

    Raises:
        KeyNotFoundError: The pool is closed.
    """
    bodies = _verified(pool, items)
    opened: list[bytes | IntegrityError] = []
    for first, last in _pages([len(body) for body in bodies]):
        opened += _decrypt_page(pool, bodies[first:last])
    return opened


def reopens(pool: ContextPool, sealed: Sequence[bytes], items: Sequence[tuple[bytes, bytes]]) -> bool:
    """
    Return whether all sealed items open to their plaintexts.

    Args:
        pool: The contexts of the key, which also determine the suite.
        sealed: The result of :func:`seal_many` for *items*.
        items: The plaintext and the associated data of each item.

    Raises:
        KeyNotFoundError: The pool is closed.
    """
    tag_size = pool.suite.tag_size
    bodies = [item[:-tag_size] for item in sealed]
    return all(
        _reopens_page(pool, sealed[first:last], bodies[first:last], items[first:last])
        for first, last in _pages([len(body) for body in bodies])
    )


def _reopens_page(
    pool: ContextPool,
    sealed: Sequence[bytes],
    bodies: Sequence[bytes],
    items: Sequence[tuple[bytes, bytes]],
) -> bool:
    keyed, tag_size = pool.keyed_mac(), pool.suite.tag_size
    output = pool.decrypt(b"".join(bodies))
    start = 0
    for item, body, (plaintext, aad) in zip(sealed, bodies, items, strict=True):
        mac = keyed.copy()
        mac.update(aad + body + _BITS(8 * len(aad)))
        if not compare_digest(mac.finalize()[:tag_size], item[-tag_size:]):
            return False
        end = start + len(body)
        if output[start + IV_SIZE : end] != plaintext + _PADDINGS[len(plaintext) % BLOCK_SIZE]:
            return False
        start = end
    return True


def _verified(pool: ContextPool, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """
    Return each item's IV and ciphertext.

    If its tag is wrong or it does not have whole blocks, it is empty.
    """
    keyed, tag_size = pool.keyed_mac(), pool.suite.tag_size
    bodies: list[bytes] = []
    for sealed, aad in items:
        body = sealed[:-tag_size]
        mac = keyed.copy()
        mac.update(aad + body + _BITS(8 * len(aad)))
        authentic = compare_digest(mac.finalize()[:tag_size], sealed[-tag_size:])
        whole = len(body) >= IV_SIZE + BLOCK_SIZE and not len(body) % BLOCK_SIZE
        bodies.append(body if authentic and whole else b"")
    return bodies


def _decrypt_page(pool: ContextPool, bodies: Sequence[bytes]) -> list[bytes | IntegrityError]:
    joined = b"".join(bodies)
    output = pool.decrypt(joined) if joined else b""
    opened: list[bytes | IntegrityError] = []
    start = 0
    for body in bodies:
        end = start + len(body)
        padding = _PADDINGS[-output[end - 1] % BLOCK_SIZE] if body else b""
        first = start + IV_SIZE  # the bytes in the IV's place have no meaning
        if body and output.endswith(padding, first, end):
            opened.append(output[first : end - len(padding)])
        else:
            opened.append(IntegrityError(OPAQUE_INTEGRITY_MESSAGE))
        start = end
    return opened


def _pages(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """
    Cut items of *sizes* bytes into runs of at most ``MAX_UPDATE`` bytes.

    A larger item is a separate run.
    """
    if sum(sizes) <= MAX_UPDATE:
        return [(0, len(sizes))] if sizes else []
    pages: list[tuple[int, int]] = []
    first = total = 0
    for index, size in enumerate(sizes):
        if total and total + size > MAX_UPDATE:
            pages.append((first, index))
            first, total = index, 0
        total += size
    pages.append((first, len(sizes)))
    return pages
