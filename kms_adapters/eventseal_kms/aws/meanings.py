"""What failures mean: tables from AWS's codes and from botocore's exceptions to EventSeal's errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Meaning:
    """
    What a failure means for the caller.

    Attributes:
        error: The class.
        text: What happened, to follow the action and the key.
        remedy: If the class's own does not fit.
    """

    error: type[EventSealError]
    text: str
    remedy: str | None = None


THROTTLED = Meaning(
    KmsUnavailableError, "the requests are more than the account's quota in this Region allows"
)
INSIDE = Meaning(KmsUnavailableError, "KMS failed inside")
_CREDENTIALS = Meaning(
    KmsForbiddenError,
    "AWS does not accept the credentials",
    "Renew the credentials (`aws sso login`, a new role session, new keys), and check this machine's clock.",
)
DENIED = Meaning(KmsForbiddenError, "the caller has no permission")
_ROW_CHANGED = "Do not use the wrapping. Find out who changed the key's row, and restore it from a backup."
_MALFORMED = Meaning(ConfigurationError, "KMS does not accept the request")

# botocore's standard mode repeats the first group, and nothing that repeating cannot mend.
BY_CODE: Mapping[str, Meaning] = {
    # --- try again: throttled, or failed inside
    "ThrottlingException": THROTTLED,
    "Throttling": THROTTLED,
    "ThrottledException": THROTTLED,
    "RequestThrottledException": THROTTLED,
    "TooManyRequestsException": THROTTLED,
    "RequestLimitExceeded": THROTTLED,
    "SlowDown": THROTTLED,
    "KMSInternalException": INSIDE,
    "InternalFailure": INSIDE,
    "InternalServerError": INSIDE,
    "ServiceUnavailableException": INSIDE,
    "ServiceUnavailable": INSIDE,
    "DependencyTimeoutException": Meaning(KmsUnavailableError, "KMS timed out inside"),
    "KeyUnavailableException": Meaning(KmsUnavailableError, "KMS cannot reach the key now"),
    "RequestTimeout": Meaning(KmsUnavailableError, "KMS did not get the whole request in time"),
    "RequestTimeoutException": Meaning(KmsUnavailableError, "KMS did not get the whole request in time"),
    # --- grant, or log in
    "AccessDeniedException": DENIED,
    "AccessDenied": DENIED,
    "InvalidGrantTokenException": Meaning(
        KmsForbiddenError,
        "KMS does not accept a grant token",
        "Pass the token that CreateGrant returned, or none: after some minutes the grant works without it.",
    ),
    "ExpiredTokenException": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "RequestExpired": _CREDENTIALS,
    "UnrecognizedClientException": _CREDENTIALS,
    "InvalidClientTokenId": _CREDENTIALS,
    "InvalidSignatureException": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "IncompleteSignature": _CREDENTIALS,
    "MissingAuthenticationToken": _CREDENTIALS,
    "MissingAuthenticationTokenException": _CREDENTIALS,
    "OptInRequired": Meaning(
        KmsForbiddenError, "the account may not use KMS in this Region", "Enable the Region for the account."
    ),
    # --- mend the KMS key
    "DisabledException": Meaning(
        KmsKeyStateError,
        "the KMS key is disabled",
        "Enable the KMS key (`aws kms enable-key`); retrying does not help.",
    ),
    "KMSInvalidStateException": Meaning(
        KmsKeyStateError,
        "the KMS key is in a state that does not allow it: pending deletion, pending import or unavailable",
        "Look at `aws kms describe-key`; then cancel the deletion (`aws kms cancel-key-deletion`, `aws kms "
        "enable-key`), import the key material, or connect the custom key store.",
    ),
    "NotFoundException": Meaning(
        KmsKeyStateError,
        "KMS has no such key in this Region and account",
        "Check the ARN's Region, account and id. A key made a moment ago may need some seconds to be seen; "
        "a deleted one is gone for good.",
    ),
    "InvalidKeyUsageException": Meaning(
        KmsKeyStateError,
        "the KMS key is of the wrong kind",
        "Use a symmetric key: KeySpec SYMMETRIC_DEFAULT, KeyUsage ENCRYPT_DECRYPT.",
    ),
    # --- stop: something was changed
    "InvalidCiphertextException": Meaning(
        IntegrityError,
        "the wrapping does not authenticate: its bytes, or the key it belongs to, were changed",
        _ROW_CHANGED,
    ),
    "IncorrectKeyException": Meaning(
        IntegrityError, "another KMS key made the wrapping than the one its row names", _ROW_CHANGED
    ),
    # --- fix the program or its settings
    "InvalidArnException": _MALFORMED,
    "ValidationException": _MALFORMED,
    "UnknownOperationException": Meaning(
        ConfigurationError, "what answers at this endpoint does not know the operation"
    ),
    "UnsupportedOperationException": Meaning(
        ConfigurationError, "KMS does not support the operation for this key"
    ),
}

_SIGN_IN = Meaning(
    KmsForbiddenError, "the sign-in behind the credentials has ended", "Sign in again: `aws sso login`."
)
_CREDENTIAL_SOURCE = Meaning(
    KmsUnavailableError,
    "the credentials could not be fetched",
    "Check what gives this process its credentials: the metadata service, or credential_process.",
)
_NO_CREDENTIALS = Meaning(
    ConfigurationError,
    "no AWS credentials were found in the environment, the files, the container or the instance",
    "Give the process a role, set AWS_PROFILE or the AWS_ACCESS_KEY_ID pair, or pass client=.",
)
_SETTINGS = Meaning(ConfigurationError, "the AWS settings of this process cannot be used")

_NO_ANSWER = Meaning(KmsUnavailableError, "KMS did not answer in time")
_NO_CONNECTION = Meaning(KmsUnavailableError, "the connection to KMS failed")

# By the name of the exception's class, or else of its nearest base that stands here. By name, since some are
# younger than the oldest botocore that this works with.
BY_NAME: Mapping[str, Meaning] = {
    "ConnectTimeoutError": _NO_ANSWER,
    "ReadTimeoutError": _NO_ANSWER,
    "ConnectionError": _NO_CONNECTION,
    "HTTPClientError": _NO_CONNECTION,
    "IncompleteReadError": _NO_CONNECTION,
    "ResponseParserError": Meaning(
        KmsUnavailableError, "what answered is not KMS: the answer cannot be read"
    ),
    "SSLError": Meaning(
        KmsUnavailableError,
        "no trusted TLS connection to KMS could be made",
        "Check the CA bundle (AWS_CA_BUNDLE), this machine's clock, and who answers at the endpoint.",
    ),
    "NoCredentialsError": _NO_CREDENTIALS,
    "PartialCredentialsError": _NO_CREDENTIALS,
    "SSOError": _SIGN_IN,
    "LoginError": _SIGN_IN,
    "TokenRetrievalError": _SIGN_IN,
    "CredentialRetrievalError": _CREDENTIAL_SOURCE,
    "MetadataRetrievalError": _CREDENTIAL_SOURCE,
    "ProfileNotFound": _SETTINGS,
    "ConfigNotFound": _SETTINGS,
    "ConfigParseError": _SETTINGS,
    "NoRegionError": _SETTINGS,
    "InvalidRegionError": _SETTINGS,
    "ParamValidationError": _MALFORMED,
}
