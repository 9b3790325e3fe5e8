"""The primitives under both paths: a key and bytes in, bytes out. No I/O, no policy."""

from eventseal.suites.cbc_hmac import open_many, seal_many
from eventseal.suites.envelope import CompressionId, EnvelopeInfo, SuiteId, build_header, parse_envelope
from eventseal.suites.hkdf import hkdf_sha512, key_check_id, length_prefixed
from eventseal.suites.suite import A128CBC_HS256, A192CBC_HS384, A256CBC_HS512, SUITES, ContextPool, Suite

__all__ = [
    "A128CBC_HS256",
    "A192CBC_HS384",
    "A256CBC_HS512",
    "SUITES",
    "CompressionId",
    "ContextPool",
    "EnvelopeInfo",
    "Suite",
    "SuiteId",
    "build_header",
    "hkdf_sha512",
    "key_check_id",
    "length_prefixed",
    "open_many",
    "parse_envelope",
    "seal_many",
]
