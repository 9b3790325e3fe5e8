"""
Writes the vectors of ``docs/format.md``. Uses no code of the project, so that both must agree with the page.

Run it without arguments to write the files beside it.
"""

from __future__ import annotations

import base64
import hmac
import json
import zlib
from decimal import Decimal
from hashlib import sha256, sha512
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

SUITES = {
    1: ("A128CBC-HS256", "sha256", 16),
    2: ("A192CBC-HS384", "sha384", 24),
    3: ("A256CBC-HS512", "sha512", 32),
}
DATA_KEY_ID = UUID("018bcfe5-687f-7fff-8fff-0123456789ab")
OTHER_KEY_ID = UUID("018bcfe5-687f-7fff-8fff-0123456789ac")
STREAM = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
TEXT = b'{"activity":"A_SUBMITTED","resource":"112","amount_requested":20000}' * 4
# Written down, not computed: compressors of other versions give other bytes for the same text.
TEXT_ZLIB = bytes.fromhex(
    "78daab564a4c2ec92ccb2ca954b252728c0f0e75f2f50c09717551d2512a4a2dce2f2d4a4e054a181a1a01051273f34b"
    "f34ae28b520b4b538b4b525394ac8c0c80a0b67a189901008d8a570d"
)
TEXT_ZSTD = bytes.fromhex(
    "28b52ffd6010006d020044047b226163746976697479223a22415f5355424d4954544544222c227265736f7572636522"
    "3a22313132222c22616d6f756e745f726571756573746564223a32303030307d010044f2a04214"
)

TEXT_EVENTS = bytes.fromhex(
    "28b52ffd601000950100b87b6976415f5355424d4954547265223131325f223a307d08fcc943c585f5bbfe84a33f6b57"
    "43d23b2098e49cdb22382007"
)
"""Made with the event dictionary."""


def pattern(start: int, size: int) -> bytes:
    """Bytes that look like nothing else in these files."""
    return bytes((start + 7 * n) % 256 for n in range(size))


def lp(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def hkdf(key: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    extracted = hmac.digest(salt or bytes(64), key, "sha512")
    derived = block = b""
    for count in range(1, -(-size // 64) + 1):
        block = hmac.digest(extracted, block + info + bytes([count]), "sha512")
        derived += block
    return derived[:size]


def static_key_id(key: bytes) -> UUID:
    value = bytearray(hkdf(key, b"", b"eventseal/v1/static key id", 16))
    value[6] = 0x80 | value[6] & 0x0F
    value[8] = 0x80 | value[8] & 0x3F
    return UUID(bytes=bytes(value))


def suite_key(key: bytes, key_id: UUID, suite: int, prefix: str = "eventseal/v1/") -> bytes:
    name, _, half = SUITES[suite]
    return hkdf(key, key_id.bytes, (prefix + name).encode(), 2 * half)


def sealed(key: bytes, suite: int, aad: bytes, iv: bytes, plaintext: bytes) -> bytes:
    """Give IV | ciphertext | tag under a suite key."""
    _, digest, half = SUITES[suite]
    count = 16 - len(plaintext) % 16
    context = Cipher(AES(key[half:]), CBC(iv)).encryptor()
    body = iv + context.update(plaintext + bytes([count]) * count) + context.finalize()
    return body + hmac.digest(key[:half], aad + body + (8 * len(aad)).to_bytes(8, "big"), digest)[:half]


# --- canonical values ------------------------------------------------------------------------------


def canonical(kind: str, value: str) -> bytes:
    """By the table of the page, from a typed value that is written as a person would write it."""
    if kind == "uuid":
        return b"\x01" + UUID(value).bytes
    if kind == "text":
        is_uuid = len(value) == 36 and set(value) <= set("0123456789abcdef-") and value.count("-") == 4
        if is_uuid and [len(piece) for piece in value.split("-")] == [8, 4, 4, 4, 12]:
            return b"\x01" + bytes.fromhex(value.replace("-", ""))
        return b"\x02" + value.encode()
    number = Decimal(value)
    if number == int(number):
        return b"\x03" + int(number).to_bytes(8, "big", signed=True)
    return b"\x04" + f"{number:f}".rstrip("0").encode()


SEQUENCE_IDS = [
    ("uuid", STREAM), ("text", STREAM), ("text", STREAM.upper()), ("text", STREAM.replace("-", "")),
    ("uuid", "00000000-0000-0000-0000-000000000000"), ("text", ""), ("text", "order-1"), ("text", "\u00e9"),
    ("text", "e\u0301"), ("text", "\U0001f511"), ("text", "-" * 36), ("text", STREAM + " "),
]  # fmt: skip
POSITIONS = [
    ("integer", "0"), ("integer", "1"), ("integer", "-1"),
    ("integer", str(2**63 - 1)), ("integer", str(-(2**63))),
    ("decimal", "0"), ("decimal", "-0"), ("decimal", "-0.000"), ("decimal", "1.000000"), ("decimal", "1E+3"),
    ("decimal", "0.5"), ("decimal", "-0.5"), ("decimal", "1.50"),
    ("decimal", "0.000001"), ("decimal", "1E-6"),
    ("decimal", "1317422324.546"), ("decimal", "-1317422324.546000"), ("decimal", "123.1000000000"),
]  # fmt: skip
REFUSED_SEQUENCE_IDS = [("text", "a\0b"), ("integer", "1"), ("none", "")]
REFUSED_POSITIONS = [
    ("integer", str(2**63)), ("integer", str(-(2**63) - 1)), ("decimal", "1E+19"), ("decimal", "0.0000001"),
    ("decimal", "NaN"), ("decimal", "Infinity"), ("decimal", "9223372036854775808.5"), ("float", "1.0"),
    ("boolean", "true"), ("text", "1"), ("none", ""),
]  # fmt: skip


def canonical_file() -> dict[str, Any]:
    return {
        "sequence_ids": [{"given": pair, "bytes": canonical(*pair).hex()} for pair in SEQUENCE_IDS],
        "positions": [{"given": pair, "bytes": canonical(*pair).hex()} for pair in POSITIONS],
        "refused_sequence_ids": REFUSED_SEQUENCE_IDS,
        "refused_positions": REFUSED_POSITIONS,
    }


# --- items -----------------------------------------------------------------------------------------

PLACE: dict[str, Any] = {
    "application": "shop",
    "collection": "items",
    "sequence_id": ("uuid", STREAM),
    "position": ("integer", "7"),
    "topic": "shop:Order.Placed",
}


def associated_data(header: bytes, place: dict[str, Any]) -> bytes:
    names = [place[name].encode() for name in ("application", "collection")]
    values = [canonical(*place[name]) for name in ("sequence_id", "position")]
    return header + lp(b"item", *names, *values, place["topic"].encode())


class Items:
    """Composes the cases of ``items.json``."""

    def __init__(self) -> None:
        self.cases: list[dict[str, Any]] = []

    def compose(
        self, *, key: bytes, key_id: UUID, suite: int, compression: int, body: bytes, place: dict[str, Any]
    ) -> tuple[bytes, bytes]:
        header = bytes([1, suite, compression]) + key_id.bytes
        iv = pattern(0x91 + len(self.cases), 16)
        aad = associated_data(header, place)
        return header + sealed(suite_key(key, key_id, suite), suite, aad, iv, body), aad

    def good(
        self,
        comment: str,
        plaintext: bytes,
        *,
        key: bytes,
        key_id: UUID,
        suite: int,
        compression: int = 0,
        body: bytes | None = None,
        **changed: Any,
    ) -> None:
        place = PLACE | changed
        body = plaintext if body is None else body
        whole, aad = self.compose(
            key=key, key_id=key_id, suite=suite, compression=compression, body=body, place=place
        )
        self.add(comment, "plaintext", key, key_id, whole, place, aad=aad.hex(), plaintext=plaintext.hex())

    def add(
        self,
        comment: str,
        expect: str,
        key: bytes,
        key_id: UUID,
        whole: bytes,
        place: dict[str, Any],
        **more: str,
    ) -> None:
        facts = {
            "comment": comment,
            "expect": expect,
            "key": key.hex(),
            "key_id": str(key_id),
            "place": place,
        }
        self.cases.append({**facts, **more, "sealed": whole.hex()})


def good_items(items: Items) -> None:
    data_key = pattern(0x21, 32)
    for size, suite in ((16, 1), (24, 2), (32, 3)):
        key = pattern(size, size)
        static = {"key": key, "key_id": static_key_id(key), "suite": suite}
        for length in (0, 1, 15, 16, 17, 32):
            items.good(f"static key of {size} bytes, {length} bytes of plaintext", TEXT[:length], **static)
        items.good(f"static key of {size} bytes, zlib", TEXT, compression=1, body=TEXT_ZLIB, **static)
    for suite in SUITES:
        data = {"key": data_key, "key_id": DATA_KEY_ID, "suite": suite}
        items.good(f"data key, suite {suite}", TEXT, **data)
        items.good(f"data key, suite {suite}, zlib", TEXT, compression=1, body=TEXT_ZLIB, **data)
        items.good(f"data key, suite {suite}, zstd", TEXT, compression=2, body=TEXT_ZSTD, **data)
        events = f"data key, suite {suite}, event dictionary"
        items.good(events, TEXT, compression=4, body=TEXT_EVENTS, **data)
    data = {"key": data_key, "key_id": DATA_KEY_ID, "suite": 3}
    for pair in SEQUENCE_IDS:
        items.good(f"sequence id {pair[1]!a} as {pair[0]}", TEXT[:20], sequence_id=pair, **data)
    for pair in POSITIONS:
        items.good(f"position {pair[1]} as {pair[0]}", TEXT[:20], position=pair, **data)
    items.good("a snapshot", TEXT[:20], collection="snapshots", **data)
    items.good("names outside ASCII", TEXT[:20], application="caf\u00e9", topic="\u4e8b\u4ef6", **data)
    items.good("empty names", TEXT[:20], collection="", topic="", **data)


def items_that_must_not_open(items: Items) -> None:
    key, key_id = pattern(0x21, 32), DATA_KEY_ID
    facts: dict[str, Any] = {"key": key, "key_id": key_id, "suite": 3, "place": PLACE}
    whole, _ = items.compose(**facts, compression=0, body=TEXT)

    def bad(comment: str, expect: str, changed: bytes, **moved: Any) -> None:
        items.add(comment, expect, key, key_id, changed, PLACE | moved)

    for name, other in (
        ("application", "shops"), ("collection", "snapshots"), ("topic", "shop:Order.Paid"),
        ("sequence_id", ("text", "orders")), ("position", ("integer", "8")), ("position", ("decimal", "7.5")),
    ):  # fmt: skip
        comment = f"opened at another {name.replace('_', ' ')}, {other!a}"
        bad(comment, "integrity error", whole, **{name: other})
    moved = {"collection": "itemss", "topic": "hop:Order.Placed"}
    bad("text moved from topic to collection", "integrity error", whole, **moved)
    bad("one bit of the IV", "integrity error", flipped(whole, 19))
    bad("one bit of the ciphertext", "integrity error", flipped(whole, 35))
    bad("one bit of the tag", "integrity error", flipped(whole, len(whole) - 1))
    bad("one block less", "integrity error", whole[:35] + whole[51:])
    bad("compression changed", "integrity error", whole[:2] + b"\x01" + whole[3:])
    for offset, value in ((0, 0), (0, 2), (1, 0), (1, 4), (1, 0x11), (2, 3), (2, 5), (2, 0x10)):
        changed = whole[:offset] + bytes([value]) + whole[offset + 1 :]
        bad(f"byte {offset} is {value:02x}", "unknown format", changed)
    for size in (0, 1, 18, 19, 35, 66, 82, len(whole) - 1, len(whole) - 15):
        bad(f"cut to {size} bytes", "unknown format", whole[:size])
    for comment, compression, body in (
        ("zlib, a byte behind", 1, TEXT_ZLIB + b"\0"),
        ("zlib, cut", 1, TEXT_ZLIB[:-1]),
        ("zlib, wrong checksum", 1, flipped(TEXT_ZLIB, len(TEXT_ZLIB) - 1)),
        ("zlib, not zlib", 1, TEXT[:20]),
        ("zstd, a byte behind", 2, TEXT_ZSTD + b"\0"),
        ("zstd, cut", 2, TEXT_ZSTD[:-1]),
        ("zstd, no declared size", 2, bytes.fromhex("28b52ffd0058310000616263646566")),
        ("zstd, nothing in it", 2, bytes.fromhex("28b52ffd2000010000")),
        ("zstd, made with the event dictionary", 2, TEXT_EVENTS),
        ("event dictionary, a byte behind", 4, TEXT_EVENTS + b"\0"),
        ("event dictionary, cut", 4, TEXT_EVENTS[:-1]),
    ):
        bad(comment, "integrity error", items.compose(**facts, compression=compression, body=body)[0])
    declared = bytes.fromhex("28b52ffda0") + (2**24 + 1).to_bytes(4, "little") + bytes.fromhex("010000")
    bad("zstd, declares too much", "too large", items.compose(**facts, compression=2, body=declared)[0])
    too_much = items.compose(**facts, compression=4, body=declared)[0]
    bad("event dictionary, declares too much", "too large", too_much)


# --- fields ------------------------------------------------------------------------------------------

FIELDS = [
    ("an attribute", "/email", "/customer_id", "subject:c-1", '"ann@example.org"'),
    ("an element of a list", "/aliases/1", "/customer_id", "subject:c-1", '"Countess"'),
    ("in a dataclass in a list", "/contacts/0/$dataclass/1/phone", "/contacts/0/$dataclass/1/customer",
     "subject:7", "null"),
    ("under a key of a dictionary", "/by_key/a~1b~0c", "/originator_id", f"subject:{STREAM}", '["\u00e9"]'),
]  # fmt: skip


def fields_file() -> dict[str, Any]:
    item = {
        "customer_id": "c-1", "email": None, "aliases": ["first", None], "by_key": {"a/b~c": None},
        "contacts": [{"$dataclass": ["shop:Contact", {"customer": 7, "phone": None}]}],
    }  # fmt: skip
    key = pattern(0x21, 32)
    cases: list[dict[str, Any]] = []
    for number, (comment, path, subject, scope, text) in enumerate(FIELDS):
        whole = field(key, path, scope, text.encode(), number)
        put(item, path, {"$sealed": [subject, base64.b64encode(whole).decode()]})
        cases.append({"comment": comment, "path": path, "scope": scope, "plaintext": text})
    swapped = json.loads(json.dumps(item))
    put(swapped, "/email", item["aliases"][1])
    put(swapped, "/aliases/1", item["email"])
    another = json.loads(json.dumps(item)) | {"customer_id": "c-2"}
    refused = [
        {"comment": "two fields changed places", "item": json.dumps(swapped), "path": "/email"},
        {"comment": "another subject", "item": json.dumps(another), "path": "/email"},
    ]
    facts = {"key": key.hex(), "key_id": str(DATA_KEY_ID), "place": PLACE, "item": json.dumps(item)}
    return {**facts, "fields": cases, "refused": refused}


def field(key: bytes, path: str, scope: str, plaintext: bytes, number: int) -> bytes:
    header = bytes([1, 3, 0]) + DATA_KEY_ID.bytes
    names = [PLACE[name].encode() for name in ("application", "collection")]
    values = [canonical(*PLACE[name]) for name in ("sequence_id", "position")]
    bound = lp(b"field", *names, *values, PLACE["topic"].encode(), path.encode(), scope.encode())
    iv = pattern(0x31 + number, 16)
    return header + sealed(suite_key(key, DATA_KEY_ID, 3), 3, header + bound, iv, plaintext)


def put(item: Any, path: str, value: Any) -> None:
    *steps, last = [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]
    for step in steps:
        item = item[int(step) if isinstance(item, list) else step]
    item[int(last) if isinstance(item, list) else last] = value


def flipped(whole: bytes, offset: int) -> bytes:
    return whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :]


def items_file() -> dict[str, Any]:
    assert zlib.decompress(TEXT_ZLIB) == TEXT
    items = Items()
    good_items(items)
    items_that_must_not_open(items)
    return {"limit": 2**24, "cases": items.cases}


# --- keys ------------------------------------------------------------------------------------------


def keys_file() -> dict[str, Any]:
    key, store_key = pattern(0x21, 32), pattern(0x5C, 32)
    binding_info = b"eventseal/v1/binding" + lp(b"shop", b"data", b"tenant:acme")
    binding = hkdf(key, DATA_KEY_ID.bytes, binding_info, 32)
    row: dict[str, Any] = {
        "key_id": str(DATA_KEY_ID), "application": "shop", "purpose": "data", "scope": "tenant:acme",
        "active_scope": "tenant:acme", "state": "active", "destroyed_by": None, "row_version": 1,
        "binding": binding.hex(),
    }  # fmt: skip
    gone = {"active_scope": None, "state": "destroyed", "destroyed_by": "retired", "row_version": 3}
    return {
        "static_keys": [
            {"key": pattern(size, size).hex(), "key_id": str(static_key_id(pattern(size, size)))}
            for size in (16, 24, 32)
        ],
        "suite_keys": [
            {"key": key.hex(), "key_id": str(DATA_KEY_ID), "suite": SUITES[suite][0],
             "suite_key": suite_key(key, DATA_KEY_ID, suite).hex()}
            for suite in SUITES
        ],
        "bindings": [
            {"key": key.hex(), "key_id": str(DATA_KEY_ID), "application": "shop", "purpose": "data",
             "scope": "tenant:acme", "binding": binding.hex()}
        ],
        "branches": [
            branch("shop", scope, branches)
            for scope in ("subject:customer-42", "caf\u00e9") for branches in (1, 16, 1000, 4096)
        ],
        "store_key": {"key": store_key.hex(), "key_id": str(OTHER_KEY_ID)},
        "scopes": [
            {"scope": scope, "stored": stored_scope(store_key, scope)}
            for scope in ("subject:ada@example.org", "stream:a:b", ":caf\u00e9", "application")
        ],
        "rows": [{**facts, "seal": row_seal(store_key, facts).hex()} for facts in (row, row | gone)],
        "marks": [
            mark(store_key, counter, REVOKED_KEYS[: 2 * counter], REVOKED_SCOPES[: 3 * counter // 2])
            for counter in (0, 1, 2)
        ],
        "old_marks": [old_mark(store_key, counter, REVOKED_KEYS[:counter]) for counter in (0, 1, 2)],
    }  # fmt: skip


def branch(application: str, scope: str, branches: int) -> dict[str, Any]:
    digest = sha512(lp(application.encode(), scope.encode())).digest()
    facts = {"application": application, "scope": scope, "branches": branches}
    return {**facts, "branch": f"branch:{int.from_bytes(digest, 'big') % branches}"}


def stored_scope(store_key: bytes, scope: str) -> str:
    kind, colon, _ = scope.partition(":")
    digest_key = hkdf(store_key, OTHER_KEY_ID.bytes, b"eventseal/v1/scope digest", 64)
    digest = base64.urlsafe_b64encode(hmac.digest(digest_key, scope.encode(), "sha256")).decode()
    return f"{kind}:~{digest.rstrip('=')}" if colon else scope


def row_seal(store_key: bytes, row: dict[str, Any]) -> bytes:
    seal_key = hkdf(store_key, OTHER_KEY_ID.bytes, b"eventseal/v1/row seal", 64)
    columns = ("application", "purpose", "scope", "active_scope", "state", "destroyed_by")
    names = [(row[name] or "").encode() for name in columns]
    version = row["row_version"].to_bytes(8, "big", signed=True)
    message = lp(UUID(row["key_id"]).bytes, *names, version, bytes.fromhex(row["binding"]))
    return hmac.digest(seal_key, message, sha512)[:32]


REVOKED_KEYS = [
    (DATA_KEY_ID, "compromised"), (OTHER_KEY_ID, "shredded"),
    (DATA_KEY_ID, "retired"), (UUID("018bcfe5-687f-7fff-8fff-00000000cdab"), "compromised"),
]  # fmt: skip
REVOKED_SCOPES = [
    ("data", "subject:caf\u00e9", True, 1),
    ("field", "subject:caf\u00e9", False, 2),
    ("data", "", False, 0),
]


def mark(
    store_key: bytes,
    counter: int,
    keys: list[tuple[UUID, str]],
    scopes: list[tuple[str, str, bool, int]],
) -> dict[str, Any]:
    tree_key = hkdf(store_key, OTHER_KEY_ID.bytes, b"eventseal/v2/revocation tree", 64)
    mark_key = hkdf(store_key, OTHER_KEY_ID.bytes, b"eventseal/v2/change mark", 64)
    leaves: dict[bytes, set[bytes]] = {}
    for key_id, how in keys:
        branch, leaf = key_id.bytes[14:]
        leaves.setdefault(bytes([branch % 128, leaf]), set()).add(key_id.bytes[3:14] + how[:1].encode())
    for purpose, scope, closed, number in scopes:
        name = hmac.digest(tree_key, lp(b"scope", purpose.encode(), scope.encode()), sha256)[:10]
        branch, leaf = name[8:]
        entry = name[:8] + (2 * number + closed).to_bytes(4, "big")
        leaves.setdefault(bytes([branch % 128 + 128, leaf]), set()).add(entry)
    nodes = {path: b"".join(sorted(entries)) for path, entries in leaves.items()}
    for size in (2, 1):
        for path in sorted(path for path in nodes if len(path) == size):
            nodes[path[:-1]] = nodes.get(path[:-1], b"") + path[-1:] + sha256(nodes[path]).digest()
    revoked = sha256(nodes.get(b"", b"")).digest()
    seal = hmac.digest(mark_key, lp(b"shop", counter.to_bytes(8, "big"), revoked), "sha512")[:32]
    return {
        "application": "shop", "counter": counter,
        "keys": [[str(key_id), how] for key_id, how in keys],
        "scopes": [list(entry) for entry in scopes],
        "nodes": {path.hex(): nodes[path].hex() for path in sorted(nodes)},
        "revoked": revoked.hex(), "seal": seal.hex(),
    }  # fmt: skip


def old_mark(store_key: bytes, counter: int, keys: list[tuple[UUID, str]]) -> dict[str, Any]:
    """Make a mark of the releases before the revocation tree."""
    revoked_key = hkdf(store_key, OTHER_KEY_ID.bytes, b"eventseal/v1/revoked", 64)
    mark_key = hkdf(store_key, OTHER_KEY_ID.bytes, b"eventseal/v1/change mark", 64)
    members = [key_id.bytes + (b"shredded" if how == "shredded" else b"") for key_id, how in keys]
    total = sum(int.from_bytes(hmac.digest(revoked_key, member, "sha512"), "big") for member in members)
    revoked = (total % 2**512).to_bytes(64, "big")
    seal = hmac.digest(mark_key, lp(b"shop", counter.to_bytes(8, "big"), revoked), "sha512")[:32]
    facts = {"application": "shop", "counter": counter, "keys": [[str(key_id), how] for key_id, how in keys]}
    return {**facts, "revoked": revoked.hex(), "seal": seal.hex()}


# --- the erasure ledger ------------------------------------------------------------------------------

MOMENT = "2023-11-14T22:13:20+00:00"


def ledger_file() -> dict[str, Any]:
    key, kek = pattern(0x6D, 32), pattern(0xE3, 32)
    kek_id = static_key_id(kek)
    context = lp(
        b"eventseal:application", b"shop", b"eventseal:key-id", str(OTHER_KEY_ID).encode(),
        b"eventseal:purpose", b"ledger",
    )  # fmt: skip
    binding_info = b"eventseal/v1/binding" + lp(b"shop", b"ledger", b"ledger")
    ciphertext = wrapped(kek, kek_id, lp(b"wrapped-key", context), key)
    wrapping = {
        "kek_uri": f"local://{kek_id}", "kek_version": None,
        "ciphertext": base64.b64encode(ciphertext).decode(),
    }  # fmt: skip
    created = {
        "binding": hkdf(key, OTHER_KEY_ID.bytes, binding_info, 32).hex(),
        "wrappings": [wrapping],
    }
    scope, keys = "subject:caf\u00e9", {str(DATA_KEY_ID): "data"}
    done = {"destroyed": 1, "intents": [2], "items": {"items": {"erased": 3}}}
    lines: list[str] = []
    for entry in (
        {"kind": "created", "details": created},
        {"kind": "intent", "scope": scope, "keys": keys, "open": [2]},
        {"kind": "done", "scope": scope, "keys": keys, "details": done},
        {"kind": "reopen", "scope": scope, "keys": keys},
        {"kind": "a kind of later", "details": {"text": 'a "quoted" \x01\n\x7f \U0001f511'}},
    ):
        lines.append(ledger_line(key, lines, **entry))
    forged = ledger_line(pattern(0x11, 32), lines[:2], kind="reopen", scope=scope)
    refused = [
        ("an entry was edited", [*lines[:2], lines[2].replace('"destroyed":1', '"destroyed":0')]),
        ("an entry was left out", [lines[0], *lines[2:]]),
        ("the first entry was left out", lines[1:]),
        ("two entries changed places", [*lines[:2], lines[3], lines[2]]),
        ("an entry under another key", [*lines[:2], forged]),
        ("an entry that is written otherwise", [lines[0], lines[1].replace('":', '": ', 1)]),
        ("an entry twice", [*lines[:2], lines[1]]),
    ]
    return {
        "application": "shop", "key_id": str(OTHER_KEY_ID), "key": key.hex(),
        "kek": kek.hex(), "kek_id": str(kek_id), "lines": lines,
        "refused": [{"comment": comment, "lines": changed} for comment, changed in refused],
    }  # fmt: skip


def ledger_line(key: bytes, before: list[str], **changed: Any) -> str:
    entry = {
        "number": len(before) + 1, "application": "shop", "ledger": str(OTHER_KEY_ID), "at": MOMENT,
        "scope": None, "keys": {}, "details": {}, "open": [], "wrapped_in": 1,
        "previous": sha256(before[-1].encode()).hexdigest() if before else "",
        **changed,
    }  # fmt: skip
    mac_key = hkdf(key, OTHER_KEY_ID.bytes, b"eventseal/v1/erasure ledger", 64)
    mac = hmac.digest(mac_key, compact(entry).encode(), "sha512")[:32]
    return compact({"entry": entry, "mac": mac.hex()})


def compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def wrapped_file() -> dict[str, Any]:
    key = pattern(0x21, 32)
    facts = {"key": key.hex(), "key_id": str(DATA_KEY_ID), "application": "shop", "purpose": "data"}
    kek, branch = pattern(0xE3, 32), pattern(0xB7, 32)
    context = lp(
        b"eventseal:application", b"shop", b"eventseal:key-id", str(DATA_KEY_ID).encode(),
        b"eventseal:purpose", b"data",
    )  # fmt: skip
    bound = lp(b"shop", b"data", b"tenant:acme", DATA_KEY_ID.bytes)
    return {
        "local": [
            {**facts, "kek": kek.hex(), "kek_id": str(static_key_id(kek)), "context": context.hex(),
             "wrapped": wrapped(kek, static_key_id(kek), lp(b"wrapped-key", context), key).hex()}
        ],
        "branch": [
            {**facts, "scope": "tenant:acme", "kek": branch.hex(), "kek_id": str(OTHER_KEY_ID),
             "wrapped": wrapped(branch, OTHER_KEY_ID, lp(b"wrapped-key") + bound, key).hex()}
        ],
    }  # fmt: skip


def wrapped(kek: bytes, kek_id: UUID, bound: bytes, key: bytes) -> bytes:
    header = bytes([1, 3, 0]) + kek_id.bytes
    derived = suite_key(kek, kek_id, 3, "eventseal/v1/wrap/")
    return header + sealed(derived, 3, header + bound, pattern(0x44, 16), key)


def files() -> dict[str, str]:
    """The files by name, as text."""
    contents = {
        "canonical.json": canonical_file(),
        "fields.json": fields_file(),
        "items.json": items_file(),
        "keys.json": keys_file(),
        "ledger.json": ledger_file(),
        "wrapped.json": wrapped_file(),
    }
    return {name: json.dumps(content, indent=1) + "\n" for name, content in contents.items()}


if __name__ == "__main__":
    for file_name, text in files().items():
        (Path(__file__).parent / file_name).write_text(text)
