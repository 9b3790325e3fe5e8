"""``eventseal roll-epoch``."""

from __future__ import annotations

import pytest

from eventseal.configuration import EventSeal
from eventseal_kms.local import LocalKmsAdapter

pytestmark = pytest.mark.filterwarnings("ignore::eventseal_kms.local.DevelopmentKeyWarning")

NEW = "local://new.key"


@pytest.fixture
def two_keks(store, monkeypatch):
    """A store with items under one key file, and a second one that is listed behind it."""
    items = store(3)
    LocalKmsAdapter.create("new.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", f"local://dev.key,{NEW}")
    return items


def test_everything_moves_and_the_old_file_is_its_owners_to_delete(two_keks, run, monkeypatch) -> None:
    shown = run("roll-epoch", "--to", NEW, "--yes").stdout
    assert "2 keys are wrapped as they should be" in shown  # the store key and a data key
    assert "no key needs it. Delete it, and every copy of it" in shown
    assert "take a backup of the key tables now" in shown
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", NEW)
    assert "3" in run("verify").stdout


def test_json_tells_what_ended(two_keks, run_json) -> None:
    told = run_json("roll-epoch", "--to", NEW, "--yes")
    assert (told["verb"], told["complete"], told["dry_run"]) == ("roll-epoch", True, False)
    assert told["finished_at"] is not None
    (ended,) = told["keks"]
    assert (ended["ending"], ended["before"], ended["ends_at"]) == ("by hand", None, None)


def test_a_dry_run_tells_the_cost_and_ends_nothing(two_keks, run, query) -> None:
    before = query("SELECT * FROM key_wrappings ORDER BY 1, 2")
    shown = run("roll-epoch", "--to", NEW, "--dry-run").stdout
    assert "0 wrappings under branch keys would be made anew here, and 2 by the KMS" in shown
    assert query("SELECT * FROM key_wrappings ORDER BY 1, 2") == before
    assert query("SELECT * FROM epochs") == []


def test_it_asks_and_says_what_nobody_here_can_see(two_keks, run, query, monkeypatch) -> None:
    monkeypatch.setattr("eventseal.cli.confirmation.is_anybody_there", lambda: True)
    refused = run("roll-epoch", "--to", NEW, exits=4, input="n\n")
    assert "other applications' ledgers" in refused.stderr
    assert query("SELECT * FROM kek_fences") == []


def test_without_a_terminal_it_wants_yes(two_keks, run) -> None:
    assert "--yes" in run("roll-epoch", "--to", NEW, exits=2).stderr


def test_another_application_in_the_tables_is_named_and_stops_it(two_keks, run) -> None:
    with EventSeal.from_settings(application="crm") as other:
        other.keyring.prepare(["application"])
    assert "application crm has" in run("roll-epoch", "--to", NEW, "--dry-run").stdout
    refused = run("roll-epoch", "--to", NEW, "--yes", exits=4)
    assert "of application crm are wrapped under it" in refused.stderr
    assert f"eventseal rewrap --to {LocalKmsAdapter('new.key').uri}" in refused.stderr


def test_a_key_that_cannot_be_moved_is_told(two_keks, run, query) -> None:
    query("UPDATE key_wrappings SET wrapped = x'00' WHERE key_id = (SELECT max(key_id) FROM key_wrappings)")
    shown = run("roll-epoch", "--to", NEW, "--yes", exits=1).stdout
    assert "1 keys could not be moved, and no KEK was ended" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "has no older versions that can be ended alone"),
        (("--to", "local://dev.key", "--pending-window-days", "6"), "greater than or equal to 7"),
    ],
    ids=["no-versions", "too-few-days"],
)
def test_what_cannot_be_is_wrong_use(store, run, words, said) -> None:
    store(1)
    assert said in run("roll-epoch", "--yes", *words, exits=2).stderr
