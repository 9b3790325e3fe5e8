"""The authenticated progress of a verification, which its caller keeps and resumes."""

from __future__ import annotations

import hmac
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.rotation.item_checks import Tally
from eventseal.rotation.results import Failure
from eventseal.storage.items.swaps import place_from_json, place_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventseal.items.sealed_places import Place
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable


_KIND = "eventseal verification, not finished"


@dataclass(frozen=True, slots=True)
class Range:
    """A part of a table: rows after *after*, up to *upto*."""

    table: str
    after: Place | None
    upto: Place | None


@dataclass(slots=True, kw_only=True)
class VerifyState:
    """
    A verification that is not finished.

    Attributes:
        begun_at: The start of the first run, by the key store's clock, in UTC.
        sample: The share of items to open, over 0 and up to 1.
        asked: The tables to verify. ``None``: all.
        covered: The registry's settings of the tables, as text. With other settings, it is another
            verification.
        total: The number of items at the start.
        ranges: The ranges that are not checked yet.
        tally: The results of the checked ranges.
    """

    begun_at: datetime
    sample: float
    asked: Sequence[str] | None
    covered: str
    total: int
    ranges: list[Range]
    tally: Tally = field(default_factory=Tally)

    def to_json(self, store: SealedStore) -> dict[str, Any]:
        """Return it as JSON, with a MAC under the application's store key."""
        facts: dict[str, Any] = {
            "state": _KIND,
            "application": store.cipher.application,
            "release": version("eventseal"),
            "begun_at": self.begun_at.isoformat(),
            "sample": self.sample,
            "asked": None if self.asked is None else list(self.asked),
            "covered": self.covered,
            "total": self.total,
            "ranges": [_range_to_json(each) for each in self.ranges],
            "by_table": {table: dict(counts) for table, counts in self.tally.by_table.items()},
            "by_key": {str(key_id): items for key_id, items in self.tally.by_key.items()},
            "failures": [failure.to_record() for failure in self.tally.failures],
        }
        return {**facts, "mac": store.keyring.tables.receipt_mac(facts)}

    @classmethod
    def resumed(cls, store: SealedStore, stored: Mapping[str, Any], like: VerifyState) -> VerifyState:
        """
        Resume from a state that :meth:`to_json` returned.

        Args:
            store: The store with the application and its store key.
            stored: The state as the caller kept it. An attacker may have edited it.
            like: The state with which a new verification would begin.

        Raises:
            ConfigurationError: The state is of another application, release, sample or set of tables.
            IntegrityError: The state was edited.
        """
        facts = {name: value for name, value in stored.items() if name != "mac"}
        if facts.get("state") != _KIND:
            raise ConfigurationError(
                "the file of --resume is not the state of a verification",
                remedy="Pass the file that an interrupted `eventseal verify --resume` wrote, or a new name.",
            )
        if facts.get("application") != store.cipher.application:
            raise ConfigurationError(
                f"this verification began for another application than {store.cipher.application!r}",
                remedy=_ANEW,
            )
        if not hmac.compare_digest(str(stored.get("mac")), store.keyring.tables.receipt_mac(facts)):
            raise IntegrityError("the state of the verification was edited or forged", remedy=_ANEW)
        wanted = [version("eventseal"), like.sample, like.asked, like.covered]
        if [facts[name] for name in ("release", "sample", "asked", "covered")] != wanted:
            raise ConfigurationError(
                "this verification began with another release, other tables or another sample",
                remedy=_ANEW,
            )
        return cls(
            begun_at=datetime.fromisoformat(facts["begun_at"]),
            sample=like.sample,
            asked=like.asked,
            covered=like.covered,
            total=facts["total"],
            ranges=[_range_from_json(each) for each in facts["ranges"]],
            tally=Tally(
                {table: Counter(counts) for table, counts in facts["by_table"].items()},
                Counter({UUID(key_id): items for key_id, items in facts["by_key"].items()}),
                [Failure.from_record(said) for said in facts["failures"]],
            ),
        )


_ANEW = "Pass the name of a new file to --resume. The verification starts again."


def covered(tables: Sequence[SealedTable], *, always_encrypt: bool) -> str:
    """Describe the tables as text that is equal for equal verifications."""
    rules = [
        f"{table.table} {table.application} {table.collection} {sorted(table.columns.items())} "
        f"{table.old_formats} {table.is_migrated}"
        for table in tables
    ]
    return "\n".join([f"always_encrypt={always_encrypt}", *rules])


def _range_to_json(each: Range) -> list[Any]:
    ends = [None if end is None else place_to_json(end) for end in (each.after, each.upto)]
    return [each.table, *ends]


def _range_from_json(stored: Sequence[Any]) -> Range:
    table, *ends = stored
    after, upto = [None if end is None else place_from_json(end) for end in ends]
    return Range(table, after, upto)
