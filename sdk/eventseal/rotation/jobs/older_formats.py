"""Items in older formats: how they open, under which scope they belong, how they become envelopes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.cipher import ItemContext, Opened
from eventseal.cipher.context import ItemBinder
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KmsError,
    SerializationError,
    StoreError,
)
from eventseal.items.event_modules import EventModules, import_listed, is_module_name
from eventseal.items.json import ClassChecks
from eventseal.keys.records import checked_scope
from eventseal.rotation.jobs.collections import is_erased, opened_page
from eventseal.rotation.jobs.jobs import resume_command
from eventseal.rotation.jobs.resealers import Batch, TableResealer
from eventseal.rotation.jobs.sources import KeyStatuses
from eventseal.rotation.sealed_store import event_modules_of, records_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from eventseal.items.acceptance import AcceptedFormats, OldItem
    from eventseal.items.sealed_places import Page, Selection
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.jobs import Job
    from eventseal.storage.jobs.shards import Shard

    ScopeOf = Callable[[ItemContext, bytes], str]


def old_items(
    store: SealedStore, accepted: AcceptedFormats, table: SealedTable, page: Page
) -> Iterator[tuple[ItemContext, OldItem | EventSealError]]:
    """
    Open the rows of a page that the cipher does not, each with its place and an outcome of its own.

    Args:
        store: Its cipher is tried first.
        accepted: The formats.
        table: That the page is from.
        page: Rows without a known key.
    """
    for number, (context, outcome) in enumerate(opened_page(store, page, table.collection)):
        data = page.envelopes[number]
        if isinstance(outcome, Opened):  # it is an envelope, yet its row says that it is none
            found: OldItem | EventSealError = IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
        elif not isinstance(data, bytes):
            found = SerializationError(
                f"an item's data are bytes, not {type(data).__name__}",
                remedy="Items in a column of text are copied: see the page on migration.",
            )
        elif isinstance(outcome, KmsError | StoreError):
            raise outcome
        else:
            beside = page.named[number] if page.named else None
            named = None if beside is None else UUID(bytes=beside)
            found = accepted.open(data, context, outcome, key_id=named)
        yield context, found


def class_checks(store: SealedStore, *, is_library: bool) -> ClassChecks:
    """
    Give the check of the classes that items name, by a store's event modules.

    Args:
        store: May name event modules, which are imported.
        is_library: Whether the items stay in a table of the eventsourcing library.

    Raises:
        ConfigurationError: A module is not there.
    """
    modules = EventModules(event_modules_of(store))
    modules.load()
    return ClassChecks(modules, is_library=is_library)


def scope_given(scope_of: ScopeOf, context: ItemContext, plaintext: bytes) -> str:
    """
    Ask the application's rule for the scope of one item: what it does not know stops no others.

    Args:
        scope_of: The rule.
        context: The item's place.
        plaintext: Its JSON, which whoever writes to the old table chooses.

    Raises:
        SerializationError: The rule failed; the message does not repeat why, which may be the plaintext.
        ConfigurationError: What it gave is no scope.
    """
    try:
        scope = scope_of(context, plaintext)
    except EventSealError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of a function that is not ours
        failed = type(error)
    else:
        return checked_scope(scope)
    remedy = "Let it give such items a scope, too; if this is no item of yours, find out who wrote it."
    if issubclass(failed, ModuleNotFoundError):
        remedy = "If it imports a module of the working directory, put that folder on PYTHONPATH. " + remedy
    raise SerializationError(
        f"the key scope's function failed with {failed.__name__} for the item", remedy=remedy
    )


class OldItemResealer(TableResealer):
    """
    Turns the older items of one table into envelopes, a page at a time, as a re-encryption moves them.

    Args:
        store: Its cipher seals.
        table: From the registry.
        accepted: The formats that items may be in.
        scope_of: Gives the key scope of an item from its place and its JSON.
    """

    by_tag = False

    def __init__(
        self, store: SealedStore, table: SealedTable, *, accepted: AcceptedFormats, scope_of: ScopeOf
    ) -> None:
        super().__init__(store, table, KeyStatuses(store, None))
        self._binder = ItemBinder(store.cipher.application)
        self._accepted = accepted
        self._scope_of = scope_of
        self._classes = class_checks(store, is_library=not table.has_key_ids)

    def _wanted(self, shard: Shard, page: Page, selection: Selection) -> Sequence[int]:  # noqa: ARG002
        if selection.keys is not None:
            return range(len(page))
        named = {UUID(bytes=raw) for raw in page.key_ids if raw is not None}
        known = {key_id.bytes for key_id in records_of(self._store.key_store, named)}
        return [number for number, raw in enumerate(page.key_ids) if raw not in known or page.differs(number)]

    def _sealed(self, shard: Shard, page: Page, selection: Selection) -> Batch:  # noqa: ARG002
        batch = Batch(page)
        if not page:
            return batch
        opened: dict[int, tuple[bytes, ItemContext, str]] = {}
        items = old_items(self._store, self._accepted, self._table, page)
        for number, (context, outcome) in enumerate(items):
            try:
                if isinstance(outcome, EventSealError):
                    raise outcome
                self._binder.bind(context)  # one that has no place does not stop the others
                self._classes.check(context.topic, outcome.plaintext)
                scope = scope_given(self._scope_of, context, outcome.plaintext)
            except EventSealError as error:
                self._fail(batch, page, number, error, stuck=True)
            else:
                opened[number] = outcome.plaintext, context, scope
        envelopes = self._sealed_by_scope(batch, page, opened)
        kept = page.only(list(envelopes))
        # The old key is none that is destroyed one day: only the new one is held.
        batch.page = replace(kept, key_ids=[None] * len(kept))
        batch.envelopes = list(envelopes.values())
        return batch

    def _sealed_by_scope(
        self, batch: Batch, page: Page, opened: Mapping[int, tuple[bytes, ItemContext, str]]
    ) -> dict[int, bytes]:
        """Seal what was opened; what belongs to a scope that was shredded is listed, and stays."""
        try:
            return self._sealed_all(opened)
        except KeyDestroyedError as error:
            if not is_erased(error):
                raise
            scopes = {scope for _, _, scope in opened.values()}
            if len(scopes) == 1:
                for number in opened:
                    self._fail(batch, page, number, error, stuck=True)
                return {}
        envelopes: dict[int, bytes] = {}
        for scope in scopes:
            mine = {number: item for number, item in opened.items() if item[2] == scope}
            envelopes.update(self._sealed_by_scope(batch, page, mine))
        return dict(sorted(envelopes.items()))

    def _sealed_all(self, opened: Mapping[int, tuple[bytes, ItemContext, str]]) -> dict[int, bytes]:
        cipher = self._store.cipher
        items = [(plaintext, context) for plaintext, context, _ in opened.values()]
        envelopes = cipher.encrypt_many(items, scopes=[scope for _, _, scope in opened.values()])
        again = cipher.open_many(
            [(sealed, context) for sealed, (_, context) in zip(envelopes, items, strict=True)]
        )
        for outcome, (plaintext, _) in zip(again, items, strict=True):
            if isinstance(outcome, EventSealError):
                raise outcome
            if outcome.plaintext != plaintext:
                raise IntegrityError(
                    f"what was just sealed under key {outcome.key_id} does not open to the same bytes",
                    remedy="Nothing of the batch was written. Check this machine's memory and its OpenSSL.",
                    key_id=outcome.key_id,
                )
        return dict(zip(opened, envelopes, strict=True))


def stored_rule(key_scope: str | ScopeOf) -> dict[str, str]:
    """
    Give a rule for scopes as a job keeps it.

    Args:
        key_scope: A scope, or a function of an item's place and its JSON that can be imported.

    Raises:
        ConfigurationError: The function cannot be found again by its name.
    """
    if isinstance(key_scope, str):
        return {"scope": key_scope}
    name = f"{getattr(key_scope, '__module__', '')}:{getattr(key_scope, '__qualname__', '')}"
    if _function(name) is not key_scope:
        raise ConfigurationError(
            f"key_scope {name} cannot be found again by that name, as workers and a resumed job must",
            remedy="Define the function at the top of a module.",
        )
    return {"function": name}


def scope_rule(job: Job, key_scope: str | ScopeOf | None) -> ScopeOf:
    """
    Check the caller's rule for scopes against the one that a migration was begun with.

    Nothing that the job's row names is imported: an attacker who can write to the database would choose what
    runs.

    Args:
        job: The migration's job.
        key_scope: The caller's rule; ``None`` for the scope that the job was begun with.

    Raises:
        ConfigurationError: The job was begun with another rule, or with a function and the caller gives none.
    """
    stored = job.options["key_scope"]
    if key_scope is None and "scope" in stored:
        key_scope = stored["scope"]
    if key_scope is None or stored_rule(key_scope) != stored:
        what = "If this is your rule, run" if "function" in stored else "Run it without another scope"
        raise ConfigurationError(
            f"job {job.job_id} was begun with another rule for scopes. Nothing was written",
            remedy=f"{what}: {resume_command(job)}",
        )
    return rule_of(key_scope)


def function_named(name: str) -> ScopeOf:
    """
    Import a function that the command line names as ``module:function``.

    Raises:
        ConfigurationError: The function is not there, or the import of its module fails.
    """
    module, separator, _ = name.partition(":")
    if separator and is_module_name(module):
        import_listed(module, "--key-scope-function")
    found: ScopeOf | None = _function(name)
    if found is None:
        raise ConfigurationError(
            f"there is no function {name}",
            remedy="Name it as module:function, and put the module's folder on PYTHONPATH.",
        )
    return found


def rule_of(key_scope: str | ScopeOf) -> ScopeOf:
    """Give a function for scopes; a single scope is that of every item."""
    return partial(_one_scope, key_scope) if isinstance(key_scope, str) else key_scope


def _one_scope(scope: str, _context: ItemContext, _plaintext: bytes) -> str:
    return scope


def _function(name: str) -> Any:
    try:
        found = resolve_name(name) if ":" in name else None
    except (ImportError, AttributeError, ValueError):
        return None
    return found if callable(found) else None
