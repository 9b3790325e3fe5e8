"""A ledger of erasures: what was written is read again, and whatever else is in it is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from types import SimpleNamespace
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from eventseal.erasure import DatabaseLedger, FileLedger, erased_subjects
from eventseal.erasure.ledger.entries import DONE, INTENT, REOPEN
from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KekNotConfiguredError,
    KmsUnavailableError,
    StoreUnavailableError,
    WrongApplicationError,
)
from eventseal.keys import InMemoryKeyStore, KeyPurpose, Keyring
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from pathlib import Path

SCOPE = "subject:customer-42"


def store_of(*kms: FakeKms, application: str = "shop"):
    """What a ledger needs of a store."""
    key_store = InMemoryKeyStore()
    return SimpleNamespace(keyring=Keyring(kms, key_store, application=application), key_store=key_store)


@pytest.fixture
def kms() -> FakeKms:
    return FakeKms()


@pytest.fixture
def store(kms):
    return store_of(kms)


class FilePlace:
    """A ledger's file, and what somebody does to it behind its back."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "erasures.jsonl"

    def open(self) -> FileLedger:
        return FileLedger(self.path)

    @property
    def lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines()

    @lines.setter
    def lines(self, lines: list[bytes]) -> None:
        self.path.write_bytes(b"".join([line + b"\n" for line in lines]))


class TablePlace:
    """A ledger's table, and what somebody does to it behind its back."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = create_engine(url, poolclass=NullPool)

    def open(self) -> DatabaseLedger:
        return DatabaseLedger(self.url)

    @property
    def lines(self) -> list[bytes]:
        with self._engine.connect() as connection:
            rows = connection.execute(text("SELECT line FROM eventseal_erasure_ledger ORDER BY number"))
            return [bytes(line) for (line,) in rows]

    @lines.setter
    def lines(self, lines: list[bytes]) -> None:
        with self._engine.begin() as connection:
            connection.execute(text("DELETE FROM eventseal_erasure_ledger"))
            for number, line in enumerate(lines, start=1):
                connection.execute(
                    text("INSERT INTO eventseal_erasure_ledger VALUES ('shop', :number, :line)"),
                    {"number": number, "line": line},
                )


@pytest.fixture(params=["file", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def place(request, tmp_path):
    if request.param == "file":
        return FilePlace(tmp_path)
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    return TablePlace(url if request.param == "sqlite" else request.getfixturevalue("postgres_url"))


def write(ledger, store, scopes: int = 2) -> None:
    """Make a ledger with an intent and its end for each of some scopes."""
    ledger.create(store)
    for number in range(scopes):
        keys = {uuid4(): KeyPurpose.DATA}
        intent = ledger.append(store, INTENT, scope=f"subject:{number}", keys=keys)
        ledger.append(store, DONE, scope=f"subject:{number}", keys=keys, closes=[intent.number])


def kinds(ledger, store, *, after: int = 0) -> list[str]:
    return [entry.kind for entry in ledger.entries(store, after=after)]


# --- what is written is read ---


def test_another_process_reads_what_was_written(place, store, kms) -> None:
    keys = {uuid4(): KeyPurpose.DATA, uuid4(): KeyPurpose.FIELD}
    ledger = place.open()
    assert ledger.create(store)
    intent = ledger.append(store, INTENT, scope="subject:Zoë\n", keys=keys)
    assert ledger.open_intents(store)[0].keys == keys
    ledger.append(store, DONE, scope="subject:Zoë\n", keys=keys, details={"n": 1}, closes=[intent.number])
    ledger.append(store, REOPEN, scope="subject:Zoë\n")
    entries = list(place.open().entries(store_of(kms)))
    assert [(entry.number, entry.kind) for entry in entries] == [
        (1, "created"),
        (2, "intent"),
        (3, "done"),
        (4, "reopen"),
    ]
    assert (entries[1].scope, entries[1].keys, entries[2].details) == ("subject:Zoë\n", keys, {"n": 1})
    assert [entry.open_intents for entry in entries] == [(), (2,), (), ()]


def test_a_second_creation_leaves_the_ledger_as_it_is(place, store) -> None:
    write(place.open(), store)
    before = place.lines
    assert not place.open().create(store)
    assert place.lines == before


def test_reading_may_begin_behind_an_entry(place, store) -> None:
    write(place.open(), store)
    assert kinds(place.open(), store, after=3) == ["intent", "done"]
    assert kinds(place.open(), store, after=5) == []
    events = list(erased_subjects(store, place.open(), after=3))
    assert [(event.scope, event.entry) for event in events] == [("subject:1", 5)]


def test_a_process_unwraps_the_ledgers_key_once(place, store, kms) -> None:
    write(place.open(), store)
    before = len(kms.calls)
    ledger = place.open()
    for _ in range(3):
        kinds(ledger, store)
        ledger.append(store, REOPEN, scope=SCOPE)
    assert [call.operation for call in kms.calls[before:]] == ["unwrap"]


def test_every_line_is_found_by_its_number_however_long_the_lines_are(tmp_path, store) -> None:
    place = FilePlace(tmp_path)
    ledger = place.open()
    ledger.create(store)
    for size in (0, 3000, 1, 0, 5000, 0, 0, 2, 1500):
        ledger.append(store, REOPEN, scope=SCOPE, keys={uuid4(): KeyPurpose.DATA for _ in range(size)})
    lines = place.lines
    for number, line in enumerate(lines, start=1):
        assert ledger._lines.line("shop", number) == line
        assert list(ledger._lines.read("shop", after=number)) == lines[number:]
    assert ledger._lines.line("shop", 0) is None
    assert ledger._lines.line("shop", len(lines) + 1) is None


def test_the_file_is_its_owners_alone(tmp_path, store) -> None:
    place = FilePlace(tmp_path)
    place.open().create(store)
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o600


def test_no_url_shows(sqlite_url) -> None:
    ledger = DatabaseLedger("postgresql://ann:hunter2@db.internal/ledger")
    assert "hunter2" not in repr(ledger) + ledger.name
    assert "db.internal" in ledger.name


# --- what is refused ---


def edited(line: bytes, name: str, value: object) -> bytes:
    whole = json.loads(line)
    whole["entry"][name] = value
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


FORGERIES = {
    "number": 9,
    "kind": "reopen",
    "ledger": str(UUID(int=7)),
    "at": "2020-01-01T00:00:00+00:00",
    "scope": "subject:other",
    "keys": {str(UUID(int=5)): "data"},
    "details": {"destroyed": 99},
    "open": [],
    "wrapped_in": 2,
    "previous": "00" * 32,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_an_edited_entry_is_refused(tmp_path, store, name) -> None:
    place = FilePlace(tmp_path)
    write(place.open(), store)
    lines = place.lines
    for number in (1, len(lines) - 2, len(lines) - 1):
        forged = edited(lines[number], name, FORGERIES[name])
        if forged == lines[number]:
            continue
        place.lines = [*lines[:number], forged, *lines[number + 1 :]]
        with pytest.raises(IntegrityError):
            kinds(place.open(), store)
        if number == len(lines) - 1:
            with pytest.raises(IntegrityError):
                place.open().append(store, REOPEN, scope=SCOPE)


@pytest.mark.parametrize("name", ["number", "kind", "scope"])
def test_an_edited_entry_is_refused_in_a_database(place, store, name) -> None:
    write(place.open(), store)
    lines = place.lines
    place.lines = [*lines[:2], edited(lines[2], name, FORGERIES[name]), *lines[3:]]
    with pytest.raises(IntegrityError):
        kinds(place.open(), store)


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [lines[0], lines[1], *lines[1:]],
        lambda lines: lines[1:],
        lambda lines: [*lines[:2], b"{}", *lines[2:]],
        lambda lines: [*lines[:2], b"", *lines[2:]],
        lambda lines: [*lines[:2], b"\x00" * 40, *lines[2:]],
        lambda lines: [*lines[:2], lines[2].replace(b'":', b'": ', 1), *lines[3:]],
        lambda lines: [*lines[:2], b"[" * 100_000, *lines[3:]],
        lambda lines: [*lines[:2], lines[2][:-2] + b"zz", *lines[3:]],
    ],
    ids=[
        "taken-away",
        "exchanged",
        "doubled",
        "first-gone",
        "other-json",
        "empty-line",
        "zeros",
        "other-spelling",
        "nested",
        "bad-mac",
    ],
)
def test_a_damaged_ledger_is_refused(place, store, damage) -> None:
    write(place.open(), store)
    place.lines = damage(place.lines)
    with pytest.raises(IntegrityError):
        kinds(place.open(), store)


def test_a_ledger_of_the_same_application_under_another_key_is_not_spliced_in(tmp_path, store) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one, other = FilePlace(tmp_path / "one"), FilePlace(tmp_path / "other")
    write(one.open(), store)
    write(other.open(), store)
    lines = other.lines
    other.lines = [*lines[:3], *one.lines[3:]]
    with pytest.raises(IntegrityError):
        kinds(other.open(), store)
    other.lines = [one.lines[0], *lines[1:]]
    with pytest.raises(IntegrityError):
        kinds(other.open(), store)


def test_a_copy_that_was_gone_on_with_elsewhere_is_not_spliced_in(tmp_path, store) -> None:
    place = FilePlace(tmp_path)
    write(place.open(), store, scopes=1)
    common = place.lines
    write(place.open(), store, scopes=2)
    ours = place.lines
    place.lines = common
    write(place.open(), store, scopes=2)
    place.lines = [*ours[: len(common) + 1], *place.lines[len(common) + 1 :]]
    with pytest.raises(IntegrityError):
        kinds(place.open(), store)


def test_another_applications_ledger_is_refused_with_both_names(tmp_path, store, kms) -> None:
    place = FilePlace(tmp_path)
    write(place.open(), store_of(kms, application="bank"))
    for use in (lambda: kinds(place.open(), store), lambda: place.open().append(store, REOPEN, scope=SCOPE)):
        with pytest.raises(WrongApplicationError) as caught:
            use()
        assert (caught.value.found, caught.value.expected) == ("bank", "shop")
    assert place.open().name in str(caught.value)


def test_another_applications_ledger_with_our_name_in_it_is_refused(tmp_path, store, kms) -> None:
    place = FilePlace(tmp_path)
    write(place.open(), store_of(kms, application="bank"))
    place.lines = [edited(line, "application", "shop") for line in place.lines]
    with pytest.raises(IntegrityError):
        kinds(place.open(), store)


def test_applications_share_a_database_and_not_a_ledger(sqlite_url, kms) -> None:
    ledger, shop, bank = DatabaseLedger(sqlite_url), store_of(kms), store_of(kms, application="bank")
    write(ledger, shop, scopes=1)
    write(ledger, bank, scopes=2)
    assert len(kinds(ledger, shop)) == 3
    assert len(kinds(ledger, bank)) == 5


def test_a_ledger_of_other_keks_is_no_forgery(place, store) -> None:
    write(place.open(), store)
    with pytest.raises(KekNotConfiguredError):
        kinds(place.open(), store_of(FakeKms()))


def test_an_outage_of_the_kms_is_no_forgery(place, store, kms) -> None:
    write(place.open(), store)
    kms.fail_next(1, KmsUnavailableError("away"))
    with pytest.raises(KmsUnavailableError):
        kinds(place.open(), store)


# --- what is missing at the end ---


def test_a_process_notices_that_entries_it_has_seen_are_gone(place, store) -> None:
    ledger = place.open()
    write(ledger, store)
    place.lines = place.lines[:3]
    with pytest.raises(IntegrityError, match="removed"):
        kinds(ledger, store)
    with pytest.raises(IntegrityError, match="removed"):
        ledger.append(store, REOPEN, scope=SCOPE)
    assert len(place.lines) == 3


def test_a_process_that_starts_afterwards_cannot_tell(place, store) -> None:
    write(place.open(), store)
    place.lines = place.lines[:3]
    assert kinds(place.open(), store) == ["created", "intent", "done"]


def test_a_process_notices_a_ledger_that_was_cut_and_gone_on_with(place, store) -> None:
    ledger = place.open()
    write(ledger, store)
    place.lines = place.lines[:3]
    write(place.open(), store, scopes=5)
    with pytest.raises(IntegrityError, match="exchanged"):
        ledger.append(store, REOPEN, scope=SCOPE)
    with pytest.raises(IntegrityError, match="exchanged"):
        kinds(ledger, store)


def test_a_ledger_that_is_gone_is_told_from_one_that_never_was(place, store) -> None:
    ledger = place.open()
    write(ledger, store)
    place.lines = []
    with pytest.raises(IntegrityError, match="is missing"):
        kinds(ledger, store)
    with pytest.raises(ConfigurationError, match="has no"):
        kinds(place.open(), store)
    with pytest.raises(ConfigurationError, match="has no"):
        place.open().append(store, REOPEN, scope=SCOPE)


# --- crashes and faults ---


@pytest.mark.parametrize(
    "tail", [b"{", b'{"entry":{"number":6', b"\x00" * 5000], ids=["brace", "half", "zeros"]
)
def test_what_a_crash_left_at_the_end_was_never_written(tmp_path, store, tail) -> None:
    place = FilePlace(tmp_path)
    write(place.open(), store)
    with place.path.open("ab") as file:
        file.write(tail)
    ledger = place.open()
    assert len(kinds(ledger, store)) == 5
    assert ledger.append(store, REOPEN, scope=SCOPE).number == 6
    assert len(place.lines) == 6
    assert kinds(place.open(), store)[-1] == "reopen"


def test_a_whole_line_without_its_end_was_never_written(tmp_path, store) -> None:
    place = FilePlace(tmp_path)
    write(place.open(), store)
    place.path.write_bytes(place.path.read_bytes()[:-1])
    assert len(kinds(place.open(), store)) == 4


@pytest.mark.parametrize("content", [b"", b"{"], ids=["empty", "torn"])
def test_a_ledger_whose_making_a_crash_cut_off_is_made_again(tmp_path, store, content) -> None:
    place = FilePlace(tmp_path)
    place.path.write_bytes(content)
    assert place.open().create(store)
    assert kinds(place.open(), store) == ["created"]


@pytest.mark.parametrize("call", ["fsync", "pwrite"])
def test_an_entry_that_is_not_durable_is_withdrawn(tmp_path, store, monkeypatch, call) -> None:
    place = FilePlace(tmp_path)
    ledger = place.open()
    write(ledger, store)
    before = place.lines

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StoreUnavailableError, match="No space left"):
            ledger.append(store, REOPEN, scope=SCOPE)
    assert place.lines == before
    assert ledger.append(store, REOPEN, scope=SCOPE).number == 6


def test_a_write_that_goes_half_way_is_carried_on(tmp_path, store, monkeypatch) -> None:
    place, whole = FilePlace(tmp_path), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: whole(file, data[:7], offset))
    write(place.open(), store)
    assert len(kinds(place.open(), store)) == 5


def test_a_place_that_cannot_be_one_is_told(tmp_path, store) -> None:
    for path in (tmp_path / "nowhere" / "ledger", tmp_path):
        with pytest.raises(ConfigurationError):
            FileLedger(path).create(store)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):  # the one would be waited for, the other keeps nothing
        for use in (lambda ledger: ledger.create(store), lambda ledger: ledger.exists("shop")):
            with pytest.raises(ConfigurationError, match="not a regular file"):
                use(FileLedger(path))
    with pytest.raises(ConfigurationError, match="in memory"):
        DatabaseLedger("sqlite://")


def test_a_file_that_was_put_in_the_place_of_the_locked_one_is_noticed(tmp_path, store, monkeypatch) -> None:
    import fcntl

    place, lock = FilePlace(tmp_path), fcntl.flock
    ledger = place.open()
    write(ledger, store)
    copy = tmp_path / "copy"

    def exchange(descriptor: int, operation: int) -> None:
        if not copy.exists():
            copy.write_bytes(place.path.read_bytes())
            copy.rename(place.path)
            copy.touch()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", exchange)
    ledger.append(store, REOPEN, scope=SCOPE)
    assert len(kinds(place.open(), store)) == 6


def test_a_file_that_another_process_holds_is_waited_for_and_then_told(tmp_path, store, monkeypatch) -> None:
    import fcntl

    place = FilePlace(tmp_path)
    write(place.open(), store)
    monkeypatch.setattr("eventseal.erasure.ledger.lines._PATIENCE", 0.05)
    with place.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailableError, match="another process"):
            place.open().append(store, REOPEN, scope=SCOPE)


def _append(place, kms: FakeKms, count: int) -> None:
    ledger, store = place.open(), store_of(kms)
    for _ in range(count):
        intent = ledger.append(store, INTENT, scope=SCOPE)
        ledger.append(store, DONE, scope=SCOPE, closes=[intent.number])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_append_at_once(place, store, kms, monkeypatch) -> None:
    monkeypatch.setattr("eventseal.erasure.ledger.lines._PATIENCE", 60.0)  # there is no queue for the file
    place.open().create(store)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append, args=(place, kms, 10)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    entries = list(place.open().entries(store))
    assert [entry.number for entry in entries] == list(range(1, 82))
    assert entries[-1].open_intents == ()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_make_one_ledger(place, kms) -> None:
    context = multiprocessing.get_context("fork")
    made = context.Queue()
    workers = [context.Process(target=lambda: made.put(place.open().create(store_of(kms)))) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert sorted(made.get(timeout=60) for _ in workers) == [False, False, False, True]
    for worker in workers:
        worker.join(60)
    assert kinds(place.open(), store_of(kms)) == ["created"]


# --- the ledger's key ---


def test_the_key_is_wrapped_anew_and_opens_without_the_old_kek(place, store, kms) -> None:
    ledger, other = place.open(), FakeKms()
    write(ledger, store)
    assert not ledger.opens_without(store, ledger.wrappings(store))
    both = store_of(kms, other)
    ledger.rewrap(both)
    leaving = [wrapped for wrapped in ledger.wrappings(both) if wrapped.kek_uri == kms.uri]
    assert ledger.opens_without(both, leaving)
    assert not ledger.opens_without(store, leaving)  # the other KEK is not configured there
    moved = store_of(other)
    assert kinds(place.open(), moved) == ["created", "intent", "done", "intent", "done", "wrapped"]
    place.open().append(moved, REOPEN, scope=SCOPE)
    assert kinds(place.open(), store)[-1] == "reopen"


def test_the_key_moves_to_one_kek_that_the_keyring_has_not(place, store) -> None:
    write(place.open(), store)
    other = FakeKms()
    place.open().rewrap(store, to=[other])
    assert {wrapped.kek_uri for wrapped in place.open().wrappings(store_of(other))} == {other.uri}
    assert len(kinds(place.open(), store_of(other))) == 6


def test_a_key_that_is_wrapped_as_it_should_be_is_not_noted_again(place, store) -> None:
    ledger = place.open()
    write(ledger, store)
    assert ledger.rewrap(store).kind == "done"
    assert len(place.lines) == 5


def test_a_wrapping_that_was_exchanged_is_refused(tmp_path, store, kms) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one, other = FilePlace(tmp_path / "one"), FilePlace(tmp_path / "other")
    write(one.open(), store)
    write(other.open(), store)
    lines = one.lines
    details = json.loads(other.lines[0])["entry"]["details"]
    one.lines = [edited(lines[0], "details", details), *lines[1:]]
    with pytest.raises(IntegrityError):
        kinds(one.open(), store)
