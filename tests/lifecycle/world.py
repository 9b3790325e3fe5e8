"""A world: clients over one database and one KMS, and the model that judges all that they do."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import UUID

from tests.fixtures.ending_kms import EndingKms
from tests.lifecycle.attacker import Attacker
from tests.lifecycle.audit import ACTIVE, DATA, Auditor, Place
from tests.lifecycle.backups import Backups
from tests.lifecycle.client import Client, Terms, stream_of
from tests.lifecycle.ledgers import Told, lines_of
from tests.lifecycle.model import Model, Moment, Violation
from tests.lifecycle.site import CLIENTS
from tests.lifecycle.traffic import DATABASE_FAULTS, PATIENCE, Crash, Fault, Watch

from eventseal.errors import (
    EventSealError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from eventseal.keys import InMemoryKeyStore
from eventseal.testing import FakeBatchKms, FakeKms, ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lifecycle.operations import Operation
    from tests.lifecycle.site import Site


@dataclass
class Outcome:
    """
    How an operation ended, and what was the case while it ran.

    Attributes:
        began: When.
        confirmed: The step of the client's last refresh before that: what had happened by then, it knows.
        fired: The faults that it met.
        contended: Whether another client stood still meanwhile, perhaps with a lock.
        places: Where it met the KMS and the databases.
    """

    began: Moment
    confirmed: int
    fired: list[str]
    contended: bool
    places: list[str] = field(default_factory=list)
    value: Any = None
    error: Exception | None = None
    crashed: bool = False

    @property
    def is_clean(self) -> bool:
        """Whether nothing kept the operation from its success."""
        return not (self.fired or self.contended or self.crashed)


@dataclass
class Running:
    """An operation that stands still at one of its calls."""

    client: Client
    operation: Operation
    outcome: Outcome
    watch: Watch
    thread: threading.Thread = field(init=False)


class World:
    """
    Clients, one database, one KMS, a clock that only the world moves, and the model.

    Args:
        site: The database, emptied first.
        terms: What the clients are set to.
    """

    def __init__(self, site: Site, terms: Terms | None = None) -> None:
        site.empty()
        self.site = site
        self.terms = terms = terms or Terms()
        self.clock = ManualClock()
        kind = EndingKms if terms.versions else FakeBatchKms if terms.batches else FakeKms
        self.kms: list[Any] = [kind(f"kek-{n}") for n in range(terms.keks)]
        self.memory = InMemoryKeyStore(refresh_interval=terms.refresh_interval) if terms.in_memory else None
        self.model = Model()
        self.auditor = Auditor(site, self.kms, self.memory)
        self.told = Told(lines_of(site.folder, terms.ledger), self.kms, self.auditor.store)
        self.backups = Backups(self)
        self.attacker = Attacker(site)
        self.step = 0
        self.running: dict[int, Running] = {}
        self._positions: dict[tuple[str, str], Iterator[int]] = {}
        self._texts = itertools.count(1)
        new_key_id = _numbered_ids()  # in the order in which they are made, so that a world can be run again
        self._patches = [
            patch("eventseal.keys.records.new_key_id", new_key_id),
            patch("eventseal.rotation.key_rotation.new_key_id", new_key_id),
            patch("eventseal.storage.database.transactions._LONGEST_PAUSE", 0.0),
            # Who holds a fence stands still, so that nobody need wait for it.
            patch("eventseal.storage.items.fences.PATIENCE", 0.02),
            patch("eventseal.erasure.epoch._LONGEST_PAUSE", 0.0),
        ]
        for each in self._patches:
            each.start()
        self.clients = [self.process(slot) for slot in range(CLIENTS)]

    # --- what a rule asks ---

    @property
    def now(self) -> Moment:
        return Moment(self.step, self.clock.now())

    def place(self, table: str, scope: str) -> Place:
        """A place that nobody was given before."""
        numbers = self._positions.setdefault((table, scope), itertools.count())
        return Place(table, stream_of(scope), next(numbers))

    def stream(self, scope: str) -> UUID:
        return stream_of(scope)

    def text(self) -> str:
        return f"note {next(self._texts)}"

    def free(self) -> list[int]:
        """The slots of clients that do not stand still."""
        return [slot for slot in range(CLIENTS) if slot not in self.running]

    # --- operations ---

    def do(self, slot: int, operation: Operation, *faults: Fault, retry: bool = False) -> Outcome:
        """
        Have a client run an operation, with *faults* on its way.

        Args:
            slot: Whose; it must not stand still.
            operation: What it does.
            faults: None of which lets it stand still.
            retry: Whether, if a fault kept it from its success, the same is asked once more without any.
        """
        assert slot not in self.running
        running = self._begin(slot, operation, faults)
        self._run(running)
        outcome = self._end(running)
        if retry and not self.running and (outcome.error is not None or outcome.crashed):
            self.clients[slot].traffic.heal()
            if operation.wants_retry(self, outcome):
                again = self._begin(slot, operation, ())
                self._run(again)
                outcome = self._end(again)
        return outcome

    def stall(self, slot: int, operation: Operation, at: int, *faults: Fault) -> bool:
        """
        Have a client begin an operation, and stand still at one of its calls.

        Returns:
            Whether it stands still; if not, the operation had fewer places, and has ended.
        """
        assert slot not in self.running
        running = self._begin(slot, operation, (*faults, Fault(at, "stall")))
        self.running[slot] = running
        running.thread = threading.Thread(target=self._run_apart, args=(running,), daemon=True)
        running.thread.start()
        return self._wait(running)

    def go_on(self, slot: int, *, crash: bool = False) -> None:
        """Let a client that stands still go on to the end, or end its process where it stands."""
        running = self.running[slot]
        running.client.traffic.dead = crash
        running.watch.stopped.clear()
        running.watch.go_on.set()
        stands = self._wait(running)
        assert not stands, "an operation stands still once"

    def refresh_beside(self, slot: int) -> bool:
        """
        Refresh in another thread of a client that stands still.

        Returns:
            Whether that was possible: not while its first thread stands inside a refresh.
        """
        client = self.clients[slot]
        if client.is_refreshing or not client.knows_its_store_key:
            return False
        self.step += 1
        began = self.now
        try:
            client.keyring.refresh()
        except EventSealError as error:
            if not isinstance(error, StoreUnavailableError | StoreReadOnlyError):
                raise Violation(f"refreshing gave {error!r}") from error
        else:
            client.confirmed = began.step
        self.look()
        return True

    def advance(self, seconds: float) -> None:
        self.step += 1
        self.clock.advance(seconds)

    def restart(self, slot: int, *, crash: bool = False) -> None:
        """End a client's process, in order or not, and start another."""
        assert slot not in self.running
        self.step += 1
        client = self.clients[slot]
        if not crash:
            self.forget(client)
            client.keyring.close()
            client.datastore.close()
        self._replace(slot)
        self.look()

    def close(self) -> None:
        """Let everybody end, and judge what they did to the last."""
        try:
            for slot in list(self.running):
                self.go_on(slot)
            for client in self.clients:
                client.traffic.heal()
            self.look()
        finally:
            for slot in list(self.running):  # after a violation
                running = self.running.pop(slot)
                running.client.traffic.dead = True
                running.watch.go_on.set()
                running.thread.join(PATIENCE)
            for client in self.clients:
                client.end()
            for each in self._patches:
                each.stop()

    def start_anew(self) -> None:
        """Start all processes; those before have ended."""
        self.clients = [self.process(slot) for slot in range(CLIENTS)]

    def process(self, slot: int) -> Client:
        """A process that starts now; its slot is one of the world's."""
        return Client(slot, self.site, self.terms, kms=self.kms, clock=self.clock, memory=self.memory)

    def forget(self, client: Client) -> None:
        """Note what a client has sealed on credit: its process ends."""
        for key_id, owed in client.owed().items():
            self.model.unreserved[key_id] += owed

    @property
    def can_roll(self) -> bool:
        """Whether the epoch can be rolled."""
        return self.terms.versions and self.memory is None

    # --- inside ---

    def _begin(self, slot: int, operation: Operation, faults: tuple[Fault, ...]) -> Running:
        self.step += 1
        client = self.clients[slot]
        operation.begin(self)
        outcome = Outcome(self.now, client.confirmed, [], contended=bool(self.running))
        for other in self.running.values():
            other.outcome.contended = True
        return Running(client, operation, outcome, Watch(faults, outcome.places, outcome.fired))

    def _run(self, running: Running) -> None:
        client, outcome = running.client, running.outcome
        client.traffic.watch(running.watch)
        try:
            outcome.value = running.operation.run(client)
        except Crash:
            outcome.crashed = True
        except Exception as error:  # noqa: BLE001 - whatever it is, it is judged
            outcome.error = error
            if client.traffic.dead:  # some code may have taken the crash for a failure
                outcome.crashed = True
        finally:
            client.traffic.watch(None)

    def _run_apart(self, running: Running) -> None:
        try:
            self._run(running)
        finally:
            session = running.client.datastore._session
            if session is not None:  # of this thread; the server rolls back for the dead as well
                session.remove()
            running.watch.stopped.set()

    def _wait(self, running: Running) -> bool:
        assert running.watch.stopped.wait(PATIENCE), "a client waits for something that does not come"
        if running.watch.stalled_at is not None:
            self.look()
            return True
        running.thread.join(PATIENCE)
        del self.running[running.client.slot]
        self._end(running)
        return False

    def _end(self, running: Running) -> Outcome:
        client, outcome, operation = running.client, running.outcome, running.operation
        self.step += 1
        if outcome.crashed or client.traffic.dead:
            outcome.crashed = True
            self._replace(client.slot)
        self._observe(operation)
        self._judge_error(operation, client, outcome)
        operation.judge(self, client, outcome)
        self._check()
        return outcome

    def _judge_error(self, operation: Operation, client: Client, outcome: Outcome) -> None:
        error = outcome.error
        if error is None or outcome.crashed or _is_outage(outcome, error):
            return
        if not (isinstance(error, EventSealError) and operation.excuses(self, client, outcome, error)):
            beside = " beside others" if outcome.contended else ""
            raise Violation(f"{operation} gave {error!r} after {outcome.fired}{beside}") from error

    def _observe(self, ended: Operation | None = None) -> None:
        operations = [running.operation for running in self.running.values()]
        moving = any(operation.moves for operation in (*operations, *([ended] if ended else [])))
        self.model.observe(self.auditor.found(), self.now, moving=moving)

    def look(self) -> None:
        """Judge what is there now."""
        self._observe()
        self._check()

    def _check_told(self) -> None:
        """The ledger verifies, and nothing was shredded, or opened again, of which it was not told before."""
        self.told.look()
        meant = self.told.meant()
        for key_id, life in self.model.keys.items():
            is_ended = life.shredded is not None and life.row.purpose == DATA and len(life.since) > 1
            if is_ended and key_id not in meant:
                raise Violation(f"key {key_id} was shredded, and the ledger was not told before")
        if self.backups.is_restoring:
            return
        closed = self.told.closed_scopes() - self.told.open_scopes()
        for life in self.model.keys.values():
            row = life.row
            if row.scope in closed and row.purpose == DATA and row.state == ACTIVE:
                raise Violation(f"{row} is active, and the ledger has its scope as closed")

    def _check(self) -> None:
        self._check_told()
        owed: dict[UUID, int] = {}
        for client in self.clients:
            for key_id, count in client.owed().items():
                owed[key_id] = owed.get(key_id, 0) + count
        self.model.check_keys(owed)
        pending = [
            running.operation.places for running in self.running.values() if not running.operation.replacing
        ]
        replacing = {
            place: event
            for running in self.running.values()
            for place, event in running.operation.replacing.items()
        }
        notes = [running.operation.note for running in self.running.values() if running.operation.note]
        self.model.check_items(self.auditor.opened(self.model.found), pending, notes, replacing)

    def _replace(self, slot: int) -> None:
        client = self.clients[slot]
        self.forget(client)
        client.end()
        self.clients[slot] = self.process(slot)


def _is_outage(outcome: Outcome, error: Exception) -> bool:
    """Whether a fault, or somebody in the way, explains an error."""
    fired = set(outcome.fired)
    match error:
        case KmsUnavailableError():
            return bool(fired & {"unavailable", "throttled"})
        case KmsForbiddenError():
            return "denied" in fired
        case KmsKeyStateError():
            return "disabled" in fired
        case StoreReadOnlyError():
            return "readonly" in fired
        case StoreUnavailableError():
            return outcome.contended or bool(fired & set(DATABASE_FAULTS))
    return False


def _numbered_ids() -> Any:
    numbers = itertools.count(1)
    # In order, as real ones are. Their ends choose the leaf of the revocation tree: each of two has some.
    return lambda: _numbered_id(next(numbers))


def _numbered_id(number: int) -> UUID:
    return UUID(int=(number << 80) | (7 << 76) | (2 << 62) | (number % 2 * 0x0101))
