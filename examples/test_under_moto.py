"""
Test an application with keys under AWS KMS, but without AWS.

moto answers boto3::

    python -m pytest examples/test_under_moto.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import boto3
import pytest
from moto import mock_aws

from eventseal import AESCipher, InMemoryKeyStore, ItemContext, Keyring
from eventseal.errors import IntegrityError
from eventseal_kms.aws import AwsKmsAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACE = ItemContext(sequence_id="order-1", position=0, topic="shop:OrderPlaced")


@pytest.fixture
def kms_key() -> Iterator[str]:
    with mock_aws():
        yield boto3.client("kms", region_name="eu-west-1").create_key()["KeyMetadata"]["Arn"]


@pytest.fixture
def keyring(kms_key: str) -> Keyring:
    return Keyring(kms=AwsKmsAdapter(kms_key), key_store=InMemoryKeyStore(), application="shop")


@pytest.fixture
def cipher(keyring: Keyring) -> AESCipher:
    return AESCipher(keyring)


def test_what_is_stored_tells_nothing(cipher: AESCipher) -> None:
    assert b"Ada" not in cipher.encrypt(b"Ada", PLACE)


def test_an_order_comes_back(cipher: AESCipher) -> None:
    assert cipher.decrypt(cipher.encrypt(b"Ada", PLACE), PLACE) == b"Ada"


def test_an_order_moved_to_another_stream_does_not_open(cipher: AESCipher) -> None:
    elsewhere = ItemContext(sequence_id="order-2", position=0, topic="shop:OrderPlaced")
    with pytest.raises(IntegrityError):
        cipher.decrypt(cipher.encrypt(b"Ada", PLACE), elsewhere)


def test_a_thousand_orders_cost_two_calls(cipher: AESCipher, keyring: Keyring) -> None:
    for _ in range(1000):
        cipher.encrypt(b"Ada", PLACE)
    assert keyring.counters.kms_calls == 2  # the store key and the data key
