"""Two rotators, four writers and two readers at once: no error, nothing lost, all on the newest keys."""

from __future__ import annotations

import pytest
from tests.faults.crowds import work_at_once
from tests.fixtures.profiles import SHORT

pytestmark = pytest.mark.slow


@pytest.mark.postgres
def test_a_crowd_on_one_store_loses_nothing(postgres_url, tmp_path) -> None:
    work_at_once(postgres_url, SHORT, tmp_path)
