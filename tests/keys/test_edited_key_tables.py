"""What an attacker gains who edits the key tables of every key store, and cannot call the KMS: nothing."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.edited_key_tables import EditedDatabase, EditedMemory

from eventseal.errors import IntegrityError, KeyDestroyedError, KeyNotFoundError, WrongApplicationError
from eventseal.keys import DataKey, KeyPurpose, Keyring, KeyState
from eventseal.keys.revocation_tree import ROOT, leaf_of_key, leaf_of_scope
from eventseal.keys.states import SUBJECT_PURPOSES
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemySettings
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

SCOPE = "subject:7"


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def tables(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "memory":
        yield EditedMemory()
        return
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(url))
    datastore.setup_tables()
    yield EditedDatabase(datastore)
    datastore.close()


@pytest.fixture
def process(tables) -> Callable[[], Keyring]:
    """Make a keyring as a process has it that starts now."""
    kms = FakeKms()
    return lambda: Keyring(kms, tables.store)


@pytest.fixture
def keyring(process) -> Keyring:
    return process()


def sealing_key(ring: Keyring, scope: str = SCOPE, purpose: KeyPurpose = KeyPurpose.DATA) -> DataKey:
    return ring.sealing_keys({scope: 1}, purpose=purpose)[scope]


def opened(ring: Keyring, key_id: UUID) -> object:
    ring.refresh()
    return ring.opening_keys([key_id])[key_id]


def rows_of(tables, scope: str = SCOPE) -> list:
    return [tables.row(record.key_id) for record in tables.store.of_scope("default", scope)]


def free_slots(tables, scope: str = SCOPE) -> None:
    for record in tables.store.of_scope("default", scope):
        tables.edit(record.key_id, active_scope=None)


def refuse_alone(key_id: UUID, other: UUID, *rings: Keyring) -> None:
    """See that a key is refused by name as tampered with, and another one is not."""
    for ring in rings:
        error = opened(ring, key_id)
        assert isinstance(error, IntegrityError), error
        assert error.key_id == key_id
        assert isinstance(opened(ring, other), DataKey)


# --- (a) keys that were destroyed do not come back ---


@pytest.mark.parametrize(
    ("state", "end"),
    [
        ("deactivated", "compromised and retired"),
        ("compromised", "compromised and retired"),
        ("active", "retired"),
        ("deactivated", "retired"),
        ("compromised", "shredded"),
    ],
)
def test_a_destroyed_key_does_not_come_back_with_an_old_row(tables, keyring, process, state, end) -> None:
    key, other, witness, running = (
        sealing_key(keyring),
        sealing_key(keyring, "b").key_id,
        process(),
        process(),
    )
    assert isinstance(opened(running, key.key_id), DataKey)
    copies = {"active": tables.row(key.key_id)}
    new = keyring.rotate(SCOPE)
    copies["deactivated"] = tables.row(key.key_id)
    if end != "retired":
        keyring.compromise([key.key_id])
        copies["compromised"] = tables.row(key.key_id)
    if end == "shredded":
        keyring.shred(SCOPE)
    else:
        keyring.destroyer.retire([key.key_id])
    assert isinstance(opened(witness, key.key_id), KeyDestroyedError)
    if state == "active":
        free_slots(tables)
    tables.put_row(copies[state])
    refuse_alone(key.key_id, other, process(), running, keyring)
    assert not isinstance(opened(witness, key.key_id), DataKey)
    if state == "active":
        ring = process()
        with pytest.raises((IntegrityError, KeyDestroyedError)):
            sealing_key(ring)
        assert sealing_key(ring, "b").key_id == other
    elif end != "shredded":
        assert sealing_key(process()).key_id == new.key_id


@pytest.mark.parametrize("edit", [{"scope": "b"}, {"purpose": KeyPurpose.FIELD}, {"application": "other"}])
def test_an_old_row_does_not_pass_for_one_of_a_scope_where_nothing_was_revoked(
    tables, keyring, process, edit
) -> None:
    """There the leaf of the key is not read."""
    key_id, other = sealing_key(keyring).key_id, sealing_key(keyring, "b").key_id
    keyring.rotate(SCOPE)
    row = tables.row(key_id)
    keyring.destroyer.retire([key_id])
    tables.put_row(row)
    tables.edit(key_id, **edit)
    for ring in (process(), keyring):
        assert isinstance(opened(ring, key_id), IntegrityError | WrongApplicationError)
        assert isinstance(opened(ring, other), DataKey)


def test_a_destroyed_key_whose_row_was_moved_to_a_scope_does_not_keep_it_from_a_shred(
    tables, keyring, process
) -> None:
    key_id, other = sealing_key(keyring).key_id, sealing_key(keyring, "b").key_id
    keyring.rotate(SCOPE)
    keyring.destroyer.retire([key_id])
    tables.edit(key_id, scope="b", state=KeyState.DEACTIVATED)
    assert process().shred("b").destroyed == (other,)


def test_a_compromised_key_does_not_pass_for_a_merely_deactivated_one(tables, keyring, process) -> None:
    key, other, running = sealing_key(keyring), sealing_key(keyring, "b").key_id, process()
    assert isinstance(opened(running, key.key_id), DataKey)
    keyring.rotate(SCOPE)
    deactivated = tables.row(key.key_id)
    keyring.compromise([key.key_id])
    tables.put_row(deactivated)
    refuse_alone(key.key_id, other, process(), running)
    held = opened(keyring, key.key_id)  # it made the change, and keeps what it knows
    assert isinstance(held, IntegrityError) or held.state is KeyState.COMPROMISED


# --- (b) to (d) a closed scope stays closed, and can be shredded and reopened whatever was edited ---


def refuse_to_seal(*rings: Keyring) -> None:
    for ring in rings:
        ring.refresh()
        for purpose in (KeyPurpose.DATA, KeyPurpose.FIELD):
            with pytest.raises(KeyDestroyedError) as caught:
                sealing_key(ring, purpose=purpose)
            assert (caught.value.scope, caught.value.destroyed_by) == (SCOPE, "shredded")


def test_a_closed_scope_does_not_open_with_its_slots_freed(tables, keyring, process) -> None:
    key_id, running = sealing_key(keyring).key_id, process()
    sealing_key(running)
    keyring.shred(SCOPE)
    count = len(rows_of(tables))
    free_slots(tables)
    refuse_to_seal(process(), running, keyring)
    assert len(rows_of(tables)) == count
    with pytest.raises(KeyDestroyedError):
        process().rotate(SCOPE)
    assert process().shred(SCOPE).destroyed == ()
    refuse_to_seal(process())
    process().destroyer.reopen(SCOPE)
    new = sealing_key(process())
    assert new.key_id == sealing_key(process()).key_id != key_id


def test_a_process_that_knows_of_no_shred_yet_shreds_again_beside_edited_tombstones(
    tables, keyring, process
) -> None:
    running = process()
    sealing_key(running)
    keyring.shred(SCOPE)
    free_slots(tables)
    assert running.shred(SCOPE).destroyed == ()
    refuse_to_seal(process(), running)


def test_a_process_that_holds_a_key_which_was_hidden_from_a_shred_drops_it(tables, keyring, process) -> None:
    running, hidden = process(), sealing_key(keyring)
    assert sealing_key(running).key_id == hidden.key_id
    tables.edit(hidden.key_id, application="ghost", active_scope=None)
    sealing_key(keyring, purpose=KeyPurpose.FIELD)
    process().shred(SCOPE)
    assert not isinstance(opened(running, hidden.key_id), DataKey)
    refuse_to_seal(running)


def test_a_closed_scope_is_reopened_although_its_slots_were_freed(tables, keyring, process) -> None:
    sealing_key(keyring)
    keyring.shred(SCOPE)
    free_slots(tables)
    process().destroyer.reopen(SCOPE)
    assert sealing_key(process()).key_id == sealing_key(process()).key_id


def test_a_closed_scope_does_not_open_with_its_tombstones_deleted(tables, keyring, process) -> None:
    key_id = sealing_key(keyring).key_id
    keyring.shred(SCOPE)
    for record in tables.store.of_scope("default", SCOPE):
        tables.drop_row(record.key_id)
    refuse_to_seal(process(), keyring)
    assert isinstance(opened(process(), key_id), KeyNotFoundError)


def test_a_closed_scope_does_not_open_with_older_tombstones(tables, keyring, process) -> None:
    """Sealed ones, of the time when it was open again."""
    key_id = sealing_key(keyring).key_id
    keyring.shred(SCOPE)
    keyring.destroyer.reopen(SCOPE)
    reopened = rows_of(tables)
    running = process()
    running.refresh()
    keyring.shred(SCOPE)
    for row in reopened:
        tables.put_row(row)
    refuse_to_seal(process(), running)
    assert key_id in {record.key_id for record in process().shred(SCOPE).keys}
    refuse_to_seal(process())
    process().destroyer.reopen(SCOPE)
    assert sealing_key(process()).key_id != key_id


def test_a_shredded_key_that_is_put_back_into_the_slot_is_refused_and_shredded_again(
    tables, keyring, process
) -> None:
    key_id, other, running = sealing_key(keyring).key_id, sealing_key(keyring, "b").key_id, process()
    live = tables.row(key_id)
    assert isinstance(opened(running, key_id), DataKey)
    keyring.shred(SCOPE)
    free_slots(tables)
    tables.put_row(live)
    refuse_alone(key_id, other, process(), running)
    refuse_to_seal(process(), running)
    again = process().shred(SCOPE)
    assert key_id in {record.key_id for record in again.shredded}
    record = tables.store.get([key_id])[key_id]
    assert (record.state, record.destroyed_by, record.wrappings) == (KeyState.DESTROYED, "shredded", ())
    refuse_to_seal(process())
    assert isinstance(opened(process(), key_id), KeyDestroyedError)


def test_a_scope_is_shredded_although_rows_of_its_destroyed_keys_were_edited(
    tables, keyring, process
) -> None:
    key_id = sealing_key(keyring).key_id
    keyring.rotate(SCOPE)
    new = sealing_key(keyring).key_id
    keyring.destroyer.retire([key_id])
    tables.edit(key_id, state=KeyState.ACTIVE)
    assert process().shred(SCOPE).destroyed == (new,)
    refuse_to_seal(process())


def test_a_live_key_whose_row_was_edited_is_not_left_out_of_a_shred(tables, keyring, process) -> None:
    key_id = sealing_key(keyring).key_id
    tables.edit(key_id, state=KeyState.DESTROYED, destroyed_by="shredded")
    with pytest.raises(IntegrityError) as caught:
        process().shred(SCOPE)
    assert caught.value.key_id == key_id


# --- (e) the tree itself ---


def two_revoked(tables, keyring) -> tuple[UUID, UUID, UUID]:
    """Make three keys, none below a node of another: one is retired, then another; the third is live."""
    keys: dict[int, UUID] = {}
    number = 0
    while len(keys) < 3:
        number += 1
        scope = f"b:{number}"
        key_id = sealing_key(keyring, scope).key_id
        if leaf_of_key(key_id)[0] not in keys:
            keys[leaf_of_key(key_id)[0]] = key_id
            if len(keys) < 3:
                keyring.rotate(scope)
    first, second, live = keys.values()
    keyring.destroyer.retire([first])
    return first, second, live


IN_MEMORY = pytest.mark.parametrize(
    "tables", ["memory"], indirect=True
)  # what follows is no matter of tables


@IN_MEMORY
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("edit", ["deleted", "changed"])
def test_an_edited_node_takes_its_own_keys_alone(tables, keyring, process, depth, edit) -> None:
    first, second, live = two_revoked(tables, keyring)
    nodes = tables.nodes()
    path = leaf_of_key(first)[:depth]
    content = nodes.pop(path)
    tables.put_nodes(nodes if edit == "deleted" else {**nodes, path: content[:-1] + bytes([content[-1] ^ 1])})
    refuse_alone(first, live, process())
    with pytest.raises(IntegrityError) as caught:
        process().destroyer.retire([first, second])
    assert caught.value.key_id == first
    assert isinstance(opened(process(), second), DataKey)


@IN_MEMORY
@pytest.mark.parametrize("edit", ["deleted", "changed"])
def test_an_edited_leaf_takes_its_own_scopes_alone(tables, keyring, process, edit) -> None:
    sealing_key(keyring), keyring.shred(SCOPE)
    seals, nodes, purpose = keyring._ring.store_key.made_seals(), tables.nodes(), KeyPurpose.DATA
    path = leaf_of_scope(seals.scope_name(purpose, SCOPE))
    taken = [each for each in SUBJECT_PURPOSES if leaf_of_scope(seals.scope_name(each, SCOPE)) == path]
    content = nodes.pop(path)
    tables.put_nodes(nodes if edit == "deleted" else {**nodes, path: content[:-1] + bytes([content[-1] ^ 1])})
    for each in (KeyPurpose.DATA, KeyPurpose.FIELD):
        with pytest.raises(IntegrityError if each in taken else KeyDestroyedError, match=SCOPE):
            sealing_key(process(), purpose=each)
    for change in (process().shred, process().destroyer.reopen):
        with pytest.raises(IntegrityError):
            change(SCOPE)
    assert len(tables.nodes()) == len(nodes) + (edit == "changed")


@IN_MEMORY
def test_a_leaf_that_no_node_lists_says_nothing_however_often_it_is_read(tables, keyring, process) -> None:
    """It is read together with the node above it, of which nobody knows yet that it does not list it."""
    key_id, seals = sealing_key(keyring).key_id, keyring._ring.store_key.made_seals()
    name = seals.scope_name(KeyPurpose.DATA, SCOPE)
    leaf, scopes = leaf_of_scope(name), (f"x:{n}" for n in count())
    while leaf[:1] not in tables.nodes():
        if leaf_of_scope(seals.scope_name(KeyPurpose.DATA, scope := next(scopes)))[:1] == leaf[:1]:
            sealing_key(keyring, scope), keyring.shred(scope)
    assert leaf not in tables.nodes()
    tables.put_nodes({**tables.nodes(), leaf: name[:8] + bytes([0, 0, 0, 3])})  # "closed"
    ring = process()
    assert isinstance(opened(ring, key_id), DataKey)
    assert sealing_key(ring).key_id == key_id


def test_an_older_node_does_not_bring_a_key_back(tables, keyring, process) -> None:
    first, second, live = two_revoked(tables, keyring)
    before, row = tables.nodes(), tables.row(second)
    keyring.destroyer.retire([second])
    after = tables.nodes()
    tables.put_row(row)
    below = {leaf_of_key(second)[:size] for size in (1, 2)}
    older = {path: content for path, content in after.items() if path not in below}
    tables.put_nodes({**older, **{path: before[path] for path in below & before.keys()}})
    refuse_alone(second, live, process())
    assert isinstance(opened(process(), first), KeyDestroyedError)


@IN_MEMORY
def test_only_what_may_be_revoked_is_looked_up_and_nothing_twice(
    tables, keyring, process, monkeypatch
) -> None:
    busy, quiet = "b:busy", [f"q:{number}" for number in range(40)]
    first = sealing_key(keyring, busy).key_id
    ended = [keyring.rotate(busy).key_id for _ in range(200)][:-1]
    keyring.destroyer.retire([first, *ended])
    keyring.prepare([*quiet, SCOPE])
    keyring.shred(SCOPE)
    asked: list[bytes] = []
    read = tables.store.revocations

    def revocations(application, paths):
        asked.extend(path for path in paths if path != ROOT)
        return read(application, paths)

    monkeypatch.setattr(tables.store, "revocations", revocations)
    ring = process()
    live = [key.key_id for key in keyring.sealing_keys(dict.fromkeys(quiet, 1)).values()]
    assert all(isinstance(key, DataKey) for key in ring.opening_keys(live).values())
    assert not [path for path in asked if path[0] < 128]
    live = [sealing_key(keyring, busy).key_id]
    assert all(isinstance(key, DataKey) for key in ring.opening_keys(live).values())
    assert len(asked) == len(set(asked))
    assert isinstance(ring.opening_keys([first])[first], KeyDestroyedError)
    assert leaf_of_key(first) in asked


@pytest.mark.parametrize("root", ["older", "deleted"])
def test_an_older_root_stops_everything(tables, keyring, process, root) -> None:
    first, second, live = two_revoked(tables, keyring)
    running = process()
    assert isinstance(opened(running, live), DataKey)
    before = tables.nodes()
    keyring.destroyer.retire([second])
    after = tables.nodes()
    after.pop(ROOT)
    tables.put_nodes(after if root == "deleted" else {**after, ROOT: before[ROOT]})
    for ring in (process(), running):
        with pytest.raises(IntegrityError, match="root"):
            ring.refresh()
    for key_id in (first, second, live):
        assert isinstance(process().opening_keys([key_id])[key_id], IntegrityError)
    with pytest.raises(IntegrityError):
        sealing_key(process(), "new")
    assert tables.store.of_scope("default", "new") == []


def test_an_older_mark_under_the_newest_tree_stops_everything(tables, keyring, process) -> None:
    _, second, live = two_revoked(tables, keyring)
    mark = tables.mark()
    keyring.destroyer.retire([second])
    tables.put_mark(mark)
    with pytest.raises(IntegrityError, match="went back"):
        keyring.refresh()
    error = process().opening_keys([live])[live]
    assert isinstance(error, IntegrityError)
    assert "root" in str(error)


def test_an_older_mark_and_tree_are_refused_by_whoever_saw_later_ones(tables, keyring, process) -> None:
    _, second, live = two_revoked(tables, keyring)
    running = process()
    mark, nodes, row = tables.mark(), tables.nodes(), tables.row(second)
    keyring.destroyer.retire([second])
    running.refresh()
    tables.put_mark(mark)
    tables.put_nodes(nodes)
    tables.put_row(row)
    with pytest.raises(IntegrityError, match="went back"):
        running.refresh()
    with pytest.raises(IntegrityError):
        running.destroyer.retire([second])
    assert isinstance(opened(process(), live), DataKey)  # a process that starts now cannot tell


# --- (f) an open scope is not made to look erased ---


def test_an_old_tombstone_in_the_slot_of_a_reopened_scope_is_no_erasure(tables, keyring, process) -> None:
    sealing_key(keyring)
    keyring.shred(SCOPE)
    closed = rows_of(tables)
    keyring.destroyer.reopen(SCOPE)
    new = sealing_key(keyring).key_id
    live = tables.row(new)
    tables.drop_row(new)
    for row in closed:
        tables.put_row(row)
    for purpose in (KeyPurpose.DATA, KeyPurpose.FIELD):
        with pytest.raises(IntegrityError, match="is not closed"):
            sealing_key(process(), purpose=purpose)
    assert isinstance(opened(process(), new), KeyNotFoundError)
    free_slots(tables)
    tables.put_row(live)
    assert sealing_key(process()).key_id == new


# --- (g) a first use that meets a change ---


def before_adding(tables, act: Callable[[], object]) -> None:
    """Have somebody act just before the next keys are stored."""
    add_active = tables.store.add_active

    def acts_first(records, **options):
        tables.store.add_active = add_active
        act()
        return add_active(records, **options)

    tables.store.add_active = acts_first


def test_a_first_use_that_meets_a_shred_makes_no_key_although_the_slots_were_freed(
    tables, keyring, process
) -> None:
    other = process()
    sealing_key(other, purpose=KeyPurpose.FIELD)
    keyring.refresh()

    def shred() -> None:
        other.shred(SCOPE)
        free_slots(tables)

    before_adding(tables, shred)
    with pytest.raises(KeyDestroyedError) as caught:
        sealing_key(keyring)
    assert (caught.value.scope, caught.value.destroyed_by) == (SCOPE, "shredded")
    purposes = [record.purpose for record in tables.store.of_scope("default", SCOPE)]
    assert sorted(purposes) == sorted(SUBJECT_PURPOSES)  # what the field had, and two tombstones


@pytest.mark.parametrize("scope", [SCOPE, "b"])
def test_a_first_use_that_meets_another_change_makes_its_key_all_the_same(
    tables, keyring, process, scope
) -> None:
    other = process()
    sealing_key(other, "a")
    keyring.refresh()
    before_adding(tables, lambda: other.rotate("a", compromised=True))
    made = keyring.sealing_keys({SCOPE: 1, "b": 1})
    assert process().sealing_keys({scope: 0})[scope].key_id == made[scope].key_id
    assert len(tables.store.of_scope("default", scope)) == 1


def test_a_first_use_that_meets_a_reopening_makes_its_key(tables, keyring, process) -> None:
    other = process()
    sealing_key(other, purpose=KeyPurpose.FIELD)
    other.shred(SCOPE)
    other.destroyer.reopen(SCOPE)

    def shred_and_reopen() -> None:
        other.shred(SCOPE)
        other.destroyer.reopen(SCOPE)

    before_adding(tables, shred_and_reopen)
    made = sealing_key(keyring)
    assert sealing_key(process()).key_id == made.key_id
