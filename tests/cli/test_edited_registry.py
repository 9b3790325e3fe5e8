"""What the commands make of a registry that somebody edited: nobody's items are passed over for it."""

from __future__ import annotations

import json

import pytest

ITEMS = "integer_sequenced_items"


@pytest.fixture
def registry(query):
    """Read and edit the row of the registry for the items' table."""

    class Row:
        @property
        def columns(self) -> dict[str, list[str]]:
            ((columns,),) = query(f"SELECT columns FROM eventseal_sealed_tables WHERE table_name = '{ITEMS}'")
            return json.loads(columns)

        def edit(self, **values: object) -> None:
            for name, value in values.items():
                said = value if isinstance(value, str) else json.dumps(value)
                query(f"UPDATE eventseal_sealed_tables SET {name} = '{said}' WHERE table_name = '{ITEMS}'")

    return Row()


def states(query):
    return sorted(query("SELECT state FROM eventseal_encryption_keys WHERE purpose = 'data'"))


def swapped(columns):
    return columns | {"data": ["topic", "binary"], "topic": ["data", "text"]}


def without_key_ids(columns):
    return {role: column for role, column in columns.items() if role != "key_id"}


def one_column_twice(columns):
    return columns | {"topic": columns["data"]}


EDITS = [swapped, without_key_ids, one_column_twice]


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS)
def test_other_columns_are_a_failure_of_whoever_only_looks(run, store, registry, edit):
    store(3)
    registry.edit(columns=edit(registry.columns))
    assert f"eventseal_sealed_tables for table {ITEMS}" in run("verify", exits=1).stdout
    assert ITEMS in run("doctor", exits=1 if edit is one_column_twice else 2).stdout
    run("init")
    run("verify")


@pytest.mark.slow
@pytest.mark.parametrize("others", [{}, {"application": "other"}, {"old_formats": ["x"]}])
@pytest.mark.parametrize("edit", EDITS)
def test_other_columns_stop_what_changes_or_destroys(run, store, registry, query, edit, others):
    store(3)
    run("rotate")
    query(f"UPDATE {ITEMS} SET key_id = NULL")
    registry.edit(columns=edit(registry.columns), **others)
    before, rows = states(query), query(f"SELECT * FROM {ITEMS}")
    for words in (["retire", "-y"], ["reencrypt"], ["rotate", "--reencrypt", "--retire", "-y"]):
        shown = run(*words, exits=1).stderr
        assert f"table {ITEMS}" in shown
        assert "eventseal init" in shown
        assert states(query)[: len(before)] == before
        assert query(f"SELECT * FROM {ITEMS}") == rows


def test_a_format_that_the_settings_do_not_name_lets_no_damaged_row_pass(run, store, registry, query):
    store(3)
    run("rotate")
    query(f"UPDATE {ITEMS} SET data = x'00' || data WHERE position = 1")
    query(f"UPDATE {ITEMS} SET key_id = NULL")
    registry.edit(old_formats=["x"])
    before = states(query)
    assert f"1 item of {ITEMS}" in run("retire", "-y", exits=1).stderr
    assert states(query) == before


def test_a_listed_table_is_the_applications_own_whoever_is_said_to_have_it(run, store, registry, query):
    store(3)
    registry.edit(application="other")
    query(f"""UPDATE {ITEMS} SET data = CAST('{{"forged":1}}' AS BLOB), key_id = NULL WHERE position = 1""")
    assert "not encrypted" in run("verify", exits=1).stdout
    assert ITEMS in run("status", exits=1).stdout
    shown = run("migrate", "finish", "-y", exits=2).stderr
    assert f"{ITEMS} is registered only for other applications" in shown


def test_a_row_for_a_table_that_is_not_there_can_be_taken_out(run, store, query):
    store(3)
    query(
        "INSERT INTO eventseal_sealed_tables (application, database_name, table_name, collection, columns) "
        "SELECT application, database_name, 'ghosts', 'ghosts', columns FROM eventseal_sealed_tables "
        f"WHERE table_name = '{ITEMS}'"
    )
    shown = run("verify", exits=2).stderr
    assert (
        "If it was dropped on purpose, run: DELETE FROM eventseal_sealed_tables WHERE table_name = 'ghosts'"
        in shown
    )
