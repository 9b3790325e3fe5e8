"""Where Vault is and how to get in, from the environment and by hand; TLS against a real server."""

import warnings
from pathlib import Path

import pytest
from tests.fixtures.certificates import Authority
from tests.fixtures.openbao import OpenBao

from eventseal.errors import ConfigurationError, KmsUnavailableError
from eventseal_kms.vault import (
    AppRole,
    InsecureVaultWarning,
    Kubernetes,
    Token,
    TokenFile,
    VaultSettings,
    VaultTransitAdapter,
)

HTTPS = {"VAULT_ADDR": "https://vault.example:8200"}
KEY = bytes(range(32))


def settings_of(**variables):
    return VaultSettings.from_environment(HTTPS | variables)


@pytest.mark.parametrize(
    ("variables", "login"),
    [
        ({"VAULT_TOKEN": "s.1"}, Token("s.1")),
        ({"VAULT_TOKEN_FILE": "/run/token"}, TokenFile(Path("/run/token"))),
        ({"VAULT_ROLE_ID": "r", "VAULT_SECRET_ID": "s"}, AppRole("r", "s")),
        ({"VAULT_ROLE_ID": "r"}, AppRole("r")),
        ({"VAULT_ROLE_ID": "r", "VAULT_AUTH_MOUNT": "apps/"}, AppRole("r", mount="apps")),
        ({"VAULT_KUBERNETES_ROLE": "shop"}, Kubernetes("shop")),
        ({"VAULT_KUBERNETES_ROLE": "shop", "VAULT_AUTH_MOUNT": "k8s-eu"}, Kubernetes("shop", mount="k8s-eu")),
        ({"HOME": "/home/me"}, TokenFile(Path("/home/me/.vault-token"))),
        ({"HOME": "/home/me", "VAULT_TOKEN": ""}, TokenFile(Path("/home/me/.vault-token"))),
        ({"VAULT_TOKEN": "s.1", "VAULT_ROLE_ID": "r", "VAULT_TOKEN_FILE": "/x"}, Token("s.1")),
        ({"VAULT_TOKEN_FILE": "/x", "VAULT_ROLE_ID": "r"}, TokenFile(Path("/x"))),
        ({"VAULT_ROLE_ID": "r", "VAULT_KUBERNETES_ROLE": "k"}, AppRole("r")),
    ],
)
def test_the_first_login_that_is_there_counts(variables, login):
    assert settings_of(**variables).login == login


def test_every_variable_reaches_the_client(tmp_path):
    authority = Authority()
    (tmp_path / "ca.pem").write_text(authority.pem)
    ca, certificate, key = map(str, (tmp_path / "ca.pem", *authority.issue(tmp_path, "client")))
    settings = settings_of(
        VAULT_TOKEN="s.1",
        VAULT_NAMESPACE="team/a",
        VAULT_CACERT=ca,
        VAULT_CLIENT_CERT=certificate,
        VAULT_CLIENT_KEY=key,
    )
    client = settings.make_client(timeout=1.5)
    assert client.url == "https://vault.example:8200"
    assert client.adapter.namespace == "team/a"
    assert client.adapter._kwargs["verify"] == ca
    assert client.adapter._kwargs["cert"] == (certificate, key)
    assert client.adapter._kwargs["timeout"] == 1.5
    assert client.token == ""  # hvac would look for one by itself


def test_a_vault_is_not_assumed():
    with pytest.raises(ConfigurationError, match="VAULT_ADDR") as caught:
        VaultTransitAdapter("transit", "app")
    assert "VAULT_ADDR=https" in caught.value.remedy


@pytest.mark.parametrize(
    "address",
    [
        "vault:8200",
        "ftp://vault",
        "https://",
        "https://user:secret@vault:8200",
        "https://vault:port",
        "https://v?x=1",
    ],
)
def test_an_address_that_is_none_is_refused_and_not_shown(address):
    with pytest.raises(ConfigurationError, match="not a URL") as caught:
        VaultSettings(address=address, login=Token("s.1"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"VAULT_CLIENT_CERT": "/x"}, "is missing: set both"),
        ({"VAULT_CLIENT_KEY": "/x"}, "is missing: set both"),
        ({"VAULT_CACERT": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"VAULT_CLIENT_CERT": "/nowhere/c.pem", "VAULT_CLIENT_KEY": "/nowhere/k.pem"}, "/nowhere/c.pem"),
        ({"VAULT_SKIP_VERIFY": "maybe"}, "VAULT_SKIP_VERIFY"),
        ({"VAULT_TOKEN": "two words"}, "is not a token"),
        ({"VAULT_TOKEN": "line\nbreak"}, "is not a token"),
    ],
)
def test_a_variable_that_cannot_be_used_is_refused_at_once(variables, words):
    with pytest.raises(ConfigurationError, match=words):
        settings_of(**{"VAULT_TOKEN": "s.1"} | variables)


def test_a_wrong_token_is_not_shown():
    with pytest.raises(ConfigurationError) as caught:
        settings_of(VAULT_TOKEN="s.secret token")
    assert "s.secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "t"])
def test_unverified_tls_is_said_aloud(value):
    with pytest.warns(InsecureVaultWarning, match="does not verify the certificate"):
        settings = settings_of(VAULT_TOKEN="s.1", VAULT_SKIP_VERIFY=value)
    assert settings.dangerously_skip_verify


@pytest.mark.parametrize("value", ["0", "false", "F", ""])
def test_verified_tls_is_not(value):
    assert not settings_of(VAULT_TOKEN="s.1", VAULT_SKIP_VERIFY=value).dangerously_skip_verify


def test_keys_in_the_clear_are_said_aloud_unless_they_stay_on_this_machine():
    with pytest.warns(InsecureVaultWarning, match="travel unencrypted"):
        VaultSettings(address="http://vault.example:8200", login=Token("s.1"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for host in ("127.0.0.1:8200", "localhost:8200", "[::1]:8200"):
            VaultSettings(address=f"http://{host}", login=Token("s.1"))


def test_no_repr_shows_a_secret():
    for variables in ({"VAULT_TOKEN": "s.secret"}, {"VAULT_ROLE_ID": "r", "VAULT_SECRET_ID": "s.secret"}):
        assert "s.secret" not in repr(settings_of(**variables))


# --- TLS ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_openbao(tmp_path_factory):
    server = OpenBao(tmp_path_factory.mktemp("openbao-tls"), tls=True)
    try:
        server.start()
        server.client().sys.enable_secrets_engine("transit")
        server.client().secrets.transit.create_key("app", derived=True)
        yield server
    finally:
        server.stop()


def adapter_for(server, **options):
    settings = VaultSettings(address=server.address, login=Token("root"), **options)
    return VaultTransitAdapter("transit", "app", settings=settings)


def test_a_vault_whose_ca_is_named_is_trusted(tls_openbao, context):
    adapter = adapter_for(tls_openbao, ca_certificate=tls_openbao.ca_certificate)
    assert adapter.unwrap(adapter.wrap(KEY, context), context) == KEY


def test_a_vault_that_is_not_trusted_gets_nothing_and_the_error_says_what_to_check(tls_openbao, context):
    with (
        tls_openbao.counted() as made,
        pytest.raises(KmsUnavailableError, match="cannot open a trusted TLS connection") as caught,
    ):
        adapter_for(tls_openbao).wrap(KEY, context)
    assert "certificate verify failed" in str(caught.value).lower()
    assert "VAULT_CACERT" in caught.value.remedy
    assert made == []


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.filterwarnings("ignore::eventseal_kms.vault.InsecureVaultWarning")
def test_a_vault_may_dangerously_be_trusted_as_it_is(tls_openbao, context):
    adapter = adapter_for(tls_openbao, dangerously_skip_verify=True)
    assert adapter.unwrap(adapter.wrap(KEY, context), context) == KEY


def test_plain_http_to_a_tls_port_is_no_vault(tls_openbao, context):
    settings = VaultSettings(address=tls_openbao.address.replace("https", "http"), login=Token("root"))
    with pytest.raises(KmsUnavailableError):
        VaultTransitAdapter("transit", "app", settings=settings).wrap(KEY, context)
