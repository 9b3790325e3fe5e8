"""The walkthrough of the old library's chapter runs from the wheel that users install."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.fixtures.page_programs import program, run
from tests.fixtures.wheels import build_wheel

PAGE = Path(__file__).parents[2] / "docs" / "encryption-walkthrough.md"


@pytest.mark.slow
def test_the_walkthrough_runs_from_the_installed_wheel(tmp_path):
    wheels, installed, folder = (tmp_path / name for name in ("wheels", "installed", "folder"))
    folder.mkdir()
    build_wheel(wheels)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--find-links", wheels]
    subprocess.run([*pip, "--target", installed, "eventseal[crypto]"], capture_output=True, check=True)

    def run_installed(text):
        run(text, folder, scripts=installed / "bin", settings={"PYTHONPATH": str(installed)})

    run_installed(
        "import eventseal, eventseal_kms, importlib.metadata, shutil\n"
        "assert 'crypto' in importlib.metadata.metadata('eventseal').get_all('Provides-Extra')\n"
        "found = eventseal.__file__, eventseal_kms.__file__, shutil.which('eventseal')\n"
        f"assert all(path.startswith({str(installed)!r}) for path in found), found"
    )
    run_installed(program(PAGE.read_text()))
