"""The faults of `tests/faults`, at length: each dependency call, and 200 kills on each database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.faults.corrupt_rows import rotate_around_a_corrupt_row
from tests.faults.crashes import crash_server
from tests.faults.crowds import work_at_once
from tests.faults.fault_loop import fail_every_call
from tests.faults.kills import kill_rotations
from tests.faults.lost_answers import lose_answers
from tests.faults.parameters import every_fault_of_every_operation, every_operation, every_refusal
from tests.fixtures.dependencies import Fault
from tests.fixtures.profiles import LONG

if TYPE_CHECKING:
    from tests.faults.operations import Operation

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7_200)]


@every_fault_of_every_operation
def test_a_fault_loses_nothing_and_a_second_run_completes(
    operation: type[Operation], fault: Fault, sqlite_url, sqlite_copies, capsys
) -> None:
    seen = fail_every_call(operation, LONG, fault, sqlite_url, sqlite_copies)
    with capsys.disabled():
        print(f"\n{operation.__name__}, {fault.value}, SQLite: {seen}", end=" ")


@pytest.mark.postgres
@every_fault_of_every_operation
def test_a_fault_loses_nothing_on_a_server_and_a_second_run_completes(
    operation: type[Operation], fault: Fault, postgres_url, postgres_copies, capsys
) -> None:
    seen = fail_every_call(operation, LONG, fault, postgres_url, postgres_copies)
    with capsys.disabled():
        print(f"\n{operation.__name__}, {fault.value}, PostgreSQL: {seen}", end=" ")


@pytest.mark.postgres
@every_refusal
@every_operation
def test_a_transaction_that_the_server_ends_is_run_again_and_nobody_hears_of_it(
    operation: type[Operation], sqlstate: str, postgres_url, postgres_copies
) -> None:
    seen = fail_every_call(operation, LONG, Fault.ONCE, postgres_url, postgres_copies, sqlstate=sqlstate)
    assert seen.survived == seen.points > 0


def test_a_killed_rotation_loses_nothing_and_completes_when_run_again(store_url, tmp_path, capsys) -> None:
    report = kill_rotations(store_url, LONG, tmp_path)
    with capsys.disabled():
        print(f"\n{report}", end=" ")


@pytest.mark.postgres
def test_a_server_that_is_killed_under_load_loses_nothing(killable_postgres, tmp_path) -> None:
    crash_server(killable_postgres, LONG, tmp_path)


@pytest.mark.postgres
def test_a_crowd_on_one_store_loses_nothing(postgres_url, tmp_path, capsys) -> None:
    answers = work_at_once(postgres_url, LONG, tmp_path)
    assert sum(answer["retired"] for answer in answers) > 0
    with capsys.disabled():
        print(f"\n{answers}", end=" ")


@pytest.mark.postgres
def test_lost_answers_move_every_item_once_and_retire_every_key(postgres_url) -> None:
    lose_answers(postgres_url, LONG)


def test_a_corrupt_row_is_named_and_keeps_its_key_while_all_others_move(store_url, tmp_path) -> None:
    rotate_around_a_corrupt_row(store_url, LONG, tmp_path)
