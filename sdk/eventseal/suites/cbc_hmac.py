"""The suites AES-CBC with HMAC-SHA-2 (RFC 7518 section 5.2). PLACEHOLDER OF SHAPE, to be completed."""

from __future__ import annotations

from dataclasses import dataclass

from eventseal.suites.envelope import SuiteId


@dataclass(frozen=True, slots=True)
class Suite:
    """
    One row of the table of suites.

    Attributes:
        id: Its byte in the envelope.
        name: As RFC 7518 has it; part of the key derivation.
        key_size: Bytes: the MAC key, then the AES key, half each.
        tag_size: Bytes.
    """

    id: SuiteId
    name: str
    key_size: int
    tag_size: int


A128CBC_HS256 = Suite(SuiteId.A128CBC_HS256, "A128CBC-HS256", 32, 16)
A192CBC_HS384 = Suite(SuiteId.A192CBC_HS384, "A192CBC-HS384", 48, 24)
A256CBC_HS512 = Suite(SuiteId.A256CBC_HS512, "A256CBC-HS512", 64, 32)
SUITES = {suite.id: suite for suite in (A128CBC_HS256, A192CBC_HS384, A256CBC_HS512)}
