"""Key URIs: the adapter that one names, and its options."""

from __future__ import annotations

from importlib.metadata import entry_points
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, cast

from eventseal.errors import ConfigurationError
from eventseal.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from importlib.metadata import EntryPoint

    from eventseal.kms.adapter import KmsAdapter

ENTRY_POINT_GROUP = "eventseal.kms"
_BARE_ARN = "arn:"
_KEY_FILE = "local://"  # its path may contain a question mark


def adapter_from_uri(uri: str, options: Mapping[str, Mapping[str, Any]] | None = None) -> KmsAdapter:
    """
    Create the adapter that *uri* names.

    Pass configured URIs only, never one from a key table. This function makes no network call.

    Args:
        uri: The URI of one KEK, as in ``kms=`` or ``EVENTSEAL_KMS_KEY``: ``<scheme>://...``, or a bare
            ``arn:aws:kms:...``.
        options: Options of adapters by scheme, as in the setting ``kms_options``. Those of the URI win.

    Raises:
        ConfigurationError: No adapter is installed for the scheme, or the adapter refuses the URI. Or the
            options name an unknown scheme or option.
    """
    kind = adapter_class(uri)
    chosen = _options_for(_scheme_of(uri), kind, options or {})
    return cast("KmsAdapter", kind.from_uri(uri, **chosen))


def without_query(uri: str) -> str:
    """
    Return a key URI without its query, whose options may be secret.

    Args:
        uri: The URI of one KEK, as for :func:`adapter_from_uri`.
    """
    return uri if uri.startswith(_KEY_FILE) else uri.partition("?")[0]


def adapter_class(uri: str) -> Any:
    """
    Return the class of the adapter that *uri* names, without creating one.

    It finds adapters by the entry points of the group ``eventseal.kms``. Their names are the schemes.

    Args:
        uri: The URI of one KEK, as for :func:`adapter_from_uri`.

    Raises:
        ConfigurationError: No adapter is installed for the scheme.
    """
    scheme = _scheme_of(uri)
    known = _installed()
    if "://" not in uri and not uri.startswith(_BARE_ARN):
        # The message does not repeat the value: it may be key bytes, entered by mistake.
        raise ConfigurationError(
            "the KMS key is not written as a key URI",
            remedy=f"Write <scheme>://<key>. The scheme is one of: {_listed(known)}.",
        )
    if scheme not in known:
        raise ConfigurationError(
            f"no KMS adapter is installed for {scheme!r}",
            remedy=f"Correct the URI, or install the adapter. These are installed: {_listed(known)}.",
        )
    return known[scheme].load()


def _scheme_of(uri: str) -> str:
    return "aws-kms" if uri.startswith(_BARE_ARN) else uri.partition("://")[0]


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _options_for(scheme: str, kind: Any, options: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the options of one scheme. An unknown scheme or option is refused."""
    known = _installed() if options else {}
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"kms_options has options for {name!r}, but no KMS adapter is installed for it",
                remedy=did_you_mean(name, known, f"These schemes exist: {_listed(known)}."),
            )
    chosen = options.get(scheme, {})
    parameters = signature(kind.from_uri).parameters.values() if chosen else ()
    names = [parameter.name for parameter in parameters if parameter.kind is Parameter.KEYWORD_ONLY]
    for name in chosen:
        if name not in names:
            raise ConfigurationError(
                f"kms_options has an unknown option for {scheme}: {name}",
                remedy=did_you_mean(name, names, f"The adapter has these options: {_listed(names)}."),
            )
    return chosen


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
