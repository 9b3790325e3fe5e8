"""What the tests of the suites share: an independent implementation, and the random block for a wanted IV."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB
from cryptography.hazmat.primitives.padding import PKCS7

from eventseal.suites.cbc_hmac import SUITES

if TYPE_CHECKING:
    from eventseal.suites import Suite

VECTORS = Path(__file__).parent.parent / "vectors"


@dataclass(frozen=True)
class OneShot:
    """A suite's key, used the plain way: a fresh context for each item, as any other implementation would."""

    suite: Suite
    key: bytes

    @property
    def mac_key(self) -> bytes:
        return self.key[: self.suite.key_size // 2]

    @property
    def aes(self) -> AES:
        return AES(self.key[self.suite.key_size // 2 :])

    def tag(self, body: bytes, aad: bytes) -> bytes:
        length = (8 * len(aad)).to_bytes(8, "big")
        return hmac.digest(self.mac_key, aad + body + length, self.suite.hash.name)[: self.suite.tag_size]

    def seal(self, plaintext: bytes, aad: bytes, iv: bytes) -> bytes:
        padder = PKCS7(128).padder()
        body = iv + self.encrypt_blocks(padder.update(plaintext) + padder.finalize(), iv)
        return body + self.tag(body, aad)

    def encrypt_blocks(self, blocks: bytes, iv: bytes) -> bytes:
        context = Cipher(self.aes, CBC(iv)).encryptor()
        return context.update(blocks) + context.finalize()

    def open(self, sealed: bytes, aad: bytes) -> bytes:
        body, tag = sealed[: -self.suite.tag_size], sealed[-self.suite.tag_size :]
        assert tag == self.tag(body, aad)
        context = Cipher(self.aes, CBC(body[:16])).decryptor()
        unpadder = PKCS7(128).unpadder()
        padded = context.update(body[16:]) + context.finalize()
        return unpadder.update(padded) + unpadder.finalize()

    def random_for(self, iv: bytes, chained: bytes) -> bytes:
        """The 16 bytes that the random source must give, for *iv* to come out behind *chained*."""
        context = Cipher(self.aes, ECB()).decryptor()  # noqa: S305 - one block, to invert the cipher
        block = context.update(iv) + context.finalize()
        return bytes(left ^ right for left, right in zip(block, chained, strict=True))


@pytest.fixture(params=SUITES.values(), ids=lambda suite: suite.name)
def suite(request: pytest.FixtureRequest) -> Suite:
    return request.param


@pytest.fixture
def key(suite: Suite) -> bytes:
    return bytes(range(7, 7 + suite.key_size))


@pytest.fixture
def one_shot(suite: Suite, key: bytes) -> OneShot:
    return OneShot(suite, key)


@pytest.fixture
def one_shot_of() -> type[OneShot]:
    return OneShot


@pytest.fixture
def load_vectors() -> Any:
    def load(name: str) -> Any:
        return json.loads((VECTORS / name).read_text())

    return load


@pytest.fixture
def vectors_path() -> Path:
    return VECTORS
