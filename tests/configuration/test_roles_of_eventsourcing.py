"""The eventsourcing library works with the grants that are printed for its tables."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import eventsourcing.persistence
import pytest
from sqlalchemy import make_url
from tests.fixtures.eventsourcing_store import EVENTS, SECRET, LibraryStore

from eventseal.configuration.roles import Role, store_policies
from eventseal.rotation import reencrypt
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture
def library(postgres_url) -> Iterator[tuple[LibraryStore, Any]]:
    """The eventsourcing library's tables, and a way to open them as a role that has its grants alone."""
    owner = LibraryStore(postgres_url, FakeKms("fake"), schema="lib").make()
    owner.seal.keyring.prepare(["application"])
    users: list[str] = []

    def open_as(role: Role) -> LibraryStore:
        user = f"lib_{uuid4().hex[:8]}_{role}"
        owner.execute(f"CREATE ROLE {user} LOGIN")
        users.append(user)
        for policy in store_policies(owner.seal.stores, role):
            for statement in policy.statements(user):
                owner.execute(statement)
        url = make_url(postgres_url).set(username=user).render_as_string(hide_password=False)
        return LibraryStore(url, owner.kms, schema="lib")

    yield owner, open_as
    for user in users:
        owner.execute(f"DROP OWNED BY {user}")
        owner.execute(f"DROP ROLE {user}")
    owner.close()


def test_the_eventsourcing_library_works_with_the_grants_on_its_tables(library):
    owner, open_as = library
    with closing(open_as(Role.WRITER)) as writer:
        (event,) = writer.append()
        writer.take_snapshot()
    with closing(open_as(Role.READER)) as reader:
        assert reader.read(event.originator_id) == [SECRET]
        with pytest.raises(eventsourcing.persistence.PersistenceError, match="permission denied"):
            reader.events.insert_events(owner.states(uuid4(), [1]))
    owner.seal.keyring.rotate("application")
    with closing(open_as(Role.ROTATOR)) as rotator:
        result = reencrypt(rotator.seal)
        assert (result.done, result.failed, result.left) == (2, 0, 0)


@pytest.mark.parametrize("privilege", ["SELECT", "INSERT", "UPDATE"])
def test_the_eventsourcing_librarys_writer_needs_each_privilege(library, privilege):
    owner, open_as = library
    with closing(open_as(Role.WRITER)) as writer:
        owner.execute(f"REVOKE {privilege} ON lib.{EVENTS} FROM {writer.url.username}")
        with pytest.raises(eventsourcing.persistence.PersistenceError, match="permission denied"):
            writer.read(writer.append()[0].originator_id)
