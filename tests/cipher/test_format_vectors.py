"""The format's vectors: the generator still writes them, the project reads them, and so does a stranger."""

from __future__ import annotations

import base64
import importlib.util
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from tests.fixtures.programs import find_program

from eventseal.cipher import AESCipher, FieldContext, ItemContext, Opened, inspect
from eventseal.cipher.context import ItemBinder, canonical_position, canonical_sequence_id
from eventseal.erasure import FileLedger
from eventseal.erasure.ledger.entries import key_record, sealed_line
from eventseal.errors import IntegrityError, ItemTooLargeError, SerializationError, UnknownFormatError
from eventseal.items.sealed_fields import stored_fields
from eventseal.keys import InMemoryKeyStore, Keyring
from eventseal.keys.authentication.row_macs import ScopeDigests, Seals
from eventseal.keys.data_key import DataKey, binding_of
from eventseal.keys.records import ChangeMark, KeyRecord
from eventseal.keys.revocation_tree import RevocationTree, ScopeState, node_digest
from eventseal.keys.source import StaticKey
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import branch_scope
from eventseal.kms import EncryptionContext, WrappedKey
from eventseal.suites.cbc_hmac import SUITES, ContextPool, open_many, seal_many
from eventseal.suites.hkdf import key_check_id
from eventseal_kms.local import LocalKmsAdapter

FOLDER = Path(__file__).parent.parent / "vectors" / "format"
READER = Path(__file__).parent / "second_reader.py"
ERRORS = {
    "unknown format": UnknownFormatError,
    "integrity error": IntegrityError,
    "too large": ItemTooLargeError,
}
READ = {
    "uuid": UUID,
    "text": str,
    "integer": int,
    "decimal": Decimal,
    "float": float,
    "boolean": bool,
    "none": lambda _: None,
}


def vectors(name):
    return json.loads((FOLDER / name).read_text())


def value(given):
    kind, text = given
    return READ[kind](text)


def cases(expect=None):
    found = vectors("items.json")["cases"]
    chosen = [case for case in found if expect in {None, case["expect"]}]
    assert chosen
    return chosen


def place_of(case):
    place = case["place"]
    return ItemContext(
        value(place["sequence_id"]), value(place["position"]), place["topic"], place["collection"]
    )


def data_key(case, *, purpose=KeyPurpose.DATA):
    return DataKey(
        bytes.fromhex(case["key"]),
        key_id=UUID(case["key_id"]),
        application=case.get("application") or case["place"]["application"],
        scope=case.get("scope", "application"),
        purpose=purpose,
        state=KeyState.ACTIVE,
    )


def test_the_files_are_what_the_generator_writes():
    spec = importlib.util.spec_from_file_location("format_generate", FOLDER / "generate.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written = generator.files()
    assert sorted(written) == sorted(path.name for path in FOLDER.glob("*.json"))
    for name, text in written.items():
        assert (FOLDER / name).read_text() == text


def test_the_vectors_cover_every_suite_and_compression():
    covered = {tuple(bytes.fromhex(case["sealed"])[1:3]) for case in cases("plaintext")}
    assert covered == {(suite, compression) for suite in (1, 2, 3) for compression in (0, 1, 2, 4)}
    assert {case["expect"] for case in cases()} == {"plaintext", *ERRORS}
    assert len({case["comment"] for case in cases()}) == len(cases())


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["comment"])
def test_every_item_ends_as_it_says(case, make_keys):
    keys = make_keys(case["place"]["application"])
    key = data_key(case)
    keys.by_id[key.key_id] = key
    (outcome,) = AESCipher(keys).open_many([(bytes.fromhex(case["sealed"]), place_of(case))])
    if case["expect"] == "plaintext":
        assert isinstance(outcome, Opened)
        assert outcome.plaintext.hex() == case["plaintext"]
    else:
        assert type(outcome) is ERRORS[case["expect"]]


@pytest.mark.parametrize("case", cases("plaintext"), ids=lambda case: case["comment"])
def test_every_good_item_is_sealed_again_to_the_same_bytes(case):
    sealed = bytes.fromhex(case["sealed"])
    suite = SUITES[inspect(sealed).suite]
    key = data_key(case)
    aad = sealed[:19] + ItemBinder(case["place"]["application"]).bind(place_of(case))
    assert aad.hex() == case["aad"]
    suite_key = key.derive(f"eventseal/v1/{suite.name}".encode(), suite.key_size)
    aes_key = suite_key[suite.key_size // 2 :]
    (opened,) = open_many(ContextPool(suite, suite_key), [(sealed[19:], aad)])
    random = Cipher(AES(aes_key), ECB()).decryptor().update(sealed[19:35])  # noqa: S305 - one block
    again = seal_many(ContextPool(suite, suite_key), [(opened, aad)], _random=lambda size: random)
    assert [sealed[:19] + body for body in again] == [sealed]


def test_static_keys_of_the_vectors_open_as_static_keys():
    for case in cases("plaintext"):
        if "static key" in case["comment"]:
            cipher = AESCipher(bytes.fromhex(case["key"]), application=case["place"]["application"])
            assert cipher.decrypt(bytes.fromhex(case["sealed"]), place_of(case)).hex() == case["plaintext"]


@pytest.mark.parametrize(
    ("kind", "canonical"), [("sequence_ids", canonical_sequence_id), ("positions", canonical_position)]
)
def test_canonical_values(kind, canonical):
    found = vectors("canonical.json")
    assert found[kind]
    for case in found[kind]:
        assert canonical(value(case["given"])).hex() == case["bytes"]
    assert found[f"refused_{kind}"]
    for given in found[f"refused_{kind}"]:
        with pytest.raises(SerializationError):
            canonical(value(given))


def test_static_key_ids_and_suite_keys():
    found = vectors("keys.json")
    for case in found["static_keys"]:
        key = bytes.fromhex(case["key"])
        assert str(key_check_id(key)) == str(StaticKey(key).key_id) == case["key_id"]
    by_name = {suite.name: suite for suite in SUITES.values()}
    assert {case["suite"] for case in found["suite_keys"]} == set(by_name)
    for case in found["suite_keys"]:
        suite = by_name[case["suite"]]
        key = data_key({**case, "application": "shop"})
        assert key.derive(f"eventseal/v1/{suite.name}".encode(), suite.key_size).hex() == case["suite_key"]
        sealed = seal_many(key.pool(suite), [(b"x", b"")])
        derived = ContextPool(suite, bytes.fromhex(case["suite_key"]))
        assert open_many(derived, [(sealed[0], b"")]) == [b"x"]


def test_bindings_and_seals():
    found = vectors("keys.json")
    for case in found["bindings"]:
        assert binding_of(data_key(case)).hex() == case["binding"]
    seals = seals_of_vectors()
    assert len(found["scopes"]) == 4
    for case in found["scopes"]:
        digests = ScopeDigests(SimpleNamespace(made_seals=lambda: seals), most=10)
        assert digests.of(case["scope"]) == case["stored"]
    assert len(found["rows"]) == 2
    for row in found["rows"]:
        record = KeyRecord(
            key_id=UUID(row["key_id"]),
            application=row["application"],
            scope=row["scope"],
            active_scope=row["active_scope"],
            purpose=KeyPurpose(row["purpose"]),
            state=KeyState(row["state"]),
            destroyed_by=row["destroyed_by"],
            row_version=row["row_version"],
            binding=bytes.fromhex(row["binding"]),
            seal=b"",
        )
        assert seals.sealed(record).seal.hex() == row["seal"]


def seals_of_vectors():
    store_key = {**vectors("keys.json")["store_key"], "application": "shop", "scope": "store"}
    return Seals(data_key(store_key, purpose=KeyPurpose.STORE))


def mark_of_vector(case):
    return ChangeMark(
        application=case["application"],
        counter=case["counter"],
        revoked=bytes.fromhex(case["revoked"]),
        seal=bytes.fromhex(case["seal"]),
    )


def test_change_marks_and_revocation_trees():
    seals, found = seals_of_vectors(), vectors("keys.json")["marks"]
    assert [(mark["counter"], len(mark["nodes"])) for mark in found] == [(0, 0), (1, 6), (2, 12)]
    for case in found:
        mark = mark_of_vector(case)
        seals.check_mark(mark)
        keys = [(UUID(key_id), how) for key_id, how in case["keys"]]
        scopes = {
            seals.scope_name(KeyPurpose(purpose), scope): ScopeState(closed, number)
            for purpose, scope, closed, number in case["scopes"]
        }
        nodes = {bytes.fromhex(path): bytes.fromhex(node) for path, node in case["nodes"].items()}
        empty = RevocationTree({}, node_digest(b""))
        assert empty.changed(keys, scopes) == nodes
        tree = RevocationTree(nodes, mark.revoked)
        assert {key_id: tree.how_revoked(key_id) for key_id, _ in keys} == dict(keys)
        assert {name: tree.scope_state(name) for name in scopes} == scopes


def test_change_marks_of_earlier_releases():
    seals, found = seals_of_vectors(), vectors("keys.json")["old_marks"]
    assert [len(mark["keys"]) for mark in found] == [0, 1, 2]
    for case in found:
        mark = mark_of_vector(case)
        assert seals.is_old(mark)
        assert seals.counts_old(mark, [(UUID(key_id), how) for key_id, how in case["keys"]])


def test_fields_are_found_and_opened_by_the_page(make_keys):
    found = vectors("fields.json")
    place = place_of(found)
    raw = json.loads(found["item"])
    stored = stored_fields(raw, {**raw, "originator_id": place.sequence_id})
    by_path = {field.path: field for field in stored}
    assert len(found["fields"]) == len(by_path) == 4
    for case in found["fields"]:
        field = by_path[case["path"]]
        assert field.scope == case["scope"]
        keys = make_keys(found["place"]["application"])
        key = data_key({**found, "scope": case["scope"]}, purpose=KeyPurpose.FIELD)
        keys.by_id[key.key_id] = key
        (opened,) = AESCipher(keys).open_fields(
            [(field.envelope, FieldContext(place, field.path, field.scope))]
        )
        assert opened.plaintext.decode() == case["plaintext"]


def test_fields_that_changed_their_place_or_subject_are_refused(make_keys):
    found = vectors("fields.json")
    place = place_of(found)
    assert len(found["refused"]) == 2
    for case in found["refused"]:
        raw = json.loads(case["item"])
        stored = stored_fields(raw, {**raw, "originator_id": place.sequence_id})
        (field,) = [field for field in stored if field.path == case["path"]]
        keys = make_keys(found["place"]["application"])
        key = data_key({**found, "scope": field.scope}, purpose=KeyPurpose.FIELD)
        keys.by_id[key.key_id] = key
        (outcome,) = AESCipher(keys).open_fields(
            [(field.envelope, FieldContext(place, field.path, field.scope))]
        )
        assert type(outcome) is IntegrityError, case["comment"]


def test_the_branches_of_scopes():
    found = vectors("keys.json")["branches"]
    assert len(found) == 8
    for case in found:
        assert branch_scope(case["application"], case["scope"], case["branches"]) == case["branch"]


@pytest.mark.filterwarnings("ignore::eventseal_kms.local.DevelopmentKeyWarning")
def test_a_key_wrapped_by_the_local_adapter(tmp_path):
    (case,) = vectors("wrapped.json")["local"]
    path = tmp_path / "kek"
    path.write_text(base64.b64encode(bytes.fromhex(case["kek"])).decode())
    path.chmod(0o600)
    adapter = LocalKmsAdapter(path)
    context = EncryptionContext(UUID(case["key_id"]), case["purpose"], case["application"])
    assert context.canonical().hex() == case["context"]
    assert adapter.uri == f"local://{case['kek_id']}"
    wrapped = WrappedKey(kek_uri=adapter.uri, kek_version=None, ciphertext=bytes.fromhex(case["wrapped"]))
    assert adapter.unwrap(wrapped, context).hex() == case["key"]


@pytest.mark.filterwarnings("ignore::eventseal_kms.local.DevelopmentKeyWarning")
def test_a_ledger_is_read_and_what_is_none_is_refused(tmp_path):
    found = vectors("ledger.json")
    path = tmp_path / "kek"
    path.write_text(base64.b64encode(bytes.fromhex(found["kek"])).decode())
    path.chmod(0o600)
    keyring = Keyring(LocalKmsAdapter(path), InMemoryKeyStore(), application=found["application"])
    store = SimpleNamespace(keyring=keyring)

    def read(name, lines):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        return list(FileLedger(tmp_path / name).entries(store))

    entries = read("good", found["lines"])
    assert [entry.kind for entry in entries] == ["created", "intent", "done", "reopen", "a kind of later"]
    assert entries[1].scope == "subject:caf\u00e9"
    assert [sealed_line(entry, keyring.ledger_keys.open(key_record(entries[0], where="entry 1")))
            for entry in entries] == [line.encode() for line in found["lines"]]  # fmt: skip
    assert len(found["refused"]) == 7
    for case in found["refused"]:
        with pytest.raises(IntegrityError):
            read(case["comment"], case["lines"])


def test_a_second_reader_written_from_the_page_alone_reads_the_same():
    find_program("openssl")  # it decrypts with this command
    done = subprocess.run(
        [sys.executable, "-I", "-S", READER, FOLDER], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    assert told["project"] == []
    for case, outcome in zip(cases(), told["items"], strict=True):
        if outcome == "zstd":
            assert bytes.fromhex(case["sealed"])[2] in {2, 4}
        else:
            assert outcome == case.get("plaintext", case["expect"]), case["comment"]
    fields = vectors("fields.json")
    assert told["fields"] == [case["plaintext"] for case in fields["fields"]]
    assert told["refused"] == ["integrity error"] * len(fields["refused"])
    assert told["items"].count("zstd") < len(told["items"]) / 5
    ledger = vectors("ledger.json")
    assert told["ledger"] == [
        [n, json.loads(line)["entry"]["kind"]] for n, line in enumerate(ledger["lines"], 1)
    ]
    assert told["refused_ledgers"] == ["integrity error"] * len(ledger["refused"])
    for kind, wrapped in vectors("wrapped.json").items():
        assert told["wrapped"][kind] == [case["key"] for case in wrapped]
