"""TLS to a real OpenBao on 127.0.0.1, whose certificate is for another name."""

import pytest
from tests.fixtures.certificates import Authority
from tests.fixtures.openbao import OpenBao

from eventseal.errors import ConfigurationError, KmsUnavailableError
from eventseal_kms.vault import Token, VaultSettings, VaultTransitAdapter

KEY = bytes(range(32))
NAME = "vault.internal.example"


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def server(tmp_path_factory, authority):
    folder = tmp_path_factory.mktemp("openbao-named")
    server = OpenBao(folder, certificate=authority.issue(folder, NAME))
    try:
        server.start()
        server.client().sys.enable_secrets_engine("transit")
        server.client().secrets.transit.create_key("app", derived=True)
        yield server
    finally:
        server.stop()


@pytest.fixture
def places(tmp_path, authority):
    """The authority, and one that signed nothing here, as a file, a folder and a text."""
    found = {}
    for name, pem in (("right", authority.pem), ("wrong", Authority("another").pem)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "no-hash.pem").write_text(f"the authority:\n{pem}")
        (folder / "README").write_text("no certificate")
        found[name] = {"CACERT": str(folder / "no-hash.pem"), "CACERT_BYTES": pem, "CAPATH": str(folder)}
    return found


def settings_for(server, variables):
    common = {"VAULT_ADDR": server.named_address, "VAULT_TOKEN": "root"}
    return VaultSettings.from_environment(
        common | {f"VAULT_{name}": text for name, text in variables.items()}
    )


def trusts(server, context, variables):
    """Whether a key can be wrapped and unwrapped with these variables."""
    adapter = VaultTransitAdapter("transit", "app", settings=settings_for(server, variables))
    [outcome] = adapter.wrap_many([(KEY, context)])
    if not isinstance(outcome, Exception):
        return adapter.unwrap(outcome, context) == KEY
    assert isinstance(outcome, KmsUnavailableError)
    assert "trusted TLS connection" in str(outcome)
    assert "VAULT_TLS_SERVER_NAME" in outcome.remedy
    return False


@pytest.mark.parametrize("variable", ["CACERT", "CACERT_BYTES", "CAPATH"])
def test_each_variable_names_the_authorities(server, context, places, variable):
    named = {"TLS_SERVER_NAME": NAME}
    assert trusts(server, context, named | {variable: places["right"][variable]})
    assert not trusts(server, context, named | {variable: places["wrong"][variable]})


def test_the_order_of_the_variables_is_that_of_hashicorps_client(server, context, places):
    """As the documentation of its API says: the file, the text, the folder."""
    right, wrong = places["right"], places["wrong"]
    for first, second in (("CACERT", "CACERT_BYTES"), ("CACERT_BYTES", "CAPATH"), ("CACERT", "CAPATH")):
        good = {"TLS_SERVER_NAME": NAME, first: right[first], second: wrong[second]}
        bad = {"TLS_SERVER_NAME": NAME, first: wrong[first], second: right[second]}
        assert trusts(server, context, good)
        assert not trusts(server, context, bad)


def test_an_empty_variable_names_nothing(server, context, places):
    variables = {
        "TLS_SERVER_NAME": NAME,
        "CACERT": "",
        "CACERT_BYTES": "",
        "CAPATH": places["right"]["CAPATH"],
    }
    assert trusts(server, context, variables)


def test_the_name_is_checked(server, context, places):
    """The certificate holds neither the address nor a name that resembles the right one."""
    trusted = {"CACERT": places["right"]["CACERT"]}
    assert not trusts(server, context, trusted)
    assert not trusts(server, context, trusted | {"TLS_SERVER_NAME": ""})
    assert not trusts(server, context, trusted | {"TLS_SERVER_NAME": f"x{NAME}"})
    assert trusts(server, context, trusted | {"TLS_SERVER_NAME": NAME})


def test_only_the_named_authorities_are_trusted(server, context, places, monkeypatch):
    """Not those that requests would add: the server's is among them here."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", places["right"]["CACERT"])
    assert trusts(server, context, {"TLS_SERVER_NAME": NAME})
    for variable, text in places["wrong"].items():
        assert not trusts(server, context, {"TLS_SERVER_NAME": NAME, variable: text})


def test_nothing_is_written(server, context, places, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert trusts(server, context, {"TLS_SERVER_NAME": NAME, "CACERT_BYTES": places["right"]["CACERT_BYTES"]})
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "words", "remedy"),
    [
        ({"CACERT": "/nowhere/ca.pem"}, "/nowhere/ca.pem cannot be read", "VAULT_CACERT"),
        ({"CAPATH": "/nowhere"}, "/nowhere cannot be read", "VAULT_CAPATH"),
        ({"CACERT_BYTES": "abcd"}, "has no valid certificate", "VAULT_CACERT_BYTES"),
        (
            {"CACERT_BYTES": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"},
            "has no valid certificate",
            "VAULT_CACERT_BYTES",
        ),
        ({"TLS_SERVER_NAME": "https://vault"}, "VAULT_TLS_SERVER_NAME", ""),
        ({"TLS_SERVER_NAME": "a" * 64}, "VAULT_TLS_SERVER_NAME", ""),
        ({"NAMESPACE": "team\nX-Evil: 1"}, "VAULT_NAMESPACE", ""),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_at_once(server, variables, words, remedy):
    with pytest.raises(ConfigurationError, match=words) as caught:
        settings_for(server, variables)
    assert remedy in caught.value.remedy


def test_a_client_certificate_that_cannot_be_used_is_refused_without_a_prompt(server, authority, tmp_path):
    (certificate, key), (_, other) = (authority.issue(tmp_path, name) for name in ("one", "two"))
    locked = tmp_path / "locked.key"
    locked.write_bytes(_encrypted(key.read_bytes()))
    for wrong in (other, locked, certificate, tmp_path / "nowhere"):
        with pytest.raises(ConfigurationError, match="cannot be used") as caught:
            settings_for(server, {"CLIENT_CERT": str(certificate), "CLIENT_KEY": str(wrong)})
        assert "VAULT_CLIENT_KEY" in caught.value.remedy


def _encrypted(pem):
    from cryptography.hazmat.primitives import serialization as forms

    return forms.load_pem_private_key(pem, None).private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.BestAvailableEncryption(b"secret")
    )


def test_a_folder_that_disappears_is_a_wrong_setting_and_not_an_outage(server, context, places, tmp_path):
    settings = settings_for(server, {"TLS_SERVER_NAME": NAME, "CAPATH": places["right"]["CAPATH"]})
    (tmp_path / "right").rename(tmp_path / "gone")
    with pytest.raises(ConfigurationError, match="a file of certificates cannot be used"):
        VaultTransitAdapter("transit", "app", settings=settings).wrap(KEY, context)


def test_a_file_that_disappears_is_a_wrong_setting_and_not_an_outage(server, context, places, tmp_path):
    settings = settings_for(server, {"TLS_SERVER_NAME": NAME, "CACERT": places["right"]["CACERT"]})
    for content in ("", None):
        file = tmp_path / "right" / "no-hash.pem"
        file.unlink() if content is None else file.write_text(content)
        with pytest.raises(ConfigurationError, match="a file of certificates cannot be used"):
            VaultTransitAdapter("transit", "app", settings=settings).wrap(KEY, context)


def test_a_user_without_a_home_is_no_error_before_the_login(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    settings = VaultSettings.from_environment({"VAULT_ADDR": "https://vault.example"})
    assert str(settings.login.path) == "~/.vault-token"
    assert VaultSettings.from_environment({"VAULT_ADDR": "https://v", "VAULT_TOKEN": "t"}).login == Token("t")
