"""What the caller may do, asked without doing it."""

import json
import re

import boto3
import pytest
from botocore.exceptions import ParamValidationError

from eventseal.errors import ConfigurationError, KmsKeyStateError, KmsUnavailableError
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.testing import NO_ANSWER

ROLE = "arn:aws:iam::111122223333:role/shop"
DESCRIBE = "kms:DescribeKey"  # has no encryption context, and no dry run
WITH_CONTEXT = ["kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt", "kms:ReEncrypt*"]
ALL = [*WITH_CONTEXT, DESCRIBE]


@pytest.fixture
def of_role(kms, key):
    return AwsKmsAdapter(key, client=kms.client(ROLE))


def policy(*actions, **condition):
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    if condition:
        statement["Condition"] = condition
    return {"Version": "2012-10-17", "Statement": [statement]}


def test_who_may_do_everything_is_told_so_and_nothing_is_done(kms, adapter):
    checks = adapter.check()
    assert [check.action for check in checks] == ALL
    assert all(check.granted and not check.detail for check in checks)
    *asked, last = kms.calls[-len(ALL) :]
    assert all(call.dry_run and call.error == "DryRunOperationException" for call in asked)
    assert last.action == DESCRIBE


def test_each_missing_permission_is_named_with_the_statement_to_add(of_role, key):
    checks = of_role.check("shop")
    assert [check.granted for check in checks] == [False] * len(ALL)
    for check in checks:
        assert check.action.rstrip("*") in check.detail
        assert key in check.detail


def test_adding_the_printed_statements_is_enough(kms, of_role, context):
    """As often as something is missing: ReEncrypt names its two permissions one after the other."""
    for _ in range(2):
        details = [check.detail for check in of_role.check("shop") if not check.granted]
        printed = [json.loads(re.search(r"\{.*\}", detail)[0]) for detail in details]
        kms.attach_policy(ROLE, {"Version": "2012-10-17", "Statement": printed})
    assert all(check.granted for check in of_role.check("shop"))
    data_key, wrapped = of_role.generate_data_key(context)
    assert of_role.unwrap(of_role.rewrap_many([(wrapped, context)])[0], context) == data_key
    assert [check.action for check in of_role.check("another application") if check.granted] == [DESCRIBE]


def test_a_condition_on_the_application_is_met_only_under_its_name(kms, of_role):
    condition = {"StringEquals": {"kms:EncryptionContext:eventseal:application": "shop"}}
    kms.attach_policy(ROLE, policy("kms:*", **condition))
    assert [check.action for check in of_role.check("shop") if check.granted] == WITH_CONTEXT
    assert not any(check.granted for check in of_role.check())


def test_what_only_a_rotation_or_a_second_kek_needs_is_marked(adapter):
    assert [check.action for check in adapter.check() if check.required] == ALL[:2]


def test_each_permission_is_tried_by_itself(kms, of_role):
    kms.attach_policy(ROLE, policy("kms:Decrypt"))
    assert [check.action for check in of_role.check() if check.granted] == ["kms:Decrypt"]


def test_an_alias_is_resolved_first_and_needs_its_own_permission(kms):
    alias = kms.create_key(alias="alias/shop")
    adapter = AwsKmsAdapter(alias, client=kms.client(ROLE))
    only = adapter.check()
    assert [(check.action, check.granted) for check in only] == [("kms:DescribeKey", False)]
    assert '"kms:DescribeKey"' in only[0].detail
    assert "kms:EncryptionContext" not in only[0].detail  # DescribeKey has no encryption context
    assert "kms:ResourceAliases" in only[0].detail
    kms.attach_policy(ROLE, policy("kms:*"))
    assert [check.action for check in adapter.check()] == [DESCRIBE, *WITH_CONTEXT]


def test_a_key_that_cannot_be_used_is_no_matter_of_permissions(kms, key, adapter):
    kms.client().disable_key(KeyId=key)
    with pytest.raises(KmsKeyStateError):
        adapter.check()


def test_an_outage_is_no_matter_of_permissions(kms, adapter):
    kms.fail_always(NO_ANSWER)
    with pytest.raises(KmsUnavailableError):
        adapter.check()


def test_a_botocore_older_than_the_modifiers_is_asked_without_them(kms, key):
    client = kms.client()

    def as_before(params, **_):
        if "DryRunModifiers" in params:
            raise ParamValidationError(report='Unknown parameter in input: "DryRunModifiers"')

    client.meta.events.register("provide-client-params.kms", as_before)
    *checks, reencrypt, _describe = AwsKmsAdapter(key, client=client).check()
    assert [(check.action, check.granted) for check in checks] == [(action, True) for action in ALL[:3]]
    # Its second permission cannot be seen behind the first.
    assert (reencrypt.granted, reencrypt.required) == (False, False)
    assert "upgrade boto3" in reencrypt.detail


def test_there_is_nothing_to_ask_without_credentials(key, no_aws_settings):
    with pytest.raises(ConfigurationError, match="no AWS credentials"):
        AwsKmsAdapter(key).check()


@pytest.mark.slow
def test_an_endpoint_that_does_not_know_dry_runs_is_asked_too(moto_key):
    checks = AwsKmsAdapter(moto_key).check()
    assert [(check.action, check.granted) for check in checks] == [(action, True) for action in ALL]


@pytest.fixture
def moto_key(monkeypatch):
    moto = pytest.importorskip("moto")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with moto.mock_aws():
        yield boto3.client("kms", "eu-west-1").create_key()["KeyMetadata"]["Arn"]
