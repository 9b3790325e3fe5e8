"""The example that erases a customer: run as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "erase_a_customer.py"


@pytest.mark.slow
def test_the_customer_is_gone_everywhere_and_the_rest_replays(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Proved" in done.stdout
    assert done.stdout.count("(erased) <>, : spent 42") == 2
    assert done.stdout.count("Bob <bob@example.org>, 2 Builder Street: spent 99") == 3
    (folder,) = tmp_path.iterdir()
    assert "Receipt of an erasure" in (folder / "receipt.html").read_text()
    assert len(re.findall('"kind":"done"', (folder / "erasures.jsonl").read_text())) == 2
    for file in folder.iterdir():
        assert b"ada@example.org" not in file.read_bytes()
