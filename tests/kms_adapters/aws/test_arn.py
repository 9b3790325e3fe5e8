import pytest

from eventseal.errors import ConfigurationError
from eventseal_kms.aws.arn import KeyArn

KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
MULTI_REGION = "arn:aws:kms:eu-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab"


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        MULTI_REGION,
        "arn:aws:kms:eu-west-1:111122223333:alias/shop/live_1-a",
        "arn:aws-cn:kms:cn-north-1:111122223333:alias/shop",
        "arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/shop",
        "arn:aws-iso-b:kms:us-isob-east-1:111122223333:alias/shop",
        "arn:aws:kms:ap-southeast-2:111122223333:alias/shop",
    ],
)
def test_an_arn_reads_and_writes_itself_bare_or_as_a_uri(text):
    assert str(KeyArn.parse(text)) == text
    assert KeyArn.parse(f"aws-kms://{text}") == KeyArn.parse(text)
    assert KeyArn.find_uri(KeyArn.parse(text).uri) == KeyArn.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "aws-kms://",
        "alias/shop",
        "1234abcd-12ab-34cd-56ef-1234567890ab",
        "arn:aws:s3:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "arn:aws:kms::111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "arn:aws:kms:eu-west-1:1111:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "arn:aws:kms:eu-west-1:111122223333:key/1234abcd",
        "arn:aws:kms:eu-west-1:111122223333:key/1234ABCD-12AB-34CD-56EF-1234567890AB",
        "arn:aws:kms:eu-west-1:111122223333:key/mrk-1234",
        "arn:aws:kms:eu-west-1:111122223333:alias/",
        "arn:aws:kms:eu-west-1:111122223333:alias/a b",
        "arn:gcp:kms:eu-west-1:111122223333:alias/shop",
        KEY + "\n",
        " " + KEY,
        KEY + "/more",
        f"aws-kms://aws-kms://{KEY}",
    ],
)
def test_anything_else_is_refused_with_the_form_to_write(text):
    with pytest.raises(ConfigurationError) as raised:
        KeyArn.parse(text)
    assert "arn:aws:kms:<region>" in raised.value.remedy


def test_a_bare_arn_is_no_stored_uri():
    assert KeyArn.find_uri(KEY) is None


def test_only_a_multi_region_key_is_the_same_in_another_region():
    for text, same in ((KEY, False), (MULTI_REGION, True)):
        arn = KeyArn.parse(text)
        assert arn.is_same_key(arn)
        assert arn.is_same_key(arn.in_region("us-east-1")) is same


@pytest.mark.parametrize(
    "other",
    [
        MULTI_REGION.replace("arn:aws:", "arn:aws-cn:"),
        MULTI_REGION.replace("111122223333", "444455556666"),
        MULTI_REGION.replace("mrk-1", "mrk-2"),
    ],
)
def test_a_multi_region_key_is_told_from_others_by_all_but_the_region(other):
    assert not KeyArn.parse(MULTI_REGION).is_same_key(KeyArn.parse(other).in_region("us-east-1"))
