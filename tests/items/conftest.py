"""A keyring in memory, and mappers that seal only fields, or items and fields."""

import pytest

from eventseal.cipher import AESCipher
from eventseal.items import SequencedItemMapper
from eventseal.keys import InMemoryKeyStore, Keyring
from eventseal.testing import FakeKms


@pytest.fixture
def kms():
    return FakeKms()


@pytest.fixture
def key_store():
    return InMemoryKeyStore()


@pytest.fixture
def keyring(kms, key_store):
    return Keyring(kms, key_store, application="shop")


@pytest.fixture
def make_mapper(keyring):
    return lambda **options: SequencedItemMapper(cipher=AESCipher(keyring), **options)


@pytest.fixture(params=[True, False], ids=["items too", "fields only"])
def mapper(request, make_mapper):
    return make_mapper(always_encrypt=request.param)
