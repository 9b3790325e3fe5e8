"""What meets what: each operation each kind of fault that it can meet."""

from __future__ import annotations

import pytest
from tests.faults.operations import OPERATIONS

every_operation = pytest.mark.parametrize(
    "operation", [pytest.param(operation, id=operation.__name__) for operation in OPERATIONS]
)
every_fault_of_every_operation = pytest.mark.parametrize(
    ("operation", "fault"),
    [
        pytest.param(operation, fault, id=f"{operation.__name__}-{fault.name.lower()}")
        for operation in OPERATIONS
        for fault in operation.faults
    ],
)
every_refusal = pytest.mark.parametrize(
    "sqlstate",
    [
        pytest.param("40001", id="serialization_failure"),
        pytest.param("40P01", id="deadlock"),
        pytest.param("57P01", id="terminated"),
    ],
)
