"""The example of an encrypted application runs, and shows what it claims."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "encrypted_application.py"


@pytest.mark.slow
def test_the_example_runs_and_says_what_it_shows():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", EXAMPLE], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert shown.count("The database does not contain 'secret info'") == 2
    assert shown.count('"foo":"no secret"') == 2
    assert "Under a static key" in shown
    assert "Under a keyring" in shown
