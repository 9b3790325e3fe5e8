"""Where the two paths meet: bytes and their place in, an envelope out, and back."""

from eventseal.cipher.aes import AESCipher
from eventseal.cipher.context import ItemContext
from eventseal.cipher.envelopes import Compression, EventZstd, NoCompression, Opened, Zlib, Zstd
from eventseal.cipher.fields import FieldContext
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
