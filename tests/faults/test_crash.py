"""kill -9 of the PostgreSQL server under load: no acknowledged event is lost, none is there twice."""

from __future__ import annotations

import pytest
from tests.faults.crashes import crash_server
from tests.fixtures.profiles import SHORT

pytestmark = pytest.mark.slow


@pytest.mark.postgres
def test_a_server_that_is_killed_under_load_loses_nothing(killable_postgres, tmp_path) -> None:
    crash_server(killable_postgres, SHORT, tmp_path)
