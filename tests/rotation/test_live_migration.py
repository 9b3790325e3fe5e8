"""Two writers and a reader through all three steps of a migration: nobody sees an error."""

from __future__ import annotations

import pytest
from tests.fixtures.live_migration import Bank, LiveMigration
from tests.fixtures.loan_log import streams

from eventseal.testing import FakeKms

EVENTS = 1200


@pytest.mark.timeout(300)
def test_writers_and_a_reader_see_no_error_through_all_three_steps(store_url, monkeypatch):
    monkeypatch.setenv("OLD_CIPHER_KEY", "")
    bank = Bank(store_url, FakeKms())
    try:
        live = LiveMigration(bank, streams(most=EVENTS))
        live.run()
    finally:
        bank.close()
    assert live.errors == []
    assert live.read > 0
