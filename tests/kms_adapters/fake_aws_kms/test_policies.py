"""Who may do what: as IAM and key policies decide it."""

import json

import pytest

from eventseal_kms.testing import FakeAwsKms

ROLE = "arn:aws:iam::111122223333:role/reader"
STRANGER = "arn:aws:iam::999988887777:role/stranger"
VERSION = "2012-10-17"
CONTEXT = {"Tenant": "acme", "purpose": "data"}


def policy(effect="Allow", action="kms:Decrypt", resource="*", **more):
    statement = {"Effect": effect, "Action": action, "Resource": resource} | more
    return {"Version": VERSION, "Statement": [statement]}


@pytest.fixture
def blob(client, key):
    return client.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=CONTEXT)["CiphertextBlob"]


@pytest.fixture
def opens(fake, key, blob):
    """Whether *caller* may decrypt; anything else than a denial is raised."""

    def opens(caller=ROLE, **more):
        client = fake.client(caller)
        asked = {"KeyId": key, "CiphertextBlob": blob, "EncryptionContext": CONTEXT} | more
        try:
            return client.decrypt(**asked)["Plaintext"] == b"x"
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] != "AccessDeniedException":
                raise
            return False

    return opens


def test_a_caller_without_a_policy_may_do_nothing(fake, opens, key):
    assert not opens()
    with pytest.raises(
        Exception, match=f"{ROLE} is not authorized to perform: kms:Decrypt on resource: {key}"
    ):
        fake.client(ROLE).decrypt(KeyId=key, CiphertextBlob=b"x")
    with pytest.raises(Exception, match="no identity-based policy allows the kms:CreateKey"):
        fake.client(ROLE).create_key()


@pytest.mark.parametrize(
    "document",
    [
        policy(),
        policy(action="kms:*"),
        policy(action="*"),
        policy(action=["kms:Encrypt", "KMS:decrypt"]),
        policy(resource="arn:aws:kms:eu-west-1:111122223333:key/*"),
        policy(Condition={"StringEquals": {"kms:EncryptionContext:Tenant": "acme"}}),
        policy(Condition={"StringEquals": {"kms:EncryptionContext:tenant": ["other", "acme"]}}),
        policy(Condition={"StringLike": {"kms:EncryptionContext:Tenant": "a?m*"}}),
        policy(Condition={"StringEqualsIgnoreCase": {"kms:EncryptionContext:Tenant": "ACME"}}),
        policy(Condition={"StringNotEquals": {"kms:EncryptionContext:Tenant": "other"}}),
        policy(Condition={"StringNotEquals": {"kms:EncryptionContext:absent": "other"}}),
        policy(Condition={"StringEqualsIfExists": {"kms:EncryptionContext:absent": "x"}}),
        policy(Condition={"Null": {"kms:EncryptionContext:absent": "true"}}),
        policy(Condition={"Null": {"kms:EncryptionContext:Tenant": "false"}}),
        policy(Condition={"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["Tenant", "purpose"]}}),
        policy(Condition={"ForAnyValue:StringEquals": {"kms:EncryptionContextKeys": "purpose"}}),
        policy(Condition={"StringEquals": {"kms:CallerAccount": "111122223333"}}),
        policy(Condition={"StringEquals": {"aws:RequestedRegion": "eu-west-1"}}),
        policy(Condition={"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/reader"}}),
        {"Version": VERSION, "Statement": {"Effect": "Allow", "NotAction": "kms:Encrypt", "Resource": "*"}},
        {
            "Version": VERSION,
            "Statement": {"Effect": "Allow", "Action": "*", "NotResource": "arn:aws:s3:::*"},
        },
    ],
    ids=lambda document: json.dumps(document["Statement"])[:90],
)
def test_policies_that_allow(fake, opens, document):
    fake.attach_policy(ROLE, document)
    assert opens()


@pytest.mark.parametrize(
    "document",
    [
        policy(action="kms:Encrypt"),
        policy(action="kms:Decrypt?"),
        policy(resource="arn:aws:kms:eu-west-1:111122223333:alias/shop"),
        policy(resource="arn:aws:kms:us-east-1:*"),
        policy(Condition={"StringEquals": {"kms:EncryptionContext:Tenant": "Acme"}}),
        policy(Condition={"StringEquals": {"kms:EncryptionContext:absent": "acme"}}),
        policy(
            Condition={"StringEquals": {"kms:EncryptionContext:Tenant": "acme", "kms:CallerAccount": "1"}}
        ),
        policy(Condition={"StringNotEquals": {"kms:EncryptionContext:Tenant": ["other", "acme"]}}),
        policy(Condition={"StringNotLike": {"kms:EncryptionContext:Tenant": "a*"}}),
        policy(Condition={"Null": {"kms:EncryptionContext:Tenant": "true"}}),
        policy(Condition={"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": "purpose"}}),
        policy(Condition={"ForAnyValue:StringEquals": {"kms:EncryptionContextKeys": "other"}}),
        policy(Condition={"ForAnyValue:StringEquals": {"kms:RequestAlias": "alias/shop"}}),
        policy(Condition={"Bool": {"kms:MultiRegion": "true"}}),
        policy(Condition={"StringEquals": {"aws:RequestedRegion": "us-east-1"}}),
    ],
    ids=lambda document: json.dumps(document["Statement"])[:90],
)
def test_policies_that_do_not(fake, opens, document):
    fake.attach_policy(ROLE, document)
    assert not opens()


def test_a_denial_wins_over_every_allowance(fake, client, key, opens):
    fake.attach_policy(ROLE, policy(action="*"))
    assert opens()
    fake.attach_policy(
        ROLE, policy("Deny", Condition={"StringEquals": {"kms:EncryptionContext:Tenant": "acme"}})
    )
    assert not opens()
    with pytest.raises(Exception, match="explicit deny in an identity-based policy"):
        fake.client(ROLE).decrypt(KeyId=key, CiphertextBlob=b"x", EncryptionContext=CONTEXT)
    fake.detach_policies(ROLE)
    fake.attach_policy(ROLE, policy())
    assert opens()


def key_policy(*statements):
    own = {
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
        "Action": "kms:*",
        "Resource": "*",
    }
    return json.dumps({"Version": VERSION, "Statement": [own, *statements]})


def statement(effect="Allow", principal=ROLE, action="kms:Decrypt"):
    return {"Effect": effect, "Principal": {"AWS": principal}, "Action": action, "Resource": "*"}


def test_a_key_policy_that_names_a_role_of_the_account_is_enough(client, key, opens):
    client.put_key_policy(KeyId=key, Policy=key_policy(statement()))
    assert opens()
    assert not opens("arn:aws:iam::111122223333:role/other")
    assert json.loads(client.get_key_policy(KeyId=key)["Policy"])["Statement"][1]["Principal"] == {
        "AWS": ROLE
    }


def test_a_key_policy_can_take_away_what_iam_grants(fake, client, key, opens):
    fake.attach_policy(ROLE, policy(action="*"))
    client.put_key_policy(KeyId=key, Policy=key_policy(statement("Deny")))
    assert not opens()


def test_a_key_policy_without_the_account_leaves_iam_out(fake, client, key, opens):
    fake.attach_policy(ROLE, policy(action="*"))
    only = {
        "Version": VERSION,
        "Statement": [statement(principal="arn:aws:iam::111122223333:role/other")],
    }
    client.put_key_policy(KeyId=key, Policy=json.dumps(only))
    assert not opens()


def test_another_account_needs_both_its_own_policy_and_the_keys(fake, client, key, opens):
    fake.attach_policy(STRANGER, policy(action="*"))
    assert not opens(STRANGER)
    for principal in (STRANGER, "999988887777", "arn:aws:iam::999988887777:root"):
        client.put_key_policy(KeyId=key, Policy=key_policy(statement(principal=principal)))
        assert opens(STRANGER)
    fake.detach_policies(STRANGER)
    for principal in (STRANGER, "arn:aws:iam::999988887777:root"):
        client.put_key_policy(KeyId=key, Policy=key_policy(statement(principal=principal)))
        assert not opens(STRANGER)


def test_reencrypting_needs_a_permission_on_either_key(fake, key, blob):
    other = fake.create_key()
    client = fake.client(ROLE)

    def move():
        client.re_encrypt(
            CiphertextBlob=blob,
            SourceKeyId=key,
            SourceEncryptionContext=CONTEXT,
            DestinationKeyId=other,
            DestinationEncryptionContext=CONTEXT,
        )

    with pytest.raises(Exception, match="kms:ReEncryptFrom"):
        move()
    fake.attach_policy(ROLE, policy(action="kms:ReEncryptFrom", resource=key))
    with pytest.raises(Exception, match="kms:ReEncryptTo"):
        move()
    fake.attach_policy(ROLE, policy(action="kms:ReEncryptTo", resource=other))
    move()
    same = {"Bool": {"kms:ReEncryptOnSameKey": "true"}}
    fake.detach_policies(ROLE)
    fake.attach_policy(ROLE, policy(action="kms:ReEncrypt*", Condition=same))
    with pytest.raises(Exception, match="AccessDenied"):
        move()


@pytest.mark.parametrize(
    "document",
    [
        "{}",
        "not json",
        {"Version": "2008-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]},
        {"Version": VERSION, "Statement": []},
        policy("Maybe"),
        policy(Condition={"DateLessThan": {"aws:CurrentTime": "2030-01-01"}}),
        policy(Condition={"StringEquals": {"aws:SourceVpce": "vpce-1"}}),
        policy(Nonsense="x"),
        {"Version": VERSION, "Statement": [{"Effect": "Allow", "Resource": "*"}]},
    ],
)
def test_what_it_cannot_evaluate_it_does_not_load(fake, client, key, document, refused):
    with pytest.raises(ValueError):
        fake.attach_policy(ROLE, document)
    with refused("MalformedPolicyDocumentException"):
        client.put_key_policy(
            KeyId=key, Policy=document if isinstance(document, str) else json.dumps(document)
        )


def test_accounts_are_apart():
    fake = FakeAwsKms(account="444455556666", region="us-east-1")
    assert fake.create_key().startswith("arn:aws:kms:us-east-1:444455556666:key/")
