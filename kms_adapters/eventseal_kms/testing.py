"""A stand-in for AWS KMS, for tests without a cloud."""

from eventseal_kms.fake_aws_kms.fake import FakeAwsKms
from eventseal_kms.fake_aws_kms.traffic import NO_ANSWER, AwsCall

__all__ = ["NO_ANSWER", "AwsCall", "FakeAwsKms"]
