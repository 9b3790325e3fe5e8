"""
The suites AES-CBC with HMAC-SHA-2: encrypt-then-MAC exactly as RFC 7518 section 5.2 composes it.

An IV is made by encrypting 16 fresh random bytes R as the block before the item: ``IV = E(R xor S)``, where
S is the context's last ciphertext block. R is uniform and secret until then, so ``R xor S`` is uniform
whatever S is, and E, a permutation, keeps it so: the IV is as random as R. What follows is plain CBC under
that IV, and any CBC implementation opens it. Opening mirrors it: the IV goes through the decryptor as a block
of its own, whose output is thrown away. Both run over a page of items in one call.
"""

from __future__ import annotations

from hmac import compare_digest
from os import urandom
from struct import Struct
from typing import TYPE_CHECKING

from eventseal.errors import OPAQUE_INTEGRITY_MESSAGE, EventSealError, IntegrityError
from eventseal.suites.envelope import BLOCK_SIZE, IV_SIZE
from eventseal.suites.suite import A128CBC_HS256, A192CBC_HS384, A256CBC_HS512, MAX_UPDATE, SUITES, Suite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventseal.suites.suite import ContextPool

_BITS = Struct(">Q").pack
_PADDINGS = [bytes([count]) * count for count in range(BLOCK_SIZE, 0, -1)]
"""PKCS#7 padding by the length of the plaintext modulo 16."""


def seal_many(
    pool: ContextPool, items: Sequence[tuple[bytes, bytes]], *, _random: Callable[[int], bytes] = urandom
) -> list[bytes]:
    """
    Encrypt and authenticate items under one key.

    Args:
        pool: Of the key; it says the suite.
        items: Plaintext, of any length, and associated data.

    Returns:
        For each item IV (16) | ciphertext (a positive multiple of 16) | tag (``suite.tag_size``), in order.

    Raises:
        KeyNotFoundError: The pool is closed.
    """
    # Drawn here and used up here: random bytes kept for later would come again in a fork.
    random = _random(IV_SIZE * len(items))
    if len(random) != IV_SIZE * len(items):
        raise EventSealError(f"the random source gave {len(random)} bytes, not {IV_SIZE * len(items)}")
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
    # The IV, the plaintext's whole blocks, and one more, which padding always fills up.
    return (1 + len(plaintext) // BLOCK_SIZE + 1) * BLOCK_SIZE


def open_many(pool: ContextPool, items: Sequence[tuple[bytes, bytes]]) -> list[bytes | IntegrityError]:
    """
    Verify and decrypt items under one key.

    Every tag is checked, in constant time, before anything is decrypted, and only what a good tag covers is
    decrypted; all bytes of the padding are checked after. Whatever fails, fails in one and the same way.

    Args:
        pool: Of the key; it says the suite.
        items: IV | ciphertext | tag, and associated data.

    Returns:
        For each item its plaintext or its error, in order.

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
    Whether everything that was just sealed opens to what it was sealed from.

    Args:
        pool: Of the key; it says the suite.
        sealed: As :func:`seal_many` gave it for *items*.
        items: Plaintext and associated data.

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
    """Give each item's IV and ciphertext if its tag is good and it has whole blocks, else nothing."""
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
        first = start + IV_SIZE  # what came out in the IV's place means nothing
        if body and output.endswith(padding, first, end):
            opened.append(output[first : end - len(padding)])
        else:
            opened.append(IntegrityError(OPAQUE_INTEGRITY_MESSAGE))
        start = end
    return opened


def _pages(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Cut items of *sizes* bytes into runs of at most ``MAX_UPDATE``; a larger item is a run of its own."""
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


__all__ = [
    "A128CBC_HS256",
    "A192CBC_HS384",
    "A256CBC_HS512",
    "SUITES",
    "Suite",
    "open_many",
    "reopens",
    "seal_many",
]
