"""Items in older formats: open them, find their scopes, and encrypt them."""

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
    Open the rows of a page that may have older formats.

    Yield the place of each row, and its item or its own error.

    Args:
        store: The store whose cipher is tried first.
        accepted: The formats that are accepted.
        table: The table of the page.
        page: Rows without a known key.
    """
    for number, (context, outcome) in enumerate(opened_page(store, page, table.collection)):
        data = page.envelopes[number]
        if isinstance(outcome, Opened):  # it is an envelope, but its row does not say so
            found: OldItem | EventSealError = IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
        elif not isinstance(data, bytes):
            found = SerializationError(
                f"an item's data must be bytes, not {type(data).__name__}",
                remedy='Copy the table, because its column holds text. See the page "Migrate from plaintext '
                'and from older ciphers".',
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
    Return the checks of the classes that items name.

    Args:
        store: The store whose event modules list the classes. They are imported.
        is_library: Whether the items stay in a table of the eventsourcing library.

    Raises:
        ConfigurationError: A module does not exist.
    """
    modules = EventModules(event_modules_of(store))
    modules.load()
    return ClassChecks(modules, is_library=is_library)


def scope_given(scope_of: ScopeOf, context: ItemContext, plaintext: bytes) -> str:
    """
    Return the scope of one item by the application's rule.

    Args:
        scope_of: The rule.
        context: The item's place.
        plaintext: The item's JSON. Anyone who can write to the old table chooses it.

    Raises:
        SerializationError: The rule failed, which does not stop other items. The message does not repeat why,
            because the reason may contain plaintext.
        ConfigurationError: The rule returned an invalid scope.
    """
    try:
        scope = scope_of(context, plaintext)
    except EventSealError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the function is the application's
        failed = type(error)
    else:
        return checked_scope(scope)
    remedy = "Let the function return a scope for it too. If the item is not yours, find out who wrote it."
    if issubclass(failed, ModuleNotFoundError):
        remedy = "If it imports a module of the working directory, put that folder on PYTHONPATH. " + remedy
    raise SerializationError(
        f"the function for key scopes failed with {failed.__name__} for the item", remedy=remedy
    )


class OldItemResealer(TableResealer):
    """
    Encrypts the older items of one table, a page at a time.

    It swaps rows as a re-encryption does.

    Args:
        store: The store whose cipher seals.
        table: The registered table.
        accepted: The formats that items may have.
        scope_of: Returns the scope of an item from its place and its JSON.
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
                self._binder.bind(context)  # an item without a valid place must not stop the others
                self._classes.check(context.topic, outcome.plaintext)
                scope = scope_given(self._scope_of, context, outcome.plaintext)
            except EventSealError as error:
                self._fail(batch, page, number, error, stuck=True)
            else:
                opened[number] = outcome.plaintext, context, scope
        envelopes = self._sealed_by_scope(batch, page, opened)
        kept = page.only(list(envelopes))
        # Old keys are left out: nothing destroys them later, so only the new key is held.
        batch.page = replace(kept, key_ids=[None] * len(kept))
        batch.envelopes = list(envelopes.values())
        return batch

    def _sealed_by_scope(
        self, batch: Batch, page: Page, opened: Mapping[int, tuple[bytes, ItemContext, str]]
    ) -> dict[int, bytes]:
        """Encrypt opened items. Items of a shredded scope fail, and stay as they are."""
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
                    f"an item encrypted under key {outcome.key_id} does not decrypt to the same bytes",
                    remedy="No item of the batch was written. Check this machine's memory and its OpenSSL.",
                    key_id=outcome.key_id,
                )
        return dict(zip(opened, envelopes, strict=True))


def stored_rule(key_scope: str | ScopeOf) -> dict[str, str]:
    """
    Return a rule for scopes in the form that a job stores.

    Args:
        key_scope: A scope, or an importable function of an item's place and its JSON.

    Raises:
        ConfigurationError: The function cannot be imported by its name.
    """
    if isinstance(key_scope, str):
        return {"scope": key_scope}
    name = f"{getattr(key_scope, '__module__', '')}:{getattr(key_scope, '__qualname__', '')}"
    if _function(name) is not key_scope:
        raise ConfigurationError(
            f"key_scope {name} cannot be imported by that name, and workers and a resumed job need that",
            remedy="Define the function at the top of a module.",
        )
    return {"function": name}


def scope_rule(job: Job, key_scope: str | ScopeOf | None) -> ScopeOf:
    """
    Check that the caller's rule for scopes is the migration's rule.

    Nothing that the job's row names is imported, because an attacker who can write to the database would
    choose which code runs.

    Args:
        job: The migration's job.
        key_scope: The caller's rule. ``None``: the scope that the job began with.

    Raises:
        ConfigurationError: The job began with another rule, or it began with a function and the caller passes
            none.
    """
    stored = job.options["key_scope"]
    if key_scope is None and "scope" in stored:
        key_scope = stored["scope"]
    if key_scope is None or stored_rule(key_scope) != stored:
        what = "If this is your rule, run" if "function" in stored else "Run it without another scope"
        raise ConfigurationError(
            f"job {job.job_id} began with another rule for scopes. Nothing was written",
            remedy=f"{what}: {resume_command(job)}",
        )
    return rule_of(key_scope)


def function_named(name: str) -> ScopeOf:
    """
    Import a function that the command line names as ``module:function``.

    Raises:
        ConfigurationError: The function does not exist, or its module cannot be imported.
    """
    module, separator, _ = name.partition(":")
    if separator and is_module_name(module):
        import_listed(module, "--key-scope-function")
    found: ScopeOf | None = _function(name)
    if found is None:
        raise ConfigurationError(
            f"the function {name} does not exist",
            remedy="Write it as module:function, and put the module's folder on PYTHONPATH.",
        )
    return found


def rule_of(key_scope: str | ScopeOf) -> ScopeOf:
    """Return a function for scopes. A single scope becomes a function too."""
    return partial(_one_scope, key_scope) if isinstance(key_scope, str) else key_scope


def _one_scope(scope: str, _context: ItemContext, _plaintext: bytes) -> str:
    return scope


def _function(name: str) -> Any:
    try:
        found = resolve_name(name) if ":" in name else None
    except (ImportError, AttributeError, ValueError):
        return None
    return found if callable(found) else None
