"""What the fake does with keys, seen through boto3's own client: as AWS KMS does it."""

import pytest
from botocore.exceptions import ParamValidationError
from tests.kms_adapters.fake_aws_kms.conftest import CONTEXT


@pytest.fixture
def blob(client, key):
    return client.encrypt(KeyId=key, Plaintext=b"secret", EncryptionContext=CONTEXT)["CiphertextBlob"]


def decrypt(client, blob, **more):
    return client.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT, **more)["Plaintext"]


def test_a_data_key_comes_with_its_wrapping_and_material(client, key):
    made = client.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=CONTEXT)
    assert (len(made["Plaintext"]), made["KeyId"]) == (32, key)
    assert len(made["KeyMaterialId"]) == 64
    assert decrypt(client, made["CiphertextBlob"]) == made["Plaintext"]


def test_a_data_key_without_plaintext_has_none(client, key):
    made = client.generate_data_key_without_plaintext(KeyId=key, NumberOfBytes=64, EncryptionContext=CONTEXT)
    assert "Plaintext" not in made
    assert len(decrypt(client, made["CiphertextBlob"])) == 64


@pytest.mark.parametrize("wrong", [{}, {"KeySpec": "AES_256", "NumberOfBytes": 32}, {"NumberOfBytes": 1025}])
def test_a_data_key_has_one_size(client, key, refused, wrong):
    with refused("ValidationException"):
        client.generate_data_key(KeyId=key, **wrong)


def test_the_client_checks_parameters_as_boto3_does(client, key):
    with pytest.raises(ParamValidationError, match="Nonsense"):
        client.encrypt(KeyId=key, Plaintext=b"x", Nonsense=1)
    with pytest.raises(AttributeError):
        client.nonsense()


def test_encrypt_tells_no_material_and_takes_4096_bytes(client, key, refused):
    assert "KeyMaterialId" not in client.encrypt(KeyId=key, Plaintext=bytes(4096))
    with refused("ValidationException"):
        client.encrypt(KeyId=key, Plaintext=bytes(4097))


def test_decrypt_finds_the_key_in_the_blob(client, key, blob):
    answer = client.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT)
    assert (answer["Plaintext"], answer["KeyId"]) == (b"secret", key)
    assert answer["EncryptionAlgorithm"] == "SYMMETRIC_DEFAULT"


def test_decrypt_with_another_key_is_refused_even_though_the_blob_names_the_right_one(
    fake, client, blob, refused
):
    with refused("IncorrectKeyException", "does not identify a CMK"):
        decrypt(client, blob, KeyId=fake.create_key())


@pytest.mark.parametrize(
    "context", [{}, {"tenant": "acme"}, CONTEXT | {"more": ""}, {"tenant": "acmepurpose", "": "data"}]
)
def test_contexts_that_differ_do_not_open(client, key, blob, refused, context):
    with refused("InvalidCiphertextException"):
        client.decrypt(CiphertextBlob=blob, EncryptionContext=context, KeyId=key)


def test_contexts_do_not_run_together(client, key, refused):
    blob = client.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"a": "bc"})["CiphertextBlob"]
    with refused("InvalidCiphertextException"):
        client.decrypt(CiphertextBlob=blob, EncryptionContext={"ab": "c"})


def test_the_order_of_a_contexts_pairs_does_not_matter(client, blob):
    turned = dict(reversed(CONTEXT.items()))
    assert client.decrypt(CiphertextBlob=blob, EncryptionContext=turned)["Plaintext"] == b"secret"


def test_no_bit_and_no_byte_of_a_blob_can_be_changed(client, key, blob, refused):
    for position in range(len(blob)):
        edited = bytearray(blob)
        edited[position] ^= 1
        with pytest.raises(client.exceptions.ClientError) as raised:
            decrypt(client, bytes(edited), KeyId=key)
        assert raised.value.response["Error"]["Code"] in {
            "InvalidCiphertextException",
            "IncorrectKeyException",
        }
    for size in range(1, len(blob), 9):
        with refused("InvalidCiphertextException"):
            decrypt(client, blob[:size], KeyId=key)


def test_rotation_seals_with_new_material_and_opens_with_old(client, key, blob):
    old = client.describe_key(KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"]
    client.rotate_key_on_demand(KeyId=key)
    new = client.describe_key(KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"]
    assert new != old
    assert client.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT)["KeyMaterialId"] == old
    assert client.generate_data_key(KeyId=key, KeySpec="AES_128")["KeyMaterialId"] == new
    every = client.list_key_rotations(KeyId=key, IncludeKeyMaterial="ALL_KEY_MATERIAL")["Rotations"]
    assert [(entry["KeyMaterialId"], entry["KeyMaterialState"]) for entry in every] == [
        (old, "NON_CURRENT"),
        (new, "CURRENT"),
    ]
    assert len(client.list_key_rotations(KeyId=key)["Rotations"]) == 1


def test_a_key_is_rotated_on_demand_twenty_five_times(client, key, refused):
    for _ in range(25):
        client.rotate_key_on_demand(KeyId=key)
    with refused("LimitExceededException"):
        client.rotate_key_on_demand(KeyId=key)


def test_reencrypt_moves_to_another_key_and_context(fake, client, key, blob):
    other = fake.create_key()
    moved = client.re_encrypt(
        CiphertextBlob=blob,
        SourceEncryptionContext=CONTEXT,
        DestinationKeyId=other,
        DestinationEncryptionContext={"new": "context"},
    )
    assert (moved["SourceKeyId"], moved["KeyId"]) == (key, other)
    assert moved["SourceKeyMaterialId"] != moved["DestinationKeyMaterialId"]
    opened = client.decrypt(CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"new": "context"})
    assert (opened["Plaintext"], opened["KeyId"]) == (b"secret", other)


def test_reencrypt_keeps_to_the_source_key_that_is_named(fake, client, blob, refused):
    other = fake.create_key()
    with refused("IncorrectKeyException"):
        client.re_encrypt(
            CiphertextBlob=blob,
            SourceKeyId=other,
            SourceEncryptionContext=CONTEXT,
            DestinationKeyId=other,
        )


def test_a_dry_run_says_whether_it_would_have_worked(client, key, blob, refused):
    for call in (
        lambda: client.generate_data_key(KeyId=key, KeySpec="AES_256", DryRun=True),
        lambda: client.encrypt(KeyId=key, Plaintext=b"x", DryRun=True),
        lambda: decrypt(client, blob, DryRun=True),
        lambda: client.decrypt(KeyId=key, DryRun=True, DryRunModifiers=["IGNORE_CIPHERTEXT"]),
    ):
        with refused("DryRunOperationException"):
            call()
    with refused("InvalidCiphertextException"):
        client.decrypt(KeyId=key, CiphertextBlob=blob, DryRun=True)
    client.disable_key(KeyId=key)
    with refused("DisabledException"):
        client.generate_data_key(KeyId=key, KeySpec="AES_256", DryRun=True)


def test_the_modifiers_of_a_dry_run_do_nothing_without_one(client, key, refused):
    with refused("ValidationException"):
        client.decrypt(KeyId=key, DryRunModifiers=["IGNORE_CIPHERTEXT"])
    with refused("ValidationException"):
        client.decrypt(DryRun=True, DryRunModifiers=["IGNORE_CIPHERTEXT"])


def test_a_key_of_another_kind_does_not_encrypt(fake, client, refused):
    mac = fake.create_key(KeyUsage="GENERATE_VERIFY_MAC", KeySpec="HMAC_256")
    with refused("InvalidKeyUsageException", "GENERATE_VERIFY_MAC"):
        client.encrypt(KeyId=mac, Plaintext=b"x")


def test_errors_are_the_classes_of_the_clients_own(client, key):
    client.disable_key(KeyId=key)
    with pytest.raises(client.exceptions.DisabledException):
        client.encrypt(KeyId=key, Plaintext=b"x")
    with pytest.raises(client.exceptions.NotFoundException):
        client.encrypt(KeyId="alias/none", Plaintext=b"x")
