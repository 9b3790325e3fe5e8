"""On SQLite ids of UUIDs and of text look alike: no migration binds its items to those of the wrong type."""

from __future__ import annotations

from uuid import uuid4

import pytest
from eventsourcing.persistence import StoredEvent
from tests.fixtures.eventsourcing_store import EVENTS, TOPIC

from eventseal.errors import ConfigurationError
from eventseal.rotation import begin_migration, migrate, verify

PLAIN = b'{"amount":5}'


@pytest.fixture
def begun(request, open_library, sqlite_url):
    """What makes a migration of plain events whose ids are 32 digits, told *told* of an application's ids."""

    def begin(told: str, *, sealed: str | None, ids: str = "digits"):
        library = open_library(sqlite_url, id_type=told, old_formats=["plain-json"])
        found = uuid4()
        new_id = {"digits": found.hex, "text": f"order-{found}"}[ids]
        events = [StoredEvent(new_id, 1, TOPIC, PLAIN)]
        if sealed is not None:
            bound = found if sealed == "uuid" else found.hex
            (event,) = library.states(bound, [2])
            events.append(StoredEvent(new_id, 2, TOPIC, event.state))
        for event in events:
            library.execute(
                f"INSERT INTO {EVENTS} (originator_id, originator_version, topic, state)"
                " VALUES (:i, :v, :t, :s)",
                i=event.originator_id,
                v=event.originator_version,
                t=event.topic,
                s=event.state,
            )
        begin_migration(library.seal)
        return library

    return begin


@pytest.mark.slow
@pytest.mark.parametrize(("told", "bound"), [("text", "uuid"), ("uuid", "text")])
def test_what_the_application_has_sealed_says_that_the_setting_is_wrong(begun, told, bound):
    library = begun(told, sealed=bound)
    with pytest.raises(ConfigurationError, match="of another type than originator_id_type says") as refused:
        migrate(library.seal)
    assert f'originator_id_type = "{bound}"' in refused.value.remedy
    assert library.execute(f"SELECT state FROM {EVENTS} WHERE originator_version = 1") == [(PLAIN,)]


def test_digits_that_are_said_to_be_text_are_not_sealed_before_the_application_has_shown_it(begun):
    library = begun("text", sealed=None)
    with pytest.raises(ConfigurationError, match="look like UUIDs, but originator_id_type is text"):
        migrate(library.seal)
    assert library.execute(f"SELECT state FROM {EVENTS}") == [(PLAIN,)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "sealed", "ids"),
    [
        ("text", "text", "digits"),
        ("uuid", "uuid", "digits"),
        ("uuid", None, "digits"),
        ("text", None, "text"),
    ],
)
def test_ids_of_the_right_type_are_migrated(begun, told, sealed, ids):
    library = begun(told, sealed=sealed, ids=ids)
    assert migrate(library.seal).done == 1
    checked = verify(library.seal)
    assert (checked.done, checked.failed) == (1 + (sealed is not None), 0)
