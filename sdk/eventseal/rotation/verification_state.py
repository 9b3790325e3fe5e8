"""How far a verification is: what an interrupted one goes on from, authenticated, and kept by the caller."""

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
    """A part of a table: the rows behind the first place, up to the second one."""

    table: str
    after: Place | None
    upto: Place | None


@dataclass(slots=True, kw_only=True)
class VerifyState:
    """
    A verification that goes on.

    Attributes:
        begun_at: By the key store's clock, UTC; that of the first run.
        sample: The share of items to open.
        asked: The tables that were asked for; ``None``: all.
        covered: What the registry says of the tables, as text: another answer is another verification.
        total: Items when it was begun.
        ranges: Those that are not checked yet.
        tally: What was found in the others.
    """

    begun_at: datetime
    sample: float
    asked: Sequence[str] | None
    covered: str
    total: int
    ranges: list[Range]
    tally: Tally = field(default_factory=Tally)

    def to_json(self, store: SealedStore) -> dict[str, Any]:
        """Give it as JSON has it, with a MAC under the application's store key."""
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
        Go on from what :meth:`to_json` gave.

        Args:
            store: Whose application and store key.
            stored: As it was kept. A database's owner may have changed it, too.
            like: What would be begun now.

        Raises:
            ConfigurationError: It is of another application, release, sample or other tables.
            IntegrityError: It is not what was given.
        """
        facts = {name: value for name, value in stored.items() if name != "mac"}
        if facts.get("state") != _KIND:
            raise ConfigurationError(
                "what --resume names is no state of a verification, but another file",
                remedy="Name the file that an interrupted `eventseal verify --resume` wrote, or a new one.",
            )
        if facts.get("application") != store.cipher.application:
            raise ConfigurationError(
                f"this verification was begun for another application than {store.cipher.application!r}",
                remedy=_ANEW,
            )
        if not hmac.compare_digest(str(stored.get("mac")), store.keyring.tables.receipt_mac(facts)):
            raise IntegrityError("the state of the verification was changed, or is forged", remedy=_ANEW)
        wanted = [version("eventseal"), like.sample, like.asked, like.covered]
        if [facts[name] for name in ("release", "sample", "asked", "covered")] != wanted:
            raise ConfigurationError(
                "this verification was begun by another release, for other tables or with another sample",
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


_ANEW = "Name a new file, so that the verification begins anew."


def covered(tables: Sequence[SealedTable], *, always_encrypt: bool) -> str:
    """Give what a verification is of, as text that is equal for the same."""
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
