"""
Ten faults of a Vault: the right class and number of tries, bounded time, and recovery without a restart.

Each fault is made on a real OpenBao, seen by an adapter that keeps running, and mended.
"""

import time
from dataclasses import dataclass

import pytest

from eventseal.errors import EventSealError, KmsForbiddenError, KmsKeyStateError, KmsUnavailableError
from eventseal_kms.vault import VaultTransitAdapter

KEY = bytes(range(32))
HEALING_SECONDS = 60.0  # two on an idle machine; this bounds a busy one
AT_ONCE = 10.0
"""Seconds for four tries, with at most 0.7 s between them: one that waited for its time-out would take 60."""

WITHIN_DEADLINE = 12.0
"""Seconds for what never answers: the deadline is 3 s; four whole time-outs of hvac's own would take 120."""


@dataclass
class Seen:
    error: Exception
    tries: int
    seconds: float


class Scene:
    """An adapter that has worked, under a key of its own, and what it sees."""

    def __init__(self, server, counting, context, key_name, patient, token=None):
        self.server, self.counting, self.context, self.key_name = server, counting, context, key_name
        self.root = server.client()
        self.root.secrets.transit.create_key(key_name, derived=True)
        self.client = server.client(token=token, session=counting)
        self.adapter = VaultTransitAdapter("transit", key_name, client=self.client, retries=patient)
        self.wrapped = VaultTransitAdapter("transit", key_name, client=self.root).wrap(KEY, context)
        assert self.adapter.unwrap(self.wrapped, context) == KEY

    def see(self, call=None):
        self.counting.tries.clear()
        started = time.monotonic()
        with pytest.raises(Exception) as caught:
            (call or self.unwrap)()
        seconds = time.monotonic() - started
        tries = sum(path.startswith("transit/") for _, path in self.counting.tries)
        return Seen(caught.value, tries, seconds)

    def unwrap(self):
        return self.adapter.unwrap(self.wrapped, self.context)

    def wrap(self):
        return self.adapter.wrap(KEY, self.context)

    def assert_healed(self):
        """Soon, and without anything made anew here."""
        deadline = time.monotonic() + HEALING_SECONDS
        while True:
            outcome = self.adapter.unwrap_many([(self.wrapped, self.context)])[0]
            if not isinstance(outcome, Exception):
                break
            assert isinstance(outcome, KmsUnavailableError), outcome
            assert time.monotonic() < deadline, outcome
        assert outcome == KEY
        assert self.adapter.unwrap(self.wrap(), self.context) == KEY


def is_a(seen, error, *, tries, words, seconds=AT_ONCE):
    assert type(seen.error) is error, seen
    assert words in f"{seen.error} {seen.error.remedy}", seen
    assert seen.tries == tries, seen
    assert seen.seconds < seconds, seen


@pytest.fixture
def scene(openbao, counting, context, patient, request):
    return Scene(openbao, counting, context, request.node.name, patient)


@pytest.fixture
def persistent_scene(persistent_openbao, counting, context, patient, request):
    return Scene(persistent_openbao, counting, context, request.node.name, patient)


@pytest.fixture
def scene_with_a_token(openbao, counting, context, patient, request):
    """The token may use transit, and is not root's."""
    root = openbao.client()
    root.sys.create_or_update_policy("transit-all", 'path "transit/*" { capabilities = ["read", "update"] }')
    token = root.auth.token.create(policies=["transit-all"], ttl="1h")["auth"]["client_token"]
    return Scene(openbao, counting, context, request.node.name, patient, token=token)


@pytest.mark.slow
def test_1_sealed(persistent_scene):
    scene = persistent_scene
    scene.server.seal()
    try:
        is_a(scene.see(), KmsUnavailableError, tries=4, words="sealed")
        is_a(scene.see(scene.wrap), KmsUnavailableError, tries=4, words="vault operator unseal")
    finally:
        scene.server.unseal()
    scene.assert_healed()


@pytest.mark.slow
def test_2_an_expired_token(scene, openbao, make_short_token):
    scene.client.token = make_short_token()
    is_a(scene.see(), KmsForbiddenError, tries=1, words="expired or was revoked")
    scene.client.token = "root"
    scene.assert_healed()


@pytest.fixture
def make_short_token(openbao):
    def make():
        root = openbao.client()
        token = root.auth.token.create(policies=["default"], ttl="1s")["auth"]["client_token"]
        client = openbao.client(token=token)
        deadline = time.monotonic() + 60
        while client.is_authenticated() and time.monotonic() < deadline:
            time.sleep(0.05)
        return token

    return make


def test_3_a_revoked_token(scene_with_a_token):
    scene = scene_with_a_token
    scene.root.auth.token.revoke(scene.client.token)
    is_a(scene.see(), KmsForbiddenError, tries=1, words="expired or was revoked")
    scene.client.token = "root"
    scene.assert_healed()


def test_4_a_policy_denial(scene_with_a_token):
    scene = scene_with_a_token
    policy = 'path "transit/*" { capabilities = ["read", "update"] }'
    denial = f'path "transit/decrypt/{scene.key_name}" {{ capabilities = ["deny"] }}'
    scene.root.sys.create_or_update_policy("transit-all", f"{policy}\n{denial}")
    try:
        is_a(scene.see(), KmsForbiddenError, tries=1, words="denies update on transit/decrypt")
        scene.root.sys.create_or_update_policy(
            "transit-all", 'path "transit/keys/*" { capabilities = ["read"] }'
        )
        is_a(scene.see(), KmsForbiddenError, tries=1, words="policies do not grant update")
    finally:
        scene.root.sys.create_or_update_policy("transit-all", policy)
    scene.assert_healed()


@pytest.mark.slow
def test_5_a_rate_limit(persistent_scene):
    scene = persistent_scene
    path = "/v1/sys/quotas/rate-limit/tight"
    scene.root.adapter.post(path, json={"path": "transit/", "rate": 0.01, "interval": "1h"})
    try:
        scene.adapter.unwrap_many([(scene.wrapped, scene.context)])  # takes what the quota has
        is_a(scene.see(), KmsUnavailableError, tries=4, words="rate limit quota")
    finally:
        scene.root.adapter.delete(path)
    scene.assert_healed()


@pytest.mark.slow
def test_6_a_server_that_hangs(persistent_scene):
    scene = persistent_scene
    scene.adapter = VaultTransitAdapter("transit", scene.key_name, client=scene.client)  # its usual bounds
    with scene.server.paused():
        seen = scene.see()
    is_a(seen, KmsUnavailableError, tries=2, words="did not answer in time", seconds=WITHIN_DEADLINE)
    scene.assert_healed()


@pytest.mark.slow
def test_7_a_server_that_was_killed_and_started_again(persistent_scene):
    scene = persistent_scene
    scene.server.kill()
    try:
        is_a(scene.see(), KmsUnavailableError, tries=4, words="refused")
    finally:
        scene.server.restart()
    scene.assert_healed()


def test_8_min_decryption_version_raised_too_early(scene):
    scene.adapter.rotate()
    scene.adapter.forbid_versions_before("v2")
    is_a(
        scene.see(), KmsKeyStateError, tries=2, words="min_decryption_version=1"
    )  # the second asks if trimmed
    scene.adapter.forbid_versions_before("v1")
    scene.assert_healed()


def test_9_a_soft_deleted_key(scene):
    path = f"/v1/transit/keys/{scene.key_name}"
    scene.root.adapter.delete(f"{path}/soft-delete")
    is_a(scene.see(), KmsKeyStateError, tries=1, words="soft-delete-restore")
    new = VaultTransitAdapter("transit", scene.key_name, client=scene.client)
    is_a(
        scene.see(lambda: new.wrap(KEY, scene.context)),
        KmsKeyStateError,
        tries=1,
        words="soft-delete-restore",
    )
    scene.root.adapter.post(f"{path}/soft-delete-restore")
    scene.assert_healed()


def test_10_a_trimmed_version(scene):
    scene.adapter.rotate()
    scene.adapter.forbid_versions_before("v2")
    scene.adapter.delete_versions_before("v2")
    is_a(scene.see(), KmsKeyStateError, tries=2, words="trimmed")
    # That wrapping is gone for good; the key works on.
    scene.wrapped = scene.wrap()
    scene.assert_healed()


@pytest.mark.slow
def test_no_outage_is_ever_reported_as_anything_else(persistent_scene, impatient):
    """Every operation, in every outage."""
    scene = persistent_scene
    adapter = VaultTransitAdapter("transit", scene.key_name, client=scene.client, retries=impatient)
    pair = [(scene.wrapped, scene.context)]
    operations = [
        lambda: adapter.unwrap_many(pair)[0],
        lambda: adapter.rewrap_many(pair)[0],
        lambda: adapter.wrap_many([(KEY, scene.context)])[0],
        adapter.check,
        adapter.current_version,
        adapter.rotate,
    ]

    def outcomes():
        for operation in operations:
            try:
                yield operation()
            except EventSealError as error:
                yield error

    with scene.server.paused():
        assert {type(outcome) for outcome in outcomes()} == {KmsUnavailableError}
    scene.server.kill()
    assert {type(outcome) for outcome in outcomes()} == {KmsUnavailableError}
    scene.server.restart()
    scene.server.seal()
    assert {type(outcome) for outcome in outcomes()} == {KmsUnavailableError}
    scene.server.unseal()
    scene.assert_healed()
