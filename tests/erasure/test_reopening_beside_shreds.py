"""Shreds and reopenings of one scope that meet: the ledger and the key tables say the same in the end."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.ledger_shops import LedgerShop

from eventseal.erasure import after_restore, reopen, shred
from eventseal.erasure.ledger.ledger import Ledger
from eventseal.erasure.ledger.recording import Recording
from eventseal.errors import JobError, KeyDestroyedError
from eventseal.storage.key_store import SQLAlchemyKeyStore
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCOPE = "subject:customer-42"


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def shop(sqlite_url, tmp_path) -> Iterator[LedgerShop]:
    shop = LedgerShop(sqlite_url, FakeKms(), tmp_path)
    shop.key(SCOPE)
    yield shop
    shop.stop()


@pytest.fixture
def other(shop) -> Iterator[LedgerShop]:
    """Another process of the same application."""
    other = LedgerShop.__new__(LedgerShop)
    other.__dict__.update(shop.__dict__)
    other.start()
    yield other
    other.stop()


def before_first(monkeypatch: pytest.MonkeyPatch, where: type, name: str, what: Callable[[], object]) -> None:
    """Let something happen just before a function is called for the first time."""
    function = getattr(where, name)
    calls: list[None] = []

    def wrapped(*args: object, **named: object) -> object:
        calls.append(None)
        if len(calls) == 1:
            what()
        return function(*args, **named)

    monkeypatch.setattr(where, name, wrapped)


def begins_a_shred(shop: LedgerShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell the intent of a shred, and crash."""

    def crash(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patch, suppress(Crash):
        patch.setattr(SQLAlchemyKeyStore, "set_states", crash)
        shred(shop.seal, SCOPE)


def is_closed(shop: LedgerShop) -> bool:
    """Whether no key is made for the scope, as a process sees it that begins now."""
    shop.restart()
    try:
        shop.key(SCOPE)
    except KeyDestroyedError:
        return True
    return False


def agrees(shop: LedgerShop) -> bool:
    """Whether the key tables are as the ledger says."""
    shop.restart()
    looked = after_restore(shop.seal, dry_run=True)
    return (looked.done, looked.failed, looked.scopes) == (0, 0, ())


def test_a_shred_between_a_reopening_and_its_telling_has_it_told_again(shop, other, monkeypatch) -> None:
    shred(shop.seal, SCOPE)
    before_first(monkeypatch, SQLAlchemyKeyStore, "set_states", lambda: shred(other.seal, SCOPE))
    assert reopen(shop.seal, SCOPE).done == 1
    assert shop.kinds() == ["intent", "done", "reopen", "intent", "done", "reopen"]
    assert not is_closed(shop)
    assert agrees(shop), "a key lives where the ledger has the scope as closed"


def test_a_shred_that_begins_after_the_telling_stops_the_reopening(shop, other, monkeypatch) -> None:
    shred(shop.seal, SCOPE)

    def shred_up_to_its_end() -> None:
        with monkeypatch.context() as patch, suppress(Crash):
            patch.setattr(Recording, "finish", _crash)
            shred(other.seal, SCOPE)

    before_first(monkeypatch, SQLAlchemyKeyStore, "set_states", shred_up_to_its_end)
    with pytest.raises(JobError, match="was begun"):
        reopen(shop.seal, SCOPE)
    assert shop.kinds() == ["intent", "done", "reopen", "intent"]
    assert is_closed(shop)


def test_a_shred_that_begins_while_a_reopening_looks_for_some_stops_it(shop, other, monkeypatch) -> None:
    shred(shop.seal, SCOPE)
    looked = Ledger.open_intents
    looks: list[int] = []

    def look(ledger, store):
        found = looked(ledger, store)
        looks.append(len(found))
        if len(looks) == 1:
            begins_a_shred(other, monkeypatch)
        return found

    monkeypatch.setattr(Ledger, "open_intents", look)
    with pytest.raises(JobError, match="was begun"):
        reopen(shop.seal, SCOPE)
    assert looks == [0, 1]
    assert shop.kinds() == ["intent", "done", "intent"]


def test_a_reopening_is_told_beside_the_intent_of_another_scope(shop, other, monkeypatch) -> None:
    shred(shop.seal, SCOPE)
    other.key("subject:other")

    def begin() -> None:
        with monkeypatch.context() as patch, suppress(Crash):
            patch.setattr(SQLAlchemyKeyStore, "set_states", _crash)
            shred(other.seal, "subject:other")

    looked = Ledger.open_intents
    looks: list[None] = []

    def look(ledger, store):
        found = looked(ledger, store)
        looks.append(None)
        if len(looks) == 1:
            begin()
        return found

    monkeypatch.setattr(Ledger, "open_intents", look)
    assert reopen(shop.seal, SCOPE).done == 1
    assert shop.kinds() == ["intent", "done", "intent", "reopen"]


def test_a_restore_closes_a_scope_whose_shred_another_and_a_reopening_overtook(
    shop, other, monkeypatch
) -> None:
    def overtake() -> None:
        shred(other.seal, SCOPE)
        reopen(other.seal, SCOPE)

    overtake()  # there are tombstones for every slot: no intent has a key to name that the one before lacks
    shop.key(SCOPE)
    shop.back_up()
    with monkeypatch.context() as patch:
        before_first(patch, SQLAlchemyKeyStore, "set_states", overtake)
        shred(shop.seal, SCOPE)
    assert shop.kinds()[3:] == ["intent", "intent", "done", "reopen", "intent", "done"]
    assert is_closed(shop)
    other.stop()
    shop.restore()
    assert after_restore(shop.seal).complete
    assert is_closed(shop)
    other.start()


def test_what_is_done_leaves_open_what_was_meant_since(shop, other, monkeypatch) -> None:
    before_first(
        monkeypatch, Ledger, "open_intents", lambda: begins_a_shred(other, monkeypatch)
    )  # the keys are destroyed by then
    shred(shop.seal, SCOPE)
    assert shop.kinds() == ["intent", "intent", "done"]
    assert [entry.number for entry in shop.ledger.open_intents(shop.seal)] == [3]


def test_a_shred_moves_every_tombstone_of_its_scope(shop) -> None:
    """So that whoever has read one of them, to shred or reopen the scope, has to read it again."""
    shop.seal.keyring.rotate(SCOPE)
    shred(shop.seal, SCOPE)
    versions = _versions(shop)
    shred(shop.seal, SCOPE)
    assert len(versions) == 4
    assert _versions(shop) == {key_id: version + 1 for key_id, version in versions.items()}


def _versions(shop: LedgerShop) -> dict[object, int]:
    rows = shop.seal.key_store.of_scope(shop.seal.keyring.application, SCOPE)
    return {row.key_id: row.row_version for row in rows}


def _crash(*_: object, **__: object) -> None:
    raise Crash
