"""The entries of an erasure ledger, their lines, and their chain."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.errors import IntegrityError, WrongApplicationError
from eventseal.keys.records import KeyRecord
from eventseal.keys.ring.store_key import LEDGER_SCOPE, MAC_SIZE
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.kms import WrappedKey
from eventseal.suites.hkdf import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventseal.keys.ring.store_key import LedgerKey


CREATED, WRAPPED, INTENT, DONE, REOPEN = "created", "wrapped", "intent", "done", "reopen"
REPAIR, SET_ASIDE, WITHDRAWN = "repair", "set_aside", "withdrawn"
STAY_OPEN = frozenset({INTENT, SET_ASIDE})
"""The kinds of entries that stay open until another entry closes them."""

RESTORE_LEDGER = "Find out who changed the ledger, and restore it from its newest copy."
REMEDY = f"Nothing was shredded because of this ledger. {RESTORE_LEDGER}"
SET_LEDGER = "Set `ledger` in eventseal.toml, or EVENTSEAL_LEDGER, to the application's erasure ledger."

# The bytes around an entry in its line: see _line().
_BEFORE_BODY = b'{"entry":'
_BEHIND_BODY = len(b',"mac":""}') + 2 * MAC_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """
    One entry of an erasure ledger.

    Attributes:
        number: The number of the entry: from 1, without gaps.
        kind: ``created``, ``wrapped``, ``intent``, ``done``, ``reopen``, ``repair``, ``set_aside``,
            ``withdrawn``, or a kind that a later release adds.
        application: The application that owns the ledger.
        ledger_id: The id of the ledger's key.
        at: When the entry was written, in UTC by the key store's clock.
        scope: The scope that was shredded or reopened, in the form that the key tables use.
        keys: The keys that the entry is about, with their purposes.
        details: The other facts of the entry, in their JSON form.
        open_intents: The numbers of the entries that are open after this entry: intents that are not done,
            and set-aside rows in force. This entry is included if it is one of them.
        wrapped_in: The number of the entry that has the newest wrappings of the ledger's key.
        previous: SHA-256 of the line before, in hex. Empty for the first entry.
        mac: 32 bytes under the ledger's key, over all fields above.
        line: The stored line.
    """

    number: int
    kind: str
    application: str
    ledger_id: UUID
    at: datetime
    scope: str | None = None
    keys: Mapping[UUID, KeyPurpose] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    open_intents: tuple[int, ...] = ()
    wrapped_in: int = 1
    previous: str = ""
    mac: bytes = field(default=b"", repr=False)
    line: bytes = field(default=b"", repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the line, in hex, which the next entry names."""
        return hashlib.sha256(self.line).hexdigest()


def sealed_line(entry: LedgerEntry, key: LedgerKey) -> bytes:
    """Return the line of an entry, without the line end."""
    body = _body(entry)
    return _line(body, key.mac(canonical_json(body)))


def parsed(line: bytes, *, where: str, application: str) -> LedgerEntry:
    """
    Parse a line, without authenticating it.

    Trust no part of the entry before you authenticate it with :func:`check`.

    Args:
        line: The line without its line end.
        where: The line's place, for messages.
        application: The application that must own the ledger.

    Raises:
        IntegrityError: The line is not from a ledger, or not in the form that a ledger writes.
        WrongApplicationError: The line belongs to another application.
    """
    try:
        whole = json.loads(line)
        body, mac = whole["entry"], bytes.fromhex(whole["mac"])
        entry = LedgerEntry(
            number=int(body["number"]),
            kind=str(body["kind"]),
            application=str(body["application"]),
            ledger_id=UUID(body["ledger"]),
            at=datetime.fromisoformat(body["at"]),
            scope=body["scope"],
            keys={UUID(key_id): KeyPurpose(purpose) for key_id, purpose in body["keys"].items()},
            details=dict(body["details"]),
            open_intents=tuple(map(int, body["open"])),
            wrapped_in=int(body["wrapped_in"]),
            previous=str(body["previous"]),
            mac=mac,
            line=line,
        )
        is_exact = len(mac) == MAC_SIZE and _line(_body(entry), mac) == line
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        is_exact = False
    if not is_exact:
        raise IntegrityError(
            f"{where} is not an entry of an erasure ledger",
            remedy=f"If the setting `ledger` names the wrong file, correct it. Otherwise: {REMEDY}",
        )
    if entry.application != application:
        raise WrongApplicationError(
            f"{where} belongs to application {entry.application!r}, not to {application!r}",
            remedy="Set `ledger` to the application's own ledger. Each application has its own.",
            expected=application,
            found=entry.application,
        )
    return entry


def check(entry: LedgerEntry, key: LedgerKey, *, where: str) -> None:
    """
    Authenticate a single entry.

    Args:
        entry: The entry that was parsed from its line.
        key: The ledger's key.
        where: The line's place, for messages.

    Raises:
        IntegrityError: The entry was not written under this ledger's key.
    """
    sealed = entry.line[len(_BEFORE_BODY) : -_BEHIND_BODY]
    if entry.ledger_id != key.key_id or not key.authenticates(sealed, entry.mac):
        raise IntegrityError(f"{where} does not authenticate: it was changed or forged", remedy=REMEDY)


def check_follows(entry: LedgerEntry, before: LedgerEntry | None, *, where: str) -> None:
    """
    Check that an entry follows the entry before it.

    Raises:
        IntegrityError: Entries were removed, inserted or swapped.
    """
    number, previous = (1, "") if before is None else (before.number + 1, before.digest)
    if (entry.number, entry.previous) != (number, previous):
        raise IntegrityError(
            f"{where} has the number {entry.number} and does not follow the entry before it: "
            "entries were removed, inserted or swapped",
            remedy=REMEDY,
        )


def key_details(record: KeyRecord) -> dict[str, Any]:
    """Return the form in which an entry stores the ledger's key."""
    return {
        "binding": record.binding.hex(),
        "wrappings": [
            {
                "kek_uri": wrapped.kek_uri,
                "kek_version": wrapped.kek_version,
                "ciphertext": b64encode(wrapped.ciphertext).decode(),
            }
            for wrapped in record.wrappings
        ],
    }


def key_record(entry: LedgerEntry, *, where: str) -> KeyRecord:
    """
    Return the ledger's key from an entry. See :func:`key_details`.

    Raises:
        IntegrityError: The entry does not hold a key.
    """
    try:
        wrappings = tuple(
            WrappedKey(
                kek_uri=str(wrapped["kek_uri"]),
                kek_version=wrapped["kek_version"],
                ciphertext=b64decode(wrapped["ciphertext"], validate=True),
            )
            for wrapped in entry.details["wrappings"]
        )
        binding = bytes.fromhex(entry.details["binding"])
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{where} does not hold the ledger's key", remedy=REMEDY) from None
    return KeyRecord(
        key_id=entry.ledger_id,
        application=entry.application,
        scope=LEDGER_SCOPE,
        active_scope=None,
        purpose=KeyPurpose.LEDGER,
        state=KeyState.ACTIVE,
        binding=binding,
        seal=b"",
        wrappings=wrappings,
    )


def _body(entry: LedgerEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "kind": entry.kind,
        "application": entry.application,
        "ledger": str(entry.ledger_id),
        "at": entry.at.isoformat(),
        "scope": entry.scope,
        "keys": {str(key_id): str(purpose) for key_id, purpose in entry.keys.items()},
        "details": entry.details,
        "open": list(entry.open_intents),
        "wrapped_in": entry.wrapped_in,
        "previous": entry.previous,
    }


def _line(body: Mapping[str, Any], mac: bytes) -> bytes:
    return canonical_json({"entry": body, "mac": mac.hex()})
