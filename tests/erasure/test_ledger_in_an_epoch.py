"""A ledger verifies after an epoch was rolled: its key moved before the old versions of the KEK ended."""

from __future__ import annotations

from uuid import uuid4

import pytest
from tests.fixtures.ledger_shops import LedgerShop
from tests.fixtures.openbao import openbao

from eventseal.erasure import after_restore, shred
from eventseal.erasure.epoch import roll_epoch
from eventseal_kms.vault import Token, VaultSettings, VaultTransitAdapter

__all__ = ["openbao"]

SCOPE = "subject:customer-42"


@pytest.mark.slow
def test_the_ledger_verifies_after_the_epoch_was_rolled(openbao, sqlite_url, tmp_path) -> None:
    name = f"key-{uuid4().hex}"
    openbao.client().write_data(f"transit/keys/{name}", data={"type": "aes256-gcm96", "derived": True})
    settings = VaultSettings(address=openbao.address, login=Token(openbao.token))
    shop = LedgerShop(sqlite_url, VaultTransitAdapter("transit", name, settings=settings), tmp_path)
    erased, kept = shop.append(SCOPE), shop.append("subject:other")
    shred(shop.seal, SCOPE)
    shop.restart()
    assert roll_epoch(shop.seal).complete
    shop.restart()
    assert shop.kinds() == ["intent", "done", "wrapped", "epoch"]
    assert after_restore(shop.seal).complete
    shred(shop.seal, "subject:other")
    assert not shop.opens(erased)
    assert not shop.opens(kept)
    shop.stop()
