"""Runs the killer of rotations, and holds it to what it must find."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from tests.fixtures.profiles import Profile

ROOT = Path(__file__).parents[2]
MID_STATE = 0.9
"""The share of kills that must hit a rotation between its first and its last step."""
UNFINISHED = 0.2
"""The share that must leave items half-way: in three of ten parts of a rotation every kill does."""


def kill_rotations(url: str, profile: Profile, folder: Path, *, seed: int | None = None) -> dict[str, int]:
    """
    Kill rotations of a store.

    Args:
        url: An empty database.
        profile: How often, and how large the store is.
        folder: For the files of the KEKs.
        seed: Determines at which calls the kills are. By default it is a new one, which is printed.

    Returns:
        What happened.
    """
    seed = random.randrange(2**32) if seed is None else seed
    key_files = [folder / "one.key", folder / "two.key"]
    for key_file in key_files:
        LocalKmsAdapter.create(key_file)
    command = [
        *(sys.executable, "-W", "error", "-m", "tests.faults.killing"),
        *(url, str(profile.kills), str(profile.killed_items), str(seed), *map(str, key_files)),
    ]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}\n{done.stderr}"
    report: dict[str, int] = json.loads(done.stdout)
    print(report)
    assert report["kills"] == profile.kills
    assert (report["lost"], report["unreadable"]) == (0, 0), report
    assert report["mid_state"] >= MID_STATE * profile.kills, report
    assert report["unfinished_items"] >= UNFINISHED * profile.kills, report
    assert report["completed"] >= 1
    return report
