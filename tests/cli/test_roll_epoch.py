"""``eventseal roll-epoch``."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from eventseal.configuration import EventSeal
from eventseal.wording import moment
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.testing import FakeAwsKms

pytestmark = pytest.mark.filterwarnings("ignore::eventseal_kms.local.DevelopmentKeyWarning")

NEW = "local://new.key"


@pytest.fixture
def two_keks(store, monkeypatch):
    """A store with items under one key file, and a second one that is listed behind it."""
    items = store(3)
    LocalKmsAdapter.create("new.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", f"local://dev.key,{NEW}")
    return items


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """AWS's stand-in behind the environment's endpoint; the caller is the account's root."""
    kms = FakeAwsKms()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in kms.credentials().items():
        monkeypatch.setenv(name.upper(), value)
    monkeypatch.setenv("EVENTSEAL_STORE_URL", "sqlite:///shop.sqlite")
    monkeypatch.setenv("EVENTSEAL_APPLICATION", "shop")
    with kms.serve() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", url)
        yield kms


def test_everything_moves_and_the_old_file_is_its_owners_to_delete(two_keks, run, monkeypatch) -> None:
    shown = run("roll-epoch", "--to", NEW, "--yes").stdout
    assert "Keys wrapped under the current KMS keys: 2." in shown  # the store key and a data key
    assert (
        "No key needs it. Remove it from kms_key of every application, then delete it and all copies."
        in shown
    )
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
    before = query("SELECT * FROM eventseal_key_wrappings ORDER BY 1, 2")
    shown = run("roll-epoch", "--to", NEW, "--dry-run").stdout
    assert (
        "Wrappings that would be replaced: 0 under branch keys (by this process), "
        "and 2 under KMS keys (by the KMS)." in shown
    )
    assert query("SELECT * FROM eventseal_key_wrappings ORDER BY 1, 2") == before
    assert query("SELECT * FROM eventseal_epochs") == []


def test_it_asks_and_says_what_nobody_here_can_see(two_keks, run, query, monkeypatch) -> None:
    monkeypatch.setattr("eventseal.cli.output.is_anybody_there", lambda: True)
    refused = run("roll-epoch", "--to", NEW, exits=4, input="n\n")
    assert "in the ledgers of other applications" in refused.stderr
    assert query("SELECT * FROM eventseal_kek_fences") == []


def test_without_a_terminal_it_wants_yes(two_keks, run) -> None:
    assert "--yes" in run("roll-epoch", "--to", NEW, exits=2).stderr


def test_another_application_in_the_tables_is_named_and_stops_it(two_keks, run) -> None:
    with EventSeal.from_settings(application="crm") as other:
        other.keyring.prepare(["application"])
    assert "Application crm has" in run("roll-epoch", "--to", NEW, "--dry-run").stdout
    refused = run("roll-epoch", "--to", NEW, "--yes", exits=4)
    assert "wrappings of application crm" in refused.stderr
    assert "eventseal rewrap --to local://FILE" in refused.stderr


def test_a_key_that_cannot_be_moved_is_told(two_keks, run, query) -> None:
    query(
        "UPDATE eventseal_key_wrappings SET wrapped = x'00' WHERE key_id = (SELECT "
        "max(key_id) FROM eventseal_key_wrappings)"
    )
    shown = run("roll-epoch", "--to", NEW, "--yes", exits=1).stdout
    assert "1 key could not be re-wrapped. No KMS key was destroyed." in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "cannot end its older versions alone, so another KMS key must replace it"),
        (("--to", "local://dev.key", "--pending-window-days", "6"), "greater than or equal to 7"),
    ],
    ids=["no-versions", "too-few-days"],
)
def test_what_cannot_be_is_wrong_use(store, run, words, said) -> None:
    store(1)
    assert said in run("roll-epoch", "--yes", *words, exits=2).stderr


# --- the receipt ---


def test_the_receipt_is_a_page_or_json(two_keks, run, run_json, monkeypatch) -> None:
    shown = run_json("roll-epoch", "--to", NEW, "--yes", "--receipt", "one.json")
    page = Path("one.json")
    assert json.loads(page.read_text()) == shown["receipt"]
    assert page.stat().st_mode & 0o777 == 0o600
    assert shown["receipt"]["ledger"] is None
    run("roll-epoch", "--to", NEW, "--yes", "--receipt", "two.html")
    assert "<h1>Receipt of a new epoch</h1>" in Path("two.html").read_text()
    assert LocalKmsAdapter("new.key").uri in Path("two.html").read_text()


@pytest.mark.slow
def test_on_aws_the_receipt_has_both_dates_and_is_given_again(run, run_json, aws, monkeypatch) -> None:
    old, new = aws.create_key(), aws.create_key()
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", old)
    monkeypatch.setenv("EVENTSEAL_LEDGER", "erasures.jsonl")
    run("init")
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["subject:customer-42"])
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", f"{old},{new}")
    words = ("roll-epoch", "--to", new, "--yes", "--pending-window-days", "7")
    told = run(*words, "--receipt", "one.json").stdout
    receipt = json.loads(Path("one.json").read_text())
    (ended,) = receipt["keks"]
    closed, ends = (datetime.fromisoformat(ended[name]) for name in ("closed_at", "ends_at"))
    assert timedelta(days=6, hours=23) < ends - closed <= timedelta(days=7)
    assert (receipt["open_nothing_since"], receipt["useless_from"]) == (ended["closed_at"], ended["ends_at"])
    for date in (closed, ends):
        assert moment(date) in told
    assert run_json(*words, "--receipt", "two.json")["receipt"] == receipt  # lost, it is not lost
    assert json.loads(Path("two.json").read_text()) == receipt


@pytest.fixture
def nothing_is_rolled(query):
    yield
    assert query("SELECT * FROM eventseal_epochs") == []
    assert query("SELECT * FROM eventseal_kek_fences") == []


def test_a_receipt_that_cannot_be_written_is_told_before_anything_is_done(
    two_keks, run, monkeypatch, nothing_is_rolled
) -> None:
    Path("there.json").write_text("an older receipt")
    Path("dangling.json").symlink_to("nowhere.json")
    for file in ("there.json", "dangling.json", "nowhere/one.json", "."):
        run("roll-epoch", "--to", NEW, "--yes", "--receipt", file, exits=2)
    assert Path("there.json").read_text() == "an older receipt"

    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("eventseal.cli.receipt_command.tempfile.TemporaryFile", refused)
    shown = run("roll-epoch", "--to", NEW, "--yes", "--receipt", "one.json", exits=2)
    assert "one.json cannot be written: Permission denied" in shown.stderr


def test_a_receipt_that_cannot_be_written_at_the_end_leaves_no_half_of_it(two_keks, run, monkeypatch) -> None:
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("eventseal.cli.receipt_command.os.fsync", full)
        refused = run("roll-epoch", "--to", NEW, "--yes", "--receipt", "one.html", exits=4)
    assert "Keys wrapped under the current KMS keys: 2." in refused.stdout  # and what was done is told
    assert "the epoch is rolled, but the receipt one.html cannot be written: No space left" in refused.stderr
    assert not Path("one.html").exists()


def test_while_it_is_not_complete_there_is_no_receipt(two_keks, run, query) -> None:
    query(
        "UPDATE eventseal_key_wrappings SET wrapped = x'00' WHERE key_id = (SELECT "
        "max(key_id) FROM eventseal_key_wrappings)"
    )
    shown = run("roll-epoch", "--to", NEW, "--yes", "--receipt", "one.html", exits=1)
    assert "no receipt was written to one.html" in shown.stderr
    assert not Path("one.html").exists()
