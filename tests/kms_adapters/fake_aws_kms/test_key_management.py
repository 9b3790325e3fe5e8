"""Keys and aliases themselves: their states, their names, their Regions."""

from datetime import timedelta

import pytest

KEY_STATE = "KeyState"


def state(client, key):
    return client.describe_key(KeyId=key)["KeyMetadata"][KEY_STATE]


def test_a_disabled_key_does_nothing_until_it_is_enabled(client, key, refused):
    blob = client.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    client.disable_key(KeyId=key)
    assert state(client, key) == "Disabled"
    for call in (
        lambda: client.encrypt(KeyId=key, Plaintext=b"x"),
        lambda: client.decrypt(CiphertextBlob=blob),
        lambda: client.generate_data_key(KeyId=key, KeySpec="AES_256"),
        lambda: client.re_encrypt(CiphertextBlob=blob, DestinationKeyId=key),
        lambda: client.rotate_key_on_demand(KeyId=key),
    ):
        with refused("DisabledException", f"{key} is disabled"):
            call()
    client.enable_key(KeyId=key)
    assert client.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"


def test_a_key_waits_for_its_deletion_and_can_be_kept(client, key, refused):
    planned = client.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    assert planned[KEY_STATE] == state(client, key) == "PendingDeletion"
    assert "DeletionDate" in client.describe_key(KeyId=key)["KeyMetadata"]
    for call in (client.enable_key, client.disable_key, client.schedule_key_deletion):
        with refused("KMSInvalidStateException", "pending deletion"):
            call(KeyId=key)
    with refused("KMSInvalidStateException", "pending deletion"):
        client.encrypt(KeyId=key, Plaintext=b"x")
    client.cancel_key_deletion(KeyId=key)
    assert state(client, key) == "Disabled"
    with refused("KMSInvalidStateException", "not pending deletion"):
        client.cancel_key_deletion(KeyId=key)


def test_a_deleted_key_is_gone_with_its_aliases(fake, client, refused):
    alias = fake.create_key(alias="alias/shop")
    key = client.describe_key(KeyId=alias)["KeyMetadata"]["Arn"]
    blob = client.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    client.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    fake.advance(timedelta(days=6))
    assert state(client, key) == "PendingDeletion"
    fake.advance(timedelta(days=2))
    with refused("NotFoundException", "does not exist"):
        client.decrypt(KeyId=key, CiphertextBlob=blob)
    with refused("NotFoundException", "is not found"):
        client.describe_key(KeyId=alias)
    assert client.list_aliases()["Aliases"] == []


@pytest.mark.parametrize("days", [6, 31])
def test_a_deletion_waits_a_week_to_a_month(client, key, refused, days):
    with refused("ValidationException"):
        client.schedule_key_deletion(KeyId=key, PendingWindowInDays=days)
    assert state(client, key) == "Enabled"


def test_a_key_has_four_names(fake, client):
    alias = fake.create_key(alias="alias/shop")
    key = client.describe_key(KeyId=alias)["KeyMetadata"]["Arn"]
    for name in (key, key.rpartition("/")[2], alias, "alias/shop"):
        assert client.describe_key(KeyId=name)["KeyMetadata"]["Arn"] == key
    with refused_names(client):
        client.describe_key(KeyId="arn:aws:kms:us-east-1:111122223333:" + key.rpartition(":")[2])


def refused_names(client):
    return pytest.raises(client.exceptions.NotFoundException, match="Invalid arn us-east-1")


def test_an_alias_is_created_once_and_pointed_elsewhere(fake, client, refused):
    first, second = fake.create_key(), fake.create_key()
    client.create_alias(AliasName="alias/shop", TargetKeyId=first)
    with refused("AlreadyExistsException"):
        client.create_alias(AliasName="alias/shop", TargetKeyId=second)
    client.update_alias(AliasName="alias/shop", TargetKeyId=second)
    assert client.describe_key(KeyId="alias/shop")["KeyMetadata"]["Arn"] == second
    (listed,) = client.list_aliases(KeyId=second)["Aliases"]
    assert listed["AliasArn"] == "arn:aws:kms:eu-west-1:111122223333:alias/shop"
    assert client.list_aliases(KeyId=first)["Aliases"] == []
    client.delete_alias(AliasName="alias/shop")
    with refused("NotFoundException"):
        client.describe_key(KeyId="alias/shop")


@pytest.mark.parametrize("name", ["shop", "alias/aws/shop"])
def test_alias_names_have_their_form(client, key, refused, name):
    with refused("InvalidAliasNameException"):
        client.create_alias(AliasName=name, TargetKeyId=key)


def test_an_alias_is_not_pointed_at_a_key_that_goes(fake, client, key, refused):
    client.schedule_key_deletion(KeyId=key)
    with refused("KMSInvalidStateException"):
        client.create_alias(AliasName="alias/shop", TargetKeyId=key)


def test_a_multi_region_key_opens_in_every_region_what_it_sealed_in_one(fake, client):
    key = fake.create_key(MultiRegion=True)
    assert "key/mrk-" in key
    client.replicate_key(KeyId=key, ReplicaRegion="us-east-1")
    there = fake.client(region="us-east-1")
    replica = key.replace("eu-west-1", "us-east-1")
    blob = client.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    assert there.decrypt(CiphertextBlob=blob, KeyId=replica)["KeyId"] == replica
    client.rotate_key_on_demand(KeyId=key)
    blob = there.encrypt(KeyId=replica, Plaintext=b"y")["CiphertextBlob"]
    assert client.decrypt(CiphertextBlob=blob)["Plaintext"] == b"y"
    described = there.describe_key(KeyId=replica)["KeyMetadata"]["MultiRegionConfiguration"]
    assert described["MultiRegionKeyType"] == "REPLICA"
    assert described["PrimaryKey"] == {"Arn": key, "Region": "eu-west-1"}


def test_a_replica_has_a_state_of_its_own(fake, client, refused):
    key = fake.create_key(MultiRegion=True)
    client.replicate_key(KeyId=key, ReplicaRegion="us-east-1")
    client.disable_key(KeyId=key)
    there = fake.client(region="us-east-1")
    assert there.encrypt(KeyId=key.replace("eu-west-1", "us-east-1"), Plaintext=b"x")
    with refused("DisabledException"):
        client.encrypt(KeyId=key, Plaintext=b"x")


def test_only_a_primary_is_replicated_and_rotated_and_only_once_a_region(fake, client, key, refused):
    with refused("UnsupportedOperationException"):
        client.replicate_key(KeyId=key, ReplicaRegion="us-east-1")
    primary = fake.create_key(MultiRegion=True)
    client.replicate_key(KeyId=primary, ReplicaRegion="us-east-1")
    with refused("AlreadyExistsException"):
        client.replicate_key(KeyId=primary, ReplicaRegion="us-east-1")
    with refused("UnsupportedOperationException"):
        fake.client(region="us-east-1").rotate_key_on_demand(KeyId=primary.rpartition("/")[2])


def test_a_key_of_one_region_is_unknown_in_another(fake, client, key, refused):
    blob = client.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    there = fake.client(region="us-east-1")
    with refused("NotFoundException"):
        there.decrypt(CiphertextBlob=blob)
    with refused("NotFoundException", "Invalid arn eu-west-1"):
        there.describe_key(KeyId=key)


def test_keys_are_listed_by_place(fake, client, key):
    assert [entry["KeyArn"] for entry in client.list_keys()["Keys"]] == [key]
    assert fake.client(region="us-east-1").list_keys()["Keys"] == []
