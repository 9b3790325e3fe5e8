"""Moves the items of a job. Any process can continue any job, and brings its own code."""

from __future__ import annotations

from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.errors import ConfigurationError
from eventseal.items.acceptance import AcceptedFormats
from eventseal.items.event_modules import import_listed, is_module_name
from eventseal.rotation.jobs.batches import COMPROMISED_PHASE, TableMover
from eventseal.rotation.jobs.collections import in_place
from eventseal.rotation.jobs.jobs import resume_command
from eventseal.rotation.jobs.old_items import OldItemMover
from eventseal.rotation.jobs.sources import KeyStandings, Standing
from eventseal.rotation.sealed_store import AcceptsOldFormats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventseal.cipher import ItemContext
    from eventseal.items.sealed_places import Page, Selection
    from eventseal.rotation.jobs.old_items import ScopeOf
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.jobs import Job
    from eventseal.storage.jobs.shards import Shard


class CollectionMover(TableMover):
    """Moves the items of one table that are not bound to its collection yet, whatever their key."""

    def _wanted(self, shard: Shard, page: Page, selection: Selection) -> Sequence[int]:
        if shard.phase == COMPROMISED_PHASE:
            return super()._wanted(shard, page, selection)
        named = {raw: UUID(bytes=raw) for raw in set(page.key_ids) if raw is not None}
        standings = self._standings.of(list(named.values()), self._table)
        wanted = {Standing.FITTING, Standing.OLD, Standing.UNREADABLE}
        numbers = [
            number
            for number, raw in enumerate(page.key_ids)
            if raw is not None and standings[named[raw]] in wanted
        ]
        there = in_place(self._store, self._table, page.only(numbers))
        return [number for index, number in enumerate(numbers) if index not in there]


def table_movers(
    store: SealedStore, job: Job, scope_of: ScopeOf | None
) -> Callable[[SealedTable], TableMover]:
    """
    Give a function that creates the mover of a table.

    Args:
        store: What the job works on.
        job: As it was read.
        scope_of: The rule for scopes, if the job is a migration.

    Raises:
        ConfigurationError: The job is a migration, and its formats or its event modules are not here.
    """
    if scope_of is not None:
        accepted = configured_formats(store)
        return lambda table: OldItemMover(
            store, table, accepted=accepted_in(accepted, table), scope_of=scope_of
        )
    standings = KeyStandings(store, keys_of(job))
    mover = TableMover if collection_of(job) is None else CollectionMover
    return lambda table: mover(store, table, standings)


def keys_of(job: Job) -> list[UUID] | None:
    """Give the keys that a job was asked for; ``None``: all that are not the active one of their scope."""
    keys = job.options["keys"]
    return None if keys is None else [UUID(key_id) for key_id in keys]


def collection_of(job: Job) -> str | None:
    """Give the collection that a job moves its table to; ``None``: items stay in theirs."""
    collection: str | None = job.options.get("collection")
    return collection


def configured_formats(store: SealedStore) -> AcceptedFormats:
    """
    Give the older formats that a store is configured with.

    Raises:
        ConfigurationError: There are none.
    """
    # Without what the registry says now: a migration is what changes it.
    accepted = AcceptedFormats(store.accepted_formats.formats if isinstance(store, AcceptsOldFormats) else ())
    if not accepted:
        raise ConfigurationError(
            "no older format is named, so nothing can be migrated",
            remedy="Name the formats that the items are in, with their keys: the setting old_formats.",
        )
    return accepted


def accepted_in(accepted: AcceptedFormats, table: SealedTable) -> AcceptedFormats:
    """Give the formats that the registry says are accepted in a table."""
    return AcceptedFormats([old for old in accepted.formats if old.name in table.old_formats])


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
    return partial(_one_scope, key_scope) if isinstance(key_scope, str) else key_scope


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


def _one_scope(scope: str, _context: ItemContext, _plaintext: bytes) -> str:
    return scope


def _function(name: str) -> Any:
    try:
        found = resolve_name(name) if ":" in name else None
    except (ImportError, AttributeError, ValueError):
        return None
    return found if callable(found) else None
