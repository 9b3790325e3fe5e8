"""One corrupt row: all the others move, it is named, its key stays, and the command's exit code says so."""

from __future__ import annotations

import pytest
from tests.faults.corrupt_rows import rotate_around_a_corrupt_row
from tests.fixtures.profiles import SHORT

pytestmark = pytest.mark.slow


def test_a_corrupt_row_is_named_and_keeps_its_key_while_all_others_move(store_url, tmp_path) -> None:
    rotate_around_a_corrupt_row(store_url, SHORT, tmp_path)
