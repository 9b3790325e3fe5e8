"""
Count the files that sealing and opening pass through, and their returns.

Run it: ``python tools/ways.py``. With ``--list`` it also names the files in the order of their first call.
With ``--size`` it counts the files and code lines of ``sdk`` instead.

The profiler notes the file of each call into ``eventseal`` or ``eventseal_kms``, without ``testing``.
Successive calls into one file count once. A return is a change to a file that the path has already left.

The store is a temporary SQLite file with a local key, prepared as ``eventseal init`` does. The two items are
under one data key, which is wrapped under the KEK. Cold means that every module is imported, and the keyring
holds no key. Warm means the same two items again. Rows of items in the database are not part of the path.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import sys
import threading
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID, uuid4

REPOSITORY = Path(__file__).resolve().parents[1]
SDK = REPOSITORY / "sdk"
ROOTS = (str(SDK / "eventseal"), str(REPOSITORY / "kms_adapters" / "eventseal_kms"))
sys.path[:0] = [str(SDK), str(REPOSITORY / "kms_adapters")]  # this checkout, whatever is installed

from eventseal import (  # noqa: E402
    AESCipher,
    Keyring,
    SequencedItemMapper,
    SQLAlchemyDatastore,
    SQLAlchemyKeyStore,
    SQLAlchemySettings,
)
from eventseal.items import register_topic  # noqa: E402
from eventseal_kms.local import DevelopmentKeyWarning, LocalKmsAdapter  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

LAYOUT = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
)


@dataclass(frozen=True)
class Noted:
    """An event."""

    originator_id: UUID
    originator_version: int
    text: str


register_topic("ways:Noted", Noted)


class Process:
    """One process, with its own connections and an empty keyring."""

    def __init__(self, folder: Path, kek: LocalKmsAdapter) -> None:
        self.datastore = SQLAlchemyDatastore(SQLAlchemySettings(uri=f"sqlite:///{folder / 'store.sqlite'}"))
        self.datastore.setup_tables()
        self.keyring = Keyring(kms=kek, key_store=SQLAlchemyKeyStore(self.datastore))
        self.mapper = SequencedItemMapper(cipher=AESCipher(self.keyring))

    def close(self) -> None:
        """Forget the keys and the connections."""
        self.keyring.close()
        self.datastore.close()


class Way(NamedTuple):
    """
    A traced call.

    Attributes:
        name: The name of the action.
        steps: The files that were called, in order. Successive calls into one file are one step.
    """

    name: str
    steps: list[str]

    @property
    def files(self) -> list[str]:
        """Each file once, in the order of its first call."""
        return list(dict.fromkeys(self.steps))

    @property
    def returns(self) -> int:
        """The number of steps to a file that the path already left."""
        return len(self.steps) - len(self.files)


def trace(name: str, call: Callable[[], Any]) -> tuple[Way, Any]:
    """Run *call*, and note the files that its threads pass through."""
    steps: list[str] = []

    def note(frame: FrameType, event: str, _argument: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(ROOTS) and "/testing/" not in file and steps[-1:] != [file]:
            steps.append(file)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        result = call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return Way(name, [str(Path(step).relative_to(REPOSITORY)) for step in steps]), result


def ways(folder: Path) -> list[Way]:
    """Seal and open two items, cold and warm, in a new store."""
    kek = LocalKmsAdapter.create(folder / "kek")
    preparing = Process(folder, kek)
    preparing.keyring.prepare([])
    preparing.close()
    stream = uuid4()
    events = [Noted(stream, position, "something that happened") for position in range(2)]
    writer, reader = Process(folder, kek), Process(folder, kek)
    try:
        cold_seal, items = trace("cold seal", lambda: writer.mapper.to_sequenced_items(events))
        warm_seal, _ = trace("warm seal", lambda: writer.mapper.to_sequenced_items(events))
        cold_open, opened = trace("cold open", lambda: reader.mapper.from_sequenced_items(items))
        warm_open, _ = trace("warm open", lambda: reader.mapper.from_sequenced_items(items))
        if opened != events:
            raise AssertionError("the opened events differ from the sealed events")
        return [cold_seal, warm_seal, cold_open, warm_open]
    finally:
        reader.close()
        writer.close()


def code_lines(source: str) -> int:
    """Return the number of lines with code, without comments and docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and ast.get_docstring(node) is not None:
                docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def show_size() -> None:
    """Print how large ``sdk`` is."""
    sources = {path.relative_to(REPOSITORY): path.read_text() for path in sorted(SDK.rglob("*.py"))}
    lines = {path: len(source.splitlines()) for path, source in sources.items()}
    largest = max(lines, key=lambda path: lines[path])
    print(f"files           {len(sources):7,}")
    print(f"code lines      {sum(map(code_lines, sources.values())):7,}")
    print(f"median module   {statistics.median(lines.values()):7,.0f} lines")
    print(f"largest module  {lines[largest]:7,} lines  {largest}")


def show_ways(*, with_files: bool) -> None:
    """Print a table of the paths, with their files if *with_files*."""
    warnings.simplefilter("ignore", DevelopmentKeyWarning)
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        ways(Path(first))  # also imports the modules that are imported on first use
        found = ways(Path(second))
    print("             files  returns")
    for way in found:
        print(f"{way.name:11}{len(way.files):7}{way.returns:9}")
    if with_files:
        for way in found:
            print("", way.name, *(f"  {file}" for file in way.files), sep="\n")


def main() -> None:
    """Read the arguments, and print the counts that they select."""
    parser = argparse.ArgumentParser(description="Count the files that sealing and opening pass through.")
    parser.add_argument("--list", action="store_true", help="also name the files, by their first call")
    parser.add_argument("--size", action="store_true", help="count the files and lines of sdk instead")
    arguments = parser.parse_args()
    if arguments.size:
        show_size()
    else:
        show_ways(with_files=arguments.list)


if __name__ == "__main__":
    main()
