"""The key tables of one application: what they remember of ended keys, and their upgrade from old formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from eventseal.errors import ConfigurationError, IntegrityError, StoreUnavailableError, WrongApplicationError
from eventseal.keys.authentication.row_checks import REMEDY_OF_SET_BACK, check_row
from eventseal.keys.authentication.row_macs import SHREDS, is_sealed
from eventseal.keys.records import checked_scope
from eventseal.keys.revocation_tree import NEVER_SHREDDED, ROOT, RevocationTree, ScopeState, node_digest
from eventseal.keys.states import KeyPurpose, KeyState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.records import ChangeMark, KeyRecord
    from eventseal.keys.revocation_tree import HowRevoked
    from eventseal.keys.ring.parts import Ring
    from eventseal.keys.store import KeyStore


_PAGE_SIZE = 1000


class OldRows(NamedTuple):
    """
    What the rows of an earlier release say is revoked.

    Attributes:
        nodes: The revocation tree of it, by path.
        keys: How many keys are compromised or destroyed.
        reopened: The shredded keys, whose items are erased, of scopes that were reopened.
        edited: Keys whose rows do not match their seals, with how they claim to be revoked.
    """

    nodes: Mapping[bytes, bytes]
    keys: int
    reopened: Sequence[KeyRecord]
    edited: Mapping[UUID, HowRevoked]


def _upgrade_name(seals: Seals) -> bytes:
    """Give the name of the entry that says that the tree was made from rows: a scope that no key can have."""
    return seals.scope_name(KeyPurpose.STORE, "upgraded")


def read_old_rows(store: KeyStore, mark: ChangeMark, seals: Seals) -> OldRows:
    """
    Make the revocation tree from rows.

    A retired key is not counted by an old mark: its row's own seal must fit, or the row is left out.

    Args:
        store: Whose rows are read.
        mark: Of the old format, its seal checked.
        seals: Check the rows.

    Raises:
        IntegrityError: The mark counts other keys than those that rows show as compromised or shredded.
        StoreError: The key store refused or failed.
    """
    revoked: dict[UUID, HowRevoked] = {}
    edited: dict[UUID, HowRevoked] = {}
    scopes: dict[bytes, ScopeState] = {}
    for record in _rows(store, mark.application, KeyState.COMPROMISED, KeyState.DESTROYED):
        how = record.how_revoked
        if how is None:
            continue
        if not is_sealed(seals, record):
            edited[record.key_id] = how
            if how == "retired":
                continue
        else:
            name = seals.scope_name(record.purpose, record.scope)
            state = scopes.get(name, NEVER_SHREDDED)
            if how == "shredded":
                state = ScopeState(state.closed or record.active_scope is not None, 1)
            scopes[name] = state
        revoked[record.key_id] = how
    # The last use of the old mark: nothing else says which rows were put back or taken away
    # (docs/decisions/0025).
    if not seals.counts_old(mark, ((key_id, how) for key_id, how in revoked.items() if how != "retired")):
        raise IntegrityError(
            f"the keys of application {mark.application!r} that are compromised or shredded "
            "are not those that its change mark counts: a row was put back or taken away",
            remedy=REMEDY_OF_SET_BACK,
        )
    empty = RevocationTree({}, node_digest(b""))
    have_reopened = any(state.number and not state.closed for state in scopes.values())
    reopened = [
        record
        for record in (_rows(store, mark.application, KeyState.DESTROYED) if have_reopened else ())
        if record.how_revoked == "shredded"
        and record.key_id not in edited
        and not scopes.get(seals.scope_name(record.purpose, record.scope), NEVER_SHREDDED).closed
    ]
    nodes = empty.changed(
        revoked.items(), {**scopes, _upgrade_name(seals): ScopeState(closed=True, number=1)}
    )
    return OldRows(nodes, len(revoked), reopened, edited)


class Upgrade:
    """
    Stores the tree that was made from rows, with the first mark of the new format.

    Args:
        mark: The old mark under which the rows were read.
        rows: What they say.
        seals: Seal the new mark.
    """

    def __init__(self, mark: ChangeMark, rows: OldRows, seals: Seals) -> None:
        self._mark = mark
        self._rows = rows
        self._seals = seals
        self.paths: Collection[bytes] = ()

    def __call__(
        self,
        mark: ChangeMark,
        nodes: Mapping[bytes, bytes],  # noqa: ARG002 (there are none yet)
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]]:
        """Give the new mark and every node of the tree."""
        if mark != self._mark:
            raise StoreUnavailableError(
                f"the key tables of application {mark.application!r} changed while they were upgraded",
                remedy="Stop the processes of the earlier release, then run `eventseal init` again.",
            )
        root = self._rows.nodes.get(ROOT, b"")
        return self._seals.next_mark(mark, root), self._rows.nodes


def refuse_edited_rows(rows: OldRows) -> None:
    """
    Refuse the upgrade if the row of a compromised or shredded key was edited.

    Raises:
        IntegrityError: Such a row does not match its seal, so nobody can tell the key's scope.
    """
    for key_id, how in rows.edited.items():
        if how != "retired":
            raise IntegrityError(
                f"the row of key {key_id}, which is {how}, does not match its seal: it was edited, so "
                "nobody can tell the key's scope. Nothing was upgraded",
                remedy="Restore this row from a backup, then run `eventseal init` again.",
                key_id=key_id,
            )


def _rows(store: KeyStore, application: str, *states: KeyState) -> Iterator[KeyRecord]:
    for state in states:
        after: UUID | None = None
        while page := store.page(application, after=after, limit=_PAGE_SIZE, state=state):
            yield from page
            after = page[-1].key_id


class RetiredKey(NamedTuple):
    """
    A data key that was retired.

    Attributes:
        record: Its tombstone, which was checked.
        was_compromised: Whether it was marked as compromised before.
        scope_was_shredded: Whether its scope was ever shredded, also if that was reopened.
    """

    record: KeyRecord
    was_compromised: bool
    scope_was_shredded: bool


class KeyTables:
    """
    What a keyring knows of its application's key tables beside the keys that seal and open.

    Args:
        ring: Has the store, the store key, and what is known.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def seals(self) -> Seals:
        """
        Give what authenticates the application's rows in the key tables; make its store key if it has none.

        Raises:
            ConfigurationError: The keyring is closed.
            IntegrityError: The store key's row is not what a keyring sealed.
            KmsError: A KEK refused or failed.
            StoreError: The key store refused or failed.
        """
        self._ring.held_keys.check_open()
        return self._ring.store_key.made_seals()

    def edited_keys(self, key_ids: Collection[UUID]) -> set[UUID]:
        """
        Say which of some keys have a row that is not what a keyring sealed, or an older one put back.

        Keys that are not there, and those of other applications, are left out. No key is unwrapped but the
        store key.

        Raises:
            ConfigurationError: The keyring is closed.
            EventSealError: The store key does not open, or the mark is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        self._ring.held_keys.check_open()
        rows = self._ring.store.get(key_ids).values()
        seals = self._ring.store_key.seals() if rows else None
        return {record.key_id for record in rows if self._is_edited(record, seals)}

    def retired_keys(self, key_ids: Collection[UUID]) -> dict[UUID, RetiredKey]:
        """
        Give the tombstones of data keys that were retired, and what happened to the keys before that.

        Args:
            key_ids: Any number; those of other keys are left out.

        Raises:
            IntegrityError: A row, or what the revocation tree says of it, is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        seals = self._ring.store_key.seals()
        if seals is None or not key_ids:
            return {}
        rows = []
        for key_id, record in self._ring.store.get(key_ids).items():
            check_row(record, key_id, self._ring.given.application, seals)
            if record.purpose is KeyPurpose.DATA and record.destroyed_by == "retired":
                rows.append(record)
        pasts = self._ring.store.revocations.pasts(rows, seals)
        retired: dict[UUID, RetiredKey] = {}
        for record in rows:
            compromised, shredded = pasts[record.key_id]
            # The time is not sealed. Upgraded key tables may have nothing else (docs/decisions/0026).
            compromised |= record.compromised_at is not None
            retired[record.key_id] = RetiredKey(record, compromised, shredded)
        return retired

    def count_shreds(self) -> int:
        """
        Say how often keys of the application were shredded, as the revocation tree counts it.

        Raises:
            EventSealError: The store key does not open, or the mark is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        self._ring.held_keys.check_open()
        seals = self._ring.store_key.made_seals()
        self._ring.refresher.refresh()
        # A count in the tree, since anybody can set destroyed_at, and clocks differ (docs/decisions/0014).
        state = self._ring.store.revocations.entry(seals.scope_name(*SHREDS), seals)
        return 0 if state is None else state.number

    def age(self) -> Literal["old", "upgraded", "new"] | None:
        """
        Say whether the key tables are of a release before the revocation tree, were upgraded, or never were.

        Returns:
            ``None`` if the application has no key yet.

        Raises:
            EventSealError: The store key does not open, or the mark is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        self._ring.held_keys.check_open()
        seals = self._ring.store_key.seals()
        if seals is None:
            return None
        self._ring.refresher.refresh()
        revocations = self._ring.store.revocations
        if revocations.are_old:
            return "old"
        return "upgraded" if revocations.entry(_upgrade_name(seals), seals) else "new"

    def upgrade(self, *, before_commit: Callable[[OldRows], object]) -> OldRows | None:
        """
        Upgrade key tables of a release before the revocation tree, once; see ``eventseal.erasure``.

        Args:
            before_commit: Called with what was read before anything is changed; what it raises keeps the
                tables as they are.

        Returns:
            What was taken into the tree; ``None`` if there was nothing to do.

        Raises:
            IntegrityError: The rows are not what the old change mark counts, or that of a compromised or
                shredded key was edited.
            StoreError: The key store refused or failed, or the tables changed meanwhile; run it again.
        """
        self._ring.held_keys.check_open()
        seals = self._ring.store_key.seals()
        if seals is None:
            return None
        self._ring.refresher.refresh()  # refuses old tables that were put back
        found = self._ring.store.unchecked.revocations(self._ring.given.application, ())
        if found is None or not seals.is_old(found[0]):
            return None
        mark = found[0]
        rows = read_old_rows(self._ring.store.unchecked, mark, seals)
        refuse_edited_rows(rows)
        before_commit(rows)
        with self._ring.store.changing() as store:
            store.advance(self._ring.given.application, next_mark=Upgrade(mark, rows, seals))
        self._ring.refresher.refresh()
        return rows

    def receipt_mac(self, facts: Mapping[str, Any]) -> str:
        """
        Authenticate a receipt under a key that is derived from the application's store key.

        Args:
            facts: As JSON has them.

        Returns:
            The MAC in hex: 64 digits.

        Raises:
            ConfigurationError: The application has no store key, or the keyring is closed.
            EventSealError: The store key does not open.
        """
        self._ring.held_keys.check_open()
        seals = self._ring.store_key.seals()
        if seals is None:
            raise ConfigurationError(
                "the application has no store key, which receipts are authenticated with",
                remedy="Run `eventseal init`, which creates it.",
            )
        return seals.receipt_mac(facts).hex()

    def list_erased(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """
        Note that items are erased, before their scope is reopened.

        Afterwards anything else that names a destroyed key of the scope is tampering.

        Args:
            items: The associated data of each, without the header, and its envelope.

        Raises:
            StoreError: The key store refused or failed.
        """
        if items:
            # Without a seal: only a keyring can make an entry, and without its entry an item is refused
            # (docs/decisions/0025).
            self._ring.store.unchecked.list_erased(self._ring.given.application, self._erased_digests(items))

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Say which items :meth:`list_erased` has noted; arguments and errors as there."""
        digests = self._erased_digests(items)
        found = self._ring.store.unchecked.find_erased(self._ring.given.application, digests)
        return [digest in found for digest in digests]

    def scope_named(self, name: str) -> str:
        """
        Give the stored form of a scope that a person names: the same, without ``scope_digest``.

        Args:
            name: The scope, or its stored form, as ``eventseal keys`` lists it.

        Raises:
            ConfigurationError: The scope is refused, or the keyring was told otherwise of digests than the
                application's first, so that scopes would not be found; or it is closed.
            EventSealError: The application's store key does not open.
        """
        self._ring.held_keys.check_open()
        self._ring.store_key.seals()
        return self.stored_scope(name, make=False)

    def stored_scope(self, name: str, *, make: bool = True) -> str:
        """Give the same for a scope whose keys are about to change; *make* the store key if there is none."""
        self._ring.held_keys.check_open()
        digests = self._ring.scope_digests
        return checked_scope(name) if digests is None else digests.named(name, make=make)

    def _erased_digests(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        seals = self._ring.store_key.made_seals()
        return [seals.erased_digest(place, envelope) for place, envelope in items]

    def _is_edited(self, record: KeyRecord, seals: Seals | None) -> bool:
        try:
            check_row(record, record.key_id, self._ring.given.application, seals)
        except WrongApplicationError:
            return False
        except IntegrityError:
            return True
        return False
