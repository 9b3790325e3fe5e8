"""A shred in the midst of everything else, in threads and on databases: nothing of the scope comes back."""

from __future__ import annotations

import pytest
from tests.erasure.races import race
from tests.fixtures.profiles import SHORT

pytestmark = pytest.mark.slow


def test_nothing_comes_back_in_a_race(store_url: str) -> None:
    race(store_url, SHORT.races)
