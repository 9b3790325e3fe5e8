"""The results of maintenance verbs, and their counts while they run."""

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
"""The most failures that a result lists. All are counted."""

MAX_KEYS_LISTED = 100_000
"""The most keys that a result lists by id. All are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """
    An item or key that failed. It says where and how, but never shows contents.

    Attributes:
        table: The table of the row.
        row: The row's primary key, with the names of an item's fields.
        key_id: The key that the row names, if any.
        error: The class of the error.
        message: The error's message, for people. JSON leaves it out.
        remedy: The next step for a person. JSON leaves it out.
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
        """Describe an error of a key's row in one of EventSeal's tables."""
        return cls.of(table, {} if key_id is None else {"key_id": str(key_id)}, key_id, error)

    @classmethod
    def from_record(cls, said: Mapping[str, Any]) -> Failure:
        """
        Read the record that :meth:`to_record` returned.

        An attacker who can write to the place where it is stored may have edited it.
        """
        key_id = said["key_id"]
        texts = {name: str(said[name]) for name in ("table", "error", "message", "remedy")}
        row = {str(name): str(value) for name, value in said["row"].items()}
        return cls(**texts, row=row, key_id=None if key_id is None else UUID(key_id))

    def to_record(self) -> dict[str, Any]:
        """Return all fields, as a job or a verification stores them."""
        return {**self.to_json(), "message": self.message, "remedy": self.remedy}

    def to_json(self) -> dict[str, Any]:
        """Return the fields that ``--json`` prints."""
        key_id = None if self.key_id is None else str(self.key_id)
        return {"table": self.table, "row": dict(self.row), "key_id": key_id, "error": self.error}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """
    The result of a verb, or its progress so far.

    Attributes:
        verb: The verb's name, such as ``verify``.
        complete: Whether the verb checked everything that it should check.
        done: The number of items or keys that the verb has finished.
        left: The number of items or keys still to do, or left out of a sample.
        failed: The number of items or keys that failed.
        seconds: The duration in seconds.
        job_id: The job to resume. ``None`` if the verb needs no job. Also ``None`` if another run has
            finished the job while items are left: then run the verb again without an id.
        by_table: Counts by table, and in each table by outcome.
        by_key: Counts by data key.
        by_kek: Counts by KEK.
        failures: The first 1,000 failures.
        settles_at: Until then, processes that have not noticed a change of keys may add items that this run
            did not see. Run the verb again after that. By the key store's clock. ``None``: all have noticed.
        estimated_seconds: For a dry run, the estimated duration of the verb in seconds.
        leftover: The reason why bytes of destroyed keys may remain in the database's files. Empty: no such
            reason is known.
        set_aside: Rows that are set aside and that keep keys from being destroyed. For the verb
            ``set-aside``, the rows that it has finished.
        given_up: Rows that are set aside and whose keys were destroyed, or would be in a dry run.
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
        """
        Whether the verb has work to do now.

        Work that waits until processes have noticed a change of keys does not count.
        """
        return not self.complete and (self.left > 0 or self.settles_at is None)

    def with_failures(self, failures: Sequence[Failure], failed: int) -> Self:
        """Add failures. The list stays within its limit."""
        listed = (*self.failures, *failures)[:MAX_FAILURES]
        return replace(self, failed=self.failed + failed, failures=listed)

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints. The last five fields are left out if empty."""
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
    The counts of a running verb.

    Attributes:
        verb: The verb's name in its result.
        progress: Called after each batch with the progress so far.
        done: Keys, scopes or items that are finished.
        left: Keys, scopes or items that stay as they are.
        failed: Keys, scopes or items that failed.
        expected: The total number of keys, scopes or items.
        by_table: Counts by table, and in each table by outcome.
        by_key: Counts by key, for the first 100,000 keys.
        failures: The first 1,000 failures.
        started: The start by ``time.monotonic()``, in seconds.
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
        """List a key, if the list is not full."""
        if len(self.by_key) < MAX_KEYS_LISTED:
            self.by_key[key_id] = items

    def add_failure(self, failure: Failure) -> None:
        """Count a failure, and list it if the list is not full."""
        self.failed += 1
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(failure)

    def fail(self, table: str, key_id: UUID | None, error: EventSealError) -> None:
        """Count a key's failure, and list it if there is room."""
        self.add_failure(Failure.of_key(table, key_id, error))

    def tell(self) -> None:
        """Report the progress so far, and how much is left."""
        if self.progress is not None:
            unseen = max(0, self.expected - self.done - self.left - self.failed)
            so_far = self.result(complete=False)
            self.progress(replace(so_far, left=so_far.left + unseen))

    def result(self, *, complete: bool, **more: Any) -> JobResult:
        """Return the progress so far, with *more* fields."""
        return JobResult(**self.facts(complete=complete, **more))

    def facts(self, *, complete: bool, **more: Any) -> dict[str, Any]:
        """Return the progress as a result's fields. *more* adds or replaces some."""
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
