"""The same over the whole log, whose file ``LOAN_LOG`` names: a few minutes on each database."""

from __future__ import annotations

import pytest
from tests.fixtures.live_migration import Bank, LiveMigration
from tests.fixtures.loan_log import WHOLE, streams, whole_log

from eventseal.testing import FakeKms


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_the_whole_log_is_written_read_and_migrated_without_an_error(store_url, monkeypatch):
    path = whole_log()
    if path is None:
        pytest.skip(f"{WHOLE} names no file of the whole log: nothing was migrated")
    monkeypatch.setenv("OLD_CIPHER_KEY", "")
    bank = Bank(store_url, FakeKms())
    try:
        live = LiveMigration(bank, streams(path))
        live.run()
    finally:
        bank.close()
    assert live.errors == []
    assert live.read > 0
