"""``eventseal rewrap``: to another KEK and away from the old one, in JSON and for people."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventseal.errors import KmsUnavailableError
from eventseal_kms.local import LocalKmsAdapter


@pytest.fixture
def other(monkeypatch):
    """A second KEK, listed behind the first one."""
    adapter = LocalKmsAdapter.create("other.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key,local://other.key")
    return adapter


def test_keys_get_the_wrappings_that_they_miss(run_json, store, other):
    store(3)
    would = run_json("rewrap", "--dry-run")
    assert (would["verb"], would["dry_run"], would["left"]) == ("rewrap", True, 2)
    done = run_json("rewrap")
    assert (done["done"], done["failed"], done["dry_run"]) == (2, 0, False)
    assert done["by_kek"][other.uri] == 2
    assert run_json("rewrap")["by_table"]["eventseal_key_wrappings"]["added"] == 0


@pytest.mark.slow
def test_the_old_kek_goes_and_every_item_opens(run, run_json, store, other, monkeypatch):
    store(3)
    run("rewrap")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://other.key")
    assert run_json("verify")["done"] == 3
    shown = run("rewrap", "--to", "local://other.key").stdout
    assert "Keys whose old wrappings were deleted: 2." in shown
    Path("dev.key").unlink()
    assert run_json("verify")["done"] == 3
    assert list(run_json("rewrap")["by_kek"]) == [other.uri]


def test_a_dry_run_tells_people_what_would_move(run, store, other):
    assert "Keys that would be re-wrapped: 2." in run("--dry-run", "rewrap").stdout


def test_a_kek_that_goes_half_way_exits_with_3_and_the_next_run_goes_on(run, run_json, store, other):
    wrap = LocalKmsAdapter.wrap
    calls = []

    def sometimes(self, key, context):
        calls.append(key)
        if self.uri == other.uri and len(calls) > 1:
            raise KmsUnavailableError("away", kek_uri=self.uri)
        return wrap(self, key, context)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalKmsAdapter, "wrap", sometimes)
        assert "away" in run("rewrap", "--batch", "1", exits=3).stderr
    assert run_json("rewrap")["by_table"]["eventseal_key_wrappings"]["added"] == 1


@pytest.mark.parametrize("keys", ["0", "99999999999999999999"], ids=["none", "beyond-any-database"])
def test_a_batch_that_no_database_takes_is_wrong_use(run, store, keys):
    assert "--batch" in run("rewrap", "--batch", keys, exits=2).stderr


def test_a_target_that_is_no_kek_exits_with_2_and_changes_nothing(run, store, query):
    before = query("SELECT * FROM eventseal_key_wrappings")
    assert "the KMS key is not written as a key URI\n" in run("rewrap", "--to", "nowhere", exits=2).stderr
    assert query("SELECT * FROM eventseal_key_wrappings") == before
