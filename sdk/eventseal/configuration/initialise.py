"""The steps of ``eventseal init``. Each step needs the ones before it."""

from __future__ import annotations

import shlex
from contextlib import closing, suppress
from pathlib import Path
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import SecretStr

from eventseal.configuration.assembly import (
    EventSeal,
    Stores,
    configured_adapters,
    configured_keks,
    configured_ledger,
)
from eventseal.configuration.loading import (
    DEFAULT_FILE,
    environment_names,
    settings_file,
    settings_from,
    with_urls_hidden,
    write_settings_file,
)
from eventseal.configuration.upgrade import SetupStep, unprepared_tables
from eventseal.erasure import adopt
from eventseal.errors import ConfigurationError, KeyDestroyedError, KmsForbiddenError, MissingTableError
from eventseal.keys.authentication.revocations import NEW_KEY_TABLES, old_key_tables
from eventseal.keys.records import DEFAULT_SCOPE, STORE_SCOPE, new_key_id
from eventseal.keys.states import KeyPurpose
from eventseal.keys.wrapping.keks import check_adapters
from eventseal.kms import SupportsCheck, adapter_from_uri
from eventseal.kms.adapter import EncryptionContext
from eventseal.kms.key_uris import adapter_class
from eventseal.rotation.table_checks import has_old_key_tables
from eventseal.storage.database.table_setup import older_store
from eventseal.storage.database.transactions import check_connection
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from eventseal.configuration.settings import Settings
    from eventseal.erasure import Ledger
    from eventseal.kms import KmsAdapter


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

    The constructor checks everything local.

    Args:
        settings: The settings that name the databases, the KEKs and the ledger.

    Raises:
        ConfigurationError: No KEK or no database is configured, or an object cannot be built from the
            settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keks = {uri: adapter_class(uri) for uri in configured_keks(settings)}
        self._makers = {uri: kind for uri, kind in self._keks.items() if isinstance(kind, MakesKeks)}
        self._stores = Stores(settings)
        self._ledger = configured_ledger(settings, self._stores.datastore.layout)
        self._kms: list[SetupStep] = []
        if self._stores.are_in_memory():
            raise ConfigurationError(
                "a database in memory ends with this command",
                remedy="Use a file, such as sqlite:///events.sqlite. If your process keeps its database in "
                "memory, call datastore.setup_tables() in it.",
            )
        if wrong := self._stores.wrong_path():
            raise wrong

    def check(self) -> None:
        """
        Check everything that exists, before anything is written.

        Raises:
            ConfigurationError: A table belongs to another program, an earlier release created the store, or a
                key file is missing although the application has keys.
            KmsForbiddenError: The KMS does not grant a permission.
            KmsError: The KMS refused or failed.
            StoreError: A database refused or failed.
        """
        self._check_databases()
        self._missing_tables = self._stores.datastore.missing_tables(self._settings.application)
        self._unprepared = self._unprepared_tables()
        self._unindexed = self._unindexed_tables()
        self._has_store_key = self._has_key(STORE_SCOPE, KeyPurpose.STORE)
        self._has_data_key = self._has_key(DEFAULT_SCOPE, KeyPurpose.DATA)
        self._missing_keks = [uri for uri, kind in self._makers.items() if not kind.exists(uri)]
        if self._has_store_key and self._missing_keks:
            # A new key would unwrap none of the old keys, and would hide that the old KEK is lost.
            raise self._lost(self._missing_keks[0], self._makers)
        if self._ledger is not None:
            self._ledger.check_place()
        self._has_ledger = self._ledger is not None and self._ledger.exists(self._settings.application)
        there = [uri for uri in self._keks if uri not in self._missing_keks]
        if there:
            check_adapters([self._adapter(uri) for uri in there])
        self._kms = [self._checked(uri) for uri in there]

    def report(self) -> Iterator[SetupStep]:
        """Yield the steps of a dry run."""
        yield from self._kek_steps()
        yield from self._kms
        yield self._tables_step()
        if self._settings.eventsourcing_tables:
            yield self._eventsourcing_step()
        yield self._keys_step()
        if self._ledger is not None:
            yield self._ledger_step(self._ledger)

    def take(self) -> Iterator[SetupStep]:
        """Take one step after the other."""
        for uri in self._missing_keks:
            self._makers[uri].create_from_uri(uri)
        yield from self._kek_steps()
        adapters = configured_adapters(self._settings)
        yield from [self._checked(uri) for uri in self._keks] if self._missing_keks else self._kms
        self._stores.datastore.setup_tables(application=self._settings.application)
        self._stores.datastore.index_key_ids()
        yield self._tables_step()
        if self._settings.eventsourcing_tables:
            yield self._eventsourcing_step()
        with EventSeal(self._settings, kms=adapters) as seal:
            closed = False
            # Also if both exist: only a trial shows that the KMS unwraps them, a permission check does not.
            try:
                seal.keyring.prepare([DEFAULT_SCOPE])
            except KeyDestroyedError:  # a person shredded it on purpose: create the rest all the same
                closed = True
            yield self._keys_step(is_closed=closed)
            if self._ledger is not None:
                yield self._ledger_step(
                    self._ledger, shredded=0 if self._has_ledger else adopt(seal, self._ledger)
                )

    def _lost(self, uri: str, makers: Mapping[str, Any]) -> ConfigurationError:
        """Create the error for a lost KEK of an application with keys."""
        application = self._settings.application
        there = {self._adapter(other).uri for other, kind in makers.items() if kind.exists(other)}
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
        is_only = len(self._keks) == 1
        depends = f"the {keys} cannot be decrypted without it" if is_only else f"{keys} may depend on it"
        return ConfigurationError(
            f"{message}, and {depends}",
            remedy="Restore the file from a backup to that path, or correct kms_key if the file moved. "
            "`eventseal init` does not replace it.",
        )

    def close(self) -> None:
        """Close the connections."""
        self._stores.close()

    def _check_databases(self) -> None:
        """Connect to each database. A SQLite file that does not exist is not created yet."""
        datastore = self._stores.datastore
        for settings, engine in (
            (datastore.settings, datastore.engine),
            (datastore.key_settings, datastore.key_engine),
        ):
            if settings.is_there:
                check_connection(engine)
        if datastore.is_older():
            raise older_store()
        if self._stores.are_present():
            with suppress(MissingTableError):
                if has_old_key_tables(self._stores.key_store, self._settings.application):
                    raise old_key_tables(self._settings.application)

    def _adapter(self, uri: str) -> KmsAdapter:
        return adapter_from_uri(uri, self._settings.kms_options)

    def _checked(self, uri: str) -> SetupStep:
        """Check the permissions on a KEK."""
        is_first = uri == next(iter(self._keks))
        return _checked(self._adapter(uri), self._settings.application, is_first=is_first)

    def _kek_steps(self) -> Iterator[SetupStep]:
        for uri in self._makers:
            yield SetupStep(name="kek", changed=uri in self._missing_keks, detail=f"KMS key {uri}")

    def _tables_step(self) -> SetupStep:
        items, keys = self._stores.datastore.needed_tables()
        missing = sorted(self._missing_tables)
        said = [f"tables {', '.join(missing)}"] if missing else []
        said += [f"indexes on the key ids of {', '.join(self._unindexed)}"] if self._unindexed else []
        detail = ". ".join(said) or counted(len(items) + len(keys), "table")
        return SetupStep(name="tables", changed=bool(said), detail=detail)

    def _unindexed_tables(self) -> list[str]:
        """List the listed tables that lack an index."""
        datastore = self._stores.datastore
        return [table.table for table in datastore.unindexed_tables()] if datastore.settings.is_there else []

    def _unprepared_tables(self) -> list[str]:
        """List the eventsourcing library's tables that lack their triggers or their index."""
        if not self._stores.datastore.settings.is_there:
            return []
        datastore = self._stores.datastore
        return unprepared_tables(datastore.engine, datastore.described_eventsourcing_tables())

    def _eventsourcing_step(self) -> SetupStep:
        datastore = self._stores.datastore
        there = datastore.described_eventsourcing_tables() if datastore.settings.is_there else []
        names = [table.table for table in there]
        absent = [name for name in datastore.eventsourcing_tables if name not in names]
        said = [f"triggers and index of {', '.join(self._unprepared or names)}"] if names else []
        if absent:
            said.append(
                f"no table yet: {', '.join(absent)}. After its application has created it, run "
                "`eventseal init` again"
            )
        return SetupStep(name="eventsourcing", changed=bool(self._unprepared), detail=". ".join(said))

    def _keys_step(self, *, is_closed: bool = False) -> SetupStep:
        there = {"store key": self._has_store_key, "first data key": self._has_data_key}
        closed = f", whose scope {DEFAULT_SCOPE} was shredded and is closed" if is_closed else ""
        missing = [name for name, is_there in there.items() if not is_there]
        detail = f"{' and '.join(missing or there)} of application {self._settings.application}{closed}"
        return SetupStep(name="keys", changed=bool(missing), detail=detail)

    def _ledger_step(self, ledger: Ledger, *, shredded: int = 0) -> SetupStep:
        before = f", with {counted(shredded, 'scope')} shredded before" if shredded else ""
        return SetupStep(name="ledger", changed=not self._has_ledger, detail=f"{ledger.name}{before}")

    def _has_key(self, scope: str, purpose: KeyPurpose) -> bool:
        if not self._stores.are_present():
            return False
        try:
            return bool(self._stores.key_store.active(self._settings.application, [scope], purpose=purpose))
        except MissingTableError:
            return False


def _checked(adapter: KmsAdapter, application: str, *, is_first: bool) -> SetupStep:
    """Check the permissions on a KEK. A KEK after the first also wraps a key that is discarded."""
    step = _asked(adapter, application)
    # Only a further KEK needs the permission to wrap. Without this trial, only the next new key would show
    # that it is missing.
    if not is_first:
        adapter.wrap(token_bytes(32), EncryptionContext(new_key_id(), str(KeyPurpose.DATA), application))
    return step


def _asked(adapter: KmsAdapter, application: str) -> SetupStep:
    if not isinstance(adapter, SupportsCheck):
        return SetupStep(
            name="kms", changed=False, detail=f"{adapter.uri}, which has no check of permissions"
        )
    missing = [check for check in adapter.check(application) if not check.granted]
    denied = [check for check in missing if check.required]
    if denied:
        raise KmsForbiddenError(
            f"{adapter.uri} does not grant {', '.join([check.action for check in denied])}",
            kek_uri=adapter.uri,
            remedy="\n".join([check.detail for check in denied if check.detail]) or None,
        )
    but = f", but not the optional {', '.join([check.action for check in missing])}" if missing else ""
    return SetupStep(name="kms", changed=False, detail=f"permissions on {adapter.uri}{but}")


def initialise(path: str | Path | None = None, *, dry_run: bool = False, **options: Any) -> list[SetupStep]:
    """
    Create everything that the settings describe.

    Existing things stay as they are, so a second run changes nothing. The steps are:

    - Check the permissions on the KMS keys, the databases and their tables. Nothing is written before.
    - If there is no settings file, write it with the *options* that the environment does not set.
    - Create a missing KEK if its adapter can, as long as the application has no keys.
    - Create and register the tables.
    - Create the store key and the first data key.
    - If a ledger is configured, begin it.

    Args:
        path: The settings file. If it is ``None``: the file that ``EVENTSEAL_CONFIG`` names, else
            ``eventseal.toml``.
        dry_run: Only report what would be created.
        options: Settings by name: strings, whole numbers, booleans, lists of strings, or tables of these.

    Returns:
        The steps, in order.

    Raises:
        ConfigurationError: A setting is missing or wrong, an option differs from the settings, or a table
            belongs to another program. Or an earlier release created the store, or a key file is missing
            although the application has keys.
        KmsForbiddenError: The KMS does not grant a permission. The remedy says what to grant.
        KmsError: The KMS refused or failed.
        StoreError: The database refused or failed.
    """
    options = with_urls_hidden(options)
    file = settings_file(path) or Path(DEFAULT_FILE)
    settings, to_write = settings_with(file, options)
    with closing(InitSteps(settings)) as steps:
        steps.check()
        written = _write(file, to_write, dry_run=dry_run)
        return [written, *(steps.report() if dry_run else steps.take())]


def settings_with(file: Path, options: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """
    Return the settings, and the options that a new file must hold.

    Raises:
        ConfigurationError: A setting is wrong, or an option differs from the settings.
    """
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


def _write(file: Path, values: Mapping[str, Any], *, dry_run: bool) -> SetupStep:
    if not values:
        source = f"settings file {file}" if file.exists() else "settings from the environment"
        return SetupStep(name="settings", changed=False, detail=source)
    if not dry_run:
        write_settings_file(file, {name: _shown(value) for name, value in values.items()})
    return SetupStep(name="settings", changed=True, detail=f"settings file {file}")


def _shown(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
