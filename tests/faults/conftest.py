"""The fixtures of faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fixtures.sealed_shops import SealedShop
from tests.fixtures.store_copies import postgres_copies, sqlite_copies

from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def kms() -> FakeKms:
    return FakeKms()


@pytest.fixture
def shop(store_url: str, lax_tables: None, kms: FakeKms) -> Iterator[SealedShop]:
    """A process on an empty store of an earlier release, on each database."""
    with SealedShop(store_url, kms).set_up() as opened:
        yield opened


@pytest.fixture
def again(store_url: str, kms: FakeKms) -> Iterator[SealedShop]:
    """Another process, which knows nothing yet."""
    with SealedShop(store_url, kms) as opened:
        yield opened


__all__ = ["postgres_copies", "sqlite_copies"]
