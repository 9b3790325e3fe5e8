"""``verify --receipt`` and ``receipt check``: what was proved is told apart from what was changed since."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import UUID

import pytest

from eventseal.cli.exits import VerbInterrupt
from eventseal.configuration import EventSeal
from eventseal.erasure import check_receipt
from eventseal.errors import ConfigurationError
from eventseal.rotation.item_checks import ItemChecks
from eventseal_kms.local import LocalKmsAdapter

ITEMS = "integer_sequenced_items"


@pytest.fixture
def verified(run, store, query):
    """A receipt of a verification of 5 items, of which one failed if asked for."""

    def make(*options: str, damaged: bool = False, name: str = "receipt.json"):
        store(5)
        if damaged:
            query("UPDATE integer_sequenced_items SET topic = 'x' WHERE position = 1")
        run("verify", "--receipt", name, *options, exits=int(damaged))
        return Path(name)

    return make


@pytest.fixture
def with_ledger(monkeypatch):
    monkeypatch.setenv("EVENTSEAL_LEDGER", "ledger.jsonl")


def changed(file: Path, path: str, value) -> Path:
    """Another file that says something else in one place."""
    facts = json.loads(file.read_text())
    *steps, last = path.split("/")
    inner = facts
    for step in steps:
        inner = inner[int(step)] if isinstance(inner, list) else inner[step]
    inner[last] = value
    other = Path("changed.json")
    other.write_text(json.dumps(facts))
    return other


def test_a_verification_has_a_receipt_of_what_was_proved(run, run_json, verified, query):
    file = verified()
    said = json.loads(file.read_text())
    (key_id,) = [
        row[0] for row in query("SELECT key_id FROM eventseal_encryption_keys WHERE purpose = 'data'")
    ]
    assert (said["receipt"], said["application"], said["passed"]) == ("eventseal verification", "shop", True)
    assert said["tables"][ITEMS]["done"] == said["done"] == 5
    assert said["keys"] == {str(UUID(bytes=key_id)): 5}
    assert said["begun_at"] <= said["ended_at"]
    assert said["release"]
    assert (said["only_tables"], said["sample"], said["failures"]) == (None, 1.0, [])
    assert file.stat().st_mode & 0o777 == 0o600
    shown = run("receipt", "check", str(file)).stdout
    assert shown == "receipt.json is authentic (eventseal verification)\n"
    checked = run_json("receipt", "check", str(file))
    assert (checked["authentic"], checked["by"], checked["partial"], checked["failed"]) == (
        True,
        "mac",
        False,
        0,
    )


def checked(file: Path):
    """Check a receipt as the command does, without its time to start."""
    with EventSeal.from_settings() as seal:
        return check_receipt(seal, file.read_bytes(), ledger=seal.ledger)


def test_whatever_is_changed_in_it_shows(run, verified):
    file = verified(damaged=True)
    with EventSeal.from_settings() as seal:
        assert check_receipt(seal, file.read_bytes(), ledger=None).is_authentic
        for path, value in (
            ("passed", True),
            ("failed", 0),
            ("failures", []),
            ("done", 6),
            (f"tables/{ITEMS}/failed", 0),
            (f"tables/{ITEMS}/failed", True),
            (f"tables/{ITEMS}/failed", 1.0),
            ("keys/x", 1),
            ("begun_at", "2031-01-01T00:00:00+00:00"),
            ("ended_at", "2031-01-01T00:00:00+00:00"),
            ("only_tables", []),
            ("sample", 1),
            ("release", "9.9"),
            ("application", "billing"),
            ("receipt", "eventseal epoch"),
            ("receipt", "eventseal verificatiom"),
            ("failures/0/row/position", "2"),
            ("more", "said"),
            ("mac", "0" * 64),
            ("mac", None),
            ("mac", "é"),
        ):
            other = changed(file, path, value)
            assert not check_receipt(seal, other.read_bytes(), ledger=None).is_authentic, path
    assert "not authentic" in run("receipt", "check", "changed.json", exits=1).stdout


def test_every_flipped_byte_shows(verified):
    """In its JSON any byte of a name or a value; what is no JSON any more is no receipt."""
    text = verified().read_bytes()
    with EventSeal.from_settings() as seal:
        for place, byte in enumerate(text):
            flipped = text[:place] + bytes((byte ^ 1,)) + text[place + 1 :]
            try:
                is_authentic = check_receipt(seal, flipped, ledger=None).is_authentic
            except ConfigurationError:
                is_authentic = False
            assert not is_authentic, place


def test_a_failed_verification_says_so_in_its_receipt(run, run_json, verified):
    file = verified(damaged=True)
    said = json.loads(file.read_text())
    assert (said["passed"], said["failed"], said["failures"][0]["table"]) == (False, 1, ITEMS)
    shown = run("receipt", "check", str(file), exits=1).stdout
    assert "is authentic" in shown
    assert "The verification failed. Items, keys or tables with a failure: 1\n" in shown
    assert json.loads(run("--json", "receipt", "check", str(file), exits=1).stdout)["authentic"] is True


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--table", ITEMS), ("--sample", "0.5")], ids=["table", "sample"])
def test_a_part_is_called_partial(run, run_json, verified, options):
    file = verified(*options)
    assert "It is partial" in run("receipt", "check", str(file)).stdout
    assert run_json("receipt", "check", str(file))["partial"] is True
    page = verified(*options, name="receipt.html").read_text()
    assert "this verification is partial" in page


def test_its_page_holds_the_same_for_people(run, verified):
    page = verified(damaged=True, name="receipt.html").read_text()
    assert "this verification failed" in page
    assert re.search(r"<td>MAC</td><td>[0-9a-f]{64}</td>", page)
    assert "ends in .json" in run("receipt", "check", "receipt.html", exits=2).stderr


def test_what_is_no_receipt_is_told_apart(run, store):
    file = Path("file.json")
    for text in ("[]", "{}", '{"receipt": NaN}', '{"receipt": "a", "receipt": "b"}', "[" * 100_000, "\xff"):
        file.write_text(text, encoding="latin-1")
        with pytest.raises(ConfigurationError, match="not a receipt"):
            checked(file)
    assert "not a receipt" in run("receipt", "check", "file.json", exits=2).stderr
    assert "cannot be read" in run("receipt", "check", "none.json", exits=2).stderr


def test_the_receipt_of_another_store_is_not_authentic(run, verified, monkeypatch):
    file = verified()
    monkeypatch.setenv("EVENTSEAL_APPLICATION", "billing")
    run("init", "--yes")
    assert "belongs to another application" in run("receipt", "check", str(file), exits=1).stdout


# --- erasures and epochs ---


@pytest.fixture
def erased(run, store, with_ledger):
    store()
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["subject:c-1", "subject:c-2"])
    run("shred", "subject:c-1", "--yes", "--receipt", "erasure.json")
    return Path("erasure.json")


@pytest.mark.slow
def test_an_erasure_is_compared_with_its_entries_of_the_ledger(run, run_json, erased, monkeypatch):
    found = run_json("receipt", "check", str(erased))
    assert (found["authentic"], found["by"], found["receipt"]) == (True, "ledger", "eventseal erasure")
    run("shred", "subject:c-2", "--yes")
    run("receipt", "check", str(erased))
    monkeypatch.delenv("EVENTSEAL_LEDGER")
    shown = run("receipt", "check", str(erased), exits=2).stderr
    assert "remedy: Set `ledger` in eventseal.toml, or EVENTSEAL_LEDGER," in shown


def test_whatever_is_changed_in_an_erasures_receipt_shows(run, erased):
    with EventSeal.from_settings() as seal:
        for path, value, differs in (
            ("scope", "subject:c-2", "scope"),
            ("destroyed_now", 2, "destroyed_now"),
            ("destroyed_now", True, "destroyed_now"),
            ("keys/x", "data", "keys.x"),
            (f"items/{ITEMS}", 7, f"items.{ITEMS}"),
            ("done_at", "2031-01-01T00:00:00+00:00", "done_at"),
            ("intended_at", "2031-01-01T00:00:00+00:00", "intended_at"),
            ("ledger/place", "elsewhere", "ledger.place"),
            ("ledger/id", "0" * 32, "ledger.id"),
            ("ledger/done/mac", "0" * 64, "ledger.done.mac"),
            ("ledger/intent/mac", "0" * 64, "ledger.intent.mac"),
            ("ledger/done/entry", 1, "ledger"),
            ("ledger/done/entry", 99, "ledger"),
            ("ledger/done/entry", "3", "ledger"),
            ("ledger/done/entry", True, "ledger"),
            ("ledger/intent/entry", 3, "ledger"),
            ("ledger", None, "ledger"),
            ("application", "billing", "application"),
            ("more", 1, "more"),
            ("receipt", "eventseal epoch", "ledger"),
        ):
            other = changed(erased, path, value)
            assert check_receipt(seal, other.read_bytes(), ledger=seal.ledger).differs == (differs,), path
    shown = json.loads(run("--json", "receipt", "check", "changed.json", exits=1).stdout)
    assert (shown["authentic"], shown["differs"]) == (False, ["ledger"])


@pytest.mark.slow
def test_the_entries_of_two_erasures_do_not_make_one_receipt(run, erased):
    run("shred", "subject:c-2", "--yes", "--receipt", "other.json")
    other = json.loads(Path("other.json").read_text())
    file = changed(erased, "ledger/done", other["ledger"]["done"])
    assert "ledger" in run("receipt", "check", str(file), exits=1).stdout


def test_nor_do_those_of_two_erasures_of_one_scope(run, erased):
    run("shred", "subject:c-1", "--yes", "--receipt", "again.json")
    first = json.loads(erased.read_text())
    mixed = json.loads(Path("again.json").read_text())
    assert checked(Path("again.json")).is_authentic
    mixed["ledger"]["intent"] = first["ledger"]["intent"]
    mixed["intended_at"] = first["intended_at"]
    Path("again.json").write_text(json.dumps(mixed))
    assert checked(Path("again.json")).differs == ("ledger",)


def test_a_changed_ledger_proves_no_receipt(run, erased):
    lines = Path("ledger.jsonl").read_text()
    Path("ledger.jsonl").write_text(lines.replace("subject:c-1", "subject:c-3"))
    assert "does not authenticate" in run("receipt", "check", str(erased), exits=1).stderr


@pytest.fixture
def rolled(run, store, monkeypatch):
    """Rolls the epoch to another key file; gives its receipt."""

    def roll() -> Path:
        store(2)
        new = LocalKmsAdapter.create("new.key")
        monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key,local://new.key")
        run("roll-epoch", "--to", "local://new.key", "--yes", "--receipt", "epoch.json")
        assert new.uri in Path("epoch.json").read_text()
        return Path("epoch.json")

    return roll


@pytest.mark.slow
def test_an_epoch_without_a_ledger_has_a_mac(run, run_json, rolled):
    file = rolled()
    assert json.loads(file.read_text())["ledger"] is None
    found = run_json("receipt", "check", str(file))
    assert (found["authentic"], found["by"], found["receipt"]) == (True, "mac", "eventseal epoch")
    for path, value in (
        ("keys", 1),
        ("covers_before", "2031-01-01T00:00:00+00:00"),
        ("useless_from", "2001-01-01T00:00:00+00:00"),
        ("keks", []),
        ("mac", "0" * 64),
        ("receipt", "eventseal verification"),
    ):
        assert not checked(changed(file, path, value)).is_authentic


@pytest.mark.slow
def test_an_epoch_with_a_ledger_is_compared_with_its_entry(run, run_json, with_ledger, rolled):
    file = rolled()
    assert "mac" not in json.loads(file.read_text())
    found = run_json("receipt", "check", str(file))
    assert (found["authentic"], found["by"]) == (True, "ledger")
    for path, value in (("keys", 1), ("staying/x", None), ("ledger/epoch/entry", 1), ("mac", "0" * 64)):
        assert not checked(changed(file, path, value)).is_authentic
    run("receipt", "check", str(changed(file, "ledger", None)), exits=1)


# --- a verification that is interrupted ---


def test_an_interrupted_verification_goes_on_from_its_file(run, run_json, store, query, monkeypatch):
    store(60)
    query("UPDATE integer_sequenced_items SET topic = 'x' WHERE position = 59")
    _interrupt_once(monkeypatch)
    result = run("verify", "--resume", "verify.state", exits=130)
    assert "It continues from verify.state" in result.stderr
    assert Path("verify.state").stat().st_mode & 0o777 == 0o600
    shown = json.loads(
        run("--json", "verify", "--resume", "verify.state", "--receipt", "r.json", exits=1).stdout
    )
    assert (shown["done"], shown["failed"]) == (59, 1)
    assert not Path("verify.state").exists()
    assert list(Path().glob(".verify.state*")) == []
    said = json.loads(Path("r.json").read_text())
    assert (said["done"], said["failed"], said["passed"]) == (59, 1, False)


def _interrupt_once(monkeypatch) -> None:
    run = ItemChecks.run

    def interrupt(checks, after, upto):
        monkeypatch.setattr(ItemChecks, "run", run)
        yield from run(checks, after, upto)
        raise KeyboardInterrupt

    monkeypatch.setattr(ItemChecks, "run", interrupt)


def test_without_a_file_it_says_how_to_have_one(run, store, monkeypatch):
    store(2)
    _interrupt_once(monkeypatch)
    assert "--resume FILE" in run("verify", exits=130).stderr
    assert issubclass(VerbInterrupt, KeyboardInterrupt)


@pytest.mark.slow
def test_a_file_that_holds_something_else_is_refused_before_anything_is_done(run, store):
    store()
    Path("settings").write_text("no JSON")
    assert "does not hold the progress" in run("verify", "--resume", "settings", exits=2).stderr
    Path("settings").write_text('{"state": "of something else"}')
    assert "is not the state of a verification" in run("verify", "--resume", "settings", exits=2).stderr
    assert Path("settings").read_text() == '{"state": "of something else"}'
    assert "no directory" in run("verify", "--resume", "nowhere/file", exits=2).stderr
    assert "cannot be read" in run("verify", "--resume", ".", exits=2).stderr


def test_after_restore_takes_none_of_them(run, store):
    for option in (("--workers", "2"), ("--resume", "x"), ("--receipt", "x")):
        assert option[0] in run("verify", "--after-restore", *option, exits=2).stderr


def test_a_receipt_is_not_written_over_another_file(run, verified):
    verified()
    assert "does not overwrite it" in run("verify", "--receipt", "receipt.json", exits=2).stderr


@pytest.mark.slow
def test_workers_verify_it_together(run_json, store):
    store(3000)
    assert run_json("verify", "--workers", "2")["done"] == 3000
