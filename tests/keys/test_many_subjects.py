"""
The bill does not grow with the number of subjects: the test of a million, at a size for every run.

``make soak`` runs the million.
"""

from __future__ import annotations

from collections import Counter

import pytest
from tests.fixtures.subjects import PAGE, replay_subjects, seal_subjects

from eventseal.keys import InMemoryKeyStore, KeyPurpose
from eventseal.testing import FakeKms

SUBJECTS, BRANCHES = 20_000, 16


@pytest.mark.slow
def test_subject_keys_cost_a_call_for_each_branch_and_one_for_the_store_key(tmp_path) -> None:
    kms, store = FakeKms(), InMemoryKeyStore()
    made = seal_subjects(SUBJECTS, kms, store, tmp_path / "items", branches=BRANCHES)
    assert made.kms == kms.count("generate_data_key") == kms.count() == BRANCHES + 1
    assert made.store <= 2 * SUBJECTS / PAGE + 10
    kms.calls.clear()
    read = replay_subjects(SUBJECTS, kms, store, tmp_path / "items")
    assert read.kms == kms.count("unwrap") == kms.count() == BRANCHES + 1
    assert read.store <= SUBJECTS / PAGE + 10
    purposes = Counter(record.purpose for record in store.page("shop", limit=2 * SUBJECTS))
    assert purposes == {KeyPurpose.STORE: 1, KeyPurpose.BRANCH: BRANCHES, KeyPurpose.DATA: SUBJECTS}
