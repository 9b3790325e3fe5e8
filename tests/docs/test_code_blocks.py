"""
Run the code blocks of the README and of every page, each page as one program in an empty folder.

A ``python`` block is run as it stands, a ``console`` block line by line where a line begins with ``$``. A
block that cannot run says why, in a comment right above it: ``<!-- not run: reason -->``.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^>]+ -->\n)?"
    r"^```(?P<language>python|console)\b[^\n]*\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def program(page: Path) -> str:
    steps = ["from __future__ import annotations", "import subprocess as _subprocess"]
    for block in BLOCK.finditer(page.read_text()):
        if block["skip"]:
            continue
        if block["language"] == "python":
            steps.append(block["body"].replace("from __future__ import annotations\n", ""))
        else:
            commands = [line[2:] for line in block["body"].splitlines() if line.startswith("$ ")]
            assert commands, f"{page.name}: a console block without a command"
            steps += [f"_subprocess.run({command!r}, shell=True, check=True)" for command in commands]
    return "\n".join(steps) if len(steps) > 2 else ""


def test_pages_are_found():
    assert {"README.md", "getting-started.md", "concepts.md"} <= {page.name for page in PAGES}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if program(page)], ids=lambda page: page.name)
def test_every_block_of_the_page_runs(page, tmp_path):
    script = tmp_path / "page.py"
    script.write_text(program(page))
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EVENTSEAL_", "AWS_", "VAULT_"))
    }
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "default::UserWarning", str(script)],
        cwd=tmp_path,
        env=kept,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}\n{done.stdout}\n{done.stderr}"
