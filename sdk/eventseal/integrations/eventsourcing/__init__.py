"""
EventSeal for the eventsourcing library, releases from 9.3 to below 10.

::

    MAPPER_TOPIC=eventseal.integrations.eventsourcing:EncryptingMapper
    EVENTSEAL_KMS_KEY=arn:aws:kms:...
    EVENTSEAL_STORE_URL=postgresql+psycopg://...

The names are loaded on first use, so that you only load the parts for your release of the library.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError
from eventseal.lazy_names import lazy_names

SUPPORTED = ">=9.3,<10"
_LOWEST, _BELOW = (9, 3), (10, 0)
_INSTALL = "pip install 'eventseal[eventsourcing]'"
_RELEASE = re.compile(r"(\d+)\.(\d+)")


def check_release() -> None:
    """
    Refuse an unsupported release of the library.

    Raises:
        ConfigurationError: The release is too old or too new, or the library is not installed.
    """
    try:
        installed = version("eventsourcing")
    except PackageNotFoundError:
        raise ConfigurationError(
            "the eventsourcing library is not installed", remedy=f"Run: {_INSTALL}"
        ) from None
    found = _RELEASE.match(installed)
    if found is None or not _LOWEST <= (int(found[1]), int(found[2])) < _BELOW:
        raise ConfigurationError(
            f"release {installed} of the eventsourcing library is installed, but EventSeal supports "
            f"{SUPPORTED}",
            remedy=f"Run: {_INSTALL}. If an older release wrote the events, see `eventseal migrate --help`.",
        )


check_release()

_HOMES = {
    "EncryptingDCBMapper": "dcb",
    "EncryptingMapper": "mapper",
    "EnvelopeCipher": "unbound",
    "ErasedEvent": "sealing",
    "SealedInfrastructure": "event_store",
    "UnboundCipherWarning": "unbound",
    "stream_scope": "sealing",
}

if TYPE_CHECKING:
    from eventseal.integrations.eventsourcing.dcb import EncryptingDCBMapper
    from eventseal.integrations.eventsourcing.event_store import SealedInfrastructure
    from eventseal.integrations.eventsourcing.mapper import EncryptingMapper
    from eventseal.integrations.eventsourcing.sealing import ErasedEvent, stream_scope
    from eventseal.integrations.eventsourcing.unbound import EnvelopeCipher, UnboundCipherWarning
else:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)

__all__ = [
    "EncryptingDCBMapper",
    "EncryptingMapper",
    "EnvelopeCipher",
    "ErasedEvent",
    "SealedInfrastructure",
    "UnboundCipherWarning",
    "stream_scope",
]
