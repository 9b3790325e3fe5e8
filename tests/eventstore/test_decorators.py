"""Commands that are tried again."""

import pytest

from eventseal.errors import ConfigurationError, SequencedItemConflictError, StoreUnavailableError
from eventseal.eventstore import retry


class Command:
    """Fails so many times."""

    def __init__(self, failures, error=SequencedItemConflictError):
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"failure {self.calls}")
        return args, kwargs


def test_a_command_that_met_a_conflict_is_tried_again():
    command = Command(2)

    @retry(max_attempts=3)
    def run(*args, **kwargs):
        """Does it."""
        return command(*args, **kwargs)

    assert run(1, a=2) == ((1,), {"a": 2})
    assert command.calls == 3
    assert run.__doc__ == "Does it."


def test_the_last_failure_is_raised():
    command = Command(5)

    with pytest.raises(SequencedItemConflictError, match="failure 3"):
        retry(max_attempts=3)(command.__call__)()
    assert command.calls == 3


def test_other_errors_are_not_tried_again_unless_they_are_named():
    command = Command(1, StoreUnavailableError)
    with pytest.raises(StoreUnavailableError):
        retry()(command.__call__)()
    assert command.calls == 1

    command = Command(1, StoreUnavailableError)
    retry((SequencedItemConflictError, StoreUnavailableError), max_attempts=2)(command.__call__)()
    assert command.calls == 2


def test_a_command_waits_before_each_further_try(monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)

    with pytest.raises(SequencedItemConflictError):
        retry(max_attempts=3, wait=0.25)(Command(9).__call__)()
    assert waits == [0.25, 0.25]


@pytest.mark.parametrize("options", [{"max_attempts": 0}, {"wait": -1}])
def test_tries_and_waits_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError):
        retry(**options)
