"""How often and how long a call is tried."""

import pytest

from eventseal.errors import ConfigurationError
from eventseal.testing import ManualClock
from eventseal_kms.vault import RetryPolicy
from eventseal_kms.vault.calls import Answer, NoAnswer

OK = Answer(200, {"data": {}})


class Trial:
    """A policy by a clock that only waits and tries move, and the outcomes of the tries."""

    def __init__(self, *outcomes, seconds=0.0, jitter=0.5, **bounds):
        self.clock = ManualClock()
        self.waits, self.timeouts = [], []
        self.outcomes, self.seconds = list(outcomes), seconds
        self.policy = RetryPolicy(clock=self.clock.now, sleep=self.sleep, jitter=lambda: jitter, **bounds)

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.clock.advance(seconds)

    def attempt(self, timeout):
        self.timeouts.append(timeout)
        self.clock.advance(min(self.seconds, timeout))
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    def run(self, **options):
        return self.policy.run(self.attempt, self.policy.start(), **options)


@pytest.mark.parametrize("status", [412, 429, 500, 502, 503, 504])
def test_what_may_heal_is_tried_again(status):
    trial = Trial(Answer(status), OK)
    assert trial.run() is OK
    assert len(trial.timeouts) == 2


@pytest.mark.parametrize("kind", ["timeout", "connection"])
def test_a_broken_connection_is_tried_again(kind):
    trial = Trial(NoAnswer(kind, "x"), OK)
    assert trial.run() is OK


@pytest.mark.parametrize("status", [0, 200, 204, 400, 401, 403, 404, 405, 413, 501])
def test_what_trying_again_cannot_mend_is_tried_once(status):
    trial = Trial(Answer(status))
    trial.run()
    assert len(trial.timeouts) == 1
    assert trial.waits == []


@pytest.mark.parametrize("kind", ["tls", "address"])
def test_a_connection_that_cannot_be_trusted_is_tried_once(kind):
    trial = Trial(NoAnswer(kind, "x"))
    trial.run()
    assert len(trial.timeouts) == 1


def test_the_tries_are_bounded():
    trial = Trial(Answer(503), tries=4)
    assert trial.run().status == 503
    assert len(trial.timeouts) == 4
    assert len(trial.waits) == 3


def test_a_call_may_ask_for_fewer_tries():
    trial = Trial(Answer(503))
    trial.run(tries=1)
    assert len(trial.timeouts) == 1


def test_waits_double_and_are_jittered_in_full():
    assert Trial(Answer(503), jitter=0.999).run().status == 503
    trial = Trial(Answer(503), jitter=0.5, first_wait=0.1)
    trial.run()
    assert trial.waits == pytest.approx([0.05, 0.1, 0.2])
    trial = Trial(Answer(503), jitter=0.0)
    trial.run()
    assert trial.waits == [0, 0, 0]


def test_a_server_that_says_when_is_heard():
    trial = Trial(Answer(429, retry_after=1.0), OK, deadline=3)
    assert trial.run() is OK
    assert trial.waits == [1.0]


def test_a_server_that_asks_for_more_time_than_there_is_gets_none():
    trial = Trial(Answer(429, retry_after=60.0), deadline=3)
    assert trial.run().retry_after == 60.0
    assert trial.waits == []


def test_no_try_begins_after_the_deadline_and_the_last_one_is_cut():
    trial = Trial(
        NoAnswer("timeout", "x"), seconds=9, deadline=3.0, try_timeout=2.0, first_wait=0.001, tries=9
    )
    started = trial.clock.now()
    trial.run()
    assert trial.timeouts == pytest.approx([2.0, 1.0], abs=0.01)
    assert trial.clock.now() - started < 3.1


@pytest.mark.parametrize("name", ["deadline", "try_timeout", "tries", "first_wait"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_bounds_are_positive(name, value):
    with pytest.raises(ConfigurationError, match=name):
        RetryPolicy(**{name: value})
