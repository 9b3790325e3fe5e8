"""What Hypothesis chooses from: scopes, times, faults and their places, and what clients are set to."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from tests.lifecycle.client import EVENTS, SNAPSHOTS, Terms
from tests.lifecycle.traffic import DATABASE_FAULTS, KMS_FAULTS, Fault

SCOPES = ("application", "tenant:acme", "subject:7")
PLACES = {
    "Append": 8,
    "WriteSealed": 8,
    "Replace": 10,
    "Replay": 8,
    "OpenPage": 8,
    "Refresh": 4,
    "SealOnly": 4,
    "Prepare": 20,
    "Rotate": 25,
    "RotateBranches": 40,
    "RotateKeys": 50,
    "MarkCompromised": 30,
    "Reencrypt": 250,
    "Retire": 110,
    "Shred": 110,
    "Reopen": 30,
    "AfterRestore": 60,
    "RollEpoch": 150,
    "RollOverEditedRow": 150,
    "RollBesideDatedKeys": 150,
    "RewrapKeys": 60,
    "AskForKek": 8,
    "Verify": 80,
    "WholeWay": 400,
}
"""How many places operations have, about; what a world has seen of each counts from then on."""

slots = st.integers(0, 2)
scopes = st.sampled_from(SCOPES)
tables = st.sampled_from((EVENTS, EVENTS, SNAPSHOTS))
# Where an operation stands still or meets a fault, in thousandths of its places.
places = st.integers(0, 1_100)
kms_faults = st.sampled_from(KMS_FAULTS)
database_faults = st.sampled_from(DATABASE_FAULTS)


def _faults() -> st.SearchStrategy[Any]:
    one = st.builds(
        Fault,
        at=places,
        kind=st.sampled_from(("fail", "fail", "fail_on", "crash")),
        kms=kms_faults,
        database=database_faults,
    )
    return st.one_of(st.just(()), st.just(()), st.just(()), st.tuples(one), st.tuples(one, one))


several = _faults()
seconds = st.sampled_from((1.0, 6.0, 31.0, 59.0, 61.0, 150.0, 201.0, 301.0))
terms = st.builds(
    Terms,
    branches=st.sampled_from((None, None, 2)),
    max_items=st.sampled_from((2**28, 2**28, 4)),
    max_keys=st.sampled_from((10_000, 10_000, 1)),
    open_grace=st.sampled_from((0.0, 0.0, 30.0)),
    batches=st.booleans(),
    keks=st.sampled_from((1, 1, 2)),
    in_memory=st.sampled_from((False, False, False, True)),
    versions=st.sampled_from((False, True)),
    ledger=st.sampled_from(("file", "file", "database")),
)
