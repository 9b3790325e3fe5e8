"""No IV comes twice: over a million items, in threads and in forked processes that share a warm pool."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eventseal.suites import A256CBC_HS512
from eventseal.suites.cbc_hmac import ContextPool, seal_many

CENSUS = Path(__file__).parent / "iv_census.py"


def census(*arguments):
    done = subprocess.run([sys.executable, CENSUS, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_no_iv_repeats_over_a_million_items_in_threads_and_forks():
    counted = census("1000000")
    assert counted == {"ended": [0, 0, 0, 0], "items": 1_000_500, "repeated": 0}


def test_random_blocks_kept_for_later_would_repeat_in_forks_and_are_caught():
    counted = census("20000", "--prefetch")
    assert counted["ended"] == [0, 0, 0, 0]
    assert counted["repeated"] > 0


def test_the_same_random_block_in_two_processes_would_make_the_same_iv():
    """Why R is drawn fresh: the chained block does not save a repeated one."""
    pools = [ContextPool(A256CBC_HS512, bytes(64)) for _ in range(2)]
    ivs = [seal_many(pool, [(b"x", b"")], _random=bytes)[0][:16] for pool in pools]
    assert ivs[0] == ivs[1]
