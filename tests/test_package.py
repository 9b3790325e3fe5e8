"""What `import eventseal` loads, and what it names."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest

import eventseal

ROOT = Path(__file__).parents[1]


def test_importing_the_package_loads_no_heavy_dependency():
    """A program that only catches errors does not pay for a database or a cloud client."""
    heavy = {"boto3", "botocore", "hvac", "sqlalchemy", "pydantic", "pydantic_settings", "typer", "rich"}
    program = "import eventseal, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())


def test_cipher_and_keyring_need_neither_database_nor_settings():
    program = (
        "from eventseal import AESCipher, Keyring, SequencedItemMapper, inspect; import sys; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"sqlalchemy", "pydantic", "boto3", "hvac"} & set(done.stdout.split())


@pytest.mark.parametrize("name", eventseal.__all__)
def test_every_public_name_is_there(name):
    assert getattr(eventseal, name) is not None


def test_all_is_sorted_and_equal_to_the_table_of_lazy_names():
    assert list(eventseal.__all__) == sorted(eventseal.__all__)
    assert {*eventseal._HOMES, "__version__"} == set(eventseal.__all__)


def test_the_type_checker_is_told_the_same_names():
    """The TYPE_CHECKING block, which editors read, names what __getattr__ gives."""
    tree = ast.parse(Path(eventseal.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == {name: f"eventseal.{home}" for name, home in eventseal._HOMES.items()}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        eventseal.nonsense  # noqa: B018


def test_the_files_hold_no_machine_path_and_no_secret_key():
    """Nothing of the machine that built it stands in the tree."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    home, here = str(Path.home()), str(ROOT.parent) + "/"
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in {".gz", ".png"} or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        for word in (here, home + "/"):
            assert word not in text or len(word) < 4, f"{name} holds {word}"


def test_the_extra_for_postgresql_is_enough_for_the_eventsourcing_library():
    """Its persistence module for PostgreSQL imports more than psycopg alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ours,) = project["optional-dependencies"]["postgres"]
    theirs = [line for line in requires("eventsourcing") or [] if 'extra == "postgres"' in line]
    asked = {extra for line in theirs for extra in re.findall(r"psycopg\[([^]]*)\]", line)[0].split(",")}
    assert asked
    assert asked <= set(re.findall(r"\[([^]]*)\]", ours)[0].split(","))
