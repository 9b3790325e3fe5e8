"""Tokens that last: logins, renewals and new logins, over a real OpenBao; only our own clock is moved."""

import base64
import contextlib
import gc
import json
import os
import threading
import time
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from eventseal.errors import ConfigurationError, KmsForbiddenError, KmsUnavailableError
from eventseal.testing import ManualClock
from eventseal_kms.vault import (
    AppRole,
    Kubernetes,
    RetryPolicy,
    Token,
    TokenFile,
    VaultSettings,
    VaultTransitAdapter,
)

KEY = bytes(range(32))
HOUR = 3600
POLICY = 'path "transit/*" { capabilities = ["read", "update"] }'
LOGIN, RENEW, LOOKUP = "auth/approle/login", "auth/token/renew-self", "auth/token/lookup-self"


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def retries(clock):
    return RetryPolicy(clock=clock.now, sleep=clock.advance, try_timeout=60, deadline=120)


@pytest.fixture
def root(openbao):
    root = openbao.client()
    root.sys.create_or_update_policy("transit-all", POLICY)
    return root


@pytest.fixture
def make_role(root):
    if "approle/" not in root.sys.list_auth_methods()["data"]:
        root.sys.enable_auth_method("approle")

    def make(**terms):
        name = f"role-{uuid.uuid4().hex}"
        options = {"token_policies": ["transit-all"], "token_ttl": "1h", "token_max_ttl": "24h"} | terms
        root.auth.approle.create_or_update_approle(name, **options)
        role_id = root.auth.approle.read_role_id(name)["data"]["role_id"]
        secret_id = root.auth.approle.generate_secret_id(name)["data"]["secret_id"]
        return AppRole(role_id, secret_id)

    return make


@pytest.fixture
def make_token(root):
    def make(**terms):
        options = {"policies": ["transit-all"], "ttl": "1h"} | terms
        return root.auth.token.create(**options)["auth"]["client_token"]

    return make


@pytest.fixture
def make_adapter(openbao, key_name, retries):
    def make(login, **options):
        settings = VaultSettings(address=openbao.address, login=login)
        return VaultTransitAdapter("transit", key_name, settings=settings, **{"retries": retries} | options)

    return make


@pytest.fixture
def wrapped(adapter, context):
    return adapter.wrap(KEY, context)


def token_of(adapter):
    return adapter._session._process().client.token


def paths(made):
    return [
        path.replace(path.split("/")[-1], "KEY") if path.startswith("transit/") else path for _, path in made
    ]


# --- AppRole -----------------------------------------------------------------------------------------------


def test_an_approle_logs_in_once_on_first_use(openbao, make_role, make_adapter, wrapped, context):
    adapter = make_adapter(make_role())
    with openbao.counted() as made:
        assert [adapter.unwrap(wrapped, context) for _ in range(3)] == [KEY] * 3
    assert paths(made) == [LOGIN, *["transit/decrypt/KEY"] * 3]


@pytest.mark.slow
def test_a_token_is_renewed_when_two_thirds_of_its_lease_have_passed(
    openbao, make_role, make_adapter, wrapped, context, clock
):
    adapter = make_adapter(make_role())
    adapter.unwrap(wrapped, context)
    token = token_of(adapter)
    clock.advance(HOUR * 2 / 3 - 1)
    with openbao.counted("auth/") as before:
        adapter.unwrap(wrapped, context)
    clock.advance(1)
    with openbao.counted("auth/") as at:
        adapter.unwrap(wrapped, context)
    clock.advance(HOUR * 2 / 3 - 1)
    with openbao.counted("auth/") as after:
        adapter.unwrap(wrapped, context)
    assert (paths(before), paths(at), paths(after)) == ([], [RENEW], [])
    assert token_of(adapter) == token


def test_a_token_that_cannot_be_renewed_is_replaced_in_time(
    openbao, make_role, make_adapter, wrapped, context, clock
):
    adapter = make_adapter(make_role(token_type="batch"))
    adapter.unwrap(wrapped, context)
    token = token_of(adapter)
    clock.advance(HOUR * 2 / 3)
    with openbao.counted("auth/") as made:
        adapter.unwrap(wrapped, context)
    assert paths(made) == [LOGIN]
    assert token_of(adapter) != token


def test_a_revoked_token_is_replaced_by_one_new_login(
    openbao, root, make_role, make_adapter, wrapped, context
):
    adapter = make_adapter(make_role())
    adapter.unwrap(wrapped, context)
    root.auth.token.revoke(token_of(adapter))
    with openbao.counted() as made:
        assert adapter.unwrap(wrapped, context) == KEY
    assert paths(made) == ["transit/decrypt/KEY", LOOKUP, LOGIN, "transit/decrypt/KEY"]


@pytest.mark.slow
def test_a_token_that_expired_while_nothing_was_called_is_replaced(
    openbao, make_role, make_adapter, wrapped, context
):
    """By real time, as it happens to a process that was asleep and whose clock was, too."""
    adapter = make_adapter(make_role(token_ttl="1s"))
    adapter.unwrap(wrapped, context)
    expired = openbao.client(token=token_of(adapter))
    deadline = time.monotonic() + 60
    while expired.is_authenticated() and time.monotonic() < deadline:
        time.sleep(0.05)
    with openbao.counted("auth/approle") as made:
        assert adapter.unwrap(wrapped, context) == KEY
    assert paths(made) == [LOGIN]


def test_a_lease_that_has_ended_by_our_clock_is_not_tried(
    openbao, make_role, make_adapter, wrapped, context, clock
):
    adapter = make_adapter(make_role())
    adapter.unwrap(wrapped, context)
    clock.advance(HOUR)
    with openbao.counted() as made:
        assert adapter.unwrap(wrapped, context) == KEY
    assert paths(made) == [LOGIN, "transit/decrypt/KEY"]


def test_a_policy_denial_makes_no_new_login(openbao, make_role, make_adapter, wrapped, context, key_name):
    adapter = make_adapter(make_role(token_policies=["default"]))
    with openbao.counted() as made, pytest.raises(KmsForbiddenError, match="policies do not grant") as caught:
        adapter.unwrap(wrapped, context)
    assert paths(made) == [LOGIN, "transit/decrypt/KEY", LOOKUP, "sys/internal/ui/resultant-acl"]
    assert f'path "transit/decrypt/{key_name}" {{ capabilities = ["update"] }}' in caught.value.remedy


def test_a_permission_that_is_granted_later_works_at_once(root, make_role, make_adapter, wrapped, context):
    root.sys.create_or_update_policy("growing", 'path "nothing" { capabilities = ["read"] }')
    adapter = make_adapter(make_role(token_policies=["growing"]))
    with pytest.raises(KmsForbiddenError):
        adapter.unwrap(wrapped, context)
    root.sys.create_or_update_policy("growing", POLICY)
    assert adapter.unwrap(wrapped, context) == KEY


@pytest.mark.parametrize("login", [AppRole("nobody", "nothing"), AppRole("nobody")])
def test_a_login_that_vault_refuses_is_forbidden_not_an_outage(
    make_role, make_adapter, wrapped, context, login
):
    make_role()
    with pytest.raises(KmsForbiddenError, match="does not accept the login") as caught:
        make_adapter(login).unwrap(wrapped, context)
    assert "secret id" in caught.value.remedy


def test_a_secret_id_that_was_withdrawn_and_given_back_needs_no_restart(
    root, make_role, make_adapter, wrapped, context
):
    role = make_role()
    roles = [role]

    def login(client):
        return roles[-1](client)

    adapter = make_adapter(login)
    adapter.unwrap(wrapped, context)
    root.auth.token.revoke(token_of(adapter))
    roles.append(AppRole(role.role_id, "withdrawn"))
    for _ in range(2):
        with pytest.raises(KmsForbiddenError):
            adapter.unwrap(wrapped, context)
    roles.pop()
    assert adapter.unwrap(wrapped, context) == KEY


# --- renewal under difficulties ----------------------------------------------------------------------------


def test_a_renewal_that_fails_for_a_while_disturbs_nobody(
    openbao, make_role, make_adapter, wrapped, context, clock, monkeypatch
):
    adapter = make_adapter(make_role())
    adapter.unwrap(wrapped, context)
    real, renewals = requests.Session.send, []

    def without_renewal(session, request, **options):
        if request.path_url.endswith(RENEW):
            renewals.append(clock.now())
            raise requests.ConnectionError("gone")
        return real(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", without_renewal)
    clock.advance(HOUR * 2 / 3)
    for _ in range(5):
        assert adapter.unwrap(wrapped, context) == KEY
    assert len(renewals) == 1
    clock.advance(HOUR / 9)
    adapter.unwrap(wrapped, context)
    assert len(renewals) == 2
    monkeypatch.undo()
    clock.advance(HOUR / 9)
    with openbao.counted("auth/") as made:
        adapter.unwrap(wrapped, context)
    assert paths(made) == [RENEW]


def test_one_thread_renews_while_the_others_go_on(
    openbao, make_role, make_adapter, wrapped, context, clock, monkeypatch
):
    adapter = make_adapter(make_role())
    adapter.unwrap(wrapped, context)
    real, renewing, go_on = requests.Session.send, threading.Event(), threading.Event()

    def slow_renewal(session, request, **options):
        if request.path_url.endswith(RENEW):
            renewing.set()
            assert go_on.wait(60)
        return real(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", slow_renewal)
    clock.advance(HOUR * 2 / 3)
    with ThreadPoolExecutor(1) as pool, openbao.counted("auth/") as made:
        first = pool.submit(adapter.unwrap, wrapped, context)
        assert renewing.wait(60)
        assert adapter.unwrap(wrapped, context) == KEY
        go_on.set()
        assert first.result(60) == KEY
    assert paths(made) == [RENEW]


@pytest.mark.slow
@pytest.mark.parametrize("ended", [False, True], ids=["first use", "revoked"])
def test_fifty_threads_make_one_login(
    openbao, root, make_role, make_adapter, wrapped, context, patient, ended
):
    adapter = make_adapter(make_role(), retries=patient)
    if ended:
        adapter.unwrap(wrapped, context)
        root.auth.token.revoke(token_of(adapter))
    barrier = threading.Barrier(50)

    def unwrap(_):
        barrier.wait()
        return adapter.unwrap(wrapped, context)

    with ThreadPoolExecutor(50) as pool, openbao.counted(LOGIN) as made:
        opened = list(pool.map(unwrap, range(50)))
    assert opened == [KEY] * 50
    assert len(made) == 1


def test_two_threads_that_make_a_client_at_once_share_one(
    openbao, make_role, make_adapter, wrapped, context, monkeypatch
):
    """A secret id that may be used once makes a second login fail."""
    adapter = make_adapter(make_role(secret_id_num_uses=1))
    real, both = VaultSettings.make_client, threading.Barrier(2)

    def make_together(settings, **options):
        client = real(settings, **options)
        both.wait(60)
        return client

    monkeypatch.setattr(VaultSettings, "make_client", make_together)
    with ThreadPoolExecutor(2) as pool:
        opened = list(pool.map(lambda _: adapter.unwrap(wrapped, context), range(2)))
    assert opened == [KEY] * 2


@pytest.mark.slow
def test_a_login_that_hangs_holds_up_each_thread_for_its_own_time_only(
    openbao, make_role, make_adapter, wrapped, context, impatient
):
    adapter, count = make_adapter(make_role(), retries=impatient), 32
    started = time.monotonic()
    with openbao.paused(), ThreadPoolExecutor(count) as pool:
        outcomes = list(pool.map(lambda _: adapter.unwrap_many([(wrapped, context)])[0], range(count)))
    assert {type(outcome) for outcome in outcomes} == {KmsUnavailableError}
    # It takes about one deadline. If each thread waited for the others, it would take 32 of them.
    assert time.monotonic() - started < count / 2 * impatient.deadline
    assert adapter.unwrap(wrapped, context) == KEY


# --- tokens that are given ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_given_token_is_looked_up_once_and_renewed_in_time(
    openbao, make_token, make_adapter, wrapped, context, clock
):
    adapter = make_adapter(Token(make_token()))
    with openbao.counted("auth/") as first:
        adapter.unwrap(wrapped, context)
        adapter.unwrap(wrapped, context)
    clock.advance(HOUR * 2 / 3 + 1)
    with openbao.counted("auth/") as later:
        adapter.unwrap(wrapped, context)
    assert (paths(first), paths(later)) == ([LOOKUP], [RENEW])


def test_a_token_that_never_ends_is_never_renewed(openbao, make_adapter, wrapped, context, clock):
    adapter = make_adapter(Token("root"))
    adapter.unwrap(wrapped, context)
    clock.advance(1000 * HOUR)
    with openbao.counted("auth/") as made:
        adapter.unwrap(wrapped, context)
    assert made == []


@pytest.mark.parametrize("revoked", [False, True], ids=["never one", "revoked"])
def test_a_dead_token_is_told_from_a_denial(root, make_token, make_adapter, wrapped, context, revoked):
    token = make_token()
    adapter = make_adapter(Token(token if revoked else "s.neverwasatoken"))
    if revoked:
        adapter.unwrap(wrapped, context)
        root.auth.token.revoke(token)
    with pytest.raises(KmsForbiddenError, match="expired or was revoked") as caught:
        adapter.unwrap(wrapped, context)
    assert "new token" in caught.value.remedy
    assert token not in str(caught.value) + repr(caught.value.__dict__)


def test_a_token_that_may_not_look_itself_up_works_and_is_told_from_a_dead_one(
    root, make_token, make_adapter, wrapped, context
):
    root.sys.create_or_update_policy("only-decrypt", 'path "transit/decrypt/*" { capabilities = ["update"] }')
    adapter = make_adapter(Token(make_token(policies=["only-decrypt"], no_default_policy=True)))
    assert adapter.unwrap(wrapped, context) == KEY
    with pytest.raises(KmsForbiddenError, match="policies do not grant read"):
        adapter.wrap(KEY, context)


def test_a_token_file_is_read_again_when_its_token_has_ended(
    openbao, root, make_token, make_adapter, wrapped, context, tmp_path
):
    path = tmp_path / "token"
    path.write_text(f"{make_token()}\n")
    adapter = make_adapter(TokenFile(path))
    adapter.unwrap(wrapped, context)
    root.auth.token.revoke(path.read_text().strip())
    with pytest.raises(KmsForbiddenError, match="expired or was revoked"):
        adapter.unwrap(wrapped, context)
    path.write_text(make_token())
    assert adapter.unwrap(wrapped, context) == KEY


def test_a_token_file_that_comes_late_is_waited_for_by_nobody_but_found(
    make_token, make_adapter, wrapped, context, tmp_path
):
    path = tmp_path / "token"
    adapter = make_adapter(TokenFile(path))
    with pytest.raises(ConfigurationError, match=r"token file .* cannot be read") as caught:
        adapter.unwrap(wrapped, context)
    assert "vault login" in caught.value.remedy
    path.write_text("")
    with pytest.raises(ConfigurationError, match="empty"):
        adapter.unwrap(wrapped, context)
    path.write_text(make_token())
    assert adapter.unwrap(wrapped, context) == KEY


def test_a_client_that_was_given_is_never_logged_in_nor_renewed(
    openbao, root, make_token, key_name, wrapped, context, retries, clock
):
    client = openbao.client(token=make_token())
    adapter = VaultTransitAdapter("transit", key_name, client=client, retries=retries)
    with openbao.counted("auth/") as made:
        adapter.unwrap(wrapped, context)
        clock.advance(HOUR * 2)
        adapter.unwrap(wrapped, context)
    assert made == []
    root.auth.token.revoke(client.token)
    with pytest.raises(KmsForbiddenError, match="expired or was revoked"):
        adapter.unwrap(wrapped, context)
    client.token = make_token()
    assert adapter.unwrap(wrapped, context) == KEY


# --- Kubernetes --------------------------------------------------------------------------------------------


def test_a_pod_logs_in_with_its_service_account_and_reads_its_token_anew(
    openbao, root, make_adapter, wrapped, context, tmp_path
):
    """OpenBao's `jwt` method takes the same request as Kubernetes' and needs no cluster."""
    signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = signer.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    root.sys.enable_auth_method("jwt", path="pods")
    root.adapter.post("/v1/auth/pods/config", json={"jwt_validation_pubkeys": [public.decode()]})
    terms = {
        "role_type": "jwt",
        "user_claim": "sub",
        "bound_audiences": ["vault"],
        "token_policies": "transit-all",
    }
    root.adapter.post("/v1/auth/pods/role/shop", json=terms)
    path = tmp_path / "service-account"
    adapter = make_adapter(Kubernetes("shop", mount="pods", token_path=path))
    path.write_text(_jwt(signer, "pod-1"))
    assert adapter.unwrap(wrapped, context) == KEY
    root.auth.token.revoke(token_of(adapter))
    path.write_text(_jwt(signer, "pod-2"))
    assert adapter.unwrap(wrapped, context) == KEY
    seen = root.auth.token.lookup(token_of(adapter))["data"]
    assert seen["display_name"].endswith("pod-2")


def test_outside_a_pod_there_is_nothing_to_log_in_with(make_adapter, wrapped, context, tmp_path):
    adapter = make_adapter(Kubernetes("shop", token_path=tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="service account token"):
        adapter.unwrap(wrapped, context)


def _jwt(signer, subject):
    def encoded(part):
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    claims = {"sub": subject, "aud": "vault", "iat": int(time.time()) - 5, "exp": int(time.time()) + 600}
    signed = b".".join(encoded(json.dumps(part).encode()) for part in ({"alg": "RS256"}, claims))
    signature = signer.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    return b".".join([signed, encoded(signature)]).decode()


# --- fork --------------------------------------------------------------------------------------------------


def in_a_fork(work):
    """Run *work* in a child; give whether it said yes, and did not hang."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


@pytest.mark.slow
def test_a_child_takes_the_token_and_makes_connections_of_its_own(
    openbao, make_role, make_adapter, wrapped, context, patient
):
    adapter = make_adapter(make_role(), retries=patient)
    adapter.unwrap(wrapped, context)
    parents = adapter._session._process()

    def work():
        return (
            adapter.unwrap(wrapped, context) == KEY
            and adapter._session._process().client is not parents.client
        )

    with openbao.counted() as made:
        with parents.login_lock:  # as if another thread were just logging in
            assert in_a_fork(work)
        assert adapter.unwrap(wrapped, context) == KEY
    assert paths(made) == ["transit/decrypt/KEY"] * 2


def test_a_given_client_leaves_the_parents_sockets_alone_in_a_child(adapter, wrapped, context, client):
    def sockets():
        return [
            connection.sock.fileno()
            for http in client.session.adapters.values()
            for pool in http.poolmanager.pools._container.values()
            for connection in list(pool.pool.queue)
            if connection is not None and connection.sock is not None
        ]

    adapter.unwrap(wrapped, context)
    before = sockets()
    assert before
    inodes = {os.fstat(number).st_ino for number in before}

    def work():
        opened = adapter.unwrap(wrapped, context) == KEY
        return opened and inodes.isdisjoint(os.fstat(number).st_ino for number in sockets())

    assert in_a_fork(work)
    assert adapter.unwrap(wrapped, context) == KEY
    assert sockets() == before


@pytest.mark.parametrize("given", [True, False], ids=["given client", "settings"])
def test_a_child_needs_no_lock_that_another_thread_held_at_the_fork(
    openbao, key_name, make_adapter, wrapped, context, patient, given
):
    adapter = (
        VaultTransitAdapter("transit", key_name, client=openbao.client(), retries=patient)
        if given
        else make_adapter(Token("root"), retries=patient)
    )
    adapter.unwrap(wrapped, context)
    session = adapter._session._process().client.session
    managers = [http.poolmanager for http in session.adapters.values()]
    locks = [session.cookies._cookies_lock, *[manager.pools.lock for manager in managers]]
    locks += [pool.pool.mutex for manager in managers for pool in manager.pools._container.values()]
    held, forked = threading.Event(), threading.Event()

    def hold():
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            forked.wait(60)

    def work():
        gc.collect()
        return adapter.unwrap(wrapped, context) == KEY

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        assert held.wait(60)
        try:
            assert in_a_fork(work)
        finally:
            forked.set()
            holder.result()
    assert adapter.unwrap(wrapped, context) == KEY


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False], ids=["given client", "settings"])
def test_forks_under_load_neither_hang_nor_share_a_socket(
    openbao, key_name, make_adapter, wrapped, context, patient, given
):
    adapter = (
        VaultTransitAdapter("transit", key_name, client=openbao.client(), retries=patient)
        if given
        else make_adapter(Token("root"), retries=patient)
    )
    stop = threading.Event()

    def keep_calling():
        while not stop.is_set():
            assert adapter.unwrap(wrapped, context) == KEY

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(keep_calling) for _ in range(8)]
        try:
            done = [in_a_fork(lambda: adapter.unwrap(wrapped, context) == KEY) for _ in range(20)]
        finally:
            stop.set()
        assert all(done)
        for caller in callers:
            caller.result()
