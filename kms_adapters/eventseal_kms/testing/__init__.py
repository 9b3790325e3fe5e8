"""A stand-in for AWS KMS, for tests without a cloud."""

from eventseal_kms.testing.fake_aws_kms import FakeAwsKms
from eventseal_kms.testing.traffic import NO_ANSWER, AwsCall

__all__ = ["NO_ANSWER", "AwsCall", "FakeAwsKms"]
