"""Cells of EventSeal's own tables with what none of its writers ever put there, each in its own row."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import LargeBinary, bindparam, text
from tests.fixtures.sealed_shops import APPLICATION, Noted, SealedShop, stream_of, text_of

from eventseal.configuration import Settings
from eventseal.configuration.assembly import Stores
from eventseal.configuration.diagnosis.kek_checks import check_wrappings
from eventseal.configuration.diagnosis.key_checks import check_keys
from eventseal.configuration.diagnosis.registry_checks import check_jobs, check_registry
from eventseal.configuration.diagnosis.table_checks import check_fences
from eventseal.errors import EventSealError
from eventseal.storage.database.column_types import (
    BinaryUUID,
    Count,
    ExactBytes,
    Rate,
    Seconds,
    StoredJSON,
    StoredText,
    UTCTimestamp,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Engine, Table

    from eventseal.testing import FakeKms

BESIDE = "beside"
"""The tenant whose rows nobody edits."""

ITEMS = "integer_sequenced_items"

_NOT_UTF8 = "CAST(x'ff' AS TEXT)"
_JSON = (
    "'{}'",
    "'[]'",
    "'null'",
    "'7'",
    "'[[1]]'",
    f"'{'[' * 5000}{']' * 5000}'",
    f"'[{'9' * 5000}]'",
    "'[1e999]'",
    "'\"\\ud800\"'",
    '\'{"keys": 7, "tables": ["x"], "heads": ["zz"]}\'',
    '\'{"keys": ["x"], "tables": null, "heads": null}\'',
    '\'{"done": "x"}\'',
    '\'[["int", "' + "9" * 30 + '"], ["text", "x"]]\'',
)

ON_SQLITE: Mapping[type[Any], Sequence[str]] = {
    BinaryUUID: ("'text'", "x''", "x'01'", "zeroblob(17)", "7"),
    StoredText: ("x'ff'", _NOT_UTF8, "'a' || char(0) || 'b'", "''"),
    Count: ("'text'", "-1", "9223372036854775807", "1.5", "9e999", "x'00'"),
    ExactBytes: ("'text'", "x''", "x'010203'", "7"),
    UTCTimestamp: ("'9999-12-31 23:59:59.999999'", "'0001-01-01 00:00:00.000000'", "''", "7", "x'00'"),
    Seconds: ("'abc'", "-1.0", "9e999", "1e300", "0", "x''"),
    Rate: ("'abc'", "-1.0", "9e999", "1e-300", "0", "x''"),
    StoredJSON: (*_JSON, "''", "'{'", "'NaN'", _NOT_UTF8, "x'7b7d'"),
}
ON_POSTGRESQL: Mapping[type[Any], Sequence[str]] = {
    BinaryUUID: (),
    StoredText: ("''",),
    Count: ("-1", "9223372036854775807"),
    ExactBytes: ("''", r"'\x010203'"),
    UTCTimestamp: ("'infinity'", "'-infinity'", "'294000-01-01'", "'0044-03-15 BC'", "'9999-12-31 23:59:59'"),
    Seconds: ("'NaN'", "'Infinity'", "-1", "1e300", "0"),
    Rate: ("'NaN'", "'Infinity'", "-1", "1e-300", "0"),
    StoredJSON: (*_JSON, "'\"\\u0000\"'"),
}
"""By the type of a column, as SQL has it: of a wrong storage class, length, range or form."""


class Cell(NamedTuple):
    """A cell of some row, and what is put there."""

    table: str
    column: str
    junk: str

    def put(self, engine: Engine, where: str, **row: Any) -> None:
        """
        Put it into one row.

        Args:
            engine: Of the database.
            where: The row, as SQL has it.
            row: Values in *where*; ids as UUIDs.
        """
        on_sqlite = engine.dialect.name == "sqlite"
        statement = text(f"UPDATE {self.table} SET {self.column} = {escaped(self.junk)} WHERE {where}")
        for name, value in row.items():
            if on_sqlite and isinstance(value, UUID):
                statement = statement.bindparams(bindparam(name, value.bytes, LargeBinary))
            else:
                statement = statement.bindparams(bindparam(name, value))
        with engine.begin() as connection:
            if on_sqlite:
                connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
            assert connection.execute(statement).rowcount == 1, self


def escaped(sql: str) -> str:
    """Keep colons of values from being taken for parameters."""
    return sql.replace(":", r"\:")


def cells(table: Table, engine: Engine) -> list[Cell]:
    """Give every junk for every column of a table, for the database of an engine."""
    junk = ON_SQLITE if engine.dialect.name == "sqlite" else ON_POSTGRESQL
    return [
        Cell(table.name, column.name, value) for column in table.columns for value in junk[type(column.type)]
    ]


def fill(shop: SealedShop, tenants: Sequence[str], position: int = 0) -> None:
    """Append an event for each tenant, in one transaction."""
    shop.events.append(
        [
            Noted(
                originator_id=stream_of(tenant),
                originator_version=position,
                tenant=tenant,
                text=text_of(stream_of(tenant), position),
            )
            for tenant in tenants
        ]
    )


def typed(work: Callable[[], Any]) -> Any:
    """Give what *work* gives, or the error of EventSeal's that it raises, with a remedy; others go on."""
    try:
        return work()
    except EventSealError as error:
        found = error
    assert str(found)
    assert found.remedy
    return found


def events(shop: SealedShop, tenant: str) -> int:
    """Read a tenant's events and count them."""
    return len(shop.events.get_domain_events(stream_of(tenant)))


def tenants_of(some: Sequence[Cell]) -> dict[str, Cell]:
    """Give each cell a tenant, whose row has it."""
    return {f"tenant-{number}": cell for number, cell in enumerate(some)}


def doctor(url: str, kms: FakeKms) -> list[Any]:
    """Do what ``eventseal doctor`` does with the tables; no check stops another here."""
    stores = Stores(Settings(store_url=SecretStr(url), application=APPLICATION))
    checks = [partial(check.__wrapped__, stores) for check in (check_fences, check_jobs, check_registry)]
    checks += [partial(check.__wrapped__, stores, [kms]) for check in (check_keys, check_wrappings)]
    try:
        return [finding for check in checks for finding in check()]
    finally:
        stores.datastore.close()
