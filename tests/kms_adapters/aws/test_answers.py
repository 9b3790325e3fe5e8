"""Answers that are not what was asked for: something else than KMS is at the endpoint."""

import pytest

from eventseal.errors import IntegrityError, KmsError, KmsUnavailableError, NotMyKeyError
from eventseal_kms.aws import AwsKmsAdapter


@pytest.fixture
def forged(kms):
    """Make an adapter whose KMS answers with *changes*."""

    def forge(key, operation, **changes):
        client = kms.client()

        def forge_answer(parsed, **_):
            parsed.update({name: value for name, value in changes.items() if value is not None})
            for name in [name for name, value in changes.items() if value is None]:
                parsed.pop(name, None)

        client.meta.events.register(f"after-call.kms.{operation}", forge_answer)
        return AwsKmsAdapter(key, client=client)

    return forge


@pytest.mark.parametrize("answered", ["other key", "replica elsewhere", "no ARN", None])
def test_a_key_that_another_kms_key_opened_is_not_used(kms, key, adapter, forged, context, answered):
    names = {
        "other key": kms.create_key(),
        "replica elsewhere": key.replace("eu-west-1", "us-east-1"),
        "no ARN": "x",
    }
    forgery = {"KeyId": names.get(answered)}
    _, wrapped = adapter.generate_data_key(context)
    for call in (
        lambda: forged(key, "Decrypt", **forgery).unwrap(wrapped, context),
        lambda: forged(key, "GenerateDataKey", **forgery).generate_data_key(context),
        lambda: forged(key, "Encrypt", **forgery).wrap(bytes(32), context),
    ):
        with pytest.raises(IntegrityError, match="EventSeal requested") as raised:
            call()
        assert "endpoint" in raised.value.remedy
    assert isinstance(
        forged(key, "ReEncrypt", **forgery).rewrap_many([(wrapped, context)])[0], IntegrityError
    )


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        ("GenerateDataKey", "Plaintext"),
        ("GenerateDataKey", "CiphertextBlob"),
        ("Encrypt", "CiphertextBlob"),
        ("Decrypt", "Plaintext"),
        ("ReEncrypt", "CiphertextBlob"),
    ],
)
def test_an_answer_that_lacks_a_part_is_an_outage(key, adapter, forged, context, operation, field):
    _, wrapped = adapter.generate_data_key(context)
    broken = forged(key, operation, **{field: None})
    outcome = {
        "GenerateDataKey": lambda: broken.generate_data_key(context),
        "Encrypt": lambda: broken.wrap(bytes(32), context),
        "Decrypt": lambda: broken.unwrap(wrapped, context),
        "ReEncrypt": lambda: raise_it(broken.rewrap_many([(wrapped, context)])[0]),
    }[operation]
    with pytest.raises(KmsUnavailableError, match="is incomplete"):
        outcome()


def raise_it(error):
    raise error


@pytest.mark.parametrize("size", [0, 16, 33])
def test_a_generated_key_of_another_size_is_not_used(key, forged, context, size):
    with pytest.raises(IntegrityError, match=f"{size} bytes"):
        forged(key, "GenerateDataKey", Plaintext=bytes(size)).generate_data_key(context)


@pytest.mark.parametrize(
    "arn", ["", "arn:aws:kms:us-east-1:111122223333:alias/shop", "other account", "other region"]
)
def test_an_alias_that_resolves_to_what_it_cannot_name_is_refused(kms, key, forged, context, arn):
    alias = kms.create_key(alias="alias/shop")
    named = {
        "other account": key.replace("111122223333", "444455556666"),
        "other region": key.replace("eu-west-1", "us-east-1"),
    }.get(arn, arn)
    with pytest.raises(KmsError, match="did not resolve the alias"):
        forged(alias, "DescribeKey", KeyMetadata={"Arn": named}).generate_data_key(context)


def test_an_answer_without_the_material_leaves_the_version_open(key, forged, context):
    """As older endpoints do."""
    _, wrapped = forged(key, "GenerateDataKey", KeyMaterialId=None).generate_data_key(context)
    assert wrapped.kek_version is None


def test_a_stored_uri_is_compared_and_never_called(kms, key, adapter, context):
    """Not even if it names an endpoint of its own."""
    _, wrapped = adapter.generate_data_key(context)
    before = kms.count()
    for uri in (f"{wrapped.kek_uri}@evil.example", wrapped.kek_uri.upper(), key, f"{wrapped.kek_uri}\n"):
        with pytest.raises(NotMyKeyError):
            adapter.unwrap(
                type(wrapped)(kek_uri=uri, kek_version=None, ciphertext=wrapped.ciphertext), context
            )
    assert kms.count() == before
