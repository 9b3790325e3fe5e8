"""
A second reader of the format, written from ``docs/format.md`` alone: the standard library and ``openssl``.

``python -I -S second_reader.py FOLDER`` reads ``items.json``, ``fields.json``, ``ledger.json`` and
``wrapped.json`` there and prints, as JSON, what each case gives: the plaintext in hexadecimal, or the words
of ``expect``. Of the compressions it knows 0 and 1; items of compressions 2 and 4 it answers with ``zstd``.
It shares no code with the project.
"""

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import zlib
from decimal import Decimal
from pathlib import Path

SUITES = {
    1: ("A128CBC-HS256", 16, "sha256"),
    2: ("A192CBC-HS384", 24, "sha384"),
    3: ("A256CBC-HS512", 32, "sha512"),
}
HEADER_SIZE = 19


class UnknownFormatError(Exception):
    """The bytes are no envelope of version 1."""


class IntegrityError(Exception):
    """The item is not what was sealed."""


class TooLargeError(Exception):
    """The plaintext would be over the limit."""


def lp(*parts):
    framed = b""
    for part in parts:
        framed += len(part).to_bytes(4, "big") + part
    return framed


def hkdf(key, salt, info, size):
    pseudorandom = hmac.new(salt, key, hashlib.sha512).digest()
    output, last = b"", b""
    while len(output) < size:
        counter = bytes([len(output) // 64 + 1])
        last = hmac.new(pseudorandom, last + info + counter, hashlib.sha512).digest()
        output += last
    return output[:size]


def static_key_id(key):
    value = int.from_bytes(hkdf(key, bytes(64), b"eventseal/v1/static key id", 16), "big")
    value = value & ~(0xF << 76) | 0x8 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return value.to_bytes(16, "big")


def canonical(kind, text):
    if kind == "text" and not is_canonical_uuid(text):
        return b"\x02" + text.encode("utf-8")
    if kind in {"text", "uuid"}:
        return b"\x01" + bytes.fromhex(text.replace("-", ""))
    number = Decimal(text)
    if number == number.to_integral_value():
        return b"\x03" + int(number).to_bytes(8, "big", signed=True)
    whole, _, fraction = format(number, "f").partition(".")
    return b"\x04" + f"{whole}.{fraction.rstrip('0')}".encode()


def is_canonical_uuid(text):
    if len(text) != 36:
        return False
    hyphens = {8, 13, 18, 23}
    return all(
        letter == "-" if at in hyphens else letter in "0123456789abcdef" for at, letter in enumerate(text)
    )


def split(envelope):
    """Give suite, compression, key id, IV with ciphertext, and tag."""
    if len(envelope) < HEADER_SIZE:
        raise UnknownFormatError
    version, suite, compression = envelope[:3]
    if version != 1 or suite not in SUITES or compression not in {0, 1, 2, 4}:
        raise UnknownFormatError
    tag_size = SUITES[suite][1]
    body = envelope[HEADER_SIZE:-tag_size]
    ciphertext_size = len(envelope) - HEADER_SIZE - 16 - tag_size
    if ciphertext_size < 16 or ciphertext_size % 16:
        raise UnknownFormatError
    return suite, compression, envelope[3:HEADER_SIZE], body, envelope[-tag_size:]


def unseal(suite, suite_key, associated_data, body, tag):
    """Check the tag, then decrypt, then check the padding."""
    _, half, digest = SUITES[suite]
    bits = (8 * len(associated_data)).to_bytes(8, "big")
    expected = hmac.new(suite_key[:half], associated_data + body + bits, digest).digest()[:half]
    if not hmac.compare_digest(expected, tag):
        raise IntegrityError
    padded = aes_cbc(suite_key[half:], body[:16], body[16:])
    count = padded[-1]
    if not 1 <= count <= 16 or padded[-count:] != bytes([count]) * count:
        raise IntegrityError
    return padded[:-count]


def aes_cbc(key, iv, ciphertext):
    command = ["openssl", "enc", "-d", f"-aes-{8 * len(key)}-cbc", "-nopad", "-K", key.hex(), "-iv", iv.hex()]
    return subprocess.run(command, input=ciphertext, capture_output=True, check=True).stdout


def decompress(compression, data, limit):
    if compression == 1:
        stream = zlib.decompressobj()
        try:
            data = stream.decompress(data, limit + 1)
        except zlib.error:
            raise IntegrityError from None
        if len(data) <= limit and (not stream.eof or stream.unused_data):
            raise IntegrityError
    if len(data) > limit:
        raise TooLargeError
    return data


def open_item(case, limit):
    place = case["place"]
    key, key_id = bytes.fromhex(case["key"]), bytes.fromhex(case["key_id"].replace("-", ""))
    envelope = bytes.fromhex(case["sealed"])
    suite, compression, named, body, tag = split(envelope)
    is_static = key_id[6] >> 4 == 8
    if named != key_id or (is_static and static_key_id(key) != key_id):
        raise IntegrityError
    associated_data = envelope[:HEADER_SIZE] + lp(
        b"item",
        place["application"].encode("utf-8"),
        place["collection"].encode("utf-8"),
        canonical(*place["sequence_id"]),
        canonical(*place["position"]),
        place["topic"].encode("utf-8"),
    )
    name, half, _ = SUITES[suite]
    suite_key = hkdf(key, key_id, b"eventseal/v1/" + name.encode(), 2 * half)
    plaintext = unseal(suite, suite_key, associated_data, body, tag)
    if compression in {2, 4}:
        return "zstd"
    return decompress(compression, plaintext, limit).hex()


def unwrap(case):
    kek, kek_id = bytes.fromhex(case["kek"]), bytes.fromhex(case["kek_id"].replace("-", ""))
    envelope = bytes.fromhex(case["wrapped"])
    suite, compression, named, body, tag = split(envelope)
    if (suite, compression, named, len(envelope)) != (3, 0, kek_id, 115):
        raise IntegrityError
    names = [case[name].encode("utf-8") for name in ("application", "purpose")]
    if "scope" in case:
        key_id = bytes.fromhex(case["key_id"].replace("-", ""))
        bound = lp(b"wrapped-key", *names, case["scope"].encode("utf-8"), key_id)
    else:
        bound = lp(b"wrapped-key", lp(
            b"eventseal:application", names[0],
            b"eventseal:key-id", case["key_id"].encode(),
            b"eventseal:purpose", names[1],
        ))  # fmt: skip
    suite_key = hkdf(kek, kek_id, b"eventseal/v1/wrap/A256CBC-HS512", 64)
    return unseal(3, suite_key, envelope[:HEADER_SIZE] + bound, body, tag).hex()


def at(value, pointer):
    for step in pointer.split("/")[1:]:
        value = (
            value[int(step)] if isinstance(value, list) else value[step.replace("~1", "/").replace("~0", "~")]
        )
    return value


def open_field(found, text, path):
    place, item = found["place"], json.loads(text)
    pointer, encoded = at(item, path)["$sealed"]
    subject = at({"originator_id": {"$uuid": place["sequence_id"][1]}, **item}, pointer)
    if isinstance(subject, dict):
        subject = subject["$uuid"]
    envelope = base64.b64decode(encoded, validate=True)
    suite, compression, named, body, tag = split(envelope)
    if (compression, named) != (0, bytes.fromhex(found["key_id"].replace("-", ""))):
        raise IntegrityError
    associated_data = envelope[:HEADER_SIZE] + lp(
        b"field",
        place["application"].encode("utf-8"),
        place["collection"].encode("utf-8"),
        canonical(*place["sequence_id"]),
        canonical(*place["position"]),
        place["topic"].encode("utf-8"),
        path.encode("utf-8"),
        f"subject:{subject}".encode(),
    )
    name, half, _ = SUITES[suite]
    suite_key = hkdf(bytes.fromhex(found["key"]), named, b"eventseal/v1/" + name.encode(), 2 * half)
    return unseal(suite, suite_key, associated_data, body, tag).decode()


def read_ledger(found, lines):
    """Unwrap the ledger's key by what the last entry names, check every line, and give number and kind."""
    named = json.loads(lines[-1])["entry"]["wrapped_in"]
    kept = next(
        (entry for entry in (json.loads(line)["entry"] for line in lines) if entry["number"] == named), None
    )
    if kept is None:
        raise IntegrityError
    (wrapping,) = [
        one for one in kept["details"]["wrappings"] if one["kek_uri"] == "local://" + found["kek_id"]
    ]
    facts = {
        "application": found["application"], "purpose": "ledger", "key_id": kept["ledger"],
        "kek": found["kek"], "kek_id": found["kek_id"],
        "wrapped": base64.b64decode(wrapping["ciphertext"], validate=True).hex(),
    }  # fmt: skip
    key, key_id = bytes.fromhex(unwrap(facts)), bytes.fromhex(kept["ledger"].replace("-", ""))
    bound = lp(found["application"].encode("utf-8"), b"ledger", b"ledger")
    if hkdf(key, key_id, b"eventseal/v1/binding" + bound, 32).hex() != kept["details"]["binding"]:
        raise IntegrityError
    mac_key = hkdf(key, key_id, b"eventseal/v1/erasure ledger", 64)
    told, previous = [], ""
    for number, line in enumerate(lines, 1):
        whole = json.loads(line)
        entry = whole["entry"]
        mac = hmac.new(mac_key, canonical_json(entry), hashlib.sha512).digest()[:32]
        if canonical_json({"entry": entry, "mac": mac.hex()}) != line.encode("ascii"):
            raise IntegrityError
        if (entry["number"], entry["previous"]) != (number, previous):
            raise IntegrityError
        told.append([number, entry["kind"]])
        previous = hashlib.sha256(line.encode("ascii")).hexdigest()
    return told


def canonical_json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def outcome(opener, *arguments):
    try:
        return opener(*arguments)
    except UnknownFormatError:
        return "unknown format"
    except IntegrityError:
        return "integrity error"
    except TooLargeError:
        return "too large"


def main():
    folder = Path(sys.argv[1])
    items = json.loads((folder / "items.json").read_text())
    wrapped = json.loads((folder / "wrapped.json").read_text())
    fields = json.loads((folder / "fields.json").read_text())
    ledger = json.loads((folder / "ledger.json").read_text())
    print(json.dumps({
        "items": [outcome(open_item, case, items["limit"]) for case in items["cases"]],
        "fields": [outcome(open_field, fields, fields["item"], case["path"]) for case in fields["fields"]],
        "refused": [outcome(open_field, fields, case["item"], case["path"]) for case in fields["refused"]],
        "ledger": outcome(read_ledger, ledger, ledger["lines"]),
        "refused_ledgers": [outcome(read_ledger, ledger, case["lines"]) for case in ledger["refused"]],
        "wrapped": {kind: [outcome(unwrap, case) for case in cases] for kind, cases in wrapped.items()},
        "project": sorted(name for name in sys.modules if "eventseal" in name or "cryptography" in name),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
