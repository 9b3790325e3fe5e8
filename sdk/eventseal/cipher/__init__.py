"""The cipher, which seals plaintext under keys into envelopes, and opens them."""

from eventseal.cipher.aes import AESCipher
from eventseal.cipher.compression import Compression, EventZstd, NoCompression, Zlib, Zstd
from eventseal.cipher.context import ItemContext
from eventseal.cipher.envelopes import FieldContext, Opened
from eventseal.suites.envelope import EnvelopeInfo
from eventseal.suites.envelope import parse_envelope as inspect

__all__ = [
    "AESCipher",
    "Compression",
    "EnvelopeInfo",
    "EventZstd",
    "FieldContext",
    "ItemContext",
    "NoCompression",
    "Opened",
    "Zlib",
    "Zstd",
    "inspect",
]
