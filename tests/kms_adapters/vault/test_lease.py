"""The time of a token."""

import pytest

from eventseal_kms.vault.session import Lease

TERMS = {"lease_duration": 3600, "renewable": True}


def test_two_thirds_of_a_lease_pass_before_it_is_due():
    lease = Lease.granted("token", TERMS, now=100)
    assert lease.renewable
    assert not lease.is_due(100 + 2399)
    assert lease.is_due(100 + 2400)
    assert not lease.has_ended(100 + 3599)
    assert lease.has_ended(100 + 3600)


def test_a_look_up_tells_the_time_that_is_left():
    lease = Lease.granted("token", {"ttl": 90, "creation_ttl": 3600, "renewable": False}, now=0)
    assert (lease.due, lease.expires, lease.renewable) == (60, 90, False)


@pytest.mark.parametrize("terms", [{}, {"ttl": 0, "renewable": False}, {"lease_duration": 0}, {"ttl": None}])
def test_a_token_without_an_end_is_never_due(terms):
    lease = Lease.granted("root", terms, now=0)
    assert not lease.is_due(10**9)
    assert not lease.has_ended(10**9)


def test_a_renewal_that_gives_more_time_may_be_renewed_again():
    lease = Lease.granted("token", TERMS, now=0).renewed(TERMS, now=2400)
    assert (lease.renewable, lease.due, lease.expires) == (True, 4800, 6000)


def test_a_renewal_that_the_maximum_has_cut_short_is_the_last_one():
    lease = Lease.granted("token", TERMS, now=0).renewed(
        {"lease_duration": 1200, "renewable": True}, now=2400
    )
    assert (lease.renewable, lease.due, lease.expires) == (False, 3200, 3600)


def test_what_failed_is_tried_again_after_a_third_of_what_is_left_but_not_at_once():
    lease = Lease.granted("token", TERMS, now=0)
    assert lease.later(2400).due == 2800
    assert lease.later(2800).due == pytest.approx(2800 + 800 / 3)
    assert lease.later(3599).due == 3600
    assert lease.later(2400).expires == 3600


def test_its_repr_shows_no_token():
    assert "s.secret" not in repr(Lease("s.secret"))
