"""AESCipher: which key, which scope, which order, which error; one outcome for each item."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from uuid import UUID, uuid4

import pytest

from eventseal.cipher import AESCipher, EventZstd, ItemContext, NoCompression, Opened, Zlib, Zstd, inspect
from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    ItemTooLargeError,
    KeyDestroyedError,
    KeyNotFoundError,
    SerializationError,
    StoreUnavailableError,
    UnknownFormatError,
    WrongApplicationError,
)
from eventseal.keys.states import KeyPurpose
from eventseal.suites import CompressionId, SuiteId, cbc_hmac
from eventseal.suites import cbc_hmac as contexts
from eventseal.suites.cbc_hmac import SUITES

TEXT = b'{"activity":"A_SUBMITTED","resource":"112","amount_requested":20000}'


def places(count, stream="orders"):
    return [ItemContext(stream, number, "shop:Order.Placed") for number in range(count)]


# --- one item --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
@pytest.mark.parametrize(
    "compression", [NoCompression(), Zlib(), Zstd(), EventZstd()], ids=["none", "zlib", "zstd", "events"]
)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1000])
def test_an_item_comes_back(suite, compression, size, place):
    cipher = AESCipher(bytes(range(32)), suite=suite, compression=compression)
    plaintext = (TEXT * 20)[:size]
    sealed = cipher.encrypt(plaintext, place)
    assert cipher.decrypt(sealed, place) == plaintext
    assert inspect(sealed).suite is suite.id
    assert inspect(sealed).size == len(sealed)


@pytest.mark.parametrize(
    ("size", "suite"),
    [(16, SuiteId.A128CBC_HS256), (24, SuiteId.A192CBC_HS384), (32, SuiteId.A256CBC_HS512)],
)
def test_a_static_key_selects_the_suite_of_its_size(size, suite, place):
    assert inspect(AESCipher(bytes(range(size))).encrypt(TEXT, place)).suite is suite


def test_data_keys_select_the_default_suite(keys, place):
    sealed = AESCipher(keys).encrypt(TEXT, place)
    assert inspect(sealed).suite is SuiteId.A256CBC_HS512
    assert inspect(sealed).key_id == keys.by_scope["application"].key_id


def test_a_key_source_opens_items_of_every_suite(keys, place):
    """A data key made by another release, with another default, still opens."""
    cipher = AESCipher(keys)
    key = keys.make("application")
    for suite in SUITES.values():
        other = AESCipher(keys)
        other._suite = suite
        keys.by_scope["application"] = key
        assert cipher.decrypt(other.encrypt(TEXT, place), place) == TEXT


def test_no_secret_is_in_the_envelope(place):
    for compression in (NoCompression(), Zlib(), Zstd()):
        sealed = AESCipher(bytes(16), compression=compression).encrypt(TEXT * 10, place)
        assert all(TEXT[start : start + 6] not in sealed for start in range(len(TEXT) - 6))
        assert b"shop" not in sealed


# --- compression -----------------------------------------------------------------------------------


def test_compression_is_kept_only_if_the_envelope_gets_smaller(place):
    cipher = AESCipher(bytes(32), compression=Zlib())
    plain = AESCipher(bytes(32), compression=NoCompression())
    for size in range(0, 400, 3):
        text = bytes(range(256))[: size // 2] + bytes(size - size // 2)
        sealed, reference = cipher.encrypt(text, place), plain.encrypt(text, place)
        compressed = inspect(sealed).compression is CompressionId.ZLIB
        assert compressed == (len(sealed) < len(reference))
        assert len(sealed) <= len(reference)


def test_compression_is_off_where_the_caller_says_so(place):
    cipher = AESCipher(bytes(32))
    text = TEXT * 10
    assert inspect(cipher.encrypt(text, place)).compression is CompressionId.ZSTD
    assert inspect(cipher.encrypt(text, place, compress=False)).compression is CompressionId.NONE
    sealed = cipher.encrypt_many([(text, place)] * 3, compress=[True, False, True])
    assert [inspect(item).compression for item in sealed] == [CompressionId.ZSTD, 0, CompressionId.ZSTD]


def test_every_compression_is_opened_whatever_the_cipher_compresses_with(place):
    sealed = [
        AESCipher(bytes(32), compression=method).encrypt(TEXT * 10, place)
        for method in (NoCompression(), Zlib(), Zstd(), EventZstd())
    ]
    assert [item[2] for item in sealed] == [0, 1, 2, 4]
    for method in (NoCompression(), Zlib(), Zstd(), EventZstd()):
        cipher = AESCipher(bytes(32), compression=method)
        assert [cipher.decrypt(item, place) for item in sealed] == [TEXT * 10] * 4


# --- sizes -----------------------------------------------------------------------------------------


def test_an_item_over_the_limit_is_neither_sealed_nor_opened(place):
    small, large = (AESCipher(bytes(32), max_plaintext=limit) for limit in (100, 101))
    for compress in (True, False):
        assert small.decrypt(small.encrypt(bytes(100), place, compress=compress), place) == bytes(100)
        with pytest.raises(ItemTooLargeError) as caught:
            small.encrypt(bytes(101), place, compress=compress)
        assert (caught.value.size, caught.value.limit) == (101, 100)
        with pytest.raises(ItemTooLargeError) as caught:
            small.decrypt(large.encrypt(bytes(101), place, compress=compress), place)
        assert caught.value.limit == 100


def test_the_default_limit_is_sixteen_mebibytes(place):
    cipher = AESCipher(bytes(32))
    assert len(cipher.decrypt(cipher.encrypt(bytes(2**24), place), place)) == 2**24
    with pytest.raises(ItemTooLargeError):
        cipher.encrypt(bytes(2**24 + 1), place)


def test_an_item_over_the_limit_that_was_tampered_with_is_tampered_with(place):
    sealed = AESCipher(bytes(32)).encrypt(bytes(5000), place, compress=False)
    cipher = AESCipher(bytes(32), max_plaintext=100)
    with pytest.raises(IntegrityError):
        cipher.decrypt(sealed[:-1] + bytes([sealed[-1] ^ 1]), place)


# --- batches ---------------------------------------------------------------------------------------


def test_a_batch_keeps_its_order_over_scopes_and_compressions(keys):
    cipher = AESCipher(keys)
    items = [(TEXT * (1 + number % 3), place) for number, place in enumerate(places(30))]
    scopes = [f"tenant:{number % 4}" for number in range(30)]
    compress = [number % 5 != 0 for number in range(30)]
    sealed = cipher.encrypt_many(items, scopes=scopes, compress=compress)
    assert keys.asked == [("seal", dict(Counter(scopes)))]
    pairs = [(envelope, place) for envelope, (_, place) in zip(sealed, items, strict=True)]
    opened = cipher.open_many(pairs)
    assert opened == [
        Opened(text, keys.by_scope[scope].key_id, scope)
        for (text, _), scope in zip(items, scopes, strict=True)
    ]
    assert keys.asked[1:] == [("open", {keys.by_scope[scope].key_id for scope in scopes})]


def test_a_page_that_needs_several_updates_keeps_its_order(keys, monkeypatch):
    monkeypatch.setattr(cbc_hmac, "MAX_UPDATE", 256)
    monkeypatch.setattr(contexts, "MAX_UPDATE", 256)
    cipher = AESCipher(keys, compression=NoCompression())
    items = [(bytes([number]) * (number * 7), place) for number, place in enumerate(places(40))]
    sealed = cipher.encrypt_many(items)
    outcomes = cipher.open_many([(body, place) for body, (_, place) in zip(sealed, items, strict=True)])
    assert [outcome.plaintext for outcome in outcomes] == [text for text, _ in items]


def test_an_empty_batch_asks_for_no_key(keys):
    cipher = AESCipher(keys)
    assert cipher.encrypt_many([]) == []
    assert cipher.encrypt_many([], scopes=[], compress=[]) == []
    assert cipher.open_many([]) == []
    assert keys.asked == []


def test_a_batch_with_one_bad_item_seals_nothing_and_asks_for_no_key(keys, place):
    cipher = AESCipher(keys, max_plaintext=100)
    for bad, error in (
        ((TEXT, ItemContext("s", 1.0, "t")), SerializationError),
        ((TEXT, ItemContext("s", True, "t")), SerializationError),
        (("text", place), SerializationError),
        ((bytearray(TEXT), place), SerializationError),
        ((bytes(101), place), ItemTooLargeError),
    ):
        with pytest.raises(error):
            cipher.encrypt_many([(TEXT, place), bad, (TEXT, place)])
    assert keys.asked == []


def test_lists_of_another_length_than_the_items_are_refused(keys, place):
    cipher = AESCipher(keys)
    for count in (1, 3):
        with pytest.raises(ConfigurationError, match="scopes"):
            cipher.encrypt_many([(TEXT, place)] * 2, scopes=["application"] * count)
        with pytest.raises(ConfigurationError, match="compress"):
            cipher.encrypt_many([(TEXT, place)] * 2, compress=[True] * count)
    assert keys.asked == []


def test_each_item_of_a_page_has_an_outcome_of_its_own(keys, make_keys):
    cipher = AESCipher(keys)
    here, there, elsewhere = places(3)
    good, another = cipher.encrypt_many([(TEXT, here), (TEXT * 9, there)], scopes=["a", "b"])
    unknown = AESCipher(make_keys()).encrypt(TEXT, here)
    outcomes = cipher.open_many([
        (good, here),
        (good, elsewhere),
        (good[:-1], here),
        (b"", here),
        (b"\x02" + good[1:], here),
        (None, here),
        (another, there),
        (unknown, here),
        (good, ItemContext("orders", 0.5, "t")),
        (good[:-1] + bytes([good[-1] ^ 1]), here),
        (good, here),
    ])  # fmt: skip
    assert [type(outcome) for outcome in outcomes] == [
        Opened,
        IntegrityError,
        UnknownFormatError,
        UnknownFormatError,
        UnknownFormatError,
        UnknownFormatError,
        Opened,
        KeyNotFoundError,
        SerializationError,
        IntegrityError,
        Opened,
    ]
    assert (outcomes[0].scope, outcomes[6].scope) == ("a", "b")
    assert outcomes[6].plaintext == TEXT * 9


def test_refused_places_at_both_ends_of_a_page_leave_the_others_in_their_places(keys):
    cipher = AESCipher(keys)
    good = places(4)
    sealed = cipher.encrypt_many([(b"%d" % number, place) for number, place in enumerate(good)])
    bad = ItemContext("orders", 0.5, "t")
    asked = [bad, good[0], bad, bad, good[1], good[2], good[3], bad]
    bodies = [sealed[0], sealed[0], sealed[0], sealed[0], sealed[1], sealed[2], sealed[3], sealed[0]]
    outcomes = cipher.open_many(list(zip(bodies, asked, strict=True)))
    assert [getattr(outcome, "plaintext", None) for outcome in outcomes] == [
        None, b"0", None, None, b"1", b"2", b"3", None,
    ]  # fmt: skip


def test_a_destroyed_key_is_told_and_masks_nothing_else(keys, place):
    cipher = AESCipher(keys)
    gone, alive = cipher.encrypt_many([(TEXT, place)] * 2, scopes=["gone", "alive"])
    key_id = keys.by_scope["gone"].key_id
    keys.by_id[key_id] = KeyDestroyedError("destroyed", key_id=key_id, destroyed_by="shredded")
    outcomes = cipher.open_many([(gone, place), (alive, place), (gone[:-1] + bytes([gone[-1] ^ 1]), place)])
    assert [type(outcome) for outcome in outcomes] == [KeyDestroyedError, Opened, KeyDestroyedError]


def test_a_key_store_that_is_away_raises(keys, place, monkeypatch):
    cipher = AESCipher(keys)
    sealed = cipher.encrypt(TEXT, place)

    def away(*_, **__):
        raise StoreUnavailableError("away")

    monkeypatch.setattr(keys, "opening_keys", away)
    monkeypatch.setattr(keys, "sealing_keys", away)
    with pytest.raises(StoreUnavailableError):
        cipher.open_many([(sealed, place)])
    with pytest.raises(StoreUnavailableError):
        cipher.encrypt(TEXT, place)
    assert isinstance(cipher.open_many([(b"", place)])[0], UnknownFormatError)  # needs no key


# --- which keys ------------------------------------------------------------------------------------


def test_another_applications_key_is_named_before_any_tag_is_checked(keys, place, monkeypatch):
    cipher = AESCipher(keys)
    sealed = cipher.encrypt(TEXT, place)
    key = keys.by_scope["application"]
    key.application = "other"
    monkeypatch.setattr(contexts.ContextPool, "keyed_mac", lambda *_: pytest.fail("a tag was checked"))
    for attempt in (lambda: cipher.decrypt(sealed, place), lambda: cipher.encrypt(TEXT, place)):
        with pytest.raises(WrongApplicationError) as caught:
            attempt()
        assert (caught.value.expected, caught.value.found) == ("shop", "other")
        assert "'shop'" in str(caught.value)
        assert "'other'" in str(caught.value)


@pytest.mark.parametrize("purpose", [purpose for purpose in KeyPurpose if purpose is not KeyPurpose.DATA])
def test_only_data_keys_seal_and_open_items(keys, place, purpose):
    cipher = AESCipher(keys)
    sealed = cipher.encrypt(TEXT, place)
    keys.by_scope["application"].purpose = purpose
    for attempt in (lambda: cipher.decrypt(sealed, place), lambda: cipher.encrypt(TEXT, place)):
        with pytest.raises(IntegrityError, match=purpose.value):
            attempt()


def test_the_scope_of_an_opened_item_is_its_keys(keys, place):
    cipher = AESCipher(keys)
    sealed = cipher.encrypt(TEXT, place, scope="tenant:acme")
    (opened,) = cipher.open_many([(sealed, place)])
    assert (opened.scope, opened.key_id) == ("tenant:acme", keys.by_scope["tenant:acme"].key_id)


def test_a_closed_key_is_asked_for_once_more(keys, place):
    cipher = AESCipher(keys)
    sealed = cipher.encrypt(TEXT, place)
    first = keys.by_scope["application"]
    material = bytes(first._material)

    real = keys.opening_keys

    def closes_first(key_ids, **_):
        found = real(key_ids)
        if len(keys.asked) == 1:  # hands out a key that closes at once, and its successor later
            first.close()
            keys.make("application", material=material, key_id=first.key_id)
        return found

    keys.asked.clear()
    keys.opening_keys = closes_first
    assert cipher.decrypt(sealed, place) == TEXT
    assert keys.asked == [("open", {first.key_id})] * 2


def test_a_key_that_stays_closed_ends_in_its_error(keys, place):
    cipher = AESCipher(keys)
    sealed = cipher.encrypt(TEXT, place)
    keys.by_scope["application"].close()
    keys.asked.clear()
    outcomes = cipher.open_many([(sealed, place)] * 2)
    assert [type(outcome) for outcome in outcomes] == [KeyNotFoundError] * 2
    assert len(keys.asked) == 2


def test_sealing_meets_a_closed_key_with_one_more_question(keys, place):
    cipher = AESCipher(keys)
    real = keys.sealing_keys
    handed_out = []

    def closes_first(items_by_scope, *, make=True, **_):
        found = real(items_by_scope, make=make)
        handed_out.append(found["application"])
        if len(handed_out) == 1:
            found["application"].close()
        return found

    keys.sealing_keys = closes_first
    sealed = cipher.encrypt_many([(TEXT, place)] * 5)
    assert len(handed_out) == 2
    assert {inspect(item).key_id for item in sealed} == {handed_out[1].key_id}
    assert cipher.decrypt(sealed[4], place) == TEXT


def test_sealing_under_a_key_that_stays_closed_ends_in_its_error(keys, place):
    cipher = AESCipher(keys)
    key = keys.make("application")
    key.close()
    keys.sealing_keys = lambda items, **_: keys.asked.append("seal") or dict.fromkeys(items, key)
    with pytest.raises(KeyNotFoundError):
        cipher.encrypt(TEXT, place)
    assert len(keys.asked) == 2


def test_an_error_that_is_not_of_a_closed_key_is_not_asked_about_twice(keys, place):
    cipher = AESCipher(keys)
    keys.sealing_keys = lambda items, **_: keys.asked.append("seal") or _raise()
    with pytest.raises(KeyNotFoundError):
        cipher.encrypt(TEXT, place)
    assert len(keys.asked) == 1


def _raise():
    raise KeyNotFoundError("no such key")


# --- construction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 15, 17, 31, 33, 64])
def test_a_key_of_another_size_is_refused(size):
    with pytest.raises(ConfigurationError, match=f"not {size}") as caught:
        AESCipher(bytes(size))
    assert "32" in caught.value.remedy


@pytest.mark.parametrize(
    "key", ["0123456789abcdef", None, 16, bytearray(16), pytest.param(object(), id="object")], ids=ascii
)
def test_a_key_that_is_neither_bytes_nor_a_key_source_is_refused(key):
    with pytest.raises(ConfigurationError, match=type(key).__name__):
        AESCipher(key)


def test_arguments_for_static_keys_do_not_go_with_a_key_source(keys):
    for arguments in ({"application": "shop"}, {"suite": SUITES[1]}):
        with pytest.raises(ConfigurationError, match="static key"):
            AESCipher(keys, **arguments)


def test_a_limit_below_one_byte_is_refused():
    with pytest.raises(ConfigurationError, match="max_plaintext"):
        AESCipher(bytes(32), max_plaintext=0)


def test_the_application_is_the_key_sources(keys):
    assert AESCipher(keys).application == "shop"
    assert AESCipher(bytes(32)).application == "default"
    assert AESCipher(bytes(32), application="shop").application == "shop"


def test_refresh_goes_to_the_key_source(keys):
    AESCipher(keys).refresh()
    assert keys.refreshed == 1
    AESCipher(bytes(32)).refresh()


def test_nothing_that_is_printed_shows_a_key_or_a_plaintext(keys, place):
    key = bytes(range(100, 132))
    cipher = AESCipher(key)
    (opened,) = cipher.open_many([(cipher.encrypt(TEXT, place), place)])
    shown = repr([cipher, cipher._keys, cipher._keys.sealing_keys({"application": 1}), opened])
    for secret in (key, TEXT):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


def test_contexts_and_outcomes_are_values(place):
    assert place == dataclasses.replace(place)
    assert hash(place) == hash(dataclasses.replace(place))
    assert Opened(b"x", UUID(int=1), "s") == Opened(b"x", UUID(int=1), "s")
    with pytest.raises(dataclasses.FrozenInstanceError):
        place.position = 8


def test_threads_share_a_cipher(keys):
    cipher = AESCipher(keys)
    wrong = []

    def work(seed):
        for number in range(100):
            place = ItemContext(uuid4(), number, "t")
            text = b"%d-%d" % (seed, number) * (number + 1)
            if cipher.decrypt(cipher.encrypt(text, place), place) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
