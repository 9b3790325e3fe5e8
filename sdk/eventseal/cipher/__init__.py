"""Where the two paths meet: bytes and their place in, an envelope out, and back."""

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
