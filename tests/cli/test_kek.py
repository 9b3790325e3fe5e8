"""``eventseal kek check``: whether a KMS key may go, said by the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventseal_kms.local import LocalKmsAdapter


@pytest.mark.slow
def test_whether_a_kek_may_go_is_said_by_the_exit_code(run, run_json, store, monkeypatch):
    store(3)
    run("rotate")
    LocalKmsAdapter.create("other.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key,local://other.key")
    first = LocalKmsAdapter("dev.key").uri
    shown = run("kek", "check", first, exits=4).stderr
    assert "without it, 3 keys cannot be opened" in shown
    run("rewrap")
    assert run_json("kek", "check", "local://dev.key")["needed"] == 0
    assert (
        "Wrappings under it that remain in the key tables: 3" in run("kek", "check", "local://dev.key").stdout
    )
    run("rewrap", "--to", "local://other.key")
    shown = run("kek", "check", "local://dev.key").stdout
    assert "You can delete local://dev.key. If kms_key lists it, remove it there first." in shown
    assert "No key is wrapped under it." in shown
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://other.key")
    shown = run("kek", "check", "local://dev.key", exits=2).stderr
    assert "no key is wrapped under local://dev.key, and it is not configured" in shown
    shown = run("kek", "check", "local://other.key", "--kek-version", "9", exits=2).stderr
    assert "no key is wrapped under version '9' of local://other.key" in shown
    Path("dev.key").unlink()
    run("verify")


@pytest.mark.parametrize("words", [["x", "--key", "y"], ["--kek-version", "1"], ["nonsense"], ["x", "--yes"]])
def test_words_that_say_nothing_are_wrong_use(run, store, words):
    run("kek", "check", *words, exits=2)
