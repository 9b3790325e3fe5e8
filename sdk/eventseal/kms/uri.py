"""Key URIs: from a configured text to an adapter. The only place where an adapter is found by name."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventseal.kms.adapter import KmsAdapter

ENTRY_POINT_GROUP = "eventseal.kms"
_BARE_ARN = "arn:"


def adapter_from_uri(uri: str) -> KmsAdapter:
    """
    Make the adapter that *uri* names: ``<scheme>://...``, or a bare ``arn:aws:kms:...``.

    Only configured URIs come here: none is ever built from a stored one. Makes no network call.

    Args:
        uri: One KEK, as it stands in ``kms=`` or ``EVENTSEAL_KMS_KEY``.

    Raises:
        ConfigurationError: No adapter is installed for the scheme, or the adapter refuses the URI.
    """
    return cast("KmsAdapter", adapter_class(uri).from_uri(uri))


def adapter_class(uri: str) -> Any:
    """
    Find the class of the adapter that *uri* names, without making one.

    Adapters are found by the entry points of the group ``eventseal.kms``, whose names are the schemes.

    Args:
        uri: As for :func:`adapter_from_uri`.

    Raises:
        ConfigurationError: No adapter is installed for the scheme.
    """
    scheme = "aws-kms" if uri.startswith(_BARE_ARN) else uri.partition("://")[0]
    known = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if "://" not in uri and not uri.startswith(_BARE_ARN):
        # Not repeated: it may be a key that someone took for a KEK's name.
        raise ConfigurationError(
            "what is configured is not a key URI",
            remedy=f"Write <scheme>://<key>, the scheme one of: {_listed(known)}.",
        )
    if scheme not in known:
        raise ConfigurationError(
            f"no KMS adapter is installed for {scheme!r}",
            remedy=f"The installed schemes are: {_listed(known)}.",
        )
    return known[scheme].load()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
