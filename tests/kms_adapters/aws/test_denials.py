"""Which policy denied a call, and what helps then; and what a quoted text of AWS may not show."""

import base64
import json

import pytest
from botocore.exceptions import ClientError

from eventseal_kms.aws.arn import KeyArn
from eventseal_kms.aws.denials import denial_remedy
from eventseal_kms.aws.failures import Attempt, failure_of

KEY = KeyArn.parse("arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab")
USER = (
    f"User: arn:aws:iam::111122223333:user/ada is not authorized to perform: kms:Decrypt on resource: {KEY} "
)
CONTEXT = {"eventseal:application": "shop"}
MATERIAL = bytes(range(100, 132))


def error_of(code, text, **facts):
    caught = ClientError({"Error": {"Code": code, "Message": text}}, "Decrypt")
    return failure_of(caught, Attempt(operation="Decrypt", key=KEY, context=CONTEXT, **facts)).error


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("with an explicit deny in a resource-based policy", "Deny statement in the resource-based policy"),
        ("with an explicit deny in a service control policy: arn:x", "in the service control policy"),
        ("with an explicit deny in a VPC endpoint policy", "in the VPC endpoint policy"),
        ("with an explicit deny in a permissions boundary", "in the permissions boundary"),
        ("with an explicit deny in an identity-based policy", "in the identity-based policy"),
        ("with an explicit deny", "in the policy that denies it"),
        (
            "because no VPC endpoint policy allows the kms:Decrypt action",
            "Let the VPC endpoint policy allow kms:Decrypt",
        ),
        ("because no session policy allows the kms:Decrypt action", "Let the session policy allow"),
        (
            "because no permissions boundary allows the kms:Decrypt action",
            "Let the permissions boundary allow",
        ),
        ("because no service control policy allows the kms:Decrypt action", "Let the service control policy"),
    ],
)
def test_a_policy_that_another_allow_does_not_change_is_named(text, says):
    error = error_of("AccessDeniedException", USER + text)
    assert says in error.remedy
    assert '"Effect"' not in error.remedy
    assert text in str(error)


@pytest.mark.parametrize(
    "text",
    ["because no identity-based policy allows the action", "because no resource-based policy allows it", ""],
)
def test_a_missing_permission_is_a_statement_to_add(text):
    assert '"Effect": "Allow"' in error_of("AccessDeniedException", USER + text).remedy


PLANTED = {
    "key in base64": base64.b64encode(MATERIAL).decode(),
    "key in hex": MATERIAL.hex(),
    "secret key of a profile": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "session token of a role": "IQoJb3JpZ2luX2VjEJr" * 5,
    "secret key of the environment": "planted-in-the-environment",
    "password of a proxy": "hunter2",
    "grant token": "a-grant-token",
    "authorization": "AWS4-HMAC-SHA256 Credential=AKIDX/20260101/eu-west-1/kms/aws4_request, Signature=abc",
}


@pytest.mark.parametrize(
    "code", ["AccessDeniedException", "ValidationException", "NewException", "SignatureDoesNotMatch"]
)
@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_a_text_of_aws_is_quoted_without_secrets(monkeypatch, code, planted):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED["secret key of the environment"])
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2@proxy:8080")
    error = error_of(code, f"got '{planted}' for {KEY}", secrets=["a-grant-token"])
    assert planted not in f"{error} {error.remedy}"
    assert code in str(error)


def test_a_statement_names_no_alias_as_its_resource():
    alias = KeyArn.parse("arn:aws:kms:eu-west-1:111122223333:alias/shop")
    statement = json.loads(denial_remedy("DescribeKey", "", key=alias).partition(": ")[2])
    assert statement["Resource"] == ["arn:aws:kms:eu-west-1:111122223333:key/*"]
    assert statement["Condition"]["ForAnyValue:StringEquals"] == {"kms:ResourceAliases": "alias/shop"}


def test_arns_are_quoted_whole():
    assert USER.strip() in str(error_of("AccessDeniedException", USER))
    mrk = "arn:aws:kms:eu-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab"
    assert mrk in str(error_of("NewException", f"no {mrk}"))
