"""
The events that are measured, and a table of ratios at the end of a run.

``make bench`` measures. Any other run of the tests calls everything once and prints no table.
"""

from __future__ import annotations

import gzip
import json
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import NAMESPACE_OID, uuid5

import pytest

from eventseal.cipher import ItemContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER = Path(__file__).parents[2] / "examples" / "data"
EVENTS, ROUNDS = 500, 60


class Event(NamedTuple):
    """One event of the log: as an object, as JSON, and where it stands."""

    attributes: dict[str, object]
    plaintext: bytes
    place: ItemContext


class Ratio(NamedTuple):
    """A row of the table: microseconds per event, by contender."""

    title: str
    seconds: dict[str, float]


_table = pytest.StashKey[list[Ratio]]()
_sizes = pytest.StashKey[dict[str, float]]()
_lines_below = pytest.StashKey[list[str]]()


def _lines() -> Iterator[bytes]:
    for path in sorted(FOLDER.glob("*.jsonl.gz")):
        with gzip.open(path) as file:
            yield from file


def _event(line: bytes) -> Event:
    attributes = json.loads(line)
    stream = uuid5(NAMESPACE_OID, str(attributes.pop("application_id")))
    position = attributes.pop("position")
    plaintext = json.dumps(attributes, separators=(",", ":")).encode()
    return Event(attributes, plaintext, ItemContext(stream, position, "loans:LoanApplication.Moved"))


@pytest.fixture(scope="session")
def events() -> list[Event]:
    """The first events of the real log."""
    found = [_event(line) for line in islice(_lines(), EVENTS)]
    if not found:
        pytest.skip(f"no event log (*.jsonl.gz) in {FOLDER}: nothing is measured")
    return found


@pytest.fixture(scope="session")
def log() -> list[Event]:
    """All events of the real log that are here."""
    found = [_event(line) for line in _lines()]
    if not found:
        pytest.skip(f"no event log (*.jsonl.gz) in {FOLDER}: nothing is measured")
    return found


@pytest.fixture
def report_line(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line below the table at the end of the run, if something is measured."""

    def report(line: str) -> None:
        if request.config.getoption("benchmark_only"):
            request.config.stash.setdefault(_lines_below, []).append(line)

    return report


@pytest.fixture
def side_by_side(
    request: pytest.FixtureRequest, benchmark: Callable[..., object]
) -> Callable[[str, dict[str, Callable[[], object]], int], None]:
    """
    Measure contenders in turns, so that a busy machine slows all alike.

    The first contender is what ``pytest-benchmark`` reports; the others are its yardsticks.
    """

    def measure(title: str, contenders: dict[str, Callable[[], object]], count: int) -> None:
        benchmark.group = title
        first, *others = contenders.values()
        if benchmark.disabled or not request.config.getoption("benchmark_only"):
            benchmark.pedantic(first, rounds=1)
            for work in others:
                work()
            return
        benchmark(first)
        rounds = [{name: _timed(work) for name, work in contenders.items()} for _ in range(ROUNDS)]
        best = {name: min(taken[name] for taken in rounds) / count for name in contenders}
        benchmark.extra_info.update({f"{name}, microseconds": best[name] * 1e6 for name in best})
        request.config.stash.setdefault(_table, []).append(Ratio(title, best))

    return measure


@pytest.fixture
def report_size(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Print a number of bytes below the table at the end of the run."""

    def report(title: str, size: float) -> None:
        request.config.stash.setdefault(_sizes, {})[title] = size

    return report


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what each contender takes, and how many times as long the first one takes."""
    for line in config.stash.get(_lines_below, []):
        terminalreporter.write_line(line)
    rows = config.stash.get(_table, [])
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in list(row.seconds)[1:]))
    terminalreporter.section("microseconds per event or key, and how many times as long as the yardsticks")
    terminalreporter.write_line(f"{'':34}{'EventSeal':>10}" + "".join(f"{name:>24}" for name in names))
    for title, seconds in rows:
        own, *_ = seconds.values()
        cells = "".join(
            f"{seconds[name] * 1e6:>14.2f} ({own / seconds[name]:.2f} x)" if name in seconds else " " * 24
            for name in names
        )
        terminalreporter.write_line(f"{title:34}{own * 1e6:>10.2f}{cells}")
    for title, size in config.stash.get(_sizes, {}).items():
        terminalreporter.write_line(f"{title:34}{size:>10.0f} bytes")
