"""The revocation tree: what it says, and that an edited node takes with it only what lies below it."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventseal.keys.revocation_tree import (
    ROOT,
    RevocationTree,
    ScopeState,
    UnprovenError,
    changed_branches,
    leaf_of_key,
    leaf_of_scope,
    least_state,
    node_digest,
    paths_to,
)
from eventseal.keys.states import KeyState

few = settings(max_examples=40)  # one draws many keys, and these are fast tests
RANKS = {"compromised": 0, "retired": 1, "shredded": 2}
HOW = st.sampled_from(list(RANKS))
# Few leaves, so that several entries share one, and some nodes have several children.
LEAVES = st.builds(lambda a, b: bytes([a, b]), st.sampled_from([0, 1, 255]), st.sampled_from([0, 1, 255]))
KEY_IDS = st.builds(
    lambda start, leaf: UUID(bytes=bytes(13) + bytes([start]) + leaf), st.integers(0, 9), LEAVES
)
NAMES = st.builds(lambda start, leaf: bytes(7) + bytes([start]) + leaf, st.integers(0, 9), LEAVES)
STATES = st.builds(ScopeState, st.booleans(), st.integers(0, 2**31 - 1))
KEYS = st.lists(st.tuples(KEY_IDS, HOW), max_size=25)
SCOPES = st.dictionaries(NAMES, STATES, max_size=8)


def tree_of(nodes: dict[bytes, bytes], root: bytes | None = None) -> RevocationTree:
    return RevocationTree(nodes, node_digest(nodes.get(ROOT, b"")) if root is None else root)


def grown(nodes: dict[bytes, bytes], keys=(), scopes=None) -> dict[bytes, bytes]:
    """Give all nodes after a change, as a store has them that read only those on the way."""
    leaves = [leaf_of_key(key_id) for key_id, _ in keys] + [leaf_of_scope(name) for name in scopes or {}]
    read = {path: nodes[path] for path in paths_to(leaves) if path in nodes}
    changed = tree_of(read, node_digest(nodes.get(ROOT, b""))).changed(keys, scopes or {})
    assert changed.keys() <= set(paths_to(leaves))
    return {**nodes, **changed}


def key_in(leaf: bytes, number: int = 0) -> UUID:
    return UUID(bytes=number.to_bytes(14, "big") + leaf)


# --- what it says ---


@few
@given(KEYS, SCOPES, st.randoms(use_true_random=False), st.integers(1, 5))
def test_any_order_and_any_batches_make_the_same_tree(keys, scopes, random, size) -> None:
    at_once = grown({}, keys, scopes)
    steps = [(key, None) for key in keys] + [(None, scope) for scope in scopes.items()]
    random.shuffle(steps)
    nodes: dict[bytes, bytes] = {}
    for start in range(0, len(steps), size):
        batch = steps[start : start + size]
        nodes = grown(nodes, [key for key, _ in batch if key], dict(scope for _, scope in batch if scope))
    assert nodes == at_once


@few
@given(KEYS, SCOPES, KEY_IDS, NAMES)
def test_it_says_of_every_key_and_scope_what_was_added_last(keys, scopes, key_id, name) -> None:
    tree = tree_of(grown({}, keys, scopes))
    said: dict[UUID, str] = {}
    for revoked, how in keys:
        said[revoked] = max(how, said.get(revoked, how), key=RANKS.__getitem__)
    for each in {key_id, *said}:
        assert tree.how_revoked(each) == said.get(each)
    for each in {name, *scopes}:
        assert tree.scope_state(each) == scopes.get(each)


@few
@given(KEYS, SCOPES, SCOPES)
def test_scopes_are_replaced_and_keys_stay(keys, before, after) -> None:
    nodes = grown(grown({}, keys, before), scopes=after)
    assert nodes == grown({}, keys, before | after)


@few
@given(KEYS, SCOPES)
def test_what_is_there_already_changes_nothing(keys, scopes) -> None:
    nodes = grown({}, keys, scopes)
    assert tree_of(nodes).changed(keys, scopes) == {}


@few
@given(KEYS, KEYS)
def test_the_branches_that_a_change_touches_are_told_from_the_roots(before, added) -> None:
    old = grown({}, before)
    new = grown(old, added)
    touched = {path[0] for path in new if path and new[path] != old.get(path)}
    assert changed_branches(old.get(ROOT, b""), new.get(ROOT, b"")) == touched


def test_an_empty_tree_says_that_nothing_is_revoked() -> None:
    tree = tree_of({})
    assert tree.how_revoked(key_in(b"\0\0")) is None
    assert tree.scope_state(bytes(10)) is None


def test_an_id_across_two_entries_is_not_found() -> None:
    """Entries have 12 bytes: an id may be made of the end of one and the beginning of the next."""
    first, second = key_in(b"cc", 1), key_in(b"cc", 2)
    content = grown({}, [(first, "compromised"), (second, "compromised")])[b"cc"]
    assert len(content) == 24
    across = [UUID(bytes=bytes(3) + content[at : at + 11] + b"cc") for at in range(1, 12)]
    tree = tree_of(grown({}, [(first, "compromised"), (second, "compromised")]))
    assert [tree.how_revoked(key_id) for key_id in across] == [None] * len(across)


def test_an_entry_that_begins_inside_an_earlier_match_is_found() -> None:
    """The bytes of an id that is revoked stand at an odd place before its own entry, too."""
    wanted = UUID(bytes=bytes(3) + b"\1" + b"c" * 12)
    before = UUID(bytes=b"\0" * 14 + b"cc")
    overlapping = UUID(bytes=bytes(3) + b"\1\1" + b"c" * 11)
    tree = tree_of(grown({}, [(before, "compromised"), (overlapping, "compromised"), (wanted, "retired")]))
    assert tree.how_revoked(wanted) == "retired"
    assert tree.how_revoked(overlapping) == "compromised"


def test_keys_are_not_found_among_scopes() -> None:
    name = b"name of 10"
    nodes = grown({}, scopes={name: ScopeState(closed=True, number=1)})
    assert tree_of(nodes).scope_state(name) is not None
    key_id = UUID(bytes=bytes(3) + nodes[leaf_of_scope(name)][:11] + name[-2:])
    assert tree_of(nodes).how_revoked(key_id) is None
    assert leaf_of_key(key_id) not in nodes


@pytest.mark.parametrize(
    ("how", "least"),
    [
        (None, KeyState.ACTIVE),
        ("compromised", KeyState.COMPROMISED),
        ("retired", KeyState.DESTROYED),
        ("shredded", KeyState.DESTROYED),
    ],
)
def test_the_least_state_of_a_key(how, least) -> None:
    assert least_state(how) is least


# --- what is edited ---

EDITS = ("flipped", "shortened", "extended", "emptied", "dropped", "swapped", "older")


@st.composite
def edited_trees(draw):
    """Draw a tree, its root's digest, the path of a node that is not what it was, and the tree with it."""
    before = grown({}, draw(KEYS), draw(SCOPES))
    keys = draw(st.lists(st.tuples(KEY_IDS, HOW), min_size=1, max_size=10))
    nodes = grown(before, keys)
    path = draw(st.sampled_from(sorted(nodes)))
    content, edit = nodes[path], draw(st.sampled_from(EDITS))
    other = before.get(path) if edit == "older" else nodes[draw(st.sampled_from(sorted(nodes)))]
    edited = {
        "flipped": bytes([content[0] ^ 1]) + content[1:],
        "shortened": content[:-1],
        "extended": content + b"\0",
        "emptied": b"",
        "swapped": other,
        "older": other,
    }.get(edit)
    if edited == content:
        edited = None
    given_nodes = {at: node for at, node in nodes.items() if at != path}
    return nodes, path, given_nodes if edited is None else {**given_nodes, path: edited}


@few
@given(edited_trees(), st.lists(KEY_IDS, max_size=5), NAMES)
def test_an_edited_node_takes_what_lies_below_it_and_nothing_else(tree, key_ids, name) -> None:
    nodes, path, edited_nodes = tree
    honest, edited = tree_of(nodes), tree_of(edited_nodes, node_digest(nodes[ROOT]))
    key_ids = [*key_ids, key_in((path + bytes(2))[:2])]
    lookups = [(leaf_of_key(key_id), RevocationTree.how_revoked, key_id) for key_id in key_ids]
    for leaf, look_up, wanted in [*lookups, (leaf_of_scope(name), RevocationTree.scope_state, name)]:
        if leaf[: len(path)] == path:
            with pytest.raises(UnprovenError) as caught:
                look_up(edited, wanted)
            assert caught.value.args[0] == path
        else:
            assert look_up(edited, wanted) == look_up(honest, wanted)


@few
@given(edited_trees())
def test_nothing_is_built_on_an_edited_node(tree) -> None:
    nodes, path, edited_nodes = tree
    edited = tree_of(edited_nodes, node_digest(nodes[ROOT]))
    leaf = (path + bytes(2))[:2]
    scopes = {bytes(8) + leaf: ScopeState(closed=True, number=1)} if leaf[0] >= 128 else {}
    with pytest.raises(UnprovenError):
        edited.changed([] if scopes else [(key_in(leaf), "shredded")], scopes)


def test_a_node_that_no_parent_lists_says_nothing() -> None:
    nodes = grown({}, [(key_in(b"\1\1"), "retired")])
    stray = grown({}, [(key_in(b"\2\2"), "retired")])
    tree = tree_of({**nodes, b"\2": stray[b"\2"], b"\2\2": stray[b"\2\2"]})
    assert tree.how_revoked(key_in(b"\2\2")) is None


def test_a_deleted_root_is_no_empty_tree() -> None:
    nodes = grown({}, [(key_in(b"\1\1"), "retired")])
    with pytest.raises(UnprovenError) as caught:
        tree_of({}, node_digest(nodes[ROOT])).how_revoked(key_in(b"\2\2"))
    assert caught.value.args[0] == ROOT
