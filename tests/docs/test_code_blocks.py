"""Run the code blocks of the README and of every page, each page as one program in an empty folder."""

import re
from pathlib import Path

import pytest
from tests.fixtures.page_programs import output_pattern, program, run

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PROGRAMS = {str(page.relative_to(ROOT)): program(page.read_text()) for page in PAGES}


def test_pages_are_found():
    assert {"README.md", "docs/getting-started.md", "docs/concepts.md"} <= PROGRAMS.keys()


def test_an_output_must_be_the_shown_one_but_for_what_is_left_out():
    pattern = output_pattern(["...", "a key ... (of 2)", "end"])
    assert re.fullmatch(pattern, "a key 01a2 (of 2)\nend\n")
    assert re.fullmatch(pattern, "x\n\ny\na key 01a2 (of 2)  \nend\n")
    assert not re.fullmatch(pattern, "a key 01a2 (of 3)\nend\n")
    assert not re.fullmatch(pattern, "a key 01a2 (of 2)\nend\nmore\n")
    assert not re.fullmatch(pattern, "a key 01a2\n (of 2)\nend\n")


def test_the_readme_shows_an_output():
    assert "_output = " in PROGRAMS["README.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in PROGRAMS.items() if text])
def test_every_block_of_the_page_runs(page, tmp_path):
    run(PROGRAMS[page], tmp_path)
