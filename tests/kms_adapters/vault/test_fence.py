"""Whatever hvac, requests, urllib3 and ssl raise becomes one error, which leads to no key and no token."""

import base64
import functools
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import hvac
import pytest
import requests
from tests.kms_adapters.vault.test_failures import Canned

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KmsError,
    KmsForbiddenError,
    KmsUnavailableError,
)
from eventseal.kms import WrappedKey
from eventseal_kms.scrubbing import scrubbed
from eventseal_kms.vault import (
    AppRole,
    Kubernetes,
    RetryPolicy,
    Token,
    TokenFile,
    VaultSettings,
    VaultTransitAdapter,
)

KEY = bytes(range(200, 232))
TOKEN = "token-that-nobody-may-read"
SECRET_ID = "secret-id-that-nobody-may-read"
PASSWORD = "pass-word-of-the-proxy"
SECRETS = {
    KEY.hex(),
    base64.b64encode(KEY).decode(),
    repr(KEY)[2:-1],
    TOKEN,
    SECRET_ID,
    PASSWORD,
}
WRAPPED = WrappedKey(kek_uri="vault-transit://transit/app", kek_version=None, ciphertext=b"vault:v1:AAAA")
OPERATIONS = {
    "generate_data_key": lambda adapter, context: adapter.generate_data_key(context),
    "generate_data_keys": lambda adapter, context: adapter.generate_data_keys([context, context])[1],
    "wrap": lambda adapter, context: adapter.wrap(KEY, context),
    "wrap_many": lambda adapter, context: adapter.wrap_many([(KEY, context)] * 2)[1],
    "unwrap": lambda adapter, context: adapter.unwrap(WRAPPED, context),
    "unwrap_many": lambda adapter, context: adapter.unwrap_many([(WRAPPED, context)] * 2)[1],
    "rewrap_many": lambda adapter, context: adapter.rewrap_many([(WRAPPED, context)] * 2)[1],
    "check": lambda adapter, context: adapter.check(),
    "current_version": lambda adapter, context: adapter.current_version(),
    "rotate": lambda adapter, context: adapter.rotate(),
    "versions_before": lambda adapter, context: adapter.versions_before("v2"),
    "forbid_versions_before": lambda adapter, context: adapter.forbid_versions_before("v2"),
    "delete_versions_before": lambda adapter, context: adapter.delete_versions_before("v2"),
}
QUICK = RetryPolicy(first_wait=0.001)


class Page(BaseHTTPRequestHandler):
    """A load balancer that has no Vault: every answer is the same page, with status 200."""

    content = b"<html>please log in</html>"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def pages():
    """Addresses of servers that answer with each of several bodies."""
    servers = {}
    for name, content in {
        "html": Page.content,
        "list": b"[1]",
        "deep": b"[" * 100_000,
        "bytes": b"\xff\xfe{",
    }.items():
        handler = type("Handler", (Page,), {"content": content})
        servers[name] = server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield {name: f"http://127.0.0.1:{server.server_address[1]}" for name, server in servers.items()}
    for server in servers.values():
        server.shutdown()
        server.server_close()


def from_variables(monkeypatch, **variables):
    for name, value in ({"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": TOKEN} | variables).items():
        monkeypatch.setenv(name, value)
    return VaultTransitAdapter("transit", "app", retries=QUICK)


def from_client(monkeypatch, token=TOKEN, **options):
    client = hvac.Client(**{"url": "http://127.0.0.1:1", "token": token} | options)
    return VaultTransitAdapter("transit", "app", client=client, retries=QUICK)


def from_login(monkeypatch, login, address="http://127.0.0.1:1"):
    settings = VaultSettings(address=address, login=login)
    return VaultTransitAdapter("transit", "app", settings=settings, retries=QUICK)


PROXY = f"http://me:{PASSWORD}@127.0.0.1:1"
# Each: how to make the adapter, the class of the error, and what its message or remedy names.
FAULTS = {
    "an address without a scheme": (
        functools.partial(from_variables, VAULT_ADDR="localhost:8200"),
        ConfigurationError,
        "VAULT_ADDR",
    ),
    "an address with a wrong port": (
        functools.partial(from_variables, VAULT_ADDR="https://vault:82OO"),
        ConfigurationError,
        "VAULT_ADDR",
    ),
    "no address": (functools.partial(from_variables, VAULT_ADDR=""), ConfigurationError, "VAULT_ADDR"),
    "a missing CA": (
        functools.partial(from_variables, VAULT_CACERT="/nowhere"),
        ConfigurationError,
        "VAULT_CACERT",
    ),
    "a token with a line break": (
        functools.partial(from_variables, VAULT_TOKEN=f"{TOKEN}\n"),
        ConfigurationError,
        "VAULT_TOKEN",
    ),
    "a namespace with a line break": (
        functools.partial(from_variables, VAULT_NAMESPACE="a\nb"),
        ConfigurationError,
        "VAULT_NAMESPACE",
    ),
    "a client's address without a scheme": (
        functools.partial(from_client, url="localhost:8200"),
        ConfigurationError,
        "VAULT_ADDR",
    ),
    "a client's address with a wrong label": (
        functools.partial(from_client, url=f"http://{'a' * 70}.example"),
        ConfigurationError,
        "VAULT_ADDR",
    ),
    "a client's address that is no IPv6 address": (
        functools.partial(from_client, url="http://[::1"),
        ConfigurationError,
        "VAULT_ADDR",
    ),
    "a client's missing CA": (
        functools.partial(from_client, url="https://127.0.0.1:1", verify="/nowhere/ca.pem"),
        ConfigurationError,
        "VAULT_CACERT",
    ),
    "a client's token with a line break": (
        functools.partial(from_client, token=f"{TOKEN}\nx"),
        ConfigurationError,
        "VAULT_TOKEN",
    ),
    "a client's token that no header holds": (
        functools.partial(from_client, token=f"{TOKEN}\u20ac"),
        ConfigurationError,
        "VAULT_TOKEN",
    ),
    "a client's token that is no text": (
        functools.partial(from_client, token=[TOKEN]),
        ConfigurationError,
        "VAULT_TOKEN",
    ),
    "a proxy that is no URL": (
        functools.partial(from_variables, HTTP_PROXY=f"http://me:{PASSWORD}@[::1", no_proxy=""),
        ConfigurationError,
        "HTTP_PROXY",
    ),
    "a proxy of an unknown kind": (
        functools.partial(from_variables, HTTP_PROXY=f"ftp://me:{PASSWORD}@127.0.0.1:1", no_proxy=""),
        ConfigurationError,
        "HTTP_PROXY",
    ),
    "a proxy that does not run": (
        functools.partial(from_variables, HTTP_PROXY=PROXY, no_proxy=""),
        KmsUnavailableError,
        "HTTP_PROXY",
    ),
    "a login that fails": (
        functools.partial(from_login, login=lambda client: {}[SECRET_ID]),
        KmsError,
        "the login function",
    ),
    "a login that gives no token": (
        functools.partial(from_login, login=lambda client: {"auth": {"client_token": None}}),
        KmsError,
        "does not match the request",
    ),
    "a missing token file": (
        functools.partial(from_login, login=TokenFile(Path("/nowhere/token"))),
        ConfigurationError,
        "/nowhere/token",
    ),
}


def raised_by(make, operation, monkeypatch, context):
    try:
        outcome = OPERATIONS[operation](make(monkeypatch), context)
    except EventSealError as error:
        return error
    assert isinstance(outcome, EventSealError), outcome
    return outcome


def shown(error):
    """Everything that an error tracker would keep, without the frames of the caller: of the test."""
    while error.__traceback__ and error.__traceback__.tb_frame.f_code.co_filename == __file__:
        error.__traceback__ = error.__traceback__.tb_next
    report = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    return report + repr(error) + repr(vars(error)) + error.remedy


def leaks(error):
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    return {secret for secret in SECRETS if secret in shown(error)}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_error_for_each_operation(fault, operation, monkeypatch, context):
    make, kind, named = FAULTS[fault]
    monkeypatch.setattr("eventseal_kms.vault.adapter.os.urandom", lambda _: KEY)
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    error = raised_by(make, operation, monkeypatch, context)
    assert isinstance(error, kind)
    assert isinstance(error, KmsUnavailableError) == (kind is KmsUnavailableError)
    assert named in f"{error} {error.remedy}"
    assert leaks(error) == set()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("page", ["html", "list", "deep", "bytes"])
@pytest.mark.parametrize("login", [Token(TOKEN), AppRole("role", SECRET_ID), Kubernetes("role")])
def test_a_page_of_a_load_balancer_is_an_outage(
    page, operation, login, pages, monkeypatch, context, tmp_path
):
    monkeypatch.setattr("eventseal_kms.vault.adapter.os.urandom", lambda _: KEY)
    if isinstance(login, Kubernetes):
        jwt = tmp_path / "jwt"
        jwt.write_text(SECRET_ID)
        login = Kubernetes("role", token_path=jwt)
    make = functools.partial(from_login, login=login, address=pages[page])
    error = raised_by(make, operation, monkeypatch, context)
    assert type(error) is KmsUnavailableError
    assert "does not come from Vault" in str(error)
    assert leaks(error) == set()


def test_a_damaged_netrc_does_not_matter(pages, monkeypatch, context, tmp_path):
    (tmp_path / "netrc").write_bytes(b"machine 127.0.0.1 login \xff password \xfe")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    make = functools.partial(from_login, login=Token(TOKEN), address=pages["html"])
    assert "does not come from Vault [200]" in str(raised_by(make, "wrap", monkeypatch, context))


def test_an_error_of_a_login_of_the_programs_comes_without_its_frames(monkeypatch, context):
    def login(client):
        secret = SECRET_ID
        try:
            {}[secret]
        except KeyError as error:
            raise ConfigurationError("there are no credentials") from error

    error = raised_by(lambda _: from_login(monkeypatch, login), "check", monkeypatch, context)
    assert str(error) == "there are no credentials"
    assert leaks(error) == set()


def test_a_refused_token_is_in_no_frame():
    with pytest.raises(ConfigurationError, match="VAULT_TOKEN") as caught:
        Token(f"{TOKEN}\n")
    assert leaks(caught.value) == set()


@pytest.fixture
def answering(monkeypatch):
    """An adapter whose client gets the given answers."""

    def make(*answers):
        session = requests.Session()
        session.mount("http://", Canned(*answers))
        return from_client(monkeypatch, session=session)

    return make


FIT = {"data": {"derived": True, "supports_encryption": True, "latest_version": 1}}
ODD = [None, 5, "text", [], {}, True]


@pytest.mark.parametrize("operation", ["wrap", "unwrap", "rewrap_many", "unwrap_many"])
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_result_of_another_form_is_no_sign_of_tampering(answering, monkeypatch, context, operation, odd):
    batch = {"data": {"batch_results": [odd] * (2 if operation.endswith("many") else 1)}}
    answers = [(200, FIT)] * (operation == "wrap") + [(200, batch)]
    error = raised_by(lambda _: answering(*answers), operation, monkeypatch, context)
    assert type(error) is KmsError
    assert "does not match the request" in str(error)


@pytest.mark.parametrize("plaintext", [None, 5, [], "\u20ac", "no base64!"])
def test_a_plaintext_of_another_form_is_no_sign_of_tampering(answering, context, plaintext):
    [outcome] = answering((200, {"data": {"batch_results": [{"plaintext": plaintext}]}})).unwrap_many(
        [(WRAPPED, context)]
    )
    assert type(outcome) is KmsError
    short = {"data": {"batch_results": [{"plaintext": "AAAA"}]}}
    assert type(answering((200, short)).unwrap_many([(WRAPPED, context)])[0]) is IntegrityError


@pytest.mark.parametrize(
    "name", ["derived", "supports_encryption", "latest_version", "min_decryption_version"]
)
@pytest.mark.parametrize("odd", ["false", [1], None, 1.5], ids=repr)
def test_a_state_of_another_form_never_wraps(answering, context, name, odd):
    adapter = answering((200, {"data": FIT["data"] | {name: odd}}))
    with pytest.raises(KmsError, match="does not match the request"):
        adapter.wrap(KEY, context)
    with pytest.raises(KmsError, match="does not match the request"):
        adapter.versions_before("v2")


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_capabilities_and_leases_of_another_form_grant_nothing(answering, context, monkeypatch, odd):
    adapter = answering((200, {"data": {"transit/encrypt/app": odd, "transit/keys/app": odd}}))
    assert not any(check.granted for check in adapter.check())
    canned = Canned((200, {"data": {"ttl": odd, "renewable": odd}}), (200, FIT))
    monkeypatch.setattr(requests.Session, "get_adapter", lambda *_, **__: canned)
    assert from_login(monkeypatch, Token(TOKEN)).current_version() == "v1"


# --- words of the vendor -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "hvs.CAESIJ1Zx",
        "s.0123456789abcdef",
        "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl",
        "6d8f1f2c-3f3c-4f0a-9d3c-0a1b2c3d4e5f",
        KEY.hex(),
        base64.b64encode(KEY).decode(),
        base64.urlsafe_b64encode(KEY).decode(),
    ],
)
def test_vaults_words_are_quoted_without_secrets(answering, context, secret):
    said = {"errors": [f"a new refusal of {secret} here"]}
    for outcome in (
        answering((400, said)).unwrap_many([(WRAPPED, context)])[0],
        answering(
            (403, {"errors": [f"egp standard policy x evaluation resulted in denial {secret}"]})
        ).unwrap_many([(WRAPPED, context)])[0],
    ):
        assert "***" in str(outcome)
        assert secret not in shown(outcome)


def test_a_refused_login_shows_no_secret_of_the_login(monkeypatch, context):
    canned = Canned((400, {"errors": [f"invalid role-of-the-shop or {SECRET_ID}"]}))
    monkeypatch.setattr(requests.Session, "get_adapter", lambda *_, **__: canned)
    with pytest.raises(KmsForbiddenError, match=r"invalid \*\*\* or \*\*\*"):
        from_login(monkeypatch, AppRole("role-of-the-shop", SECRET_ID)).wrap(KEY, context)


def test_an_items_error_shows_no_secret(answering, context):
    item = {"error": f"a new refusal of {base64.b64encode(KEY).decode()}"}
    [outcome] = answering((400, {"data": {"batch_results": [item]}})).unwrap_many([(WRAPPED, context)])
    assert "a new refusal of ***" in str(outcome)


@pytest.mark.parametrize(
    "text",
    [
        "1 error occurred: * permission denied",
        'no handler for route "team/payments/transit/keys/orders". route entry not found.',
        "refused JSON input due to high complexity: exceeded maximum number of strings",
        "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate (_ssl.c:1006)",
    ],
)
def test_ordinary_words_stay(text):
    assert scrubbed(text, ["root", ""]) == text
    assert scrubbed(f"{text} https://me:{PASSWORD}@host/x") == f"{text} https://***@host/x"


# --- clients and denials -----------------------------------------------------------------------------------


class AsyncClient:
    """An asynchronous client of another library."""

    async def read(self, path):
        """Read a path."""


@pytest.mark.parametrize(
    "client",
    [AsyncClient(), requests.Session(), "http://vault:8200", hvac.Client, hvac.adapters.JSONAdapter(), {}, 0],
    ids=lambda client: type(client).__name__,
)
def test_a_client_of_another_kind_is_refused_at_once(client):
    with pytest.raises(ConfigurationError, match=r"not an hvac\.Client") as caught:
        VaultTransitAdapter("transit", "app", client=client)
    assert "hvac.Client(url=" in caught.value.remedy
    assert getattr(client, "__name__", type(client).__name__) in str(caught.value)


def test_settings_of_another_kind_are_refused_at_once():
    with pytest.raises(ConfigurationError, match="not VaultSettings"):
        VaultTransitAdapter("transit", "app", settings={"address": "https://vault"})


def test_a_client_of_the_older_name_or_a_subclass_will_do():
    class Mine(hvac.v1.Client):
        pass

    VaultTransitAdapter("transit", "app", client=Mine(url="http://127.0.0.1:1", token="t"))


SENTINEL = (
    '1 error occurred:\n\t* {} standard policy "root/office-hours" evaluation resulted in denial.\n\n'
    "The specific error was:\n<nil>\n"
)


@pytest.mark.parametrize("kind", ["egp", "rgp"])
def test_a_sentinel_policy_has_its_own_remedy(answering, context, kind):
    denied = (403, {"errors": [SENTINEL.format(kind)]})
    [outcome] = answering(denied).unwrap_many([(WRAPPED, context)])
    assert type(outcome) is KmsForbiddenError
    assert "root/office-hours" in str(outcome)
    assert f"{kind.upper()} policy" in outcome.remedy
    assert "capabilities" not in outcome.remedy


@pytest.mark.parametrize(
    ("acl", "is_explicit"),
    [
        ({"exact_paths": {"transit/decrypt/app": {"capabilities": ["deny"]}}}, True),
        (
            {
                "glob_paths": {
                    "transit/": {"capabilities": ["update"]},
                    "transit/dec": {"capabilities": ["deny"]},
                }
            },
            True,
        ),
        (
            {
                "glob_paths": {
                    "transit/": {"capabilities": ["deny"]},
                    "transit/dec": {"capabilities": ["read"]},
                }
            },
            False,
        ),
        (
            {
                "exact_paths": {"transit/decrypt/app": {"capabilities": ["read"]}},
                "glob_paths": {"transit/": {"capabilities": ["deny"]}},
            },
            False,
        ),
        ({"exact_paths": [], "glob_paths": None}, False),
        ({"exact_paths": {"transit/decrypt/app": "deny"}}, False),
        ({}, False),
    ],
)
def test_an_explicit_denial_has_its_own_remedy(answering, context, acl, is_explicit):
    denied = (403, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]})
    [outcome] = answering(denied, (200, {"data": {"ttl": 60}}), (200, {"data": acl})).unwrap_many(
        [(WRAPPED, context)]
    )
    assert type(outcome) is KmsForbiddenError
    assert ("explicitly" in str(outcome)) == is_explicit
    assert ("Add to a policy" in outcome.remedy) != is_explicit
    assert ('Remove the capability "deny"' in outcome.remedy) == is_explicit
