"""An application's key tables: records of destroyed keys, and the upgrade."""

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
    The revocations in the rows of an earlier release.

    Attributes:
        nodes: The nodes of the revocation tree of these rows, by path.
        keys: The number of compromised or destroyed keys.
        reopened: The shredded keys, whose items are erased, of scopes that were reopened.
        edited: Keys whose rows are not authentic, with the revocations that the rows claim.
    """

    nodes: Mapping[bytes, bytes]
    keys: int
    reopened: Sequence[KeyRecord]
    edited: Mapping[UUID, HowRevoked]


def _upgrade_name(seals: Seals) -> bytes:
    """
    Return the name of the entry that marks an upgraded tree.

    An upgraded tree was created from rows. The entry has a scope that no key can have.
    """
    return seals.scope_name(KeyPurpose.STORE, "upgraded")


def read_old_rows(store: KeyStore, mark: ChangeMark, seals: Seals) -> OldRows:
    """
    Create the revocation tree from rows.

    An old mark does not count retired keys. A retired key's row must match its own MAC, or it is left out.

    Args:
        store: The store whose rows are read.
        mark: The authentic mark of the old format.
        seals: The MACs that authenticate the rows.

    Raises:
        IntegrityError: The mark counts other keys than the rows show as compromised or shredded.
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
    # The last use of the old mark: nothing else shows which rows were put back or deleted
    # (docs/decisions/0025).
    if not seals.counts_old(mark, ((key_id, how) for key_id, how in revoked.items() if how != "retired")):
        raise IntegrityError(
            f"the compromised and shredded keys of application {mark.application!r} "
            "are not the keys that its change mark counts: a row was put back or deleted",
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
    Stores the tree that was created from rows.

    With it, it stores the first mark of the new format.

    Args:
        mark: The old mark under which the rows were read.
        rows: The revocations in the rows.
        seals: The MACs that authenticate the new mark.
    """

    def __init__(self, mark: ChangeMark, rows: OldRows, seals: Seals) -> None:
        self._mark = mark
        self._rows = rows
        self._seals = seals
        self.paths: Collection[bytes] = ()

    def __call__(
        self,
        mark: ChangeMark,
        nodes: Mapping[bytes, bytes],  # noqa: ARG002 (no nodes exist yet)
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]]:
        """Return the new mark and every node of the tree."""
        if mark != self._mark:
            raise StoreUnavailableError(
                f"the key tables of application {mark.application!r} changed during their upgrade. "
                "Nothing was upgraded",
                remedy="Stop the processes of the earlier release, then run `eventseal upgrade` again.",
            )
        root = self._rows.nodes.get(ROOT, b"")
        return self._seals.next_mark(mark, root), self._rows.nodes


def refuse_edited_rows(rows: OldRows) -> None:
    """
    Refuse the upgrade if a compromised or shredded key's row was edited.

    Raises:
        IntegrityError: Such a row does not match its MAC, so the key's scope is unknown.
    """
    for key_id, how in rows.edited.items():
        if how != "retired":
            raise IntegrityError(
                f"the row of key {key_id}, which is {how}, was edited: it does not match its MAC, so "
                "the key's scope is unknown. Nothing was upgraded",
                remedy="Restore this row from a backup, then run `eventseal upgrade` again.",
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
        was_compromised: Whether the key was marked as compromised before.
        scope_was_shredded: Whether its scope was ever shredded, even if it was reopened.
    """

    record: KeyRecord
    was_compromised: bool
    scope_was_shredded: bool


class KeyTables:
    """
    A keyring's access to its key tables, apart from choosing keys.

    Args:
        ring: The ring with the store, the store key, and the keyring's knowledge.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def seals(self) -> Seals:
        """
        Return the MACs of the application's key tables.

        If the application has no store key, it is created.

        Raises:
            ConfigurationError: The keyring is closed.
            IntegrityError: The store key's row is not authentic.
            KmsError: A KEK refused or failed.
            StoreError: The key store refused or failed.
        """
        self._ring.held_keys.check_open()
        return self._ring.store_key.made_seals()

    def edited_keys(self, key_ids: Collection[UUID]) -> set[UUID]:
        """
        Return the keys whose rows are not authentic, or older than known.

        An older row was put back. Missing keys, and keys of other applications, are left out. Only the store
        key is unwrapped.

        Raises:
            ConfigurationError: The keyring is closed.
            EventSealError: The store key cannot be unwrapped, or the mark is not authentic.
            StoreError: The key store refused or failed.
        """
        self._ring.held_keys.check_open()
        rows = self._ring.store.get(key_ids).values()
        seals = self._ring.store_key.seals() if rows else None
        return {record.key_id for record in rows if self._is_edited(record, seals)}

    def retired_keys(self, key_ids: Collection[UUID]) -> dict[UUID, RetiredKey]:
        """
        Return the tombstones and earlier states of retired data keys.

        Args:
            key_ids: Any number of ids. Other keys are left out.

        Raises:
            IntegrityError: A row, or its entry in the revocation tree, is not authentic.
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
            # The MAC does not cover this time, but upgraded key tables may have no other trace
            # (docs/decisions/0026).
            compromised |= record.compromised_at is not None
            retired[record.key_id] = RetiredKey(record, compromised, shredded)
        return retired

    def count_shreds(self) -> int:
        """
        Return the number of shreds that the revocation tree counts.

        Raises:
            EventSealError: The store key cannot be unwrapped, or the mark is not authentic.
            StoreError: The key store refused or failed.
        """
        self._ring.held_keys.check_open()
        seals = self._ring.store_key.made_seals()
        self._ring.refresher.refresh()
        # The tree counts them, because anybody can set destroyed_at, and clocks differ (docs/decisions/0014).
        state = self._ring.store.revocations.entry(seals.scope_name(*SHREDS), seals)
        return 0 if state is None else state.number

    def age(self) -> Literal["old", "upgraded", "new"] | None:
        """
        Return whether key tables are old, were upgraded, or were always new.

        Old key tables are of a release before the revocation tree.

        Returns:
            ``None`` if the application has no key yet.

        Raises:
            EventSealError: The store key cannot be unwrapped, or the mark is not authentic.
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
        Upgrade key tables of a release before the revocation tree, once.

        See ``eventseal.erasure``.

        Args:
            before_commit: Called with the revocations that were read, before anything is changed. If it
                raises an error, the tables are left unchanged.

        Returns:
            The revocations that are now in the tree. ``None`` if no upgrade was necessary.

        Raises:
            IntegrityError: The old change mark counts other keys than the rows show, or the row of a
                compromised or shredded key was edited.
            StoreError: The key store refused or failed, or the tables changed during the upgrade. Run it
                again.
        """
        self._ring.held_keys.check_open()
        seals = self._ring.store_key.seals()
        if seals is None:
            return None
        self._ring.refresher.refresh()  # rejects old tables that were put back
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
        Authenticate a receipt under a key derived from the store key.

        Args:
            facts: The receipt's facts as JSON values.

        Returns:
            The MAC in hex: 64 digits.

        Raises:
            ConfigurationError: The application has no store key, or the keyring is closed.
            EventSealError: The store key cannot be unwrapped.
        """
        self._ring.held_keys.check_open()
        seals = self._ring.store_key.seals()
        if seals is None:
            raise ConfigurationError(
                "the application has no store key, which authenticates receipts",
                remedy="Run `eventseal init`, which creates the store key.",
            )
        return seals.receipt_mac(facts).hex()

    def list_erased(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """
        Record that items are erased, before their scope is reopened.

        After that, any other item that names a destroyed key of the scope counts as tampering.

        Args:
            items: For each item, its associated data without the header, and its envelope.

        Raises:
            StoreError: The key store refused or failed.
        """
        if items:
            # An entry needs no MAC: only a keyring can create one, and an item without its entry is rejected
            # (docs/decisions/0025).
            self._ring.store.unchecked.list_erased(self._ring.given.application, self._erased_digests(items))

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Return which items :meth:`list_erased` has recorded. Arguments and errors are the same."""
        digests = self._erased_digests(items)
        found = self._ring.store.unchecked.find_erased(self._ring.given.application, digests)
        return [digest in found for digest in digests]

    def scope_named(self, name: str) -> str:
        """
        Return the stored form of a scope that a user names.

        Without ``scope_digest``, it is the scope itself.

        Args:
            name: The scope, or its stored form as ``eventseal keys`` lists it.

        Raises:
            ConfigurationError: The scope is invalid, or the keyring is closed. Or the setting
                ``scope_digest`` differs from the application's first setting, so that no scope would be
                found.
            EventSealError: The store key cannot be unwrapped.
        """
        self._ring.held_keys.check_open()
        self._ring.store_key.seals()
        return self.stored_scope(name, make=False)

    def stored_scope(self, name: str, *, make: bool = True) -> str:
        """
        Return the stored form of a scope whose keys will change.

        With *make*, the store key is created if there is none.
        """
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
