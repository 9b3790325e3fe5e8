"""
Writes the project's own negative vectors: what the public sets lack. Uses no code of the project.

Each case has associated data and IV | ciphertext | tag; ``expect`` is ``plaintext`` or ``integrity error``.
Run it without arguments to write the files beside it.
"""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

SUITES = {
    "A128CBC-HS256": ("sha256", 32, 16),
    "A192CBC-HS384": ("sha384", 48, 24),
    "A256CBC-HS512": ("sha512", 64, 32),
}
IV = bytes(range(0xA0, 0xB0))
AAD = bytes(range(0x30, 0x50))
TEXT = b"an item of thirty-seven bytes, padded"
BLOCK = 16


class Writer:
    """Composes items of one suite by hand, right or wrong in one place."""

    def __init__(self, name: str) -> None:
        self.digest, key_size, self.tag_size = SUITES[name]
        self.key = bytes((3 * n + len(name)) % 256 for n in range(key_size))
        self.mac_key, self.enc_key = self.key[: key_size // 2], self.key[key_size // 2 :]
        self.cases: list[dict[str, Any]] = []

    def encrypt(self, padded: bytes, iv: bytes = IV) -> bytes:
        context = Cipher(AES(self.enc_key), CBC(iv)).encryptor()
        return context.update(padded) + context.finalize()

    def mac(self, message: bytes, *, key: bytes | None = None) -> bytes:
        return hmac.digest(key or self.mac_key, message, self.digest)

    def tag(self, body: bytes, aad: bytes = AAD) -> bytes:
        return self.mac(aad + body + bits(aad))[: self.tag_size]

    def add(self, comment: str, sealed: bytes, *, aad: bytes = AAD, plaintext: bytes | None = None) -> None:
        case: dict[str, Any] = {"comment": comment, "aad": aad.hex(), "sealed": sealed.hex()}
        case["expect"] = "integrity error" if plaintext is None else "plaintext"
        if plaintext is not None:
            case["plaintext"] = plaintext.hex()
        self.cases.append(case)


def bits(aad: bytes) -> bytes:
    return (8 * len(aad)).to_bytes(8, "big")


def padded(text: bytes) -> bytes:
    count = BLOCK - len(text) % BLOCK
    return text + bytes([count]) * count


def good_items(writer: Writer) -> None:
    for size in (0, 1, 15, 16, 17, 37):
        body = IV + writer.encrypt(padded(TEXT[:size]))
        writer.add(f"good, {size} bytes", body + writer.tag(body), plaintext=TEXT[:size])
    body = IV + writer.encrypt(padded(TEXT))
    writer.add("good, no associated data", body + writer.tag(body, b""), aad=b"", plaintext=TEXT)


def bad_padding_under_a_valid_tag(writer: Writer) -> None:
    def add(comment: str, blocks: bytes) -> None:
        body = IV + writer.encrypt(blocks)
        writer.add(f"valid tag, padding: {comment}", body + writer.tag(body))

    text = TEXT[:20]
    for last in (0, 17, 32, 128, 255):
        add(f"last byte {last}", text + bytes([last]) * 12)
        add(f"one block, last byte {last}", bytes([last]) * 16)
    for wrong in range(11):
        blocks = bytearray(padded(text))
        blocks[20 + wrong] ^= 1
        add(f"byte {wrong} of 12 is wrong", bytes(blocks))
    for wrong in (0, 7, 14):
        blocks = bytearray(padded(TEXT[:16]))
        blocks[16 + wrong] ^= 0x80
        add(f"byte {wrong} of 16 is wrong", bytes(blocks))
    add("longer than the only block allows", bytes(15) + b"\x11")
    add("ISO 7816-4 instead", text + b"\x80" + bytes(11))
    add("ANSI X9.23 instead", text + bytes(11) + b"\x0c")


def bad_shapes_under_a_valid_tag(writer: Writer) -> None:
    for comment, body in (
        ("no ciphertext", IV),
        ("no IV", b""),
        ("half an IV", IV[:8]),
        ("a ciphertext of 8 bytes", IV + bytes(8)),
        ("a ciphertext of 17 bytes", IV + writer.encrypt(padded(b"")) + b"\0"),
    ):
        writer.add(f"valid tag over {comment}", body + writer.tag(body))


def bad_tags(writer: Writer) -> None:
    body = IV + writer.encrypt(padded(TEXT))
    whole = writer.mac(AAD + body + bits(AAD))
    tag = whole[: writer.tag_size]
    for size in (0, 1, writer.tag_size // 2, writer.tag_size - 1):
        writer.add(f"tag cut to {size} bytes", body + tag[:size])
    writer.add("whole HMAC instead of its first half", body + whole)
    writer.add("second half of the HMAC", body + whole[writer.tag_size :])
    writer.add("first 12 bytes right, the rest zero", body + tag[:12] + bytes(writer.tag_size - 12))
    writer.add("all zero", body + bytes(writer.tag_size))
    writer.add("no length of the associated data", body + writer.mac(AAD + body)[: writer.tag_size])
    in_bytes = len(AAD).to_bytes(8, "big")
    writer.add("length in bytes, not bits", body + writer.mac(AAD + body + in_bytes)[: writer.tag_size])
    little = (8 * len(AAD)).to_bytes(8, "little")
    writer.add("length little-endian", body + writer.mac(AAD + body + little)[: writer.tag_size])
    writer.add("IV left out", body + writer.mac(AAD + body[16:] + bits(AAD))[: writer.tag_size])
    plain = writer.mac(AAD + IV + TEXT + bits(AAD))[: writer.tag_size]
    writer.add("MAC over the plaintext", body + plain)
    halves = writer.mac(AAD + body + bits(AAD), key=writer.enc_key)[: writer.tag_size]
    writer.add("MAC under the AES key", body + halves)


def moved_bytes(writer: Writer) -> None:
    body = IV + writer.encrypt(padded(TEXT))
    tag = writer.tag(body)
    for count in (1, 8, 16):
        writer.add(f"{count} bytes moved from the IV to the end of the associated data",
                   body[count:] + tag, aad=AAD + body[:count])  # fmt: skip
        writer.add(f"{count} bytes moved from the associated data to the IV",
                   AAD[-count:] + body + tag, aad=AAD[:-count])  # fmt: skip
    writer.add("all associated data moved before the IV", AAD + body + tag, aad=b"")
    writer.add("the length moved into the ciphertext", body + bits(AAD) + bytes(8) + tag)
    for comment, aad in (("one byte less", AAD[:-1]), ("one byte more", AAD + b"\0"), ("none", b"")):
        writer.add(f"associated data: {comment}", body + tag, aad=aad)


def files() -> dict[str, str]:
    """The files by name, as text."""
    written = {}
    for name in SUITES:
        writer = Writer(name)
        for add in (
            good_items,
            bad_padding_under_a_valid_tag,
            bad_shapes_under_a_valid_tag,
            bad_tags,
            moved_bytes,
        ):
            add(writer)
        content = {"suite": name, "key": writer.key.hex(), "cases": writer.cases}
        written[f"{name.lower().replace('-', '_')}.json"] = json.dumps(content, indent=1) + "\n"
    return written


if __name__ == "__main__":
    for file_name, text in files().items():
        (Path(__file__).parent / file_name).write_text(text)
