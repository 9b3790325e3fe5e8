"""Every call of the KMS, the database and the clock failed once, and from then on: nothing is lost by it."""

from __future__ import annotations

import pytest
from tests.faults.fault_loop import fail_every_call
from tests.faults.operations import (
    Append,
    Migrate,
    Operation,
    Read,
    Reencrypt,
    Retire,
    RewrapTo,
    Rotate,
    Shred,
)
from tests.faults.parameters import every_fault_of_every_operation, every_refusal
from tests.fixtures.dependencies import ALL, Fault
from tests.fixtures.profiles import SHORT

pytestmark = pytest.mark.slow


@every_fault_of_every_operation
def test_a_fault_loses_nothing_and_a_second_run_completes(
    operation: type[Operation], fault: Fault, sqlite_url, sqlite_copies
) -> None:
    seen = fail_every_call(operation, SHORT, fault, sqlite_url, sqlite_copies)
    assert seen.points > 0
    if (operation, fault) == (Append, Fault.FROM_THEN_ON):
        assert seen.kinds.keys() == ALL
        assert seen.survived == 0


@pytest.mark.postgres
@pytest.mark.parametrize("operation", [Append, Read, Rotate, RewrapTo, Reencrypt, Retire, Shred, Migrate])
def test_a_fault_loses_nothing_on_a_server_and_a_second_run_completes(
    operation: type[Operation], postgres_url, postgres_copies
) -> None:
    assert fail_every_call(operation, SHORT, Fault.ONCE, postgres_url, postgres_copies).points > 0


@pytest.mark.postgres
@every_refusal
@pytest.mark.parametrize("operation", [Append, Reencrypt, Retire])
def test_a_transaction_that_the_server_ends_is_run_again_and_nobody_hears_of_it(
    operation: type[Operation], sqlstate: str, postgres_url, postgres_copies
) -> None:
    seen = fail_every_call(operation, SHORT, Fault.ONCE, postgres_url, postgres_copies, sqlstate=sqlstate)
    assert seen.survived == seen.points > 0


@pytest.mark.postgres
@pytest.mark.parametrize("operation", [Append, Reencrypt])
def test_a_lock_that_cannot_be_had_is_an_outage_and_a_second_run_completes(
    operation: type[Operation], postgres_url, postgres_copies
) -> None:
    lock_not_available = "55P03"
    seen = fail_every_call(
        operation, SHORT, Fault.ONCE, postgres_url, postgres_copies, sqlstate=lock_not_available
    )
    assert seen.survived < seen.points
