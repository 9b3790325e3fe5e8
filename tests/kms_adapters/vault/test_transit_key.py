"""The names of transit keys, and the ciphertexts that Vault writes."""

import pytest

from eventseal.errors import ConfigurationError
from eventseal_kms.vault.transit_key import TransitKey, version_number, version_of

BODY = b"E7wXDGdOsp0yGU1GuezgyP93O6KmOIc+cbwECe9T+sPvKbNfS4d7FUGSXGXg92W3nUS7ZQ4NUfB6NJve"


@pytest.mark.parametrize(
    ("uri", "mount", "name"),
    [
        ("vault-transit://transit/orders", "transit", "orders"),
        ("vault-transit://team/a/transit/orders", "team/a/transit", "orders"),
        ("vault-transit://t/k", "t", "k"),
        ("vault-transit://transit-eu.1/orders-2.prod_A", "transit-eu.1", "orders-2.prod_A"),
    ],
)
def test_a_uri_names_a_mount_and_a_key_and_is_written_back_as_it_was(uri, mount, name):
    key = TransitKey.from_uri(uri)
    assert (key.mount, key.name) == (mount, name)
    assert key.uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "transit/orders",
        "vault-transit://",
        "vault-transit://orders",
        "vault-transit:///orders",
        "vault-transit://transit/",
        "vault-transit://transit//orders",
        "vault-transit://transit/../orders",
        "vault-transit://transit/./orders",
        "vault-transit://transit/orders?x=1",
        "vault-transit://transit/orders#x",
        "vault-transit://transit/or ders",
        "vault-transit://transit/or%2Fders",
        "vault-transit://transit/ordérs",
        "vault-transit://transit/orders\n",
        "vault-transit://transit/-orders",
        "vault-transit://tran sit/orders",
        "VAULT-TRANSIT://transit/orders",
        "aws-kms://transit/orders",
    ],
)
def test_anything_else_is_refused_with_the_form_to_write(uri):
    with pytest.raises(ConfigurationError) as caught:
        TransitKey.from_uri(uri)
    assert "vault-transit://<mount>/<key name>" in caught.value.remedy


def test_a_ciphertext_of_vault_tells_its_version():
    assert version_of(b"vault:v1:" + BODY) == "v1"
    assert version_of(b"vault:v42:" + BODY) == "v42"


@pytest.mark.parametrize(
    "ciphertext",
    [
        b"",
        BODY,
        b"vault:v1:",
        b"vault:v0:" + BODY,  # the server takes it for v1
        b"vault:v01:" + BODY,
        b"vault:v:" + BODY,
        b"vault:v-1:" + BODY,
        b"vault:v99999999999:" + BODY,
        b"Vault:v1:" + BODY,
        b"vault:v1:" + BODY + b"\n",
        b" vault:v1:" + BODY,
        b"vault:v1:" + BODY[:-1],
        b"vault:v1:" + BODY.replace(b"+", b"-"),
        b"vault:v1:AAB=",  # the server's base64 ignores the stray bits
        b"vault:v1:" + BODY.replace(b"E", b"\xff"),
    ],
)
def test_an_edited_ciphertext_has_no_version(ciphertext):
    assert version_of(ciphertext) is None


def test_a_version_is_v_and_a_number():
    assert version_number("v12") == 12
    for wrong in ("12", "v0", "v", "v1.5", "latest", "", "v1 ", None):
        with pytest.raises(ConfigurationError):
            version_number(wrong)
