"""``eventseal inspect``: what an envelope says, in whatever form it is handed over, without a key."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from eventseal.cipher import AESCipher, ItemContext
from eventseal.cli.inspect_command import sealed_bytes

SEALED = AESCipher(bytes(range(16))).encrypt(b"x" * 100, ItemContext(uuid4(), 0, "t"), compress=False)
KEY_ID = str(UUID(bytes=SEALED[3:19]))


def test_a_file_of_bytes_is_shown(run):
    Path("item.bin").write_bytes(SEALED)
    shown = run("inspect", "item.bin").stdout
    facts = dict(line.split("  ", 1) for line in shown.splitlines())
    assert {name.strip(): value.strip() for name, value in facts.items()} == {
        "version": "1",
        "suite": "A128CBC-HS256",
        "compression": "none",
        "key id": KEY_ID,
        "size": str(len(SEALED)),
        "ciphertext size": "112",
    }


FORMS = {
    "bytes": SEALED,
    "hex": SEALED.hex().encode(),
    "upper-case hex with a newline": SEALED.hex().upper().encode() + b"\n",
    "psql": b"\\x" + SEALED.hex().encode() + b"\n",
    "0x": b"0x" + SEALED.hex().encode(),
    "sqlite3's quote": b"X'" + SEALED.hex().upper().encode() + b"'\n",
    "base64": base64.b64encode(SEALED) + b"\n",
    "base64 for URLs": base64.urlsafe_b64encode(SEALED),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_is_recognised(run, form):
    assert sealed_bytes(form) == SEALED
    Path("item").write_bytes(form)
    assert KEY_ID in run("inspect", "item").stdout
    assert KEY_ID in run("inspect", "-", input=form).stdout


def test_a_text_can_be_given_on_the_command_line(run_json):
    shown = run_json("inspect", "--text", SEALED.hex())
    assert shown == {
        "verb": "inspect",
        "version": 1,
        "suite": "A128CBC-HS256",
        "compression": "none",
        "key_id": KEY_ID,
        "size": len(SEALED),
        "ciphertext_size": 112,
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (SEALED[:-1], "cut"),
        (b"\x02" + SEALED[1:], "version 0x02"),
        (b"\x01\x11" + SEALED[2:], "reserved"),
        (b'{"amount": 5, "customer": "Ada"}', "version"),
        (b"", "0 bytes cannot be an envelope"),
    ],
)
def test_what_is_no_envelope_is_told_why(run, content, said):
    Path("item").write_bytes(content)
    result = run("inspect", "item", exits=1)
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["item", "--text", "00"],
        ["--table", "t"],
        ["--table", "t", "--sequence", "s"],
        ["--text", "00", "--position", "0"],
    ],
)
def test_exactly_one_envelope_is_asked_for(run, words):
    run("inspect", *words, exits=2)


def test_a_missing_file_is_named(run):
    assert "item.bin cannot be read" in run("inspect", "item.bin", exits=2).stderr


def row_of(item) -> list[str]:
    return [
        "--table",
        "integer_sequenced_items",
        "--sequence",
        str(item.sequence_id),
        "--position",
        str(item.position),
    ]


def test_a_row_is_shown_with_what_the_key_store_has_of_its_key(run_json, store):
    item = store(2)[1]
    Path("dev.key").unlink()  # it needs none
    shown = run_json("inspect", *row_of(item))
    assert shown["table"] == "integer_sequenced_items"
    assert shown["sequence_id"] == str(item.sequence_id)
    assert shown["position"] == "1"
    assert shown["topic"] == item.topic
    assert shown["key_id"] == shown["key_id_column"] == str(item.key_id)
    assert (shown["key_state"], shown["key_scope"], shown["key_application"]) == (
        "active",
        "application",
        "shop",
    )
    assert shown["wrapped_by"].startswith("local://")
    assert "Ada" not in json.dumps(shown)


def test_a_row_whose_column_was_edited_shows_both_ids(run, run_json, store, query):
    item = store()[0]
    query("UPDATE integer_sequenced_items SET key_id = NULL")
    shown = run_json("inspect", *row_of(item))
    assert (shown["key_id_column"], shown["key_id"]) == (None, str(item.key_id))
    assert "key id column    none" in run("inspect", *row_of(item)).stdout


def test_a_row_of_an_unknown_key_says_so(run_json, store, query):
    item = store()[0]
    query("UPDATE integer_sequenced_items SET data = ?", item.data[:3] + uuid4().bytes + item.data[19:])
    assert run_json("inspect", *row_of(item))["key_state"] == "not in the key store"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (["integer_sequenced_items", "STREAM", "99"], "there is no item at position 99"),
        (
            ["integer_sequenced_items", "STREAM", "first"],
            "'first' does not fit column position, whose type is integer",
        ),
        (
            ["integer_sequenced_items", "stream", "0"],
            "'stream' does not fit column sequence_id, whose type is uuid",
        ),
        (["integer_items", "STREAM", "0"], "there is no registered table integer_items"),
        (["timestamp_sequenced_items", "STREAM", "x"], "decimal"),
    ],
)
def test_a_row_that_is_not_there_is_told_why(run, store, place, said):
    item = store()[0]
    table, sequence, position = place
    words = [
        "--table",
        table,
        "--sequence",
        sequence.replace("STREAM", str(item.sequence_id)),
        "--position",
        position,
    ]
    assert said in run("inspect", *words, exits=2).stderr


def test_a_key_whose_row_cannot_be_read_is_said_to_be_so(run_json, store, query):
    item = store()[0]
    query("UPDATE eventseal_encryption_keys SET state = 'edited' WHERE purpose = 'data'")
    words = ("--table", "integer_sequenced_items", "--sequence", str(item.sequence_id), "--position", "0")
    assert run_json("inspect", *words)["key_state"] == "unreadable"
