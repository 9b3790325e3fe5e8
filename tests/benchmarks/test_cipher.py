"""Sealing and opening the real log's events, beside plaintext JSON and beside the bare primitives."""

from __future__ import annotations

import hmac
import json
import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

from eventseal.cipher import AESCipher, NoCompression, Zstd

pytestmark = pytest.mark.slow

KEY = os.urandom(64)
PAGE = 100
GCM = AESGCM(KEY[:32])
ONE_SHOT, AEAD, PLAIN = "one-shot CBC + HMAC", "AES-256-GCM", "JSON alone"


@pytest.fixture(params=[NoCompression, Zstd], ids=["uncompressed", "zstd"])
def cipher(request):
    return AESCipher(KEY[:32], compression=request.param())


@pytest.fixture
def title(request, cipher):
    operation = request.node.originalname.removeprefix("test_").replace("_", " ")
    return f"{operation}, {request.node.callspec.id}"


def one_shot_seal(plaintext, aad):
    """CBC and HMAC as the same library offers them: a new context for each item."""
    iv = os.urandom(16)
    padder = PKCS7(128).padder()
    encryptor = Cipher(AES(KEY[32:]), CBC(iv)).encryptor()
    body = iv + encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()
    return body + hmac.digest(KEY[:32], aad + body + (8 * len(aad)).to_bytes(8, "big"), "sha512")[:32]


def one_shot_open(sealed, aad):
    body = sealed[:-32]
    tag = hmac.digest(KEY[:32], aad + body + (8 * len(aad)).to_bytes(8, "big"), "sha512")[:32]
    assert hmac.compare_digest(tag, sealed[-32:])
    decryptor = Cipher(AES(KEY[32:]), CBC(body[:16])).decryptor()
    unpadder = PKCS7(128).unpadder()
    return unpadder.update(decryptor.update(body[16:]) + decryptor.finalize()) + unpadder.finalize()


def gcm_seal(plaintext, aad):
    nonce = os.urandom(12)
    return nonce + GCM.encrypt(nonce, plaintext, aad)


def gcm_open(sealed, aad):
    return GCM.decrypt(sealed[:12], sealed[12:], aad)


def associated(cipher, events):
    """The same associated data for every contender."""
    return [bytes(19) + cipher._binder.bind(event.place) for event in events]


def pages(items):
    return [items[start : start + PAGE] for start in range(0, len(items), PAGE)]


def sealing_yardsticks(cipher, events):
    plaintexts = list(zip([event.plaintext for event in events], associated(cipher, events), strict=True))
    return {
        ONE_SHOT: lambda: [one_shot_seal(*item) for item in plaintexts],
        AEAD: lambda: [gcm_seal(*item) for item in plaintexts],
        PLAIN: lambda: [json.dumps(event.attributes, separators=(",", ":")).encode() for event in events],
    }


def opening_yardsticks(cipher, events):
    aads = associated(cipher, events)
    cbc = [(one_shot_seal(event.plaintext, aad), aad) for event, aad in zip(events, aads, strict=True)]
    gcm = [(gcm_seal(event.plaintext, aad), aad) for event, aad in zip(events, aads, strict=True)]
    return {
        ONE_SHOT: lambda: [one_shot_open(*item) for item in cbc],
        AEAD: lambda: [gcm_open(*item) for item in gcm],
        PLAIN: lambda: [json.loads(event.plaintext) for event in events],
    }


def test_seal_one(cipher, events, title, side_by_side):
    work = {"EventSeal": lambda: [cipher.encrypt(event.plaintext, event.place) for event in events]}
    side_by_side(title, work | sealing_yardsticks(cipher, events), len(events))


def test_seal_a_page(cipher, events, title, side_by_side):
    items = pages([(event.plaintext, event.place) for event in events])
    work = {"EventSeal": lambda: [cipher.encrypt_many(page) for page in items]}
    side_by_side(title, work | sealing_yardsticks(cipher, events), len(events))


def test_open_one(cipher, events, title, side_by_side):
    sealed = [(cipher.encrypt(event.plaintext, event.place), event.place) for event in events]
    work = {"EventSeal": lambda: [cipher.decrypt(*item) for item in sealed]}
    side_by_side(title, work | opening_yardsticks(cipher, events), len(events))


def test_open_a_page(cipher, events, title, side_by_side):
    sealed = pages([(cipher.encrypt(event.plaintext, event.place), event.place) for event in events])
    work = {"EventSeal": lambda: [cipher.open_many(page) for page in sealed]}
    side_by_side(title, work | opening_yardsticks(cipher, events), len(events))
    opened = [outcome.plaintext for page in sealed for outcome in cipher.open_many(page)]
    assert opened == [event.plaintext for event in events]
