"""A client: what one process of an application has open."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5

from tests.fixtures.ending_kms import EndingKms
from tests.lifecycle.ledgers import LedgerKind, WatchedLines, lines_of
from tests.lifecycle.site import APPLICATION
from tests.lifecycle.traffic import Traffic, WatchedBatchKms, WatchedEndingKms, WatchedKms, WatchedStore

from eventseal.cipher import AESCipher
from eventseal.erasure import Ledger
from eventseal.eventstore import EventStore
from eventseal.items import SequencedItemMapper
from eventseal.keys import CachePolicy, Keyring, RotationPolicy
from eventseal.storage import (
    IntegerSequencedItemRecord,
    SnapshotRecord,
    SQLAlchemyActiveRecordStrategy,
    SQLAlchemyKeyStore,
)
from eventseal.testing import FakeBatchKms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.lifecycle.site import Site

    from eventseal.keys import InMemoryKeyStore
    from eventseal.testing import FakeKms, ManualClock

EVENTS, SNAPSHOTS = "integer_sequenced_items", "snapshots"
TABLES = {EVENTS: IntegerSequencedItemRecord, SNAPSHOTS: SnapshotRecord}
YEAR = timedelta(days=365)
"""No key of a world is that old by the database's clock, unless somebody edits its row."""


@dataclass(frozen=True)
class Noted:
    """An event, and what stands for a snapshot: something was noted in a scope's stream."""

    originator_id: UUID
    originator_version: int
    scope: str
    text: str


def stream_of(scope: str) -> UUID:
    return uuid5(NAMESPACE_URL, scope)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """
    What all clients of a world are set to.

    Attributes:
        branches: As the keyring takes it.
        max_items: A key is rotated by policy after so many.
        max_keys: Held by a keyring.
        ttl: Seconds until a key is unwrapped again.
        outage_grace: Seconds past it.
        open_grace: Seconds past the refresh interval for opening only.
        batches: Whether the KMS takes several keys in one call.
        keks: How many wrap each key; the second alone may be away if the quorum is lower.
        wrap_quorum: As the keyring takes it.
        in_memory: Whether the keys are in an ``InMemoryKeyStore``.
        versions: Whether the older versions of the KEKs can be ended, so that the epoch can be rolled.
        ledger: Where the erasure ledger is.
    """

    branches: int | None = None
    max_items: int = 2**28
    max_keys: int = 10_000
    ttl: float = 200.0
    outage_grace: float = 100.0
    open_grace: float = 0.0
    batches: bool = False
    keks: int = 1
    wrap_quorum: int | None = None
    in_memory: bool = False
    versions: bool = False
    ledger: LedgerKind = "file"

    refresh_interval = 60.0

    @property
    def opens_for(self) -> float:
        """Seconds for which a state that was confirmed may be used to open."""
        return self.refresh_interval + self.open_grace


class Client:
    """
    One process: satisfies ``SealedStore``.

    Attributes:
        confirmed: The world's step at which its last successful refresh began.
        shredded: The keys that it shredded itself, with the step.
        kms: Its ways to the KEKs.
    """

    def __init__(
        self,
        slot: int,
        site: Site,
        terms: Terms,
        *,
        kms: Sequence[FakeKms],
        clock: ManualClock,
        memory: InMemoryKeyStore | None,
    ) -> None:
        self.slot = slot
        self.name = "ABC"[slot]
        self.traffic = Traffic()
        self.confirmed = -1
        self.shredded: dict[UUID, int] = {}
        self.datastore = site.datastore(slot, self.traffic)
        self.key_store: Any = (
            SQLAlchemyKeyStore(self.datastore) if memory is None else WatchedStore(memory, self.traffic)
        )
        self.kms = [_watched(one, self.traffic) for one in kms]
        self.ledger: Ledger | None = Ledger(WatchedLines(lines_of(site.folder, terms.ledger), self.traffic))
        self.keyring = Keyring(
            self.kms,
            self.key_store,
            application=APPLICATION,
            policy=RotationPolicy(max_age=YEAR, max_items=terms.max_items),
            cache=CachePolicy(
                max_keys=terms.max_keys,
                ttl=terms.ttl,
                refresh_interval=terms.refresh_interval,
                open_grace=terms.open_grace,
                outage_grace=terms.outage_grace,
            ),
            clock=clock,
            branches=terms.branches,
            wrap_quorum=terms.wrap_quorum,
        )
        self.cipher = AESCipher(self.keyring)
        self.mappers = {
            table: SequencedItemMapper(
                cipher=self.cipher,
                key_scope=lambda event: event.scope,
                collection=record.__collection__,
            )
            for table, record in TABLES.items()
        }
        self.strategies = {
            table: SQLAlchemyActiveRecordStrategy(record, self.datastore.session)
            for table, record in TABLES.items()
        }
        self.stores = {table: EventStore(self.strategies[table], self.mappers[table]) for table in TABLES}

    @property
    def is_refreshing(self) -> bool:
        """Whether one of its threads stands still inside a refresh, for whose end any other would wait."""
        return self.keyring._ring.refresher._lock.locked()

    @property
    def knows_its_store_key(self) -> bool:
        return self.keyring._ring.store_key.known is not None

    def owed(self) -> dict[UUID, int]:
        """Items that it sealed on credit, by key."""
        leases = {key_id: cached.lease for key_id, cached in self.keyring._held_keys.keys.items()}
        leases |= self.keyring._sealer._debts
        return {key_id: lease._owed for key_id, lease in leases.items() if lease._owed}

    def end(self) -> None:
        """End the process: open transactions are rolled back by the server, nothing else is done."""
        if self.datastore._session is not None:
            self.datastore._session.remove()
        self.datastore.engine.dispose()


def _watched(kms: FakeKms, traffic: Traffic) -> WatchedKms:
    if isinstance(kms, EndingKms):
        return WatchedEndingKms(kms, traffic)
    return (WatchedBatchKms if isinstance(kms, FakeBatchKms) else WatchedKms)(kms, traffic)
