"""What every maintenance verb gives back, and what it has counted until then."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from eventseal.errors import EventSealError
    from eventseal.rotation.set_aside_rows import SetAside

MAX_FAILURES = 1000
"""Failures that a result lists; the count goes on."""

MAX_KEYS_LISTED = 100_000
"""Keys that a result lists by id; the counts go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """
    One item or key that failed: where it is and how, never what it holds.

    Attributes:
        table: The table of the row.
        row: Its primary key, by the names of an item's fields.
        key_id: The key that the row names, if any.
        error: The error's class.
        message: What the error says, for people; JSON leaves it out.
        remedy: What a person does next; JSON leaves it out.
    """

    table: str
    row: Mapping[str, str]
    key_id: UUID | None
    error: str
    message: str
    remedy: str

    @classmethod
    def of(cls, table: str, row: Mapping[str, str], key_id: UUID | None, error: EventSealError) -> Failure:
        """Describe an error of one row."""
        return cls(
            table=table,
            row=row,
            key_id=key_id,
            error=type(error).__name__,
            message=str(error),
            remedy=error.remedy,
        )

    @classmethod
    def of_item(
        cls, table: str, place: Sequence[object], key_id: UUID | None, error: EventSealError
    ) -> Failure:
        """Describe an error of one item, by its sequence id and position."""
        row = dict(zip(("sequence_id", "position"), map(str, place), strict=True))
        return cls.of(table, row, key_id, error)

    @classmethod
    def of_key(cls, table: str, key_id: UUID | None, error: EventSealError) -> Failure:
        """Describe an error of one key's row in a table of EventSeal's own."""
        return cls.of(table, {} if key_id is None else {"key_id": str(key_id)}, key_id, error)

    @classmethod
    def from_record(cls, said: Mapping[str, Any]) -> Failure:
        """Read what :meth:`to_record` gave; an attacker who can write to its place may have edited it."""
        key_id = said["key_id"]
        texts = {name: str(said[name]) for name in ("table", "error", "message", "remedy")}
        row = {str(name): str(value) for name, value in said["row"].items()}
        return cls(**texts, row=row, key_id=None if key_id is None else UUID(key_id))

    def to_record(self) -> dict[str, Any]:
        """Give all of it, as a job or the state of a verification keeps it."""
        return {**self.to_json(), "message": self.message, "remedy": self.remedy}

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        key_id = None if self.key_id is None else str(self.key_id)
        return {"table": self.table, "row": dict(self.row), "key_id": key_id, "error": self.error}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """
    What a verb did; given to a progress callback, what it has done so far.

    Attributes:
        verb: Its name, such as ``verify``.
        complete: Whether it looked at everything that it was asked to look at.
        done: Items, or keys, that it dealt with.
        left: Those that it did not get to, or left out of a sample.
        failed: Those that it could not deal with.
        seconds: How long it took.
        job_id: Under which it resumes. ``None`` for what needs no job, and if another run has finished the
            job while items are left: run the verb again without an id.
        by_table: Counts by table, and in it by outcome.
        by_key: Counts by data key.
        by_kek: Counts by KEK.
        failures: The first 1,000.
        settles_at: Until when processes that have not noticed a change of keys may append what this verb did
            not see; run it again then. By the key store's clock; ``None``: all have noticed.
        estimated_seconds: Of a dry run: how long the verb would take here.
        leftover: Why bytes of what was destroyed may be left in the database's files; empty: none that is
            known of.
        set_aside: Rows that are set aside and for whose sake keys stay. Of ``set-aside`` itself: the rows
            that it dealt with.
        given_up: Rows that are set aside and whose keys were destroyed, or would be.
    """

    verb: str
    complete: bool
    done: int = 0
    left: int = 0
    failed: int = 0
    seconds: float
    job_id: UUID | None = None
    by_table: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    by_key: Mapping[UUID, int] = field(default_factory=dict)
    by_kek: Mapping[str, int] = field(default_factory=dict)
    failures: Sequence[Failure] = ()
    settles_at: datetime | None = None
    estimated_seconds: float | None = None
    leftover: str = ""
    set_aside: Sequence[SetAside] = ()
    given_up: Sequence[SetAside] = ()

    @property
    def unfinished(self) -> bool:
        """Whether the verb has more to do now, and not only when processes have noticed a change of keys."""
        return not self.complete and (self.left > 0 or self.settles_at is None)

    def with_failures(self, failures: Sequence[Failure], failed: int) -> Self:
        """Add what failed; as many are listed as there is room for."""
        listed = (*self.failures, *failures)[:MAX_FAILURES]
        return replace(self, failed=self.failed + failed, failures=listed)

    def to_json(self) -> dict[str, Any]:
        """Give it as ``--json`` prints it; the last five fields only where they say something."""
        shown: dict[str, Any] = {
            "verb": self.verb,
            "complete": self.complete,
            "done": self.done,
            "left": self.left,
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
            "job_id": None if self.job_id is None else str(self.job_id),
            "by_table": {table: dict(counts) for table, counts in self.by_table.items()},
            "by_key": {str(key_id): count for key_id, count in self.by_key.items()},
            "by_kek": dict(self.by_kek),
            "failures": [failure.to_json() for failure in self.failures],
        }
        if self.settles_at is not None:
            shown["settles_at"] = self.settles_at.isoformat()
        if self.estimated_seconds is not None:
            shown["estimated_seconds"] = round(self.estimated_seconds, 3)
        if self.leftover:
            shown["leftover"] = self.leftover
        for name, rows in (("set_aside", self.set_aside), ("given_up", self.given_up)):
            if rows:
                shown[name] = [row.to_json() for row in rows]
        return shown


@dataclass(slots=True, kw_only=True)
class Run:
    """
    What a run of a verb has done so far.

    Attributes:
        verb: As its result names it.
        progress: Called after each batch with what was done so far.
        done: Keys, scopes or items that are done with.
        left: Those that stay.
        failed: Those that failed.
        expected: How many there are.
        by_table: Counts by table, and in it by outcome.
        by_key: The first 100,000.
        failures: The first 1,000.
        started: By ``time.monotonic()``.
    """

    verb: str
    progress: Callable[[JobResult], object] | None = None
    done: int = 0
    left: int = 0
    failed: int = 0
    expected: int = 0
    by_table: dict[str, Counter[str]] = field(default_factory=dict)
    by_key: dict[UUID, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def note(self, key_id: UUID, items: int) -> None:
        """List a key, if there is room."""
        if len(self.by_key) < MAX_KEYS_LISTED:
            self.by_key[key_id] = items

    def add_failure(self, failure: Failure) -> None:
        """Count a failure, and list it if there is room."""
        self.failed += 1
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(failure)

    def fail(self, table: str, key_id: UUID | None, error: EventSealError) -> None:
        """Count the failure of a key, and list it if there is room."""
        self.add_failure(Failure.of_key(table, key_id, error))

    def tell(self) -> None:
        """Report what was done so far, and how much is left."""
        if self.progress is not None:
            unseen = max(0, self.expected - self.done - self.left - self.failed)
            so_far = self.result(complete=False)
            self.progress(replace(so_far, left=so_far.left + unseen))

    def result(self, *, complete: bool, **more: Any) -> JobResult:
        """Give what was done so far; *more* of its fields."""
        return JobResult(**self.facts(complete=complete, **more))

    def facts(self, *, complete: bool, **more: Any) -> dict[str, Any]:
        """Give what was done so far as the fields of a result; *more* of them, or others in their place."""
        so_far = {
            "verb": self.verb,
            "complete": complete,
            "done": self.done,
            "left": self.left,
            "failed": self.failed,
            "seconds": time.monotonic() - self.started,
            "by_table": {table: dict(counts) for table, counts in self.by_table.items()},
            "by_key": dict(self.by_key),
            "failures": tuple(self.failures),
        }
        return so_far | more
