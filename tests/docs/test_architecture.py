"""The map of the code names files and folders that exist, and every folder of modules."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SDK = ROOT / "sdk" / "eventseal"
ADAPTERS = ROOT / "kms_adapters" / "eventseal_kms"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
BLOCKS = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"^```text\n.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL))
PACKAGES = {init.parent.name for init in SDK.glob("*/__init__.py")}
FILE = re.compile(r"(?<![\w>/.-])[\w./-]+\.(?:py|md|toml)\b")  # not the end of <name>_command.py


def named_paths() -> list[str]:
    """List what the page names: files anywhere, and folders that stand alone between backticks."""
    files = [path for text in (*BLOCKS, *SPANS) for path in FILE.findall(text)]
    folders = [
        span
        for span in SPANS
        if re.fullmatch(r"[\w-]+(/[\w-]+)*/?", span) and ("/" in span or span in PACKAGES)
    ]
    return sorted({*files, *folders})


def place_of(path: str) -> Path:
    """Say where a path is: at the root of the repository if its first part is there, else in the SDK."""
    first = Path(path).parts[0]
    return (ROOT if (ROOT / first).exists() else SDK) / path


def folders_of_modules() -> list[str]:
    """List every package below the two roots, as the page writes it."""
    modules = [module for root in (SDK, ADAPTERS) for module in root.rglob("*.py")]
    folders = {module.parent for module in modules} - {SDK}
    return sorted(str(folder.relative_to(SDK if folder.is_relative_to(SDK) else ROOT)) for folder in folders)


@pytest.mark.parametrize("path", named_paths())
def test_each_path_on_the_page_exists(path):
    assert place_of(path).exists(), f"docs/architecture.md names {path}, which is not there"


@pytest.mark.parametrize("folder", folders_of_modules())
def test_each_folder_of_modules_is_on_the_page(folder):
    assert folder in SPANS, f"docs/architecture.md should say what is in {folder}"


def test_the_page_names_files_in_the_picture_and_in_the_table():
    assert {"items/mapper.py", "keys/wrapping/unwrapping.py", "tests/cli", "storage/jobs"} <= {*named_paths()}


def test_annotations_name_no_class_of_a_layer_above():
    """The linter looks at imports that run; those for annotations point the same way."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    height = {
        name.strip(): -number
        for number, layer in enumerate(contracts[0]["layers"])
        for name in layer.split(":")
    }
    upwards = [
        (str(module.relative_to(SDK)), node.module)
        for module in SDK.glob("*/**/*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eventseal.")
        if height[str(node.module).split(".")[1]] > height[module.relative_to(SDK).parts[0]]
    ]
    assert not upwards
