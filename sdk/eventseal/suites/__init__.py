"""The primitives under both paths: a key and bytes in, bytes out. No I/O, no policy."""

from eventseal.suites.cbc_hmac import A128CBC_HS256, A192CBC_HS384, A256CBC_HS512, Suite
from eventseal.suites.envelope import CompressionId, EnvelopeInfo, SuiteId

__all__ = [
    "A128CBC_HS256",
    "A192CBC_HS384",
    "A256CBC_HS512",
    "CompressionId",
    "EnvelopeInfo",
    "Suite",
    "SuiteId",
]
