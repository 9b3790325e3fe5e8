"""The table of suites: what RFC 7518 section 5.2 fixes for each."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from eventseal.suites.envelope import TAG_SIZES, SuiteId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.hashes import HashAlgorithm


@dataclass(frozen=True, slots=True, eq=False)
class Suite:
    """
    One row of the table of suites; there is one object of each, compared by identity.

    Attributes:
        id: Its byte in the envelope.
        name: As RFC 7518 has it; part of the key derivation.
        key_size: Bytes: the MAC key, then the AES key, half each.
        tag_size: Bytes: the first half of the HMAC.
        hash: Of the HMAC.
    """

    id: SuiteId
    name: str
    key_size: int
    tag_size: int
    hash: HashAlgorithm


def _suite(suite_id: SuiteId, name: str, key_size: int, algorithm: HashAlgorithm) -> Suite:
    return Suite(suite_id, name, key_size, TAG_SIZES[suite_id], algorithm)


A128CBC_HS256 = _suite(SuiteId.A128CBC_HS256, "A128CBC-HS256", 32, SHA256())
A192CBC_HS384 = _suite(SuiteId.A192CBC_HS384, "A192CBC-HS384", 48, SHA384())
A256CBC_HS512 = _suite(SuiteId.A256CBC_HS512, "A256CBC-HS512", 64, SHA512())

SUITES: Mapping[int, Suite] = MappingProxyType(
    {int(suite.id): suite for suite in (A128CBC_HS256, A192CBC_HS384, A256CBC_HS512)}
)
"""The suites that this release seals and opens with, by id."""
