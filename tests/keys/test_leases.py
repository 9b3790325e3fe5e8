"""Leases never hand out an item twice, and stay within what was reserved and lent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from eventseal.keys.ring.key_cache import FIRST_BLOCK, LARGEST_BLOCK, MOST_CREDIT, Lease
from eventseal.keys.store import HARD_LIMIT

NEVER = HARD_LIMIT


def test_items_are_taken_until_none_is_left() -> None:
    lease = Lease(total=10, left=10)
    assert lease.take(4)
    assert not lease.take(7)
    assert lease.take(6)
    assert not lease.take(1)
    assert lease.take(0)


def test_a_negative_count_adds_nothing() -> None:
    lease = Lease(total=1, left=1)
    assert not lease.take(-5)
    assert not lease.covers(2)


def test_blocks_double_up_to_the_largest() -> None:
    lease = Lease(total=FIRST_BLOCK, left=FIRST_BLOCK)
    total, sizes = FIRST_BLOCK, []
    for _ in range(8):
        wanted = lease.wanted(1, NEVER)
        total += wanted
        lease.grant(wanted, total=total, items=1)
        sizes.append(wanted)
    assert sizes == [2_048, 4_096, 8_192, 16_384, 32_768, LARGEST_BLOCK, LARGEST_BLOCK, LARGEST_BLOCK]


def test_a_key_that_others_made_begins_with_the_first_block() -> None:
    assert Lease(total=5_000).wanted(1, NEVER) == FIRST_BLOCK


def test_a_batch_larger_than_the_block_is_reserved_whole() -> None:
    assert Lease(total=0).wanted(10_000, NEVER) == 10_000


def test_a_block_stops_at_the_policys_limit_while_the_batch_fits_below_it() -> None:
    assert Lease(total=90).wanted(5, 100) == 10
    assert Lease(total=90).wanted(10, 100) == 10
    assert Lease(total=90).wanted(11, 100) == FIRST_BLOCK  # over it the key seals on until it is rotated


def test_a_key_is_over_once_a_batch_would_pass_the_limit() -> None:
    assert not Lease(total=90).is_over(10, 100)
    assert Lease(total=90).is_over(11, 100)


def test_nothing_passes_the_hard_limit() -> None:
    assert Lease(total=HARD_LIMIT - 5).wanted(5, NEVER) == 5
    assert Lease(total=HARD_LIMIT - 5).wanted(6, NEVER) == 0
    assert Lease(total=HARD_LIMIT).wanted(1, NEVER) == 0


def test_credit_is_bounded_and_reserved_with_the_next_lease() -> None:
    lease = Lease(total=0)
    borrowed = 0
    while lease.borrow(1_000):
        borrowed += 1_000
        while lease.take(1_000):
            borrowed += 1_000
    assert MOST_CREDIT - 1_000 < borrowed <= MOST_CREDIT
    wanted = lease.wanted(10, NEVER)
    assert wanted == MOST_CREDIT + FIRST_BLOCK
    lease.grant(wanted, total=wanted, items=10)
    assert lease.wanted(10_000, NEVER) == 10_000  # nothing is owed any more


def test_more_than_the_credit_is_not_lent() -> None:
    lease = Lease(total=0)
    assert not lease.borrow(MOST_CREDIT + 1)
    assert lease.borrow(MOST_CREDIT)
    assert not lease.borrow(1)


def test_credit_counts_towards_the_limits() -> None:
    lease = Lease(total=HARD_LIMIT - 2_000)
    assert lease.borrow(1_500)
    assert lease.is_over(501, HARD_LIMIT)
    assert lease.wanted(501, NEVER) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "lease", "refuse"]), st.integers(0, 5_000)),
        max_size=60,
    ),
    st.sampled_from([100, 5_000, 2**28, NEVER]),
)
def test_sealed_items_never_pass_what_was_reserved_and_lent(steps, max_items: int) -> None:
    lease = Lease(total=0)
    reserved = sealed = 0
    for step, items in steps:
        if lease.take(items):
            sealed += items
        elif step == "lease":
            wanted = lease.wanted(items, max_items)
            assert wanted >= items
            reserved += wanted
            lease.grant(wanted, total=reserved, items=items)
            sealed += items
        elif step == "refuse" and lease.borrow(items):
            sealed += items
        assert sealed <= reserved + MOST_CREDIT


def test_threads_share_a_lease_without_handing_out_an_item_twice() -> None:
    lease = Lease(total=100_000, left=100_000)
    with ThreadPoolExecutor(8) as pool:
        taken = sum(pool.map(lambda _: sum(lease.take(3) for _ in range(6_000)), range(8)))
    assert taken == 100_000 // 3
