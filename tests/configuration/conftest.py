"""Every test here runs in an empty folder, without settings of the machine's."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _empty_surroundings(tmp_path, monkeypatch):
    for name in os.environ:
        if name.upper().startswith("EVENTSEAL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
