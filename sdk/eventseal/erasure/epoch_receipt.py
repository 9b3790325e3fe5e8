"""The result and the receipt of an epoch roll."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from eventseal.erasure.receipts import page
from eventseal.rotation.results import JobResult
from eventseal.wording import moment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.keys import Keyring


EPOCH_RECEIPT = "eventseal epoch"


class RecordedEntry(NamedTuple):
    """
    The ledger entry that records an epoch roll.

    Attributes:
        ledger: Where the ledger is, without any secret.
        ledger_id: The id of the ledger's key.
        number: The number of the entry.
        mac: The MAC of the entry, in hex.
    """

    ledger: str
    ledger_id: UUID
    number: int
    mac: str


class Ending(StrEnum):
    """
    How a KEK, or its older versions, ended.

    - ``DELETED``: The KEK or its older versions are deleted.
    - ``SCHEDULED``: The KMS opens nothing with the KEK, and deletes it on a date.
    - ``BY_HAND``: No key needs the KEK, but a person must delete it. Until then, it opens everything that it
      wrapped.
    """

    DELETED = "deleted"
    SCHEDULED = "scheduled"
    BY_HAND = "by hand"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedKek:
    """
    A KEK that ended as a whole, or whose older versions ended.

    Attributes:
        kek_uri: The URI of the KEK, as it is configured.
        before: The versions before this one ended. ``None``: the whole KEK ended.
        ending: How the KEK ended.
        closed_at: Since when the KMS opens nothing with it. The end was ordered then, or earlier by an
            interrupted run. ``None`` if a person must delete it.
        ends_at: When the KMS deletes it permanently. ``None`` if a person must delete it.
    """

    kek_uri: str
    before: str | None
    ending: Ending
    closed_at: datetime | None
    ends_at: datetime | None

    @property
    def name(self) -> str:
        """The KEK, and the version before which it ended, for people."""
        return self.kek_uri if self.before is None else f"{self.kek_uri} before version {self.before}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "kek": self.kek_uri,
            "before": self.before,
            "ending": self.ending,
            "closed_at": as_text(self.closed_at),
            "ends_at": as_text(self.ends_at),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_json`."""
        return cls(
            kek_uri=told["kek"],
            before=told["before"],
            ending=Ending(told["ending"]),
            closed_at=as_moment(told["closed_at"]),
            ends_at=as_moment(told["ends_at"]),
        )


def as_text(at: datetime | None) -> str | None:
    """Return a time in its JSON form, or ``None`` for none."""
    return None if at is None else at.isoformat()


def as_moment(text: str | None) -> datetime | None:
    """Read the result of :func:`as_text`."""
    return None if text is None else datetime.fromisoformat(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReceipt:
    """
    The record of an epoch roll and of the covered backups.

    They are backups of the key tables. The receipt names the KEKs whose end makes these backups useless. It
    holds no key.

    Attributes:
        application: The application that owns the keys in the key tables.
        begun_at: When the roll began, in UTC by the key store's clock.
        covers_before: The receipt covers the backups that were taken before this time. ``None``: it covers
            the backups that are older than the staying KEKs.
        keks: The ended KEKs.
        staying: The KEKs that wrap keys from now on, each with its version if it has one.
        keys: How many keys are wrapped correctly.
        done_at: When the roll was done, or recorded in the ledger, in UTC by the key store's clock.
        recorded: The ledger entry that records the roll, if there is a ledger.
        mac: Without a ledger, a MAC over all facts, under a key that is derived from the store key, in hex.
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
        """Return the receipt with a MAC, for stores without a ledger."""
        return replace(self, mac=keyring.tables.receipt_mac(self._facts))

    @classmethod
    def of(cls, ledger: str, entry: LedgerEntry) -> Self:
        """
        Create the receipt from a ledger entry.

        Args:
            ledger: Where the ledger is.
            entry: The entry that records the roll. Its ``details`` are those of a receipt.
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
        """The facts that only the ledger entry of an epoch has."""
        return {
            "begun_at": as_text(self.begun_at),
            "covers_before": as_text(self.covers_before),
            "keks": [kek.to_json() for kek in self.keks],
            "staying": dict(self.staying),
            "keys": self.keys,
        }

    @property
    def open_nothing_since(self) -> datetime | None:
        """Since when the covered backups open nothing. ``None``: a person must delete a KEK first."""
        return _last([kek.closed_at for kek in self.keks])

    @property
    def useless_from(self) -> datetime | None:
        """
        From when on the end of the KEKs cannot be cancelled.

        ``None``: as soon as a person has deleted a KEK.
        """
        return _last([kek.ends_at for kek in self.keks])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, with a MAC if there is no ledger."""
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
        """Return a self-contained HTML page for people."""
        facts = [
            ("Application", self.application),
            ("Begun", moment(self.begun_at)),
            ("Done", moment(self.done_at)),
            (
                "Covered backups",
                "backups taken before the current KMS key was created. The KMS does not report when that was"
                if self.covers_before is None
                else f"backups taken before {moment(self.covers_before)}",
            ),
            ("They open nothing since", _or_by_hand(self.open_nothing_since)),
            ("Permanently useless from", _or_by_hand(self.useless_from)),
            ("Keys under the current KMS keys", f"{self.keys:,}"),
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
                ("Ended KMS keys", [(kek.name, _ended(kek)) for kek in self.keks]),
                (
                    "Current KMS keys",
                    [(uri, f"version {version}" if version else "") for uri, version in self.staying.items()],
                ),
            ],
        )


_TEXT = """The covered backups of the key tables may hold keys that were destroyed later. Those copies are
wrapped under the ended KMS keys. From the dates below on, such a backup opens nothing, neither alone nor
together with everything that is left now. The keys that are not destroyed are wrapped under the current KMS
keys. Backups that were taken later open the keys that they hold. This receipt holds no key."""


def _ended(kek: EndedKek) -> str:
    if kek.closed_at is None or kek.ends_at is None:
        return "No key needs it. It opens old backups until you delete it and every copy of it."
    if kek.ending is Ending.SCHEDULED:
        return (
            f"Opens nothing since {moment(kek.closed_at)}. The KMS deletes it on {moment(kek.ends_at)}. "
            "Until then, the deletion can be cancelled, and the key would open old backups again."
        )
    return f"Opens nothing since {moment(kek.closed_at)}. Permanently deleted on {moment(kek.ends_at)}."


def _or_by_hand(at: datetime | None) -> str:
    return "the day on which you delete the ended KMS keys below" if at is None else moment(at)


def _last(moments: Sequence[datetime | None]) -> datetime | None:
    known = [at for at in moments if at is not None]
    return max(known) if known and len(known) == len(moments) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult(JobResult):
    """
    The result of rolling the epoch.

    Attributes:
        covers_before: A backup of the key tables opens nothing if it was taken before this time. It is
            ``None`` if the epoch was not rolled, or if a KEK does not report when it was created.
        finished_at: When the last step was done, by the key store's clock. ``None`` if it is not done.
        keks: The ended KEKs, with the dates of their deletion.
        others: Other applications in the same key tables, with their wrappings under the ending KEKs.
        receipt: The record of the useless backups, with the date. ``None`` if the epoch was not rolled.
    """

    covers_before: datetime | None = None
    finished_at: datetime | None = None
    keks: Sequence[EndedKek] = ()
    others: dict[str, int] = field(default_factory=dict)
    receipt: EpochReceipt | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that ``--json`` prints."""
        return {
            **JobResult.to_json(self),  # a dataclass with slots has no super() of this form
            "covers_before": as_text(self.covers_before),
            "finished_at": as_text(self.finished_at),
            "keks": [kek.to_json() for kek in self.keks],
            "others": dict(self.others),
            "receipt": None if self.receipt is None else self.receipt.to_json(),
        }
