"""Rewrap keys under current KEKs, and check whether a KEK is needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from eventseal.errors import ConfigurationError, JobError
from eventseal.keys.wrapping.unwrapping import is_under
from eventseal.kms import adapter_from_uri
from eventseal.kms.key_uris import without_query
from eventseal.rotation.results import Failure, JobResult, Run
from eventseal.rotation.table_checks import refuse_old_key_tables
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any

    from eventseal.keys import KekUse, Rewrap
    from eventseal.kms import KmsAdapter, WrappedKey
    from eventseal.rotation.sealed_store import SealedStore


_CHECK_VALUE = 8
"""The UUID version of a check value, which a key determines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KekReport:
    """
    The wrappings under each KEK.

    Attributes:
        application: The application that owns the keys.
        uses: Counts of wrappings by KEK and version, sorted by both. They include branch keys, and leave out
            destroyed keys.
    """

    application: str
    uses: Sequence[KekUse]

    @property
    def by_kek(self) -> Mapping[str, int]:
        """The number of wrappings by KEK, over all its versions."""
        counts: Counter[str] = Counter()
        for use in self.uses:
            counts[use.kek_uri] += use.wrappings
        return counts

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
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
    Count the wrappings under each KEK and each of its versions.

    It runs one query, and calls no KEK.

    Args:
        store: The store whose keyring names the application.

    Raises:
        StoreError: The key store refused or failed.
    """
    application = store.keyring.application
    return KekReport(application=application, uses=tuple(store.key_store.kek_uses(application)))


def refuse_needed_kek(store: SealedStore, uri: str, version: str | None = None) -> int:
    """
    Refuse to remove a KEK, or a version, while keys need it.

    Without this KEK, it unwraps every key that is not destroyed, under another configured KEK. For a version,
    it may also use another version of the same KEK. A key that cannot be opened this way needs the KEK. The
    key tables alone prove nothing about wrappings.

    Args:
        store: The store whose keyring has the KEKs that stay. They must allow it to unwrap.
        uri: The KEK, by its configured name or by its name in the key tables.
        version: The version, as the report shows it. ``None``: the whole KEK.

    Returns:
        The number of wrappings that still exist under it. None of them is needed.

    Raises:
        ConfigurationError: *uri* is no KEK that is configured or in the key tables, or *version* is none of
            its versions there.
        JobError: Keys need it. The message has their number, and names the first.
        IntegrityError: The store key's row is not authentic.
        KmsError: An alias could not be resolved, or a KEK that stays refused or failed.
        StoreError: The key store refused or failed.
    """
    shown = without_query(uri)
    report = kek_report(store)
    stored = {use.kek_uri for use in report.uses}
    wrapped = f"Keys are wrapped under {', '.join(sorted(stored))}" if stored else "No key is wrapped yet"
    try:
        named = kek_names(store, uri, stored)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"no key is wrapped under {shown}, and the KMS key cannot be used: {error}. {wrapped}",
            remedy="Name the KMS key as in kms_key. `eventseal status` lists those that wrap keys.",
        ) from error
    if not named and not _is_configured(store, uri):
        raise ConfigurationError(
            f"no key is wrapped under {shown}, and it is not configured, so it may be misspelled. {wrapped}",
            remedy="Name the KMS key as in kms_key. To check a KMS key that wraps no key now, add it there.",
        )
    versions = [use.kek_version for use in report.uses if use.kek_uri in named]
    if version is not None and version not in versions:
        raise _no_such_version(version, shown, versions)

    def is_leaving(wrapped: WrappedKey) -> bool:
        # A wrapping without a version may be of this version.
        return wrapped.kek_uri in named and (version is None or wrapped.kek_version in {version, None})

    proof = store.keyring.wrappings.prove_without(is_leaving)
    if proof.failed:
        what = shown if version is None else f"version {version} of {shown}"
        key_id, reason = next(iter(proof.failures.items()))
        raise JobError(
            f"{what} is needed: without it, {counted(proof.failed, 'key')} cannot be opened. "
            f"The first error: {reason}",
            remedy="If kms_key names no other KMS key, add one. Then run `eventseal rewrap`, and check "
            "again. If the rewrap reports failures, find out who changed the key tables, and restore the "
            "rows of those keys from a backup.",
            kek_uri=shown,
            kek_version=version,
            keys=proof.failed,
            key_id=key_id,
        )
    return sum(
        use.wrappings for use in report.uses if use.kek_uri in named and version in {None, use.kek_version}
    )


def kek_names(store: SealedStore, uri: str, stored: Collection[str]) -> set[str]:
    """
    Return the names of a KEK in wrappings.

    Args:
        store: The store whose configured KEKs are checked first.
        uri: The KEK, by its configured name or by its name in wrappings.
        stored: The names that wrappings have.

    Raises:
        ConfigurationError: *uri* is not the name of a KEK.
        KmsError: An alias could not be resolved.
    """
    if uri in stored:
        return {uri}
    adapter = _adapter_of(store, uri)
    return set() if adapter is None else {name for name in stored if is_under(adapter, name)}


def _is_configured(store: SealedStore, uri: str) -> bool:
    adapter = _adapter_of(store, uri)
    return adapter is not None and any(kek.uri == adapter.uri for kek in store.keyring.keks)


def _adapter_of(store: SealedStore, uri: str) -> KmsAdapter | None:
    """Return the KEK's adapter. For a key file's check value, return ``None``."""
    configured = {kek.uri: kek for kek in store.keyring.keks}
    if uri in configured or _is_of_a_key_file(uri):
        return configured.get(uri)
    named = adapter_from_uri(uri)
    # The configured adapter has the options of kms_options.
    return configured.get(named.uri, named)


def _is_of_a_key_file(uri: str) -> bool:
    """Return whether a name is the check value of a key file."""
    scheme, _, name = uri.partition("://")
    try:
        return scheme == "local" and str(UUID(name)) == name and UUID(name).version == _CHECK_VALUE
    except ValueError:
        return False


def _no_such_version(version: str, uri: str, known: Sequence[str | None]) -> ConfigurationError:
    """Return the refusal of a version that wraps no key."""
    there = sorted({told for told in known if told is not None})
    typed = version.casefold()
    near = [told for told in there if told.casefold() in {typed, f"v{typed}"}]  # "v1" for "1", never "v11"
    if near:
        remedy = f"Did you mean {near[0]}?"
    elif there:
        remedy = f"Name one of these versions: {', '.join(there)}."
    else:
        remedy = "Leave the version out: this KMS key has none in the key tables."
    return ConfigurationError(f"no key is wrapped under version {version!r} of {uri}", remedy=remedy)


WRAPPING_TABLE = "eventseal_key_wrappings"
"""The name of the wrappings in ``by_table`` and in failures."""


def rewrap(
    store: SealedStore,
    *,
    to: KmsAdapter | None = None,
    batch: int = 100,
    dry_run: bool = False,
    progress: Callable[[JobResult], None] | None = None,
) -> JobResult:
    """
    Wrap every key, unless destroyed, under the current KEKs and versions.

    Without *to*, each key gets a wrapping under the newest version of every configured KEK, including KEKs
    that it lacks. Its wrappings under older versions are deleted. With *to*, that KEK becomes the only one.
    Data keys under branch keys are wrapped under their branch's active key. The rows record the progress, so
    the next call continues.

    Inside one KMS service, the KMS rewraps a key without revealing it, and no right to decrypt is needed. The
    old wrapping then stays until a process that opens keys has unwrapped the new one. Call it again after
    that, with the right to decrypt. A run deletes a wrapping only if it has itself unwrapped the one that
    stays.

    Args:
        store: The store whose keyring has the KEKs.
        to: The only KEK that remains. If it is not configured yet, the old wrappings stay until it is.
        batch: The number of keys in one call, 1 or more.
        dry_run: Whether only to count. KEKs are only called for their newest version.
        progress: Called after each batch with the progress so far.

    Returns:
        The result's ``done`` counts the keys with current wrappings. Its ``left`` counts the keys that would
        change in a dry run, and the keys whose old wrappings stay for now. Its ``by_table`` tells these two
        apart. Its ``by_kek`` counts the wrappings afterwards.

    Raises:
        ConfigurationError: An argument is refused.
        IntegrityError: The store key's row is not authentic.
        KmsError: A KEK refused or failed. Finished keys stay done.
        StoreError: The key store refused or failed.
        StoreReadOnlyError: An earlier release created the key tables. Run `eventseal upgrade` first.
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
