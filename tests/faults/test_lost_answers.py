"""COMMITs that are executed and never answered, while items are re-encrypted and keys retired."""

from __future__ import annotations

import pytest
from tests.faults.lost_answers import lose_answers
from tests.fixtures.profiles import SHORT

pytestmark = pytest.mark.slow


@pytest.mark.postgres
def test_lost_answers_move_every_item_once_and_retire_every_key(postgres_url) -> None:
    lose_answers(postgres_url, SHORT)
