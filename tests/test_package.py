"""What `import eventseal` names, and the packages that import their names on first use."""

import ast
import pickle
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAZY = sorted(
    ".".join(init.parent.relative_to(ROOT / "sdk").parts)
    for init in (ROOT / "sdk").rglob("__init__.py")
    if "lazy_names(" in init.read_text()
)


def public_names(package: str) -> list[str]:
    """The names that a lazy package lists. An internal package lists only homes."""
    module = import_module(package)
    return list(getattr(module, "__all__", module._HOMES))


def test_cipher_and_keyring_need_neither_database_nor_settings():
    program = (
        "from eventseal import AESCipher, Keyring, SequencedItemMapper, inspect; import sys; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"sqlalchemy", "pydantic", "boto3", "hvac"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in LAZY for name in public_names(package)]
)
def test_every_lazy_name_is_there(package, name):
    value = getattr(import_module(package), name)
    assert value is not None
    assert name in dir(import_module(package))
    if isinstance(value, type):
        assert pickle.loads(pickle.dumps(value)) is value


def test_lazy_packages_are_found():
    assert {"eventseal", "eventseal.erasure", "eventseal.integrations.eventsourcing"} <= {*LAZY}


@pytest.mark.parametrize("package", LAZY)
def test_a_lazy_package_has_a_home_for_each_public_name(package):
    module = import_module(package)
    assert {*public_names(package)} - {"__version__"} == {*module._HOMES}


@pytest.mark.parametrize("package", LAZY)
def test_the_type_checker_is_told_the_same_names(package):
    """The TYPE_CHECKING block, which editors read, names what __getattr__ gives."""
    module = import_module(package)
    block = next(
        node for node in ast.parse(Path(module.__file__).read_text()).body if isinstance(node, ast.If)
    )
    told = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == {name: f"{package}.{home}" for name, home in module._HOMES.items()}


@pytest.mark.parametrize("package", LAZY)
def test_no_lazy_name_is_that_of_a_module(package):
    """The import of a module sets its name in the package, where it would hide the lazy one."""
    modules = {module.name for module in pkgutil.iter_modules(import_module(package).__path__)}
    assert not modules & {*public_names(package)}


@pytest.mark.parametrize("package", LAZY)
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        import_module(package).nonsense  # noqa: B018


@pytest.mark.parametrize("package", LAZY)
def test_a_star_imports_every_public_name(package):
    names: dict[str, object] = {}
    exec(f"from {package} import *", names)  # noqa: S102
    assert {*getattr(import_module(package), "__all__", ())} <= {*names}


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
