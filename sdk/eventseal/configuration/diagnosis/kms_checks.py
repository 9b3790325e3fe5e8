"""Checks of the KMS: that each KEK answers, and what it grants, with the statements to add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.configuration.assembly import configured_keks
from eventseal.configuration.diagnosis.findings import Finding, Severity
from eventseal.errors import ConfigurationError, EventSealError, IntegrityError, KmsForbiddenError
from eventseal.keys.key_ids import new_key_id
from eventseal.keys.states import KeyPurpose
from eventseal.kms import EncryptionContext, SupportsCheck, adapter_from_uri

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventseal.configuration.settings import Settings
    from eventseal.kms import KmsAdapter, PermissionCheck

AREA = "kms"


def build_adapters(settings: Settings, adapters: list[KmsAdapter]) -> Iterator[Finding]:
    """
    Make the adapter of each configured KEK, and say which cannot be made.

    Args:
        settings: Name the KEKs.
        adapters: Gets those that can.
    """
    for uri in configured_keks(settings):
        try:
            adapters.append(adapter_from_uri(uri))
        except EventSealError as error:
            yield Finding.of(error, AREA)
        except ImportError as error:
            missing = ConfigurationError(
                f"{uri}: {error}", remedy="Install the extra that the message names."
            )
            yield Finding.of(missing, AREA)


def check_kek(adapter: KmsAdapter, application: str, *, is_first: bool) -> Iterator[Finding]:
    """
    Ask a KEK what it grants; one that cannot be asked wraps and unwraps a key that is thrown away.

    Args:
        adapter: Of the KEK.
        application: For the encryption context, which policies may ask for.
        is_first: Whether it makes new keys; the others wrap them.

    Raises:
        KmsError: It could not be asked.
    """
    if not isinstance(adapter, SupportsCheck):
        yield from _try(adapter, application)
        return
    checks = adapter.check(application)
    yield from _granted(adapter, checks)
    for check in checks:
        if not check.granted:
            yield _denied(adapter, check)
    if not is_first and all(check.granted for check in checks if check.required):
        # It may lack a permission that one KEK alone does not need, until the next new key.
        adapter.wrap(bytes(32), _context(application))


def _granted(adapter: KmsAdapter, checks: Sequence[PermissionCheck]) -> Iterator[Finding]:
    granted = [check.action for check in checks if check.granted]
    if granted:
        text = f"{adapter.uri} grants {', '.join(granted)}"
        yield Finding(severity=Severity.OK, area=AREA, text=text)


def _denied(adapter: KmsAdapter, check: PermissionCheck) -> Finding:
    error = KmsForbiddenError(
        f"{adapter.uri} does not grant {check.action}"
        + ("" if check.required else ", which only rotation and further KEKs need"),
        kek_uri=adapter.uri,
        remedy=check.detail or None,
    )
    return Finding.of(error, AREA, severity=Severity.ERROR if check.required else Severity.NOTE)


def _try(adapter: KmsAdapter, application: str) -> Iterator[Finding]:
    context = _context(application)
    key, wrapped = adapter.generate_data_key(context)
    if adapter.unwrap(wrapped, context) != key:
        raise IntegrityError(f"{adapter.uri} does not give back the key that it wrapped")
    yield Finding(severity=Severity.OK, area=AREA, text=f"{adapter.uri} makes, wraps and unwraps keys")


def _context(application: str) -> EncryptionContext:
    return EncryptionContext(new_key_id(), str(KeyPurpose.DATA), application)
