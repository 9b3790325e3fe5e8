"""
EventSeal under the eventsourcing library, releases 9.3 and later.

::

    MAPPER_TOPIC=eventseal.integrations.eventsourcing:EncryptingMapper
    EVENTSEAL_KMS_KEY=arn:aws:kms:...
    EVENTSEAL_STORE_URL=postgresql+psycopg://...

The names are loaded when they are asked for: what depends on a release of the library costs only those who
use it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eventseal.integrations.eventsourcing.releases import check_release

if TYPE_CHECKING:
    from eventseal.integrations.eventsourcing.dcb import EncryptingDCBMapper
    from eventseal.integrations.eventsourcing.event_store import SealedInfrastructure
    from eventseal.integrations.eventsourcing.mapper import EncryptingMapper
    from eventseal.integrations.eventsourcing.options import ErasedEvent, stream_scope
    from eventseal.integrations.eventsourcing.unbound import EnvelopeCipher, UnboundCipherWarning

check_release()

_HOMES = {
    "EncryptingDCBMapper": "dcb",
    "EncryptingMapper": "mapper",
    "EnvelopeCipher": "unbound",
    "ErasedEvent": "erased",
    "SealedInfrastructure": "factories",
    "UnboundCipherWarning": "unbound",
    "stream_scope": "options",
}

__all__ = [
    "EncryptingDCBMapper",
    "EncryptingMapper",
    "EnvelopeCipher",
    "ErasedEvent",
    "SealedInfrastructure",
    "UnboundCipherWarning",
    "stream_scope",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
