"""Checks of the KEKs: answers, permissions, and the keys that need them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

from eventseal.configuration.assembly import configured_keks
from eventseal.configuration.diagnosis.findings import KEYS, KMS, Severity
from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KekNotConfiguredError,
    KmsForbiddenError,
    KmsUnavailableError,
    NotMyKeyError,
)
from eventseal.keys.records import new_key_id
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import BRANCH_PREFIX
from eventseal.keys.wrapping.keks import check_adapters
from eventseal.kms import (
    EncryptionContext,
    KmsUse,
    SupportsCheck,
    SupportsDeletion,
    SupportsVersions,
    TellsVersion,
    adapter_from_uri,
)
from eventseal.kms.key_uris import without_query
from eventseal.rotation.status.key_totals import key_under, keys_without_wrapping
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from eventseal.configuration.assembly import Stores
    from eventseal.configuration.diagnosis.findings import Finding
    from eventseal.configuration.settings import Settings
    from eventseal.keys.records import KekUse
    from eventseal.kms import KmsAdapter, WrappedKey


@KMS.check
def build_adapters(settings: Settings, adapters: dict[str, KmsAdapter]) -> Iterator[Finding]:
    """
    Create the adapter of each configured KEK, and report failures.

    Args:
        settings: The settings that name the KEKs.
        adapters: The mapping to which the adapters are added, by their URIs in the settings.
    """
    for uri in configured_keks(settings):
        try:
            adapters[uri] = adapter_from_uri(uri, settings.kms_options)
        except EventSealError as error:
            yield KMS.raised(error)
        except ImportError as error:
            yield KMS.problem(
                ConfigurationError,
                f"{without_query(uri)}: {error}",
                "Install the extra that the message names.",
            )
    if adapters:
        check_adapters(list(adapters.values()))


@KMS.check
def check_kek(
    adapter: KmsAdapter, application: str, *, is_first: bool, uses: Collection[KmsUse] | None
) -> Iterator[Finding]:
    """
    Check the permissions on a KEK.

    An adapter without a check of permissions wraps and unwraps a key that is discarded.

    Args:
        adapter: The adapter of the KEK.
        application: The application's name for the encryption context, which policies may require.
        is_first: Whether the KEK creates new keys. The other KEKs wrap them.
        uses: Check only the permissions of these uses, and require all of them. With ``None``, check all.

    Raises:
        KmsError: The KMS could not check any permission, or a trial of the KEK failed.
    """
    if not isinstance(adapter, SupportsCheck):
        if uses is None or KmsUse.GENERATE in uses:
            yield from _try(adapter, application)
        return
    checks = adapter.check(application)
    if uses is not None:
        checks = [replace(check, required=True) for check in checks if not check.uses or check.uses & {*uses}]
    granted = [check.action for check in checks if check.granted]
    if granted:
        yield KMS.ok(f"permissions on {adapter.uri}: {', '.join(granted)}")
    for check in checks:
        if not check.granted:
            but = "" if check.required else ", which only rotation and further KMS keys need"
            yield KMS.problem(
                KmsForbiddenError,
                f"{adapter.uri} does not grant {check.action}{but}",
                check.detail,
                Severity.ERROR if check.required else Severity.NOTE,
            )
    wraps = not is_first if uses is None else KmsUse.WRAP in uses
    if wraps and all(check.granted for check in checks if check.required):
        # Only a further KEK needs the permission to wrap. Without this trial, only the next new key would
        # show that it is missing.
        adapter.wrap(bytes(32), _context(application))
    if uses is not None and KmsUse.END in uses and isinstance(adapter, SupportsDeletion | SupportsVersions):
        yield KMS.note(
            f"the permissions to end {adapter.uri} were not tried",
            "Compare the policy in the KMS with the output of: eventseal policy --role custodian",
        )


def _try(adapter: KmsAdapter, application: str) -> Iterator[Finding]:
    context = _context(application)
    key, wrapped = adapter.generate_data_key(context)
    if adapter.unwrap(wrapped, context) != key:
        raise IntegrityError(f"{adapter.uri} does not return the key that it wrapped")
    yield KMS.ok(f"{adapter.uri} generates, wraps and unwraps keys")


def _context(application: str) -> EncryptionContext:
    return EncryptionContext(new_key_id(), str(KeyPurpose.DATA), application)


_REWRAP = "eventseal rewrap"
_LOCAL = "local://"


@KEYS.check
def check_wrappings(stores: Stores, adapters: Sequence[KmsAdapter]) -> Iterator[Finding]:
    """
    Unwrap one wrapping of each KEK and version, and count missing wrappings.

    Args:
        stores: The databases, and the settings.
        adapters: The adapters that could be created.
    """
    uses = stores.key_store.kek_uses(stores.settings.application)
    by_branches = [use for use in uses if use.kek_uri.startswith(BRANCH_PREFIX)]
    yield from _check_branches(stores, by_branches)
    names: dict[str, set[str]] = {adapter.uri: {adapter.uri} for adapter in adapters}
    for use in uses:
        if use not in by_branches:
            yield from _check_use(stores, adapters, use, names)
    yield from _check_missing(stores, names)


def _check_use(
    stores: Stores, adapters: Sequence[KmsAdapter], use: KekUse, names: dict[str, set[str]]
) -> Iterator[Finding]:
    sample = _sample(stores, use)
    if sample is None:
        return  # deleted meanwhile
    version = "" if use.kek_version is None else f", version {use.kek_version}"
    place = f"{counted(use.wrappings, 'wrapping')} under {use.kek_uri}{version}"
    for adapter in adapters:
        refusal = _refusal(adapter, *sample)
        if isinstance(refusal, NotMyKeyError):
            continue
        names[adapter.uri].add(use.kek_uri)
        if refusal is None:
            yield KEYS.ok(f"{place}: one was tried now and opens. Verified before: {use.verified:,}")
            yield from _check_version(adapter, use)
        elif not isinstance(refusal, KmsUnavailableError):  # `check_kek` has reported an outage
            yield KEYS.raised(refusal)
        return
    if len(adapters) < len(stores.settings.kms_key):
        yield KEYS.problem(
            KekNotConfiguredError,
            f"{place}: the configured KMS keys that could be opened do not unwrap them",
            "First solve the error of the KMS key that could not be opened, then run: eventseal doctor",
            Severity.WARNING,
        )
        return
    yield KEYS.problem(
        KekNotConfiguredError,
        f"{place}, which is not configured",
        f"If keys are wrapped only under it, {_configure(use.kek_uri)}. Then run: {_REWRAP}",
        Severity.WARNING,
    )


def _sample(stores: Stores, use: KekUse) -> tuple[WrappedKey, EncryptionContext] | None:
    key_id = key_under(
        stores.datastore.key_engine,
        application=stores.settings.application,
        kek_uri=use.kek_uri,
        kek_version=use.kek_version,
    )
    record = None if key_id is None else stores.key_store.get([key_id]).get(key_id)
    if record is None:
        return None
    context = EncryptionContext(record.key_id, str(record.purpose), record.application)
    for wrapped in record.wrappings:
        if (wrapped.kek_uri, wrapped.kek_version) == (use.kek_uri, use.kek_version):
            return wrapped, context
    return None


def _refusal(adapter: KmsAdapter, wrapped: WrappedKey, context: EncryptionContext) -> EventSealError | None:
    try:
        adapter.unwrap(wrapped, context)
    except EventSealError as error:
        return error
    return None


def _check_version(adapter: KmsAdapter, use: KekUse) -> Iterator[Finding]:
    if use.kek_version is None or not isinstance(adapter, TellsVersion):
        return
    try:
        current = adapter.current_version()
    except EventSealError:
        return  # `check_kek` has reported a missing permission
    if current != use.kek_version:
        yield KEYS.note(
            f"{counted(use.wrappings, 'wrapping is', 'wrappings are')} under version {use.kek_version} of "
            f"{use.kek_uri}, whose newest version is {current}",
            _REWRAP,
        )


def _configure(kek_uri: str) -> str:
    if kek_uri.startswith(_LOCAL):  # the tables know only the check value, which is no path
        return "restore its key file, and add the file to kms_key"
    return "add it to kms_key"


def _check_missing(stores: Stores, names: dict[str, set[str]]) -> Iterator[Finding]:
    every = set().union(*names.values())
    orphans = _missing(stores, every)
    if orphans and names:
        yield KEYS.problem(
            KekNotConfiguredError,
            f"{counted(orphans, 'key is', 'keys are')} wrapped under no configured KMS key: nothing opens "
            "such keys here",
            "If a KMS key is reported as not configured, follow its remedy. If none is, restore the rows of "
            "these keys in eventseal_key_wrappings from a backup. To list the keys: eventseal keys",
        )
    for uri, stored in names.items() if len(names) > 1 else ():
        lacking = _missing(stores, stored)
        if lacking > orphans:
            yield KEYS.warning(
                f"{counted(lacking, 'key has', 'keys have')} no wrapping under {uri}, and would be lost with "
                "the other KMS keys",
                _REWRAP,
            )


def _missing(stores: Stores, kek_uris: set[str]) -> int:
    return keys_without_wrapping(
        stores.datastore.key_engine, application=stores.settings.application, kek_uris=kek_uris
    )


def _check_branches(stores: Stores, uses: Sequence[KekUse]) -> Iterator[Finding]:
    """Check that every branch key which wraps a key exists. If one is missing, a million keys may be lost."""
    named = {use: _branch_id(use.kek_uri) for use in uses}
    records = stores.key_store.get([key_id for key_id in named.values() if key_id is not None])
    good = 0
    for use, key_id in named.items():
        record = None if key_id is None else records.get(key_id)
        if record is None or record.purpose is not KeyPurpose.BRANCH or record.state is KeyState.DESTROYED:
            what = "missing" if record is None else f"a {record.state} key of purpose {record.purpose}"
            yield KEYS.problem(
                IntegrityError,
                f"{counted(use.wrappings, 'key is', 'keys are')} wrapped under {use.kek_uri!r}, which is "
                f"{what}",
                "Restore the branch key's rows from a backup: nothing else opens these keys.",
            )
        else:
            good += use.wrappings
    if good:
        yield KEYS.ok(f"{counted(good, 'key is', 'keys are')} wrapped under branch keys that exist")


def _branch_id(kek_uri: str) -> UUID | None:
    try:
        return UUID(kek_uri.removeprefix(BRANCH_PREFIX))
    except ValueError:
        return None
