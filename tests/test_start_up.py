"""What a new process imports. How long that takes is measured in tests/benchmarks/test_start_up.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests.fixtures.start_up import (
    LIBRARIES,
    SQLITE_AND_AWS,
    SQLITE_AND_LOCAL,
    command,
    imported_modules,
    opening,
)

from eventseal_kms.local import LocalKmsAdapter

OF_A_STORE = {
    "annotated_types",
    "cryptography",
    "cython_runtime",
    "dotenv",
    "greenlet",  # releases of SQLAlchemy before 2.1
    "pydantic",
    "pydantic_core",
    "pydantic_settings",
    "sqlalchemy",
    "typing_extensions",
    "typing_inspection",
    "zstandard",
}
OF_THE_COMMAND = {"annotated_doc", "click", "rich", "shellingham", "typer"}
BARE_COMMAND = {
    "eventseal",
    "eventseal.cli",
    "eventseal.cli.app",
    "eventseal.cli.exits",
    "eventseal.cli.output",
    "eventseal.cli.shared_options",
    "eventseal.errors",
    "eventseal.lazy_names",
    "eventseal.wording",
}
MOST_MODULES_OF_A_STORE = 105
"""Of EventSeal's own. A few more may come, but no layer that only a command needs."""


@pytest.fixture(autouse=True)
def _empty_surroundings(tmp_path, monkeypatch):
    for name in os.environ:
        if name.upper().startswith("EVENTSEAL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def own(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] in {"eventseal", "eventseal_kms"}}


def libraries(modules: set[str]) -> set[str]:
    """The packages of other projects, without what this interpreter imports for any program."""
    others = {name.partition(".")[0] for name in modules - own(modules) - imported_modules("")}
    return {name for name in others if name not in sys.stdlib_module_names and not name.startswith("_")}


def test_the_package_alone_imports_nothing():
    modules = imported_modules("import eventseal")
    assert own(modules) == {"eventseal", "eventseal.lazy_names"}
    assert not libraries(modules)


@pytest.mark.parametrize("words", [["--version"], ["--json", "--version"], ["--help"]])
def test_the_commands_texts_import_no_command_and_no_store(words):
    modules = imported_modules(command(*words))
    assert own(modules) == BARE_COMMAND
    assert libraries(modules) <= OF_THE_COMMAND


@pytest.mark.slow
def test_the_help_of_a_command_imports_no_other_command():
    modules = own(imported_modules(command("verify", "--help")))
    assert {name for name in modules if name.endswith("_command")} == {
        "eventseal.cli.receipt_command",  # `verify` writes a receipt
        "eventseal.cli.verify_command",
    }


@pytest.mark.slow
def test_the_class_of_a_store_imports_what_a_store_needs():
    modules = imported_modules("from eventseal import EventSeal")
    assert libraries(modules) <= OF_A_STORE
    assert len(own(modules)) <= MOST_MODULES_OF_A_STORE


@pytest.mark.slow
def test_a_store_imports_its_own_adapter_and_database_alone():
    LocalKmsAdapter.create(Path("dev.key"))
    modules = imported_modules(opening(SQLITE_AND_LOCAL))
    assert libraries(modules) <= OF_A_STORE
    assert "sqlalchemy.dialects.postgresql" not in modules
    assert not {
        name
        for name in own(modules)
        if name.split(".")[1:2] in (["cli"], ["eventstore"], ["integrations"], ["rotation"], ["testing"])
    }
    assert len(own(modules)) <= MOST_MODULES_OF_A_STORE
    assert set(LIBRARIES) <= modules, "the benchmark counts a library that is not used"


@pytest.mark.slow
def test_a_key_of_aws_adds_its_client_and_no_other():
    found = libraries(imported_modules(opening(SQLITE_AND_AWS)))
    assert "boto3" in found
    assert not {"hvac", "psycopg", "eventsourcing", "typer", "pytest", "hypothesis"} & found
