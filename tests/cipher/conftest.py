"""A key source of several keys for the tests of the cipher, with a log of what it was asked."""

from __future__ import annotations

import os
from uuid import UUID, uuid4

import pytest

from eventseal.cipher import ItemContext
from eventseal.errors import KeyNotFoundError
from eventseal.keys.data_key import DataKey
from eventseal.keys.states import KeyPurpose, KeyState


class Keys:
    """Makes a key for each scope on first use; ``foreign`` and ``replace`` arrange what a test needs."""

    def __init__(self, application="shop"):
        self.application = application
        self.asked = []
        self.by_scope = {}
        self.by_id = {}
        self.erased = set()
        self.refreshed = 0

    def make(self, scope, *, purpose=KeyPurpose.DATA, application=None, material=None, key_id=None):
        key = DataKey(
            material or os.urandom(32),
            key_id=key_id or uuid4(),
            application=application or self.application,
            scope=scope,
            purpose=purpose,
            state=KeyState.ACTIVE,
        )
        self.by_id[key.key_id] = key
        return key

    def sealing_keys(self, items_by_scope, *, make=True, purpose=KeyPurpose.DATA):
        self.asked.append(("seal", dict(items_by_scope)))
        for scope in items_by_scope:
            if scope not in self.by_scope or self.by_scope[scope].closed:
                self.by_scope[scope] = self.make(scope, purpose=purpose)
        return {scope: self.by_scope[scope] for scope in items_by_scope}

    def opening_keys(self, key_ids, *, purpose=KeyPurpose.DATA):
        self.asked.append(("open", set(key_ids)))
        return {
            key_id: self.by_id.get(key_id) or KeyNotFoundError(f"no key {key_id}", key_id=key_id)
            for key_id in key_ids
        }

    def are_listed_as_erased(self, items):
        return [item in self.erased for item in items]

    def stored_scope(self, scope):
        return scope

    def add_place(self, name, collection):
        pass

    def refresh(self):
        self.refreshed += 1


@pytest.fixture
def keys():
    return Keys()


@pytest.fixture
def make_keys():
    return Keys


@pytest.fixture
def place():
    return ItemContext(UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"), 7, "shop:Order.Placed")
