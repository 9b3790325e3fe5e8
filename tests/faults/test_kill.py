"""kill -9 inside a rotation: no item is lost or unreadable, and running it again completes it."""

from __future__ import annotations

import pytest
from tests.faults.kills import kill_rotations
from tests.fixtures.profiles import SHORT

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_a_killed_rotation_loses_nothing_and_completes_when_run_again(store_url, tmp_path) -> None:
    kill_rotations(store_url, SHORT, tmp_path)
