"""The steps of ``eventseal init``. Each step needs the ones before it."""

from __future__ import annotations

import shlex
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import SecretStr
from sqlalchemy import inspect

from eventseal.configuration.assembly import EventSeal, Stores, configured_keks, configured_ledger
from eventseal.configuration.loading import (
    DEFAULT_FILE,
    environment_names,
    settings_file,
    settings_from,
    with_urls_hidden,
    write_settings_file,
)
from eventseal.erasure import adopt
from eventseal.erasure.reopening import upgrade_key_tables
from eventseal.errors import ConfigurationError, KeyDestroyedError, KmsForbiddenError, MissingTableError
from eventseal.keys.authentication.revocations import NEW_KEY_TABLES
from eventseal.keys.records import DEFAULT_SCOPE, STORE_SCOPE, new_key_id
from eventseal.keys.states import KeyPurpose
from eventseal.kms import SupportsCheck, adapter_from_uri
from eventseal.kms.adapter import EncryptionContext, adapter_class
from eventseal.storage.database.table_setup import KEY_ID, table_names
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.items.fences import has_fence_triggers
from eventseal.storage.items.key_id_indexes import has_key_id_indexes
from eventseal.storage.unregistered import OWN_TABLES
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection

    from eventseal.configuration.settings import Settings
    from eventseal.erasure import Ledger
    from eventseal.kms import KmsAdapter
    from eventseal.storage.items.tables import SealedTable


@dataclass(frozen=True, slots=True, kw_only=True)
class InitStep:
    """
    One step of the initialisation.

    Attributes:
        name: ``settings``, ``kek``, ``kms``, ``columns``, ``tables``, ``eventsourcing``, ``upgrade``,
            ``keys`` or ``ledger``.
        changed: Whether the step created something, or would create it in a dry run.
        detail: The thing that the step created, or that existed already.
    """

    name: str
    changed: bool
    detail: str


@runtime_checkable
class MakesKeks(Protocol):
    """An adapter class that can create a KEK, like the local one."""

    def exists(self, uri: str) -> bool:
        """Check whether the place that the URI names is taken."""
        ...

    def create_from_uri(self, uri: str) -> KmsAdapter:
        """Create the KEK. Its place must not be taken."""
        ...


class InitSteps:
    """
    Takes the steps of the initialisation.

    The constructor checks everything local: if a setting is wrong, nothing is written.

    Args:
        settings: The settings that name the databases, the KEKs and the ledger.
        dry_run: Only report what would be created.

    Raises:
        ConfigurationError: No KEK or no database is configured, or an object cannot be built from the
            settings.
    """

    def __init__(self, settings: Settings, *, dry_run: bool) -> None:
        self._settings = settings
        self._dry_run = dry_run
        self._kek_classes = [(uri, adapter_class(uri)) for uri in configured_keks(settings)]
        self._stores = Stores(settings)
        self._ledger = configured_ledger(settings)
        if self._stores.are_in_memory():
            raise ConfigurationError(
                "a database in memory ends with this command",
                remedy="Use a file, such as sqlite:///events.sqlite. If your process keeps its database in "
                "memory, call datastore.setup_tables() in it.",
            )

    def take(self) -> Iterator[InitStep]:
        """Take one step after the other."""
        connects = self._connects()
        if connects:  # before anything is created, so that a dry run reports the same refusal
            self._stores.datastore.tables_to_register(self._settings.application)
        has_store_key = connects and self._has_key(STORE_SCOPE, KeyPurpose.STORE)
        makers = {uri: kind for uri, kind in self._kek_classes if isinstance(kind, MakesKeks)}
        missing = [uri for uri, kind in makers.items() if not kind.exists(uri)]
        if has_store_key and missing:
            # A new key would unwrap none of the old keys, and would hide that the old KEK is lost.
            raise self._lost(missing[0], makers)
        for uri, kind in makers.items():
            if uri in missing and not self._dry_run:
                kind.create_from_uri(uri)
            yield InitStep(name="kek", changed=uri in missing, detail=f"KMS key {uri}")
        adapters: list[KmsAdapter] = []
        if not (missing and self._dry_run):
            adapters = [adapter_from_uri(uri) for uri, _ in self._kek_classes]
        for number, adapter in enumerate(adapters):
            yield _checked(adapter, self._settings.application, is_first=number == 0)
        yield self._add_columns()
        unprepared = self._unprepared_tables()
        yield self._make_tables()
        if self._settings.eventsourcing_tables:
            yield self._adopt_tables(unprepared)
        if has_store_key:
            yield from self._upgrade_keys(adapters)
        yield self._make_keys(adapters, has_store_key=has_store_key)
        if self._ledger is not None:
            yield self._make_ledger(self._ledger, adapters)

    def _lost(self, uri: str, makers: Mapping[str, Any]) -> ConfigurationError:
        """Create the error for a lost KEK of an application with keys."""
        application = self._settings.application
        there = {adapter_from_uri(other).uri for other, kind in makers.items() if kind.exists(other)}
        scheme = uri.partition("://")[0]
        wrapped = sum(
            use.wrappings
            for use in self._stores.key_store.kek_uses(application)
            if use.kek_uri.startswith(f"{scheme}://") and use.kek_uri not in there
        )
        message = f"there is no key file for {uri}"
        if not wrapped:
            kind = makers[uri]
            code = f"from {kind.__module__} import {kind.__name__}; {kind.__name__}.create_from_uri({uri!r})"
            return ConfigurationError(
                f"{message}. No key of application {application} depends on it",
                remedy="If the file moved, correct kms_key. If it is new, create it with the command "
                f"below, then run `eventseal rewrap`:\npython -c {shlex.quote(code)}",
            )
        keys = f"{counted(wrapped, 'key')} of application {application}"
        is_only = len(self._kek_classes) == 1
        depends = f"the {keys} cannot be decrypted without it" if is_only else f"{keys} may depend on it"
        return ConfigurationError(
            f"{message}, and {depends}",
            remedy="Restore the file from a backup to that path, or correct kms_key if the file moved. "
            "`eventseal init` does not replace it.",
        )

    def close(self) -> None:
        """Close the connections."""
        self._stores.close()

    def _connects(self) -> bool:
        """Check whether there is a database. A dry run does not create one."""
        if self._dry_run and not self._stores.are_present():
            return False
        self._stores.datastore.setup_connection()
        return True

    def _add_columns(self) -> InitStep:
        datastore = self._stores.datastore
        added: list[str] = []
        indexed: list[str] = []
        if not self._dry_run:
            added, indexed = datastore.add_key_id_columns(), datastore.index_key_ids()
        elif self._stores.are_present():
            sealed = [record.__table__ for record in datastore.tables if sealed_columns(record)]
            added = _without_key_id(datastore.engine, sealed)
            indexed = [table.table for table in datastore.unindexed_tables()]
        said = [f"column key_id in {', '.join(added)}"] if added else []
        said += [f"indexes on the key ids of {', '.join(indexed)}"] if indexed else []
        return InitStep(
            name="columns", changed=bool(said), detail=". ".join(said) or "key_id columns and indexes"
        )

    def _make_tables(self) -> InitStep:
        datastore = self._stores.datastore
        wanted = {record.__table__.fullname for record in datastore.tables} | OWN_TABLES
        engines = {datastore.engine, datastore.key_engine} if self._stores.are_present() else ()
        missing = sorted(wanted.difference(*map(table_names, engines)))
        if not self._dry_run:
            datastore.setup_tables(application=self._settings.application)
        detail = f"tables {', '.join(missing)}" if missing else counted(len(wanted), "table")
        return InitStep(name="tables", changed=bool(missing), detail=detail)

    def _unprepared_tables(self) -> list[str]:
        """List the eventsourcing library's tables that lack their triggers or their index."""
        if not self._connects():
            return []
        datastore = self._stores.datastore
        return _unprepared(datastore.engine, datastore.described_eventsourcing_tables())

    def _adopt_tables(self, unprepared: list[str]) -> InitStep:
        datastore = self._stores.datastore
        there = datastore.described_eventsourcing_tables() if self._stores.are_present() else []
        names = [table.table for table in there]
        absent = [name for name in datastore.eventsourcing_tables if name not in names]
        said = [f"triggers and index of {', '.join(unprepared or names)}"] if names else []
        if absent:
            said.append(
                f"no table yet: {', '.join(absent)}. After its application has created it, run "
                "`eventseal init` again"
            )
        return InitStep(name="eventsourcing", changed=bool(unprepared), detail=". ".join(said))

    def _upgrade_keys(self, adapters: list[KmsAdapter]) -> Iterator[InitStep]:
        """Upgrade the key tables of a release before the revocation tree."""
        if self._dry_run:
            changes = self._stores.key_store.changes(self._settings.application, -1, [])
            if changes is not None and not changes.mark.has_tree:
                yield InitStep(name="upgrade", changed=True, detail="key tables of an earlier release")
            return
        with EventSeal(self._settings, kms=adapters) as seal:
            upgraded = upgrade_key_tables(seal)
        if upgraded is None:
            return
        listed = (
            f". Without proof, {counted(upgraded.erased, 'item')} of reopened scopes were recorded as erased"
        )
        edited = f". Edited rows that were left out: {upgraded.edited:,}"
        keys = counted(upgraded.keys, "compromised or destroyed key")
        yield InitStep(
            name="upgrade",
            changed=True,
            detail=f"new key tables, with {keys}{listed * bool(upgraded.erased)}"
            f"{edited * bool(upgraded.edited)}. To refuse old copies, set key_tables = 2",
        )

    def _make_keys(self, adapters: list[KmsAdapter], *, has_store_key: bool) -> InitStep:
        there = {"store key": has_store_key, "first data key": self._has_key(DEFAULT_SCOPE, KeyPurpose.DATA)}
        closed = ""
        if not self._dry_run:
            # Also if both exist: only a trial shows that the KMS unwraps them, a permission check does not.
            with EventSeal(self._settings, kms=adapters) as seal:
                try:
                    seal.keyring.prepare([DEFAULT_SCOPE])
                except KeyDestroyedError:  # a person shredded it on purpose: create the rest all the same
                    closed = f", whose scope {DEFAULT_SCOPE} was shredded and is closed"
        missing = [name for name, is_there in there.items() if not is_there]
        detail = f"{' and '.join(missing or there)} of application {self._settings.application}{closed}"
        return InitStep(name="keys", changed=bool(missing), detail=detail)

    def _make_ledger(self, ledger: Ledger, adapters: list[KmsAdapter]) -> InitStep:
        changed = not ledger.exists(self._settings.application)
        noted = 0
        if changed and not self._dry_run:
            with EventSeal(self._settings, kms=adapters) as seal:
                noted = adopt(seal, ledger)
        shredded = f", with {counted(noted, 'scope')} shredded before" if noted else ""
        return InitStep(name="ledger", changed=changed, detail=f"{ledger.name}{shredded}")

    def _has_key(self, scope: str, purpose: KeyPurpose) -> bool:
        if not self._stores.are_present():
            return False
        try:
            return bool(self._stores.key_store.active(self._settings.application, [scope], purpose=purpose))
        except MissingTableError:
            return False


@reads("comparing columns")
def _without_key_id(connection: Connection, tables: Sequence[Table]) -> list[str]:
    inspector = inspect(connection)
    return [
        table.fullname
        for table in tables
        if inspector.has_table(table.name, schema=table.schema)
        and KEY_ID
        not in {column["name"] for column in inspector.get_columns(table.name, schema=table.schema)}
    ]


@reads("looking at triggers and indexes")
def _unprepared(connection: Connection, tables: Sequence[SealedTable]) -> list[str]:
    return [
        table.table
        for table in tables
        if not (has_key_id_indexes(connection, table) and has_fence_triggers(connection, table))
    ]


def _checked(adapter: KmsAdapter, application: str, *, is_first: bool) -> InitStep:
    """Check the permissions on a KEK. A KEK after the first also wraps a key that is discarded."""
    step = _asked(adapter, application)
    # Only a further KEK needs the permission to wrap. Without this trial, only the next new key would show
    # that it is missing.
    if not is_first:
        adapter.wrap(token_bytes(32), EncryptionContext(new_key_id(), str(KeyPurpose.DATA), application))
    return step


def _asked(adapter: KmsAdapter, application: str) -> InitStep:
    if not isinstance(adapter, SupportsCheck):
        return InitStep(name="kms", changed=False, detail=f"{adapter.uri}, which has no check of permissions")
    missing = [check for check in adapter.check(application) if not check.granted]
    denied = [check for check in missing if check.required]
    if denied:
        raise KmsForbiddenError(
            f"{adapter.uri} does not grant {', '.join([check.action for check in denied])}",
            kek_uri=adapter.uri,
            remedy="\n".join([check.detail for check in denied if check.detail]) or None,
        )
    but = f", but not the optional {', '.join([check.action for check in missing])}" if missing else ""
    return InitStep(name="kms", changed=False, detail=f"permissions on {adapter.uri}{but}")


def initialise(path: str | Path | None = None, *, dry_run: bool = False, **options: Any) -> list[InitStep]:
    """
    Create everything that the settings describe.

    Existing things stay as they are, so a second run changes nothing. The steps are:

    - If there is no settings file, write it with the *options* that the environment does not set.
    - Create a missing KEK if its adapter can, as long as the application has no keys.
    - Check the permissions on the KMS keys.
    - Add missing ``key_id`` columns, and create and register the tables.
    - Create the store key and the first data key.
    - If a ledger is configured, begin it.

    Args:
        path: The settings file. If it is ``None``: the file that ``EVENTSEAL_CONFIG`` names, else
            ``eventseal.toml``.
        dry_run: Only report what would be created.
        options: Settings by name: strings, whole numbers, booleans, or lists of strings.

    Returns:
        The steps, in order.

    Raises:
        ConfigurationError: A setting is missing or wrong, an option differs from the settings, or a key file
            is missing although the application has keys.
        KmsForbiddenError: The KMS does not grant a permission. The remedy says what to grant.
        KmsError: The KMS refused or failed.
        StoreError: The database refused or failed.
    """
    options = with_urls_hidden(options)
    file = settings_file(path) or Path(DEFAULT_FILE)
    settings, to_write = _settings(file, options)
    with closing(InitSteps(settings, dry_run=dry_run)) as steps:
        return [_write(file, to_write, dry_run=dry_run), *steps.take()]


def _settings(file: Path, options: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Return the settings, and the options that a new file must hold."""
    present = file.exists()
    settings = settings_from(file if present else None, **options)
    without_options = settings_from(file if present else None)
    variables = environment_names()
    for name in options:
        fixed_by = variables.get(name) or (str(file) if present else None)
        if fixed_by and getattr(settings, name) != getattr(without_options, name):
            raise ConfigurationError(
                f"{name} differs from the value in {fixed_by}",
                remedy=f"Correct {fixed_by}, or leave the option out: `eventseal init` changes no setting.",
            )
    to_write = {} if present else {name: value for name, value in options.items() if name not in variables}
    if to_write:
        # The tables have this format after this run, and the setting refuses old copies of them.
        to_write.setdefault("key_tables", NEW_KEY_TABLES)
    return settings, to_write


def _write(file: Path, values: Mapping[str, Any], *, dry_run: bool) -> InitStep:
    if not values:
        source = f"settings file {file}" if file.exists() else "settings from the environment"
        return InitStep(name="settings", changed=False, detail=source)
    if not dry_run:
        write_settings_file(file, {name: _shown(value) for name, value in values.items()})
    return InitStep(name="settings", changed=True, detail=f"settings file {file}")


def _shown(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
