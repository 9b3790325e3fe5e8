"""What each answer means; answers that no test server gives at will are given by a canned transport."""

import json

import hvac
import pytest
import requests
from requests.adapters import BaseAdapter

from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KmsError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
)
from eventseal.kms import WrappedKey
from eventseal.testing import ManualClock
from eventseal_kms.vault import AppRole, RetryPolicy, VaultSettings, VaultTransitAdapter
from eventseal_kms.vault.failures import item_failure
from eventseal_kms.vault.transit_key import TransitKey

URI = "vault-transit://transit/app"
WRAPPED = WrappedKey(kek_uri=URI, kek_version=None, ciphertext=b"vault:v1:AAAA")
GOOD = {"data": {"batch_results": [{"plaintext": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}]}}


class Canned(BaseAdapter):
    """Answers each request with the next of the given answers, and with the last one from then on."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)
        self.paths = []

    def send(self, request, **_):
        self.paths.append(request.path_url.removeprefix("/v1/"))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, body, *headers = answer
        response = requests.Response()
        response.status_code = status
        response.request, response.url = request, request.url
        is_text = isinstance(body, str)
        response._content = (body if is_text else json.dumps(body)).encode()
        response.headers["Content-Type"] = "text/html" if is_text else "application/json"
        response.headers.update(*headers)
        return response

    def close(self):
        pass


@pytest.fixture
def retries():
    clock = ManualClock()
    return RetryPolicy(clock=clock.now, sleep=clock.advance)


@pytest.fixture
def answering(retries, context):
    """Unwrap against canned answers; give the transport and what was raised."""

    def run(*answers, raw=False):
        canned = Canned(*answers)
        session = requests.Session()
        session.mount("http://", canned)
        kind = hvac.adapters.RawAdapter if raw else hvac.adapters.JSONAdapter
        client = hvac.Client(url="http://vault:8200", token="t", session=session, adapter=kind)
        adapter = VaultTransitAdapter("transit", "app", client=client, retries=retries)
        return canned, adapter.unwrap_many([(WRAPPED, context)])[0]

    return run


def errors(*messages):
    return {"errors": list(messages)}


SEALED = (503, errors("Vault is sealed"))
STANDBY = (500, errors("local node not active but active cluster node not found"))
CASES = {
    "replica lags": (
        (412, errors("required index state not present")),
        KmsUnavailableError,
        4,
        "not caught up",
    ),
    "rate limit": ((429, errors("rate limit quota exceeded")), KmsUnavailableError, 4, "quota"),
    "sealed": (SEALED, KmsUnavailableError, 4, "sealed"),
    "standby": (STANDBY, KmsUnavailableError, 4, "standby"),
    "inside": ((500, errors("internal error")), KmsUnavailableError, 4, "had an internal failure"),
    "gateway": ((502, "<html>Bad Gateway</html>"), KmsUnavailableError, 4, "does not come from Vault"),
    "gateway timeout": (
        (504, "upstream request timeout"),
        KmsUnavailableError,
        4,
        "does not come from Vault",
    ),
    "not initialised": ((501, errors("not initialized")), KmsUnavailableError, 1, "not initialised"),
    "refused": (
        requests.ConnectionError("[Errno 111] Connection refused"),
        KmsUnavailableError,
        4,
        "refused",
    ),
    "timeout": (requests.ReadTimeout("read timed out"), KmsUnavailableError, 4, "in time"),
    "reset": (requests.exceptions.ChunkedEncodingError("reset"), KmsUnavailableError, 4, "connection"),
    "certificate": (requests.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED"), KmsUnavailableError, 1, "TLS"),
    "no bundle": (
        OSError("Could not find a suitable TLS CA certificate bundle, invalid path: /x/ca.pem"),
        ConfigurationError,
        1,
        "a file of certificates cannot be used (/x/ca.pem)",
    ),
    "address": (requests.exceptions.InvalidURL("no host"), ConfigurationError, 1, "address"),
    "a portal": ((200, "<html>Please log in</html>"), KmsUnavailableError, 1, "does not come from Vault"),
    "a reset without its wrapping": (
        ConnectionResetError(104, "reset by peer"),
        KmsUnavailableError,
        4,
        "reset",
    ),
    "a proxy's 404": ((404, "<html>Not Found</html>"), KmsUnavailableError, 1, "does not come from Vault"),
    "a proxy's 403": ((403, "<html>Forbidden</html>"), KmsUnavailableError, 1, "does not come from Vault"),
    "no such key": ((400, errors("encryption key not found")), KmsKeyStateError, 1, "no such transit key"),
    "no mount": ((404, errors('no handler for route "x"')), KmsKeyStateError, 1, "no engine is mounted"),
    "no namespace": ((404, errors("namespace not found")), KmsKeyStateError, 1, "namespace"),
    "another engine": ((405, errors("unsupported operation")), KmsKeyStateError, 1, "not a transit engine"),
    "soft-deleted": ((400, errors("refusing to use soft-deleted key")), KmsKeyStateError, 1, "soft-deleted"),
    "unknown words": ((400, errors("something new")), KmsError, 1, "something new"),
    "unknown status": ((418, errors("teapot")), KmsError, 1, "418"),
    "too few results": ((200, {"data": {"batch_results": []}}), KmsError, 1, "does not match the request"),
    "no results": ((200, {"data": None}), KmsError, 1, "does not match the request"),
    "too complex for one": (
        (400, errors("refused JSON input due to high complexity: exceeded maximum number of strings")),
        KmsError,
        1,
        "complexity",
    ),
}


@pytest.mark.parametrize(("answer", "error", "tries", "words"), CASES.values(), ids=CASES)
def test_each_answer_has_its_class_its_tries_and_its_words(answering, answer, error, tries, words):
    canned, outcome = answering(answer)
    assert type(outcome) is error
    assert words in str(outcome)
    assert outcome.remedy
    assert len(canned.paths) == tries
    if isinstance(outcome, KmsError):
        assert outcome.kek_uri == URI


def test_a_redirection_that_drops_what_was_sent_is_not_taken_for_vaults_word(answering):
    moved = (301, "moved", {"Location": "http://vault:8200/v1/elsewhere"})
    _, outcome = answering(moved, (405, errors("unsupported operation")))
    assert type(outcome) is KmsUnavailableError
    assert "does not come from Vault" in str(outcome)


def test_a_redirection_to_the_active_node_is_followed(answering):
    moved = (307, "", {"Location": "http://active:8200/v1/transit/decrypt/app"})
    canned, outcome = answering(moved, (200, GOOD))
    assert outcome == bytes(range(32))
    assert len(canned.paths) == 2


@pytest.mark.parametrize("answer", [SEALED, STANDBY, (412, errors("lag")), requests.ConnectionError("x")])
def test_what_heals_in_time_is_never_seen(answering, answer):
    canned, outcome = answering(answer, answer, (200, GOOD))
    assert outcome == bytes(range(32))
    assert len(canned.paths) == 3


def test_a_clients_raw_adapter_will_do(answering):
    assert answering((200, GOOD), raw=True)[1] == bytes(range(32))


def test_a_partial_failure_may_come_with_any_status(answering):
    for status in (200, 207, 400):
        body = {
            "data": {"batch_results": [{"plaintext": "", "error": "cipher: message authentication failed"}]}
        }
        assert isinstance(answering((status, body))[1], IntegrityError)


def test_the_answer_says_when_to_try_again(answering):
    _, outcome = answering((503, errors("Vault is sealed"), {"Retry-After": "30"}))
    assert outcome.retry_after == 30.0


def test_an_outage_during_the_look_up_is_not_a_denial(answering):
    _, outcome = answering((403, errors("permission denied")), SEALED)
    assert isinstance(outcome, KmsUnavailableError)


def test_hashicorps_words_for_a_dead_token_and_for_a_denial_are_told_apart(answering):
    dead = (403, errors("2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"))
    _, outcome = answering(dead)
    assert isinstance(outcome, KmsForbiddenError)
    assert "expired or was revoked" in str(outcome)
    by_policy = (403, errors("1 error occurred:\n\t* permission denied\n\n"))
    _, outcome = answering(by_policy)
    assert isinstance(outcome, KmsForbiddenError)
    assert "policies do not grant update on transit/decrypt/app" in str(outcome)
    assert "\n" not in str(outcome)


def test_a_denial_after_a_new_login_is_a_denial(retries, context, monkeypatch):
    """A token that may not look itself up, on a server that words both refusals alike."""
    login = {"auth": {"client_token": "s.new", "lease_duration": 3600, "renewable": True}}
    denied = (403, errors("permission denied"))
    canned = Canned((200, login), denied, denied, (200, login), denied)
    monkeypatch.setattr(requests.Session, "get_adapter", lambda *_, **__: canned)
    settings = VaultSettings(address="http://127.0.0.1:8200", login=AppRole("role", "secret"))
    adapter = VaultTransitAdapter("transit", "app", settings=settings, retries=retries)
    with pytest.raises(KmsForbiddenError, match="policies do not grant"):
        adapter.unwrap(WRAPPED, context)
    decrypt, login_path, acl = "transit/decrypt/app", "auth/approle/login", "sys/internal/ui/resultant-acl"
    assert canned.paths == [login_path, decrypt, "auth/token/lookup-self", login_path, decrypt, acl]


def test_a_token_at_its_maximum_is_replaced_by_a_new_login(context, monkeypatch):
    clock = ManualClock()
    retries = RetryPolicy(clock=clock.now, sleep=clock.advance)

    def terms(token, seconds):
        return (200, {"auth": {"client_token": token, "lease_duration": seconds, "renewable": True}})

    good = (200, GOOD)
    canned = Canned(terms("s.old", 3600), good, terms("s.old", 1200), good, terms("s.new", 3600), good)
    monkeypatch.setattr(requests.Session, "get_adapter", lambda *_, **__: canned)
    settings = VaultSettings(address="http://127.0.0.1:8200", login=AppRole("role", "secret"))
    adapter = VaultTransitAdapter("transit", "app", settings=settings, retries=retries)
    for seconds in (0, 2400, 800):
        clock.advance(seconds)
        assert adapter.unwrap(WRAPPED, context) == bytes(range(32))
    assert [path for path in canned.paths if path.startswith("auth")] == [
        "auth/approle/login",
        "auth/token/renew-self",
        "auth/approle/login",
    ]


def test_a_login_during_an_outage_is_an_outage(retries, context, monkeypatch):
    for answer in (
        SEALED,
        STANDBY,
        (429, errors("rate limit quota exceeded")),
        requests.ConnectionError("x"),
    ):
        canned = Canned(answer)
        monkeypatch.setattr(requests.Session, "get_adapter", lambda *_, canned=canned, **__: canned)
        settings = VaultSettings(address="http://127.0.0.1:8200", login=AppRole("role", "secret"))
        adapter = VaultTransitAdapter("transit", "app", settings=settings, retries=retries)
        with pytest.raises(KmsUnavailableError):
            adapter.unwrap(WRAPPED, context)
        assert len(canned.paths) == 4


@pytest.mark.parametrize(
    "words",
    [
        "cipher: message authentication failed",
        "invalid ciphertext: no prefix",
        "invalid ciphertext: could not decode base64",
        "invalid ciphertext: version number could not be decoded",
        "invalid ciphertext length",
    ],
)
def test_every_word_for_a_changed_wrapping_is_an_integrity_error(words):
    error = item_failure(words, action="transit/decrypt/app of key 1", key=TransitKey("transit", "app"))
    assert type(error) is IntegrityError
    assert "transit/decrypt/app of key 1" in str(error)


def test_hvacs_own_exceptions_are_all_known():
    """A new one would be taken for an answer without a status: look at it first."""
    known = {
        "BadGateway",
        "Forbidden",
        "InternalServerError",
        "InvalidPath",
        "InvalidRequest",
        "ParamValidationError",
        "PreconditionFailed",
        "RateLimitExceeded",
        "Unauthorized",
        "UnexpectedError",
        "UnsupportedOperation",
        "VaultDown",
        "VaultError",
        "VaultNotInitialized",
    }
    found = {name for name, kind in vars(hvac.exceptions).items() if isinstance(kind, type)}
    assert found == known
