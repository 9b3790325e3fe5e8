"""Rewrap: keys move to the newest version of their KEK or to another KEK, and whether a KEK may go."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from eventseal.errors import ConfigurationError, JobError
from eventseal.keys.wrapping.unwrapping import is_under
from eventseal.kms import adapter_from_uri
from eventseal.rotation.results import Failure, JobResult, Run
from eventseal.rotation.table_checks import refuse_old_key_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any

    from eventseal.keys import KekUse, Rewrap
    from eventseal.kms import KmsAdapter, WrappedKey
    from eventseal.rotation.sealed_store import SealedStore


_CHECK_VALUE = 8
"""The version of a UUID that is computed from a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KekReport:
    """
    What hangs on each KEK.

    Attributes:
        application: Whose keys.
        uses: Wrappings of live keys by KEK and version, branch keys included, in order of both.
    """

    application: str
    uses: Sequence[KekUse]

    @property
    def by_kek(self) -> Mapping[str, int]:
        """Wrappings by KEK, over its versions."""
        counts: Counter[str] = Counter()
        for use in self.uses:
            counts[use.kek_uri] += use.wrappings
        return counts

    def to_json(self) -> dict[str, Any]:
        """Give it as ``--json`` prints it."""
        return {
            "application": self.application,
            "keks": [
                {
                    "kek": use.kek_uri,
                    "version": use.kek_version,
                    "wrappings": use.wrappings,
                    "verified": use.verified,
                }
                for use in self.uses
            ],
        }


def kek_report(store: SealedStore) -> KekReport:
    """
    Tell what hangs on which KEK, and on which version of it: one query, and no KEK is asked.

    Args:
        store: Whose keyring names the application.

    Raises:
        StoreError: The key store refused or failed.
    """
    application = store.keyring.application
    return KekReport(application=application, uses=tuple(store.key_store.kek_uses(application)))


def refuse_needed_kek(store: SealedStore, uri: str, version: str | None = None) -> int:
    """
    Refuse that a KEK, or one version of it, is taken away while keys need it.

    Every live key is unwrapped without it, under another KEK that the store is configured with; for a
    version, maybe under another version of the same KEK. A key that does not open so needs it. What the key
    tables say about wrappings is no proof.

    Args:
        store: Whose keyring has the KEKs that are to stay; they must let it unwrap.
        uri: The KEK: as it is configured, or as the key tables name it.
        version: As the report tells it; ``None``: the whole KEK.

    Returns:
        How many wrappings are still there under it; none of them is needed.

    Raises:
        ConfigurationError: *uri* names no KEK that is configured or in the key tables, or *version* is none
            of its versions there.
        JobError: Keys need it; the message says how many, and names the first.
        IntegrityError: The store key's row is not what a keyring sealed.
        KmsError: An alias could not be resolved, or a KEK that is to stay refused or failed.
        StoreError: The key store refused or failed.
    """
    report = kek_report(store)
    stored = {use.kek_uri for use in report.uses}
    known = ", ".join(sorted(stored)) or "none, since there are no keys"
    try:
        named = kek_names(store, uri, stored)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"no key is wrapped under {uri}, and it names no KEK: {error}", remedy=f"Name one of: {known}."
        ) from error
    if not named and not _is_configured(store, uri):
        raise ConfigurationError(
            f"no key is wrapped under {uri}, and it is not configured: a spelling mistake looks the same",
            remedy=f"Name one of: {known}. Or list it in kms_key, to ask about a KEK that wraps no key now.",
        )
    versions = [use.kek_version for use in report.uses if use.kek_uri in named]
    if version is not None and version not in versions:
        raise _no_such_version(version, uri, versions)

    def is_leaving(wrapped: WrappedKey) -> bool:
        # Of a wrapping that does not say its version, it may be this one.
        return wrapped.kek_uri in named and (version is None or wrapped.kek_version in {version, None})

    proof = store.keyring.wrappings.prove_without(is_leaving)
    if proof.failed:
        what = uri if version is None else f"version {version} of {uri}"
        key_id, reason = next(iter(proof.failures.items()))
        raise JobError(
            f"{what} is needed: {proof.failed} live keys do not open without it. The first: {reason}",
            remedy="Run `eventseal rewrap`, then ask again. If it reports failures, find out who changed the "
            "key tables, and restore the rows of those keys from a backup.",
            kek_uri=uri,
            kek_version=version,
            keys=proof.failed,
            key_id=key_id,
        )
    return sum(
        use.wrappings for use in report.uses if use.kek_uri in named and version in {None, use.kek_version}
    )


def kek_names(store: SealedStore, uri: str, stored: Collection[str]) -> set[str]:
    """
    Give the names that a KEK has among those of wrappings.

    Args:
        store: Whose configured KEKs are looked at first.
        uri: The KEK: as it is configured, or as wrappings name it.
        stored: The names that wrappings have.

    Raises:
        ConfigurationError: *uri* names no KEK.
        KmsError: An alias had to be resolved, and could not be.
    """
    if uri in stored:
        return {uri}
    adapter = _adapter_of(store, uri)
    return set() if adapter is None else {name for name in stored if is_under(adapter, name)}


def _is_configured(store: SealedStore, uri: str) -> bool:
    adapter = _adapter_of(store, uri)
    return adapter is not None and any(kek.uri == adapter.uri for kek in store.keyring.keks)


def _adapter_of(store: SealedStore, uri: str) -> KmsAdapter | None:
    """Give the KEK's adapter; ``None`` for a key file that is named by its key, and not by its path."""
    configured = next((kek for kek in store.keyring.keks if kek.uri == uri), None)
    if configured is None and not _is_of_a_key_file(uri):
        return adapter_from_uri(uri)
    return configured


def _is_of_a_key_file(uri: str) -> bool:
    """Whether the key tables name a key file so: by a check value of its key, and not by its path."""
    scheme, _, name = uri.partition("://")
    try:
        return scheme == "local" and str(UUID(name)) == name and UUID(name).version == _CHECK_VALUE
    except ValueError:
        return False


def _no_such_version(version: str, uri: str, known: Sequence[str | None]) -> ConfigurationError:
    """Refuse ``1`` where ``v1`` is meant, and every other version under which nothing is."""
    there = sorted({told for told in known if told is not None})
    near = [told for told in there if told.casefold().endswith(version.casefold())]
    return ConfigurationError(
        f"no key is wrapped under version {version!r} of {uri}",
        remedy=f"Did you mean {near[0]}?" if near else f"Name one of: {', '.join(there) or 'none is named'}.",
    )


WRAPPING_TABLE = "key_wrappings"
"""Names the wrappings in ``by_table`` and in failures."""


def rewrap(
    store: SealedStore,
    *,
    to: KmsAdapter | None = None,
    batch: int = 100,
    dry_run: bool = False,
    progress: Callable[[JobResult], None] | None = None,
) -> JobResult:
    """
    Wrap every live key where it should be, and drop what that makes superfluous.

    Without *to* each key gets a wrapping under the newest version of every configured KEK, also under those
    that it misses, and loses those under older versions. With *to* that KEK becomes the only one. Data keys
    under branch keys are wrapped under their branch's active key. What was done is in the rows: run again, it
    goes on.

    Inside one KMS service no key is seen, and no right to decrypt is needed. The old wrapping then stays
    until a process that opens keys has unwrapped the new one. Run it again after that, with the right to
    decrypt: a wrapping goes only in a run that has itself unwrapped the one that stays.

    Args:
        store: Whose keyring has the KEKs.
        to: The only KEK that is to remain. If it is not configured yet, the old wrappings stay until it is.
        batch: Keys in one call, 1 or more.
        dry_run: Whether only to count; a KEK is asked for nothing but its newest version.
        progress: Called after each batch with what was done so far.

    Returns:
        ``done`` keys are wrapped as they should be; ``left`` are those that would move (in a dry run), and
        those whose old wrappings stay for now: ``by_table`` tells them apart. ``by_kek`` counts the wrappings
        afterwards.

    Raises:
        ConfigurationError: An argument is refused.
        IntegrityError: The store key's row is not what a keyring sealed.
        KmsError: A KEK refused or failed; what was done stays.
        StoreError: The key store refused or failed.
        StoreReadOnlyError: The key tables are of an earlier release: run `eventseal init` first.
    """
    if not dry_run:
        refuse_old_key_tables(store)
    run = Run(verb="rewrap")
    total = 0 if progress is None else store.key_store.count_wrapped_keys(store.keyring.application)

    def tell(rewrapped: Rewrap) -> None:
        if progress is not None:
            unseen = max(0, total - rewrapped.keys)
            progress(_result(run, rewrapped, complete=False, unseen=unseen))

    rewrapped = store.keyring.rewrap(to, batch=batch, dry_run=dry_run, progress=tell)
    return _result(run, rewrapped, complete=True, by_kek=kek_report(store).by_kek)


def _result(run: Run, rewrapped: Rewrap, *, complete: bool, unseen: int = 0, **more: Any) -> JobResult:
    return run.result(
        complete=complete,
        done=rewrapped.done,
        left=rewrapped.to_move + rewrapped.awaiting + unseen,
        failed=rewrapped.failed,
        by_table={
            WRAPPING_TABLE: {
                "done": rewrapped.done,
                "to_move": rewrapped.to_move,
                "awaiting": rewrapped.awaiting,
                "failed": rewrapped.failed,
                "added": sum(rewrapped.added.values()),
                "dropped": rewrapped.dropped,
            }
        },
        failures=tuple(
            Failure.of_key(WRAPPING_TABLE, key_id, error) for key_id, error in rewrapped.failures.items()
        ),
        **more,
    )
