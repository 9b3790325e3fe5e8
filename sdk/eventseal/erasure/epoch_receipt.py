"""The result of a new epoch and its receipt: which backups open nothing, and since when."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from eventseal.erasure.receipts import as_utc, page
from eventseal.rotation.results import JobResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.keys import Keyring


EPOCH_RECEIPT = "eventseal epoch"


class RecordedEntry(NamedTuple):
    """
    Where a ledger says it.

    Attributes:
        ledger: Where the ledger is, without any secret.
        ledger_id: The id of its key.
        number: The entry's.
        mac: Its MAC, in hex.
    """

    ledger: str
    ledger_id: UUID
    number: int
    mac: str


class Ending(StrEnum):
    """
    How a KEK, or its older versions, came to an end.

    ``DELETED``: they are gone. ``SCHEDULED``: the KMS opens nothing with it, and deletes it on a date.
    ``BY_HAND``: no key needs it, and whoever keeps it deletes it: until then it opens what it had wrapped.
    """

    DELETED = "deleted"
    SCHEDULED = "scheduled"
    BY_HAND = "by hand"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedKek:
    """
    A KEK that opens old backups no more.

    Attributes:
        kek_uri: As it is configured.
        before: Its versions before this one ended; ``None``: it ended as a whole.
        ending: How.
        closed_at: Since when the KMS opens nothing with it: the end was ordered then, or, by a run that was
            interrupted, before. ``None`` where a person deletes it.
        ends_at: When it is gone for good, by the KMS; ``None`` where a person deletes it.
    """

    kek_uri: str
    before: str | None
    ending: Ending
    closed_at: datetime | None
    ends_at: datetime | None

    @property
    def name(self) -> str:
        """What ended, for people."""
        return self.kek_uri if self.before is None else f"{self.kek_uri} before version {self.before}"

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "kek": self.kek_uri,
            "before": self.before,
            "ending": self.ending,
            "closed_at": as_text(self.closed_at),
            "ends_at": as_text(self.ends_at),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` gave."""
        return cls(
            kek_uri=told["kek"],
            before=told["before"],
            ending=Ending(told["ending"]),
            closed_at=as_moment(told["closed_at"]),
            ends_at=as_moment(told["ends_at"]),
        )


def as_text(moment: datetime | None) -> str | None:
    """Give a time as JSON has it, if there is one."""
    return None if moment is None else moment.isoformat()


def as_moment(text: str | None) -> datetime | None:
    """Read what :func:`as_text` gave."""
    return None if text is None else datetime.fromisoformat(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReceipt:
    """
    Which backups of the key tables are useless, by which KEKs' end. It holds no key.

    Attributes:
        application: Whose key tables.
        begun_at: When the epoch was begun; the key store's clock, UTC.
        covers_before: Backups that were taken before this moment are meant; ``None``: those that are older
            than the KEKs that stay.
        keks: What has ended.
        staying: The KEKs that wrap from now on, each with its version, where it has any.
        keys: How many keys are wrapped as they should be.
        done_at: When all was done, or told to the ledger; the key store's clock, UTC.
        recorded: Where the ledger says so, if there is one.
        mac: Else a MAC over all of its facts, under a key that is derived from the store key, in hex.
    """

    application: str
    begun_at: datetime
    covers_before: datetime | None
    keks: Sequence[EndedKek]
    staying: Mapping[str, str | None]
    keys: int
    done_at: datetime
    recorded: RecordedEntry | None = None
    mac: str = ""

    def authenticated(self, keyring: Keyring) -> Self:
        """Give it with a MAC, for where no ledger says the same."""
        return replace(self, mac=keyring.tables.receipt_mac(self._facts))

    @classmethod
    def of(cls, ledger: str, entry: LedgerEntry) -> Self:
        """
        Draw it up from the entry of an epoch.

        Args:
            ledger: Where it is.
            entry: Whose ``details`` are those of a receipt.
        """
        told = entry.details
        return cls(
            application=entry.application,
            begun_at=datetime.fromisoformat(told["begun_at"]),
            covers_before=as_moment(told["covers_before"]),
            keks=tuple(map(EndedKek.from_json, told["keks"])),
            staying=dict(told["staying"]),
            keys=told["keys"],
            done_at=entry.at,
            recorded=RecordedEntry(ledger, entry.ledger_id, entry.number, entry.mac.hex()),
        )

    @property
    def details(self) -> dict[str, Any]:
        """What the ledger's entry has beside what every entry has."""
        return {
            "begun_at": as_text(self.begun_at),
            "covers_before": as_text(self.covers_before),
            "keks": [kek.to_json() for kek in self.keks],
            "staying": dict(self.staying),
            "keys": self.keys,
        }

    @property
    def open_nothing_since(self) -> datetime | None:
        """Since when the backups open nothing; ``None``: a person has to delete a KEK first."""
        return _last([kek.closed_at for kek in self.keks])

    @property
    def useless_from(self) -> datetime | None:
        """From when on nobody can take it back; ``None``: from when a person has deleted a KEK."""
        return _last([kek.ends_at for kek in self.keks])

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it; with a MAC where there is no ledger."""
        return {**self._facts, "mac": self.mac} if self.recorded is None else self._facts

    @property
    def _facts(self) -> dict[str, Any]:
        ledger = None
        if self.recorded is not None:
            entry = {"entry": self.recorded.number, "mac": self.recorded.mac}
            ledger = {"place": self.recorded.ledger, "id": str(self.recorded.ledger_id), "epoch": entry}
        return {
            "receipt": EPOCH_RECEIPT,
            "application": self.application,
            **self.details,
            "done_at": as_text(self.done_at),
            "open_nothing_since": as_text(self.open_nothing_since),
            "useless_from": as_text(self.useless_from),
            "ledger": ledger,
        }

    def to_html(self) -> str:
        """Give it as a page that needs nothing else, for people."""
        facts = [
            ("Application", self.application),
            ("Begun", as_utc(self.begun_at)),
            ("Done", as_utc(self.done_at)),
            (
                "The backups that are meant",
                "those from before the KEK that stays was made; when that was, it does not tell"
                if self.covers_before is None
                else f"those that were taken before {as_utc(self.covers_before)}",
            ),
            ("They open nothing since", _or_by_hand(self.open_nothing_since)),
            ("For good from", _or_by_hand(self.useless_from)),
            ("Keys that were wrapped anew or found to be", f"{self.keys:,}"),
        ]
        if self.recorded is None:
            facts.append(("Recorded in", "no ledger: none is configured"))
            facts.append(("MAC", self.mac))
        else:
            facts.append(("Recorded in", f"{self.recorded.ledger}, key {self.recorded.ledger_id}"))
            facts.append(("Entry", f"{self.recorded.number}, MAC {self.recorded.mac}"))
        return page(
            "Receipt of a new epoch",
            self.application,
            text=_TEXT,
            facts=facts,
            lists=[
                ("What has ended", [(kek.name, _ended(kek)) for kek in self.keks]),
                (
                    "What wraps from now on",
                    [(uri, f"version {version}" if version else "") for uri, version in self.staying.items()],
                ),
            ],
        )


_TEXT = """The backups of the key tables that are meant below may hold keys that were destroyed since, wrapped
under what has ended. From the dates below on, such a backup opens nothing: not alone, and not beside all that
is left now. The keys that live are wrapped under what stays; backups that were taken later open what they
hold. This receipt holds no key."""


def _ended(kek: EndedKek) -> str:
    if kek.closed_at is None or kek.ends_at is None:
        return "No key needs it. It opens old backups until it was deleted by hand, and every copy of it."
    if kek.ending is Ending.SCHEDULED:
        return (
            f"Opens nothing since {as_utc(kek.closed_at)}. Its KMS deletes it on {as_utc(kek.ends_at)}; "
            "until then that can be taken back, and it would open old backups again."
        )
    return f"Opens nothing since {as_utc(kek.closed_at)}. Deleted for good on {as_utc(kek.ends_at)}."


def _or_by_hand(at: datetime | None) -> str:
    return "the day on which what is named below was deleted by hand" if at is None else as_utc(at)


def _last(moments: Sequence[datetime | None]) -> datetime | None:
    known = [at for at in moments if at is not None]
    return max(known) if known and len(known) == len(moments) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult(JobResult):
    """
    What rolling the epoch did.

    Attributes:
        covers_before: A backup of the key tables opens nothing any more if it was taken before this moment;
            ``None``: the epoch was not rolled, or nobody tells since when the KEK is in use.
        finished_at: When the last step was done, by the key store's clock; ``None``: it is not.
        keks: What ended, and when it is gone for good.
        others: Other applications in the same key tables, with their wrappings under the KEKs that end.
        receipt: Which backups are useless, and from when on; ``None``: the epoch was not rolled.
    """

    covers_before: datetime | None = None
    finished_at: datetime | None = None
    keks: Sequence[EndedKek] = ()
    others: dict[str, int] = field(default_factory=dict)
    receipt: EpochReceipt | None = None

    def to_json(self) -> dict[str, Any]:
        """Give it as ``--json`` prints it."""
        return {
            **JobResult.to_json(self),  # a dataclass with slots has no super() of this form
            "covers_before": as_text(self.covers_before),
            "finished_at": as_text(self.finished_at),
            "keks": [kek.to_json() for kek in self.keks],
            "others": dict(self.others),
            "receipt": None if self.receipt is None else self.receipt.to_json(),
        }
