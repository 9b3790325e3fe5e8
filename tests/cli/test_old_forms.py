"""Forms of earlier releases: they work, are in no help, and one line names the form of today."""

from __future__ import annotations

import pytest
from tests.cli.test_migrate import ITEMS, old  # noqa: F401 - a fixture

from eventseal_kms.local import LocalKmsAdapter


def name_of(form: str, instead: str) -> str:
    return f"eventseal: warning: The next release removes `eventseal {form}`. Use `eventseal {instead}`."


@pytest.mark.parametrize("step", ["begin", "finish"])
def test_a_step_of_a_migration_that_was_an_option(run, run_json, old, step):  # noqa: F811
    if step == "finish":
        run("migrate", "begin")
        run("migrate", "run")
    words = ["--dry-run", "--table", ITEMS]
    told = run("migrate", *words, f"--{step}")
    assert told.stderr.splitlines() == [name_of(f"migrate --{step}", f"migrate {step}")]
    assert told.stdout == run("migrate", step, *words).stdout
    assert run_json("migrate", f"--{step}")["verb"] == "migrate"


@pytest.mark.parametrize("words", [["--copy", ITEMS], ["--batch", "7", f"--copy={ITEMS}"]], ids=" ".join)
def test_a_copy_that_was_an_option(run, store, words):
    line, *rest = run("migrate", *words, exits=2).stderr.splitlines()
    assert line == name_of("migrate --copy", "migrate copy")
    assert rest == run("migrate", "copy", ITEMS, exits=2).stderr.splitlines()
    assert "cannot be copied into itself" in rest[0]


@pytest.mark.parametrize(
    "words", [["--kek", "local://dev.key"], ["-y", "--kek=local://dev.key"]], ids=" ".join
)
def test_the_check_of_a_kek_that_was_an_option_of_retire(run, store, monkeypatch, words):
    refused = run("retire", *words, exits=4)
    line, *rest = refused.stderr.splitlines()
    assert line == name_of("retire --kek", "kek check")
    assert rest == run("kek", "check", "local://dev.key", exits=4).stderr.splitlines()
    LocalKmsAdapter.create("other.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key,local://other.key")
    run("rewrap")
    assert run("retire", *words).stdout == run("kek", "check", "local://dev.key").stdout


def test_migrate_alone_or_with_the_options_of_run_is_run(run_json, old):  # noqa: F811
    run_json("migrate", "begin")
    for words in (["migrate"], ["migrate", "--batch", "10"], ["migrate", "run", "--batch", "10"]):
        assert run_json(*words, "--dry-run")["left"] == 30


@pytest.mark.parametrize("words", [["migrate"], ["migrate", "run"], ["retire"]], ids=" ".join)
def test_no_help_shows_them(run, words):
    shown = run(*words, "--help").stdout
    assert not {"--begin", "--finish", "--copy", "--kek", "--kek-version"} & set(shown.split())


@pytest.mark.parametrize(
    "words",
    [["--kek", "x", "--key", "y"], ["--kek-version", "1"], ["--kek", "x", "--give-up-set-aside"]],
    ids=" ".join,
)
def test_words_that_went_together_with_none_of_them_are_still_refused(run, store, words):
    run("retire", *words, exits=2)


@pytest.mark.parametrize("words", [["reopen", "x", "--dry-run"], ["--dry-run", "reopen", "x"]], ids=" ".join)
def test_a_dry_run_of_reopen_is_not_a_run(run, store, words):
    run(*words, exits=2)
