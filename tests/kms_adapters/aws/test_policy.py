"""The policies that the adapter writes grant what they are asked to, and nothing else."""

import json
from uuid import uuid4

import pytest

from eventseal.configuration.diagnosis import Severity
from eventseal.configuration.diagnosis.kek_checks import check_kek
from eventseal.errors import ConfigurationError, KmsForbiddenError
from eventseal.kms import EncryptionContext, KmsUse
from eventseal_kms.aws import AwsKmsAdapter

ALIAS = "arn:aws:kms:eu-west-1:111122223333:alias/shop"


def granted(kms, key, uses, *, application="shop"):
    """Say which uses a caller has whose only policy is the one for some uses of application shop."""
    caller = f"arn:aws:iam::111122223333:role/role-{'-'.join(sorted(uses))}"
    kms.attach_policy(caller, AwsKmsAdapter.policy(f"aws-kms://{key}", uses, "shop"))
    own = AwsKmsAdapter(key, client=kms.client(caller))
    context = EncryptionContext(uuid4(), "data", application)
    _, wrapped = AwsKmsAdapter(key, client=kms.client()).generate_data_key(context)
    trials = {
        KmsUse.GENERATE: lambda: own.generate_data_key(context),
        KmsUse.WRAP: lambda: own.wrap(bytes(32), context),
        KmsUse.UNWRAP: lambda: own.unwrap(wrapped, context),
        KmsUse.REWRAP: lambda: own.rewrap_many([(wrapped, context)])[0],
        KmsUse.DESCRIBE: own.created_at,
    }
    found = set()
    for use, work in trials.items():
        try:
            outcome = work()
        except KmsForbiddenError:
            continue
        if not isinstance(outcome, KmsForbiddenError):
            found.add(use)
    return found


TRIED = sorted(set(KmsUse) - {KmsUse.END})


@pytest.mark.parametrize("use", TRIED)
def test_a_policy_for_one_use_grants_this_use_alone(kms, key, use):
    assert granted(kms, key, {use}) == {use}


def test_no_policy_reaches_the_keys_of_another_application(kms, key):
    assert granted(kms, key, set(TRIED), application="bank") == {KmsUse.DESCRIBE}


def test_the_policy_for_the_end_schedules_the_deletion_and_opens_nothing(kms, key):
    caller = "arn:aws:iam::111122223333:role/ender"
    kms.attach_policy(caller, AwsKmsAdapter.policy(key, {KmsUse.DESCRIBE, KmsUse.END}, "shop"))
    own = AwsKmsAdapter(key, client=kms.client(caller))
    with pytest.raises(KmsForbiddenError):
        own.generate_data_key(EncryptionContext(uuid4(), "data", "shop"))
    assert own.schedule_deletion(7) == own.deletion_date()


def test_a_policy_for_an_alias_names_the_keys_that_have_it():
    policy = json.loads(AwsKmsAdapter.policy(ALIAS, {KmsUse.UNWRAP}, "shop"))
    opens, resolves = policy["Statement"]
    of_alias = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/shop"}}
    assert resolves["Action"] == ["kms:DescribeKey"]
    assert resolves["Condition"] == of_alias
    assert opens["Condition"] == {
        "StringEquals": {"kms:EncryptionContext:eventseal:application": "shop"},
        **of_alias,
    }
    assert {opens["Resource"], resolves["Resource"]} == {"arn:aws:kms:eu-west-1:111122223333:key/*"}


def test_the_policy_of_what_is_no_key_is_refused():
    with pytest.raises(ConfigurationError, match="is not the ARN"):
        AwsKmsAdapter.policy("aws-kms://shop", {KmsUse.UNWRAP}, "shop")


def test_each_check_knows_the_use_that_needs_it(adapter):
    assert {check.action: set(check.uses) for check in adapter.check("shop")} == {
        "kms:GenerateDataKey": {KmsUse.GENERATE},
        "kms:Decrypt": {KmsUse.UNWRAP},
        "kms:Encrypt": {KmsUse.WRAP},
        "kms:ReEncrypt*": {KmsUse.REWRAP},
        "kms:DescribeKey": {KmsUse.DESCRIBE},
    }


@pytest.mark.parametrize(
    ("uses", "lacking"),
    [
        ({KmsUse.UNWRAP}, set()),
        ({KmsUse.UNWRAP, KmsUse.WRAP}, {"kms:Encrypt"}),
        (None, {"kms:GenerateDataKey"}),
    ],
)
def test_doctor_asks_a_reader_for_the_permissions_of_its_role_alone(kms, key, uses, lacking):
    caller = "arn:aws:iam::111122223333:role/reader"
    kms.attach_policy(caller, AwsKmsAdapter.policy(key, {KmsUse.UNWRAP}, "shop"))
    reader = AwsKmsAdapter(key, client=kms.client(caller))
    found = list(check_kek(reader, "shop", is_first=True, uses=uses))
    errors = [finding.text for finding in found if finding.severity is Severity.ERROR]
    assert {text.split("does not grant ")[1] for text in errors} == lacking
