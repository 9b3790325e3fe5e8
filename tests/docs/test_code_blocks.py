"""
Run the code blocks of the README and of every page, each page as one program in an empty folder.

A ``python`` block is run as it stands, a ``console`` block line by line where a line begins with ``$``. A
block that cannot run says why, in a comment right above it: ``<!-- not run: reason -->``.

If lines follow a command, they are what it prints to standard output. There, ``...`` is any text, and a line
with only ``...`` is any number of lines.
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


def output_pattern(shown: list[str]) -> str:
    """The pattern of an output that a page shows: ``...`` in it stands for what varies or is left out."""
    return "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r" *\n"
        for line in shown
    )


def commands(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the output that is shown after it."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
    return found


def program(page: Path) -> str:
    steps = ["from __future__ import annotations", "import re as _re", "import subprocess as _subprocess"]
    imports = len(steps)
    for block in BLOCK.finditer(page.read_text()):
        if block["skip"]:
            continue
        if block["language"] == "python":
            steps.append(block["body"].replace("from __future__ import annotations\n", ""))
            continue
        assert commands(block["body"]), f"{page.name}: a console block without a command"
        for command, shown in commands(block["body"]):
            if not shown:
                steps.append(f"_subprocess.run({command!r}, shell=True, check=True)")
                continue
            pipe = "stdout=_subprocess.PIPE, text=True"
            steps.append(f"_output = _subprocess.run({command!r}, shell=True, check=True, {pipe}).stdout")
            steps.append(f"assert _re.fullmatch({output_pattern(shown)!r}, _output), _output")
    return "\n".join(steps) if len(steps) > imports else ""


def test_pages_are_found():
    assert {"README.md", "getting-started.md", "concepts.md"} <= {page.name for page in PAGES}


def test_an_output_must_be_the_shown_one_but_for_what_is_left_out():
    pattern = output_pattern(["...", "a key ... (of 2)", "end"])
    assert re.fullmatch(pattern, "a key 01a2 (of 2)\nend\n")
    assert re.fullmatch(pattern, "x\n\ny\na key 01a2 (of 2)  \nend\n")
    assert not re.fullmatch(pattern, "a key 01a2 (of 3)\nend\n")
    assert not re.fullmatch(pattern, "a key 01a2 (of 2)\nend\nmore\n")
    assert not re.fullmatch(pattern, "a key 01a2\n (of 2)\nend\n")


def test_the_readme_shows_an_output():
    assert "_output = " in program(ROOT / "README.md")


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
