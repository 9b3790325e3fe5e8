"""The project's own negative vectors: bad padding under a valid tag, cut tags, bytes moved elsewhere."""

from __future__ import annotations

import importlib.util

import pytest

from eventseal.errors import OPAQUE_INTEGRITY_MESSAGE, IntegrityError
from eventseal.suites.cbc_hmac import SUITES, ContextPool, open_many

BY_NAME = {suite.name: suite for suite in SUITES.values()}
FILES = ["a128cbc_hs256.json", "a192cbc_hs384.json", "a256cbc_hs512.json"]


@pytest.mark.parametrize("name", FILES)
def test_each_case_ends_as_it_says(name, load_vectors):
    vectors = load_vectors(f"own/{name}")
    pool = ContextPool(BY_NAME[vectors["suite"]], bytes.fromhex(vectors["key"]))
    seen = {"plaintext": 0, "integrity error": 0}
    items = [(bytes.fromhex(case["sealed"]), bytes.fromhex(case["aad"])) for case in vectors["cases"]]
    for case, outcome in zip(vectors["cases"], open_many(pool, items), strict=True):
        if case["expect"] == "plaintext":
            assert outcome == bytes.fromhex(case["plaintext"]), case["comment"]
        else:
            assert isinstance(outcome, IntegrityError), case["comment"]
            assert str(outcome) == OPAQUE_INTEGRITY_MESSAGE
        seen[case["expect"]] += 1
    assert seen["plaintext"] == 7
    assert seen["integrity error"] >= 3 * seen["plaintext"]


def test_the_files_are_what_the_generator_writes(vectors_path):
    spec = importlib.util.spec_from_file_location("own_generate", vectors_path / "own" / "generate.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written = generator.files()
    assert sorted(written) == sorted(path.name for path in (vectors_path / "own").glob("*.json")) == FILES
    for name, text in written.items():
        assert (vectors_path / "own" / name).read_text() == text
