"""
Replay a real event log through an encrypted event store.

It rotates the key half-way, and proves the result::

    python examples/loan_applications.py                        # SQLite and the local key, in ./demo-output
    python examples/loan_applications.py --events LOG.jsonl.gz  # another log of the same form
    python examples/loan_applications.py --store postgresql+psycopg://user@localhost/shop --kms arn:aws:...
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import warnings
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4, uuid5

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from eventseal import (
    EventSeal,
    EventSealError,
    SequencedItemMapper,
    SQLAlchemyActiveRecordStrategy,
    SQLAlchemyDatastore,
    SQLAlchemySettings,
)
from eventseal.configuration.initialise import initialise
from eventseal.eventstore import (
    AggregateRoot,
    EventSourcedRepository,
    EventStore,
    PersistencePolicy,
    subscribe,
    unsubscribe,
)
from eventseal.items import register_topic
from eventseal.storage import IntegerSequencedItemRecord
from eventseal_kms.local import DevelopmentKeyWarning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HERE = Path(__file__).parent
SAMPLE = HERE / "data" / "loan-events-sample.jsonl.gz"
OUTPUT = Path("demo-output")
CITATION = (
    "B.F. van Dongen, BPI Challenge 2012, 4TU.ResearchData, "
    "DOI 10.4121/uuid:3926db30-f712-4394-aebc-75976070e91f"
)

Line = dict[str, Any]


class LoanApplication(AggregateRoot):
    """
    A loan application at a bank.

    It is submitted, worked on and offered, then accepted, declined or cancelled.
    """

    def __init__(self, amount_requested: int, registered_at: datetime, number: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.amount_requested = amount_requested
        self.registered_at = registered_at
        self.number = number
        self.activities: list[str] = []

    class Created(AggregateRoot.Created):
        """The bank registered the application."""

    class Progressed(AggregateRoot.Event):
        """An employee or the bank's system worked on the application."""

        def mutate(self, application: LoanApplication) -> None:
            application.activities.append(self.activity)

    @classmethod
    def _mutate(cls, initial: Any, event: Any) -> Any:
        if isinstance(event, cls.Progressed):
            event.mutate(initial)
            return initial
        return super()._mutate(initial, event)

    def progress(self, **what: Any) -> None:
        self._trigger_event(self.Progressed, **what)


register_topic("loans:Created", LoanApplication.Created)
register_topic("loans:Progressed", LoanApplication.Progressed)


class LogError(Exception):
    """The file is not a log of loan applications."""


def read_log(path: Path) -> Iterator[Line]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            yield json.loads(line)


def checked_count(path: Path) -> int:
    """
    Count the log's lines.

    The event of each line must turn back into that line. Otherwise it raises LogError.
    """
    count = 0
    try:
        for line in read_log(path):
            again = as_line(line["application_id"], line["position"], SimpleNamespace(**as_event(line)))
            if again != line:
                break
            count += 1
        else:
            if count:
                return count
    except (OSError, EOFError, KeyError, TypeError, ValueError):
        pass  # a line that cannot be read is not an event either
    raise LogError(f"line {count + 1} is not an event of a loan application")


def as_event(line: Line) -> dict[str, Any]:
    """Return the attributes of the event for a line of the log."""
    return {
        "activity": line["activity"],
        "transition": line["transition"],
        "resource": line["resource"],
        "occurred_at": datetime.fromisoformat(line["occurred_at"]),
        "amount_requested": line["amount_requested"],
        "registered_at": datetime.fromisoformat(line["registered_at"]),
    }


def as_line(number: str, position: int, event: Any) -> Line:
    """Return the line of the log that *event* came from."""
    return {
        "application_id": number,
        "position": position,
        "activity": event.activity,
        "transition": event.transition,
        "resource": event.resource,
        "occurred_at": event.occurred_at.isoformat(timespec="milliseconds"),
        "amount_requested": event.amount_requested,
        "registered_at": event.registered_at.isoformat(timespec="milliseconds"),
    }


class Bank:
    """The application, whose aggregates use one encrypted or plaintext event store."""

    def __init__(self, datastore: SQLAlchemyDatastore, mapper: SequencedItemMapper, run: UUID) -> None:
        self.datastore = datastore
        self.strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session=datastore.session)
        self.event_store = EventStore(self.strategy, mapper)
        self.loans = EventSourcedRepository(self.event_store)
        self.run = run

    def stream(self, number: str) -> UUID:
        return uuid5(self.run, number)

    def record(self, number: str, lines: list[Line]) -> None:
        """Write one application's lines in one transaction."""
        first = as_event(lines[0])
        loan_id = self.stream(number)
        if lines[0]["position"] == 0:
            loan = LoanApplication.create(
                loan_id,
                number=number,
                amount_requested=first["amount_requested"],
                registered_at=first["registered_at"],
            )
        else:
            loan = self.loans[loan_id]
        for line in lines:
            loan.progress(**as_event(line))
        loan.save()

    def lines(self, number: str) -> Iterator[Line]:
        """Yield the lines of a loan application, from the event store."""
        events = self.event_store.get_domain_events(self.stream(number))
        progressed = [event for event in events if isinstance(event, LoanApplication.Progressed)]
        for position, event in enumerate(progressed):
            yield as_line(number, position, event)


@dataclass(frozen=True)
class Facts:
    """
    The values of the log that the database must not contain.

    For each kind of value there is a pattern that finds it in bytes, and the set of all values.
    """

    patterns: Mapping[str, re.Pattern[bytes]]
    values: Mapping[str, set[bytes]]

    @classmethod
    def of(cls, log: Iterator[Line]) -> Facts:
        values: dict[str, set[bytes]] = {
            kind: set() for kind in ("timestamps", "activities", "amounts", "resources")
        }
        for line in log:
            event = as_event(line)
            times = event["occurred_at"], event["registered_at"]
            values["timestamps"].update(time.isoformat().encode() for time in times)
            values["activities"].add(line["activity"].encode())
            values["amounts"].add(b'"amount_requested":%d' % line["amount_requested"])
            if line["resource"] is not None:
                values["resources"].add(b'"resource":"%s"' % line["resource"].encode())
        longest_first = sorted(values["activities"], key=lambda name: -len(name))
        activities = b"|".join(re.escape(name) for name in longest_first)
        patterns = {
            "timestamps": re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?[+-]\d\d:\d\d"),
            "activities": re.compile(activities),
            "amounts": re.compile(rb'"amount_requested":\d+'),
            "resources": re.compile(rb'"resource":"\d+"'),
        }
        return cls(patterns, values)

    def found_in(self, stored: bytes) -> dict[str, int]:
        """Count the distinct values of each kind in *stored*."""
        found = {kind: set(pattern.findall(stored)) for kind, pattern in self.patterns.items()}
        return {kind: len(values & found[kind]) for kind, values in self.values.items()}


def stored_bytes(bank: Bank) -> bytes:
    """
    Return all bytes in the database.

    These are its files. If there are no files to read, they are every column of every item.
    """
    engine = bank.datastore.engine
    file = engine.url.database
    if engine.dialect.name == "sqlite" and file:
        return b"".join(path.read_bytes() for path in (Path(file), Path(f"{file}-wal")) if path.exists())
    return b"\n".join(b" ".join([repr(item[:3]).encode(), item.data]) for item in bank.strategy.all_items())


def arguments() -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--kms", metavar="URI", help="the KEK's key URI (default: a new local key)")
    parser.add_argument(
        "--store", metavar="URL", help="the database's SQLAlchemy URL (default: an SQLite file)"
    )
    parser.add_argument(
        "--events", metavar="FILE", type=Path, default=SAMPLE, help="a log as JSON lines, or gzipped"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    console = Console()
    warnings.simplefilter("ignore", DevelopmentKeyWarning)
    if not options.events.is_file():
        console.print(f"[red]The file {options.events} does not exist.")
        return 2
    start_afresh()
    settings = {
        "application": "loans",
        "kms_key": options.kms or f"local://{OUTPUT.resolve()}/loans.key",
        "store_url": options.store or f"sqlite:///{OUTPUT.resolve()}/loans.sqlite",
    }
    try:
        return demonstrate(console, options.events, settings)
    except LogError as error:
        console.print(f"[red]error:[/] {escape(str(options.events))}: {escape(str(error))}", highlight=False)
        return 2
    except EventSealError as error:
        said, remedy = escape(str(error)), escape(error.remedy)
        console.print(f"[red]error:[/] {said}\n[yellow]remedy:[/] {remedy}", highlight=False)
        return 1


def start_afresh() -> None:
    """
    Delete the files of an earlier run, except its key.

    A database that --store named is encrypted under that key.
    """
    OUTPUT.mkdir(exist_ok=True)
    for path in OUTPUT.iterdir():
        if path.name == "eventseal.toml" or ".sqlite" in path.suffix:
            path.unlink()


def demonstrate(console: Console, log: Path, settings: dict[str, Any]) -> int:
    console.rule("An event store under a key that a KMS controls")
    console.print(f"Log: {CITATION}", highlight=False)
    total = checked_count(log)  # first, so that nothing is written if the log is damaged
    for step in initialise(OUTPUT / "eventseal.toml", **settings):
        console.print(f"  {'created' if step.changed else 'exists'}: {step.detail}", highlight=False)

    run = uuid4()
    facts = Facts.of(read_log(log))
    with ExitStack() as stack:
        seal = stack.enter_context(EventSeal.from_settings(OUTPUT / "eventseal.toml"))
        bank = Bank(seal.datastore, seal.mapper, run)
        twin = Bank(plaintext_twin(), SequencedItemMapper(), run)
        stack.enter_context(closing(PersistencePolicy(bank.event_store, event_type=LoanApplication.Event)))
        subscribe(twin.event_store.append)
        stack.callback(unsubscribe, twin.event_store.append)
        numbers = write(console, log, total, bank, seal)
        show_rows(console, bank, numbers[-1])
        calls = seal.keyring.counters.kms_calls
        show_counts(console, bank, twin, calls, numbers)

    # As in a new process, no keys are in memory here.
    with EventSeal.from_settings(OUTPUT / "eventseal.toml") as seal:
        bank = Bank(seal.datastore, seal.mapper, run)
        differing = compare(console, log, total, bank)
        console.print(f"KMS calls of the replay, keys not in memory: {seal.keyring.counters.kms_calls}")
        return 1 if differing else search(console, facts, bank, twin)


def plaintext_twin() -> SQLAlchemyDatastore:
    settings = SQLAlchemySettings(uri=f"sqlite:///{OUTPUT.resolve()}/plaintext-twin.sqlite")
    datastore = SQLAlchemyDatastore(settings, tables=(IntegerSequencedItemRecord,))
    datastore.setup_tables()
    return datastore


def progress_bar(console: Console) -> Progress:
    shown = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*shown, console=console)


def write(console: Console, log: Path, total: int, bank: Bank, seal: EventSeal) -> list[str]:
    """Write the log to both stores, and rotate the key half-way."""
    numbers: list[str] = []
    written = 0
    with progress_bar(console) as progress:
        task = progress.add_task("appending, encrypted and as plaintext", total=total)
        for number, group in groupby(read_log(log), key=lambda line: line["application_id"]):
            lines = list(group)
            if written < total / 2 <= written + len(lines):
                rotated = seal.keyring.rotate()
                progress.console.print(f"Half-way: key rotated, {rotated.key_id} encrypts from now on")
            bank.record(number, lines)
            numbers.append(number)
            written += len(lines)
            progress.advance(task, len(lines))
    return numbers


def show_rows(console: Console, bank: Bank, number: str) -> None:
    stored = Table(title="In the database", title_justify="left")
    for name in ("sequence", "position", "topic", "key id", "data"):
        stored.add_column(name, no_wrap=True)
    for item in bank.strategy.get_items(bank.stream(number), limit=4):
        sequence, key_id = str(item.sequence_id)[:8], f"…{str(item.key_id)[-8:]}"
        stored.add_row(sequence, str(item.position), item.topic, key_id, item.data[:12].hex())
    console.print(stored)
    opened = Table(title="In the application", title_justify="left")
    for name in ("position", "activity", "resource", "amount", "at"):
        opened.add_column(name)
    for line in list(bank.lines(number))[:3]:
        names = ("position", "activity", "resource", "amount_requested", "occurred_at")
        opened.add_row(*(str(line[name]) for name in names))
    console.print(opened)


def show_counts(console: Console, bank: Bank, twin: Bank, calls: int, numbers: list[str]) -> None:
    by_key: dict[UUID | None, int] = {}
    sealed = plain = 0
    ours = {bank.stream(number) for number in numbers}  # a database that --store named may hold other items
    for item in bank.strategy.all_items():
        if item.sequence_id not in ours:
            continue
        by_key[item.key_id] = by_key.get(item.key_id, 0) + 1
        sealed += len(item.data)
    for item in twin.strategy.all_items():
        plain += len(item.data)
    for key_id, count in by_key.items():
        console.print(f"{count:>9,} items under key {key_id}")
    console.print(f"{sealed:>9,} bytes stored, against {plain:,} as plaintext: {sealed / plain:.2f} x")
    console.print(f"{calls:>9,} KMS calls made by the writer")


def compare(console: Console, log: Path, total: int, bank: Bank) -> int:
    """Replay everything, and count the lines that differ from the log."""
    differing = 0
    with progress_bar(console) as progress:
        task = progress.add_task("replaying and comparing", total=total)
        for number, group in groupby(read_log(log), key=lambda line: line["application_id"]):
            replayed = {line["position"]: line for line in bank.lines(number)}
            for line in group:
                differing += replayed.get(line["position"]) != line
                progress.advance(task)
    verdict = "[green]every event came back equal" if not differing else f"[red]{differing} events differ"
    console.print(f"{verdict}[/] to the log's {total:,}")
    return differing


def search(console: Console, facts: Facts, bank: Bank, twin: Bank) -> int:
    """Look for the log's values in the bytes of both stores."""
    leaked = facts.found_in(stored_bytes(bank))
    bite = facts.found_in(stored_bytes(twin))
    table = Table(title="Values of the log in the stored bytes", title_justify="left")
    for name in ("kind", "in the log", "in the plaintext twin", "in the encrypted store"):
        table.add_column(name)
    for kind, values in facts.values.items():
        table.add_row(kind, str(len(values)), str(bite[kind]), str(leaked[kind]))
    console.print(table)
    twin_has_all = all(bite[kind] == len(values) for kind, values in facts.values.items())
    if any(leaked.values()) or not twin_has_all:
        console.print("[red]The search failed: a value leaked, or the twin lacks one.")
        return 1
    console.print("[green]Proved:[/] each value is in the twin, and none is in the encrypted store.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
