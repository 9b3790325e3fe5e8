"""The local adapter: its wrappings to the byte, what it refuses, and that it says what it is."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from eventseal.errors import ConfigurationError, IntegrityError, NotMyKeyError
from eventseal.kms import EncryptionContext, KmsAdapter, SupportsBatch, SupportsCheck, adapter_from_uri
from eventseal_kms import local
from eventseal_kms.local import DevelopmentKeyWarning, LocalKmsAdapter

KEY = bytes(range(32))
CONTEXT = EncryptionContext(UUID("01890000-0000-7000-8000-000000000001"), "data", "shop")


@pytest.fixture(autouse=True)
def _no_development_warning(request):
    if "warns" in request.node.name:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DevelopmentKeyWarning)
        yield


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "dev.key"
    path.write_bytes(base64.b64encode(KEY) + b"\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def adapter(path):
    return LocalKmsAdapter(path)


def hkdf(key: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-512 from the standard library alone."""
    pseudorandom = hmac.digest(salt or bytes(64), key, "sha512")
    block = output = b""
    for counter in range(1, -(-length // 64) + 1):
        block = hmac.digest(pseudorandom, block + info + bytes([counter]), "sha512")
        output += block
    return output[:length]


def framed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4) + part for part in parts)


def test_a_wrapping_is_what_the_format_says(adapter):
    """Opened here by the published construction, without any code of the SDK."""
    wrapped = adapter.wrap(b"k" * 32, CONTEXT)
    sealed = wrapped.ciphertext
    key_id = bytearray(hkdf(KEY, salt=b"", info=b"eventseal/v1/static key id", length=16))
    key_id[6], key_id[8] = 0x80 | key_id[6] & 0x0F, 0x80 | key_id[8] & 0x3F
    header = b"\x01\x03\x00" + bytes(key_id)
    assert wrapped.kek_uri == adapter.uri == f"local://{UUID(bytes=bytes(key_id))}"
    assert wrapped.kek_version is None
    assert len(sealed) == 115
    assert sealed[:19] == header
    context = framed(
        b"eventseal:application", b"shop",
        b"eventseal:key-id", str(CONTEXT.key_id).encode(),
        b"eventseal:purpose", b"data",
    )  # fmt: skip
    aad = header + framed(b"wrapped-key", context)
    keys = hkdf(KEY, salt=bytes(key_id), info=b"eventseal/v1/wrap/A256CBC-HS512", length=64)
    body, tag = sealed[19:-32], sealed[-32:]
    assert hmac.digest(keys[:32], aad + body + (8 * len(aad)).to_bytes(8), hashlib.sha512)[:32] == tag
    decryptor = Cipher(AES(keys[32:]), CBC(body[:16])).decryptor()
    assert decryptor.update(body[16:]) + decryptor.finalize() == b"k" * 32 + b"\x10" * 16


def test_a_generated_key_unwraps_to_itself(adapter):
    key, wrapped = adapter.generate_data_key(CONTEXT)
    assert len(key) == 32
    assert adapter.unwrap(wrapped, CONTEXT) == key
    assert adapter.generate_data_key(CONTEXT)[0] != key


def test_the_same_key_wraps_differently_each_time(adapter):
    wrappings = {adapter.wrap(KEY, CONTEXT).ciphertext for _ in range(50)}
    assert len(wrappings) == 50


def test_every_copy_of_the_file_is_the_same_kek(adapter, path, tmp_path):
    copied = tmp_path / "copy.key"
    copied.write_bytes(path.read_bytes())
    copied.chmod(0o600)
    other = LocalKmsAdapter(copied)
    assert other.uri == adapter.uri
    assert other.unwrap(adapter.wrap(KEY, CONTEXT), CONTEXT) == KEY


def test_no_edited_byte_unwraps(adapter):
    wrapped = adapter.wrap(KEY, CONTEXT)
    for index in range(len(wrapped.ciphertext)):
        for bit in range(8):
            edited = bytearray(wrapped.ciphertext)
            edited[index] ^= 1 << bit
            with pytest.raises(IntegrityError, match=str(CONTEXT.key_id)):
                adapter.unwrap(replace(wrapped, ciphertext=bytes(edited)), CONTEXT)


def test_no_cut_or_lengthened_wrapping_unwraps(adapter):
    wrapped = adapter.wrap(KEY, CONTEXT)
    sealed = wrapped.ciphertext
    for damaged in [*(sealed[:size] for size in range(len(sealed))), sealed + b"\0", sealed + sealed]:
        with pytest.raises(IntegrityError):
            adapter.unwrap(replace(wrapped, ciphertext=damaged), CONTEXT)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(CONTEXT, key_id=uuid4()), id="another key"),
        pytest.param(replace(CONTEXT, purpose="store"), id="another purpose"),
        pytest.param(replace(CONTEXT, application="shop2"), id="another application"),
    ],
)
def test_a_wrapping_does_not_open_in_another_context(adapter, other):
    with pytest.raises(IntegrityError, match=str(other.key_id)):
        adapter.unwrap(adapter.wrap(KEY, CONTEXT), other)


def test_a_wrapped_text_of_another_length_is_no_key(adapter):
    """What the KEK's owner sealed under the same domain is still checked for its size."""
    aad = adapter._header + framed(b"wrapped-key", CONTEXT.canonical())
    (body,) = local.seal_many(adapter._pool, [(b"k" * 33, aad)])
    wrapped = replace(adapter.wrap(KEY, CONTEXT), ciphertext=adapter._header + body)
    with pytest.raises(IntegrityError):
        adapter.unwrap(wrapped, CONTEXT)


def test_another_kek_is_told_before_any_work(adapter, tmp_path, monkeypatch):
    other = LocalKmsAdapter.create(tmp_path / "other.key")
    wrapped = other.wrap(KEY, CONTEXT)

    def worked(*_arguments):
        raise AssertionError("it worked on a wrapping of another KEK")

    monkeypatch.setattr(local, "parse_envelope", worked)
    with pytest.raises(NotMyKeyError) as caught:
        adapter.unwrap(wrapped, CONTEXT)
    assert caught.value.kek_uri == other.uri
    assert other.uri in str(caught.value)
    assert adapter.uri in str(caught.value)


def test_a_wrapping_with_another_name_on_it_does_not_unwrap(adapter, tmp_path):
    other = LocalKmsAdapter.create(tmp_path / "other.key")
    renamed = replace(other.wrap(KEY, CONTEXT), kek_uri=adapter.uri)
    with pytest.raises(IntegrityError):
        adapter.unwrap(renamed, CONTEXT)


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_only_keys_of_32_bytes_are_wrapped(adapter, size):
    with pytest.raises(ConfigurationError, match=f"has {size} bytes"):
        adapter.wrap(bytes(size), CONTEXT)


def test_a_batch_gives_each_key_its_own_outcome(adapter, tmp_path):
    contexts = [EncryptionContext(uuid4(), "data", "shop") for _ in range(4)]
    keys = [bytes([number]) * 32 for number in range(4)]
    wrapped = adapter.wrap_many(list(zip(keys, contexts, strict=True)))
    foreign = LocalKmsAdapter.create(tmp_path / "other.key").wrap(keys[1], contexts[1])
    edited = replace(
        wrapped[2], ciphertext=wrapped[2].ciphertext[:-1] + bytes([wrapped[2].ciphertext[-1] ^ 1])
    )
    outcomes = adapter.unwrap_many(
        list(zip([wrapped[0], foreign, edited, wrapped[3]], contexts, strict=True))
    )
    assert outcomes[0] == keys[0]
    assert isinstance(outcomes[1], NotMyKeyError)
    assert isinstance(outcomes[2], IntegrityError)
    assert outcomes[3] == keys[3]


def test_empty_batches_are_fine(adapter):
    assert adapter.wrap_many([]) == []
    assert adapter.unwrap_many([]) == []


def test_it_has_the_shape_of_an_adapter(adapter):
    assert isinstance(adapter, KmsAdapter)
    assert isinstance(adapter, SupportsBatch)
    assert isinstance(adapter, SupportsCheck)


def test_key_uris_name_files_absolutely_and_from_here(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    absolute = adapter_from_uri(f"local://{path}")
    relative = LocalKmsAdapter.from_uri("local://dev.key")
    assert isinstance(absolute, LocalKmsAdapter)
    assert absolute.uri == relative.uri


def test_a_percent_sign_in_a_uri_is_a_percent_sign(tmp_path):
    LocalKmsAdapter.create(tmp_path / "a%20b.key")
    LocalKmsAdapter.from_uri(f"local://{tmp_path}/a%20b.key")


@pytest.mark.parametrize("uri", ["local://", "local:/dev.key", "dev.key", "local://a\0b", ""])
def test_a_uri_without_a_file_is_refused(uri):
    with pytest.raises(ConfigurationError, match="does not name a key file"):
        LocalKmsAdapter.from_uri(uri)


def test_create_makes_a_new_kek_and_refuses_to_make_it_twice(tmp_path):
    made = LocalKmsAdapter.create(tmp_path / "dev.key")
    assert LocalKmsAdapter(tmp_path / "dev.key").uri == made.uri
    with pytest.raises(ConfigurationError, match="never overwritten"):
        LocalKmsAdapter.create(tmp_path / "dev.key")


def test_a_uri_makes_its_file_once(tmp_path):
    uri = f"local://{tmp_path}/dev.key"
    assert not LocalKmsAdapter.exists(uri)
    made = LocalKmsAdapter.create_from_uri(uri)
    assert LocalKmsAdapter.exists(uri)
    with pytest.raises(ConfigurationError, match="never overwritten"):
        LocalKmsAdapter.create_from_uri(uri)
    assert LocalKmsAdapter.from_uri(uri).uri == made.uri


def test_whatever_lies_at_the_path_is_left_to_its_owner(tmp_path):
    (tmp_path / "dev.key").symlink_to(tmp_path / "gone.key")
    assert LocalKmsAdapter.exists(f"local://{tmp_path}/dev.key")


def test_a_check_grants_while_the_file_holds_the_key(adapter):
    (check,) = adapter.check()
    assert check.granted
    assert check.detail == ""


def test_a_check_tells_of_a_file_that_is_gone_open_or_another(adapter, path, tmp_path):
    path.chmod(0o640)
    assert "chmod 600" in adapter.check()[0].detail
    path.unlink()
    gone = adapter.check()[0]
    assert not gone.granted
    assert "there is no key file" in gone.detail
    LocalKmsAdapter.create(path)
    other = adapter.check()[0]
    assert not other.granted
    assert adapter.uri in other.detail


def test_it_goes_on_with_the_key_that_it_read(adapter, path):
    wrapped = adapter.wrap(KEY, CONTEXT)
    path.unlink()
    assert adapter.unwrap(wrapped, CONTEXT) == KEY


def test_neither_its_repr_nor_a_pickle_nor_a_copy_holds_the_key(adapter):
    for shown in (repr(adapter), str(adapter), f"{adapter}"):
        assert shown == f"<LocalKmsAdapter {adapter.uri}>"
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            attempt(adapter)
    assert not hasattr(adapter, "__dict__")


def test_it_warns_once_per_process_and_key(tmp_path):
    with pytest.warns(DevelopmentKeyWarning, match=r"dev\.key is for development only"):
        LocalKmsAdapter.create(tmp_path / "dev.key")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LocalKmsAdapter(tmp_path / "dev.key")
        LocalKmsAdapter.from_uri(f"local://{tmp_path}/dev.key")
    with pytest.warns(DevelopmentKeyWarning, match=r"other\.key"):
        LocalKmsAdapter.create(tmp_path / "other.key")


def test_it_warns_on_standard_error_of_a_plain_program(path):
    program = f"from eventseal_kms.local import LocalKmsAdapter; LocalKmsAdapter({str(path)!r})"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stderr.count("DevelopmentKeyWarning") == 1
