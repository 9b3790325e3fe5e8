"""The cryptographic primitives, without I/O and without policy."""

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
