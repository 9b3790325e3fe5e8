"""Commands where scopes are kept as digests: they take the scope, or its digest."""

from __future__ import annotations

import pytest

from eventseal.configuration import EventSeal

PLAIN = "subject:zoe@example.org"


@pytest.fixture
def stored(run, monkeypatch) -> str:
    """A store with keys of two subjects; gives the stored form of the one's scope."""
    monkeypatch.setenv("EVENTSEAL_SCOPE_DIGEST", "true")
    monkeypatch.setenv("EVENTSEAL_LEDGER", "ledger.jsonl")
    run(
        "init",
        "--kms-key",
        "local://dev.key",
        "--store-url",
        "sqlite:///shop.sqlite",
        "--application",
        "shop",
    )
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare([PLAIN, "subject:other@example.org"])
        return seal.keyring.stored_scope(PLAIN)


@pytest.mark.slow
def test_commands_take_the_scope_and_its_digest(run, run_json, stored) -> None:
    for name in (PLAIN, stored):
        *_, key = run_json("keys", "--scope", name)["keys"]
        assert key["scope"] == stored
        assert run_json("rotate", "--scope", name, "--yes")["done"] == 1
    assert "example.org" not in run("keys").stdout + run("status").stdout + run("doctor").stdout
    assert PLAIN in run("shred", PLAIN, "--dry-run").stdout
    assert run_json("shred", PLAIN, "--yes")["scope"] == stored
    assert run_json("reopen", stored)["done"] == 1
    assert run_json("shred", stored, "--yes")["scope"] == stored
    assert run_json("verify")["failed"] == 0


@pytest.mark.parametrize("command", [("shred",), ("reopen",), ("rotate", "--scope")], ids=" ".join)
def test_no_digest_of_somebody_else_is_suggested(run, stored, command) -> None:
    for unknown in ("subject:zoe@example.com", stored[:-1] + "_"):
        error = run(*command, unknown, "--yes", exits=2).stderr
        assert f"no key of scope '{unknown}'" in error
        assert "~" not in error.replace(unknown, "")


def test_a_command_that_was_told_otherwise_does_nothing(run, stored, monkeypatch) -> None:
    monkeypatch.delenv("EVENTSEAL_SCOPE_DIGEST")
    for words in (("shred", PLAIN, "--yes"), ("rotate", "--scope", PLAIN), ("reopen", stored)):
        assert "Set scope_digest to true" in run(*words, exits=2).stderr
    doctor = run("doctor", exits=2)
    assert "scope_digest" in doctor.stdout + doctor.stderr
