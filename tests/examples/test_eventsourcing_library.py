"""The example under the eventsourcing library: run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "eventsourcing_library.py"


@pytest.mark.slow
def test_an_application_comes_under_eventseal_on_the_tables_it_has(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "('Ada', 99) instead of ('Ada', 10)" in done.stdout  # under the library's own cipher
    assert "the item does not authenticate" in done.stdout
    assert "4 events are envelopes now" in done.stdout
    assert "nothing old is left: True" in done.stdout
    assert "6 events and snapshots open, 0 do not" in done.stdout
    assert "Proved" in done.stdout
    (folder,) = tmp_path.iterdir()
    assert not any(b"Ada" in file.read_bytes() for file in folder.glob("bank.sqlite*"))
