"""
Keys under AWS KMS.

Needs boto3: ``pip install 'eventseal[aws]'``.
"""

from eventseal.errors import ConfigurationError

try:
    import boto3 as _boto3  # noqa: F401  (only to say clearly that it is missing)
except ModuleNotFoundError:
    raise ConfigurationError(
        "the AWS KMS adapter needs boto3, which is not installed: pip install 'eventseal[aws]'",
        remedy="Run: pip install 'eventseal[aws]'",
    ) from None

from eventseal_kms.aws.adapter import AwsKmsAdapter

__all__ = ["AwsKmsAdapter"]
