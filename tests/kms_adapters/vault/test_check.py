"""What `check` tells, of rights and of the key."""

import pytest

from eventseal.errors import KmsForbiddenError, KmsUnavailableError
from eventseal_kms.vault import VaultTransitAdapter


def answers(checks):
    return {check.action: check.granted for check in checks}


def test_a_root_token_may_do_everything(adapter, key_name):
    checks = adapter.check()
    assert answers(checks) == {
        f"update transit/encrypt/{key_name}": True,
        f"update transit/decrypt/{key_name}": True,
        f"update transit/rewrap/{key_name}": True,
        f"read transit/keys/{key_name}": True,
        f"transit/keys/{key_name} is a derived key that encrypts": True,
    }
    assert {check.detail for check in checks} == {""}
    assert [check.action for check in checks if not check.required] == [f"update transit/rewrap/{key_name}"]


def test_each_missing_right_is_told_with_the_policy_line_that_grants_it(openbao, key_name):
    token = openbao.client().auth.token.create(policies=["default"])["auth"]["client_token"]
    checks = VaultTransitAdapter("transit", key_name, client=openbao.client(token=token)).check()
    assert set(answers(checks).values()) == {False}
    assert len(checks) == 4
    assert checks[1].detail == f'path "transit/decrypt/{key_name}" {{ capabilities = ["update"] }}'
    root = openbao.client()
    root.sys.create_or_update_policy("as-told", "\n".join(check.detail for check in checks))
    token = root.auth.token.create(policies=["default", "as-told"])["auth"]["client_token"]
    checks = VaultTransitAdapter("transit", key_name, client=openbao.client(token=token)).check()
    assert set(answers(checks).values()) == {True}


@pytest.mark.parametrize(
    ("options", "words"),
    [(None, "no such transit key"), ({}, "not derived"), ({"key_type": "ed25519"}, "cannot encrypt")],
    ids=["missing", "not derived", "a signing key"],
)
def test_a_key_that_will_not_do_is_told_with_its_remedy(openbao, client, options, words):
    name = f"check-{words.replace(' ', '-')}"
    if options is not None:
        openbao.client().secrets.transit.create_key(name, **options)
    last = VaultTransitAdapter("transit", name, client=client).check()[-1]
    assert not last.granted
    assert words in last.detail
    assert "vault write transit/keys" in last.detail


def test_it_changes_nothing(openbao, adapter):
    with openbao.counted() as made:
        adapter.check()
    assert [operation for operation, _ in made] == ["update", "read"]
    assert made[0][1] == "sys/capabilities-self"


@pytest.mark.slow
def test_what_could_not_be_asked_is_raised(openbao, key_name, impatient):
    bad = VaultTransitAdapter("transit", key_name, client=openbao.client(token="s.none"))
    with pytest.raises(KmsForbiddenError, match="expired or was revoked"):
        bad.check()
    slow = VaultTransitAdapter("transit", key_name, client=openbao.client(), retries=impatient)
    with openbao.paused(), pytest.raises(KmsUnavailableError):
        slow.check()
