"""Counts, times and suggestions in messages."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from eventseal.wording import counted, did_you_mean, moment, shell_word

NOW = datetime(2026, 3, 1, 16, 44, 47, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "words", "shown"),
    [
        (0, ("key",), "0 keys"),
        (1, ("key",), "1 key"),
        (2000, ("key",), "2,000 keys"),
        (1, ("entry", "entries"), "1 entry"),
        (3, ("entry", "entries"), "3 entries"),
    ],
)
def test_a_count_has_the_number_of_its_noun(count, words, shown):
    assert counted(count, *words) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "in 0 s"),
        (60, "in 60 s"),
        (119, "in 119 s"),
        (120, "in 2 min"),
        (7200, "in 2 h"),
        (-59.6, "60 s ago"),
        (-172800, "2 d ago"),
        (86399, "in 24 h"),
    ],
)
def test_a_time_says_how_far_it_is(seconds, shown):
    at = NOW + timedelta(seconds=seconds)
    assert moment(at, NOW).endswith(f" UTC ({shown})")


def test_a_time_is_in_utc():
    assert moment(NOW.astimezone(timezone(timedelta(hours=2)))) == "2026-03-01 16:44:47 UTC"


def test_only_a_similar_name_is_suggested():
    assert did_you_mean("applicatoin", ["application", "store"], "x") == "Did you mean application?"
    assert (
        did_you_mean("tenant:none", ["application"], "List them: eventseal keys")
        == "List them: eventseal keys"
    )
    assert did_you_mean("x", [], "x") == "x"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("subject:ada", "subject:ada"),
        ("subject:Ada Lovelace", "'subject:Ada Lovelace'"),
        ("x; rm -rf ~", "'x; rm -rf ~'"),
        ("$(reboot)", "'$(reboot)'"),
        ("--yes", "-- --yes"),
        ("", "''"),
    ],
)
def test_an_argument_of_a_printed_command_is_one_word_for_a_shell(text, word):
    assert shell_word(text) == word
