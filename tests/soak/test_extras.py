"""
The wheel is installed with each extra alone, in a new environment, and the page of the extra runs there.

Half a minute to a minute for each extra on two cores, with downloads.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.openbao import OpenBao
from tests.fixtures.page_programs import program, run
from tests.fixtures.wheels import ROOT, build_wheel

if TYPE_CHECKING:
    from pathlib import Path

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PAGES = {
    "no extra": ["getting-started"],
    "crypto": ["encryption-walkthrough"],
    "aws": ["aws-kms"],  # with the fake, since there is no account
    "eventsourcing": ["eventsourcing"],
    "all": ["getting-started", "aws-kms", "eventsourcing"],
}
"""The pages that run as they are. The others need a server, or have a section for another extra."""
STARTED_HERE = re.compile(r"^<!-- not run: it needs a server; .* starts one and runs it -->\n", re.MULTILINE)

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def new_environment(tmp_path: Path, wheel: Path):
    """Creates an environment with EventSeal and one extra, and returns its interpreter."""

    def create(extra: str = "") -> Path:
        python = tmp_path / "environment" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        # -I: for pip, packages on PYTHONPATH would count as installed.
        pip = [python, "-I", "-m", "pip", "--disable-pip-version-check"]
        wanted = f"{wheel}[{extra}]" if extra else wheel
        install = [*pip, "install", "--constraint", ROOT / "constraints.txt", wanted]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "does not provide the extra" not in done.stderr
        subprocess.run([*pip, "check"], check=True)
        return python

    return create


def run_there(text: str, python: Path, folder: Path, **settings: str) -> None:
    # PYTHONPATH may lead to this tree. Nothing but the environment shall be found.
    here = f"import eventseal\nassert eventseal.__file__.startswith({str(python.parents[1])!r})"
    assert program(text)
    for each in (here, program(text)):
        run(each, folder, python=python, settings={**settings, "PYTHONPATH": ""})


def test_each_extra_has_a_test():
    assert {*PAGES, "postgres", "testing", "vault"} == {*EXTRAS, "no extra"}


@pytest.mark.parametrize("extra", PAGES)
def test_an_extra_alone_is_enough_for_its_pages(extra, new_environment, tmp_path):
    python = new_environment("" if extra == "no extra" else extra)
    for name in PAGES[extra]:
        folder = tmp_path / name
        folder.mkdir()
        run_there(page(name), python, folder)


def test_the_extra_testing_is_enough_for_its_sections(new_environment, tmp_path):
    """The section on a mocked AWS KMS is for the extra aws, with moto."""
    before, _, after = page("testing").partition("## A mocked AWS KMS\n")
    run_there(before + after[after.index("## Your own adapter") :], new_environment("testing"), tmp_path)


@pytest.mark.postgres
def test_the_extra_postgres_is_enough_to_get_started(new_environment, tmp_path, postgres_url):
    text = page("getting-started")
    assert "sqlite:///shop.sqlite" in text
    run_there(
        text.replace("sqlite:///shop.sqlite", f"'{postgres_url}'"), new_environment("postgres"), tmp_path
    )


def test_the_extra_vault_is_enough_for_the_first_three_steps(new_environment, tmp_path):
    python, server = new_environment("vault"), OpenBao(tmp_path)
    (python.parent / "bao").symlink_to(server.program)
    try:
        server.start()
        address, token = server.address, server.token
        first = STARTED_HERE.sub("", page("vault").partition("## 4. ")[0])
        settings = {"BAO_ADDR": address, "BAO_TOKEN": token, "VAULT_ADDR": address, "VAULT_TOKEN": token}
        run_there(first, python, tmp_path, **settings)
    finally:
        server.stop()
