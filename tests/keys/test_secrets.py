"""No public object shows key bytes, whatever one does with it."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import logging
import os
import pickle
import traceback
from pathlib import Path
from uuid import uuid4

import pytest

from eventseal.errors import EventSealError, KmsUnavailableError, StoreUnavailableError
from eventseal.keys import DataKey, InMemoryKeyStore, KeyPurpose, Keyring, KeyState
from eventseal.keys.data_key import material_of
from eventseal.suites.cbc_hmac import A256CBC_HS512
from eventseal.testing import FakeBatchKms, FakeKms

CANARY = bytes.fromhex("c0ffee00c0ffee11c0ffee22c0ffee33c0ffee44c0ffee55c0ffee66c0ffee77")
FORMS = {
    "raw": CANARY,
    "half": CANARY[:16],
    "reversed": CANARY[::-1],
    "hex": CANARY.hex().encode(),
    "upper hex": CANARY.hex().upper().encode(),
    "base64": base64.b64encode(CANARY).rstrip(b"="),
    "url base64": base64.urlsafe_b64encode(CANARY).rstrip(b"="),
    "repr": repr(CANARY)[2:-1].encode(),
    "list": str(list(CANARY))[1:-1].encode(),
    "integer": str(int.from_bytes(CANARY, "big")).encode(),
}


def leaks(text: bytes | str) -> list[str]:
    shown = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return [form for form, canary in FORMS.items() if canary in shown]


@pytest.fixture(autouse=True)
def canary(monkeypatch) -> None:
    """Every key of 32 bytes that the fake KMS makes is the canary."""
    urandom = os.urandom
    monkeypatch.setattr(os, "urandom", lambda size: CANARY if size == 32 else urandom(size))


def world() -> dict[str, object]:
    kms, store = FakeKms(), InMemoryKeyStore()
    keyring = Keyring(kms, store)
    key = keyring.sealing_keys({"a": 1})["a"]
    assert material_of(key) == CANARY
    key.pool(A256CBC_HS512)
    return {
        "key": key,
        "keyring": keyring,
        "counters": keyring.counters,
        "store": store,
        "record": store.page("default")[0],
        "held keys": keyring._held_keys,
        "cached": keyring._held_keys.active["a"],
        "seals": keyring._ring.store_key.seals(),
        "keks": keyring._opener._parts.wrapping,
        "parts": keyring._opener._parts,
        "kms": kms,
        "call": kms.calls[0],
        "changes": store.changes("default", -1, []),
    }


def state(thing: object) -> object:
    if hasattr(thing, "__dict__"):
        return vars(thing)
    return {
        name: getattr(thing, name)
        for name in getattr(type(thing), "__slots__", ())
        if not name.startswith("_")
    }


ACCESSORS = {
    "repr": repr,
    "str": str,
    "format": lambda thing: f"{thing}{thing!r}{thing!s:>5}",
    "percent": lambda thing: "%s %r" % (thing, thing),  # noqa: UP031
    "vars": lambda thing: repr(state(thing)),
    "dir": lambda thing: repr(dir(thing)),
    "json": lambda thing: json.dumps({"thing": thing}, default=repr),
    "asdict": lambda thing: repr(dataclasses.asdict(thing)) if dataclasses.is_dataclass(thing) else "",
    "pickle": pickle.dumps,
    "copy": lambda thing: repr(state(copy.copy(thing))),
    "deepcopy": lambda thing: repr(state(copy.deepcopy(thing))),
    "log": lambda thing: logging.Formatter().format(
        logging.LogRecord("x", 10, "f", 1, "%r %s", (thing, thing), None)
    ),
}


@pytest.mark.parametrize("accessor", ACCESSORS)
def test_no_accessor_of_any_object_shows_a_key(accessor: str) -> None:
    for name, thing in world().items():
        try:
            shown = ACCESSORS[accessor](thing)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            shown = f"{error!r}"
        if isinstance(shown, bytes):
            assert not leaks(shown), name
        assert not leaks(str(shown)), name


@pytest.mark.parametrize("name", ["key", "keyring", "seals", "cached", "kms"])
def test_what_holds_keys_is_neither_pickled_nor_copied_deeply(name: str) -> None:
    thing = world()[name]
    for accessor in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            accessor(thing)


@pytest.mark.parametrize("accessor", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_handle_says_why_it_does_not_travel(accessor) -> None:
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        accessor(world()["key"])


def test_a_handle_has_no_dictionary_and_no_attribute_of_bytes() -> None:
    key = world()["key"]
    assert not hasattr(key, "__dict__")
    public = [getattr(key, name) for name in dir(key) if not name.startswith("_")]
    assert not any(isinstance(value, (bytes, bytearray)) for value in public)


def test_a_closed_handle_holds_no_bytes() -> None:
    key = world()["key"]
    key.close()
    assert bytes(key._material) == bytes(32)
    assert key._pools == {}
    for use in (lambda: key.derive(b"x", 8), lambda: material_of(key)):
        with pytest.raises(EventSealError):
            use()
    key.close()


def test_a_closed_keyring_holds_no_bytes() -> None:
    made = world()
    key = made["key"]
    made["keyring"].close()
    assert bytes(key._material) == bytes(32)


def test_the_key_store_holds_no_plain_key() -> None:
    store = world()["store"]
    for record in store.page("default"):
        assert not leaks(
            record.binding + record.seal + b"".join(wrapping.ciphertext for wrapping in record.wrappings)
        )


def own_frames(error: BaseException) -> str:
    """The variables of EventSeal's frames in a traceback; the KMS adapter's own are given the bytes."""
    found: traceback.TracebackException | None = traceback.TracebackException.from_exception(
        error, capture_locals=True
    )
    shown = []
    while found is not None:
        shown += [repr(frame.locals) for frame in found.stack if Path(frame.filename).parent.name == "keys"]
        found = found.__cause__ or found.__context__
    return "".join(shown)


def test_no_frame_of_a_failed_call_holds_a_key() -> None:
    first, second = FakeKms(), FakeBatchKms()
    store = InMemoryKeyStore()
    keyring = Keyring([first, second], store)
    keyring.prepare(["a"])
    second.fail_always()
    errors = []
    for scopes in (["b"], ["c", "d"]):
        with pytest.raises(KmsUnavailableError) as caught:
            keyring.prepare(scopes)
        errors.append(caught.value)
    second.recover()
    for operation in ("add_active", "replace_all_active", "reserve", "changes", "get"):
        broken = InMemoryKeyStore()
        ring = Keyring(first, broken)
        key_id = ring.sealing_keys({"a": 1})["a"].key_id

        def fail(*args, **options):
            raise StoreUnavailableError("broken")

        setattr(broken, operation, fail)
        for use in (
            lambda ring=ring: ring.prepare(["new"]),
            lambda ring=ring: ring.rotate("a"),
            lambda ring=ring: ring.sealing_keys({"a": 100_000}),
            lambda broken=broken, key_id=key_id: Keyring(first, broken).opening_keys([key_id]),
        ):
            try:
                use()
            except EventSealError as error:
                errors.append(error)
    assert len(errors) == 7
    for error in errors:
        assert not leaks(own_frames(error))
        assert not leaks(pickle.dumps(error))
        assert not leaks(f"{error!r} {vars(error)}")


def test_a_key_of_16_or_24_bytes_is_hidden_as_well() -> None:
    for size in (16, 24):
        key = DataKey(
            CANARY[:size],
            key_id=uuid4(),
            application="shop",
            scope="a",
            purpose=KeyPurpose.DATA,
            state=KeyState.ACTIVE,
        )
        assert not leaks(repr(key))


def test_no_frame_of_a_failed_call_under_branches_holds_a_key() -> None:
    kms, errors = FakeKms(), []
    for operation in ("add_active", "get", "put_wrappings"):
        store = InMemoryKeyStore()
        keyring = Keyring(kms, store, branches=2)
        key_id = keyring.sealing_keys({"a": 1})["a"].key_id

        def fail(*args, **options):
            raise StoreUnavailableError("broken")

        setattr(store, operation, fail)
        for use in (
            lambda keyring=keyring: keyring.prepare(["b", "c", "d"]),
            lambda store=store, key_id=key_id: Keyring(kms, store).opening_keys([key_id]),
            lambda store=store: Keyring([kms, FakeKms()], store).rewrap(),
        ):
            try:
                use()
            except EventSealError as error:
                errors.append(error)
    store = InMemoryKeyStore()
    keyring = Keyring(kms, store, branches=1)
    keyring.prepare(["a"])
    (branch,) = keyring._held_keys.of(KeyPurpose.BRANCH).keys.values()
    stale = branch.key
    stale.close()
    keyring._ring.branch_keys.sealer.keys = lambda scopes, make: dict.fromkeys(scopes, stale)
    with pytest.raises(EventSealError) as caught:
        keyring.prepare(["b"])
    errors.append(caught.value)
    assert len(errors) == 5
    for error in errors:
        assert not leaks(own_frames(error))
        assert not leaks(pickle.dumps(error))
        assert not leaks(f"{error!r} {vars(error)}")


def test_a_branch_key_shows_no_bytes_and_holds_none_once_closed() -> None:
    keyring = Keyring(FakeKms(), InMemoryKeyStore(), branches=1)
    keyring.prepare(["a"])
    (branch,) = keyring._held_keys.of(KeyPurpose.BRANCH).keys.values()
    assert not leaks(f"{branch!r} {branch.key!r} {keyring._held_keys.of(KeyPurpose.BRANCH)!r}")
    pool = branch.key.wrapping_pool()
    keyring.close()
    assert bytes(branch.key._material) == bytes(32)
    assert pool.closed
