"""
The suites AES-CBC with HMAC-SHA-2: encrypt-then-MAC exactly as RFC 7518 section 5.2 composes it.

An IV is made by encrypting 16 fresh random bytes R as the block before the item: ``IV = E(R xor S)``, where S is
the last ciphertext block of the context. R is uniform and secret until then, so is ``R xor S``, and E is a
permutation: the IV is as random as R. All that follows is plain CBC under that IV, and any CBC implementation
opens it. Opening runs the same way: the IV goes through the decryptor as a block of its own, whose output is
thrown away.
"""

from __future__ import annotations

from hmac import compare_digest
from os import urandom
from struct import Struct
from typing import TYPE_CHECKING

from eventseal.errors import OPAQUE_INTEGRITY_MESSAGE, EventSealError, IntegrityError
from eventseal.suites.contexts import MAX_UPDATE
from eventseal.suites.envelope import BLOCK_SIZE, IV_SIZE
from eventseal.suites.suite import A128CBC_HS256, A192CBC_HS384, A256CBC_HS512, SUITES, Suite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from eventseal.suites.contexts import ContextPool

_AAD_BITS = Struct(">Q").pack
_PADDINGS = [bytes([count]) * count for count in range(BLOCK_SIZE, 0, -1)]
"""PKCS#7 padding by the length of the plaintext modulo 16."""


def seal_many(
    pool: ContextPool, items: Sequence[tuple[bytes, bytes]], *, _random: Callable[[int], bytes] = urandom
) -> list[bytes]:
    """
    Encrypt and authenticate items under one key.

    Args:
        pool: Of the key; says the suite.
        items: Plaintext, of any length, and associated data.

    Returns:
        For each item IV (16) | ciphertext (a positive multiple of 16) | tag (``suite.tag_size``), in order.

    Raises:
        KeyNotFoundError: The pool is closed.
    """
    # Drawn here and used up here: random bytes kept for later would repeat in a fork.
    random = _random(IV_SIZE * len(items))
    if len(random) != IV_SIZE * len(items):
        raise EventSealError(f"the random source gave {len(random)} bytes for {IV_SIZE * len(items)}")
    sealed: list[bytes] = []
    for first, last in _groups(
        [len(plaintext) // BLOCK_SIZE * BLOCK_SIZE + 2 * BLOCK_SIZE for plaintext, _ in items]
    ):
        blocks: list[bytes] = []
        for index in range(first, last):
            plaintext = items[index][0]
            blocks += (
                random[index * IV_SIZE : (index + 1) * IV_SIZE],
                plaintext,
                _PADDINGS[len(plaintext) % BLOCK_SIZE],
            )
        output = pool.encrypt(b"".join(blocks))
        sealed += _tagged(pool, output, items[first:last])
    return sealed


def _tagged(pool: ContextPool, output: bytes, items: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
    keyed, tag_size = pool.keyed_mac(), pool.suite.tag_size
    start = 0
    for plaintext, aad in items:
        end = start + len(plaintext) // BLOCK_SIZE * BLOCK_SIZE + 2 * BLOCK_SIZE
        body = output[start:end]
        mac = keyed.copy()
        mac.update(aad + body + _AAD_BITS(8 * len(aad)))
        yield body + mac.finalize()[:tag_size]
        start = end


def open_many(pool: ContextPool, items: Sequence[tuple[bytes, bytes]]) -> list[bytes | IntegrityError]:
    """
    Verify and decrypt items under one key.

    Every tag is checked, in constant time, before anything is decrypted, and only what it covers is; all bytes of
    the padding are checked after. Whatever fails fails in one way.

    Args:
        pool: Of the key; says the suite.
        items: IV | ciphertext | tag, and associated data.

    Returns:
        For each item its plaintext or its error, in order.

    Raises:
        KeyNotFoundError: The pool is closed.
    """
    outcomes: list[bytes | IntegrityError] = []
    verified: list[tuple[int, bytes]] = []
    keyed, tag_size = pool.keyed_mac(), pool.suite.tag_size
    smallest = IV_SIZE + BLOCK_SIZE + tag_size
    for index, (sealed, aad) in enumerate(items):
        body = sealed[:-tag_size]
        mac = keyed.copy()
        mac.update(aad + body + _AAD_BITS(8 * len(aad)))
        authentic = compare_digest(mac.finalize()[:tag_size], sealed[-tag_size:])
        if authentic and len(sealed) >= smallest and not len(body) % BLOCK_SIZE:
            verified.append((index, body))
        outcomes.append(_failure())
    for first, last in _groups([len(body) for _, body in verified]):
        group = verified[first:last]
        output = pool.decrypt(b"".join([body for _, body in group]))
        start = 0
        for index, body in group:
            end = start + len(body)
            padding = _PADDINGS[-output[end - 1] % BLOCK_SIZE]
            if output[end - 1] <= BLOCK_SIZE and output.endswith(padding, start, end):
                outcomes[index] = output[start + IV_SIZE : end - len(padding)]
            start = end
    return outcomes


def _groups(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut a list of items of *sizes* bytes into runs of at most ``MAX_UPDATE``; a larger item is a run of its own."""
    first = total = 0
    for index, size in enumerate(sizes):
        if total and total + size > MAX_UPDATE:
            yield first, index
            first, total = index, 0
        total += size
    if total:
        yield first, len(sizes)


def _failure() -> IntegrityError:
    return IntegrityError(OPAQUE_INTEGRITY_MESSAGE)


__all__ = ["A128CBC_HS256", "A192CBC_HS384", "A256CBC_HS512", "SUITES", "Suite", "open_many", "seal_many"]
