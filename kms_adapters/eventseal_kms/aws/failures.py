"""
What a failed call means: which error, what happened to which KMS key, and what to do.

The tables lead from AWS's codes and botocore's exceptions to EventSeal's errors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KmsError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventseal_kms.aws.arn import KeyArn
    from eventseal_kms.outcomes import Value

VendorError = boto.BotoCoreError | boto.ClientError | ResponseParserError
VENDOR_ERRORS = (boto.BotoCoreError, boto.ClientError, ResponseParserError)

_ACCESS_DENIED = frozenset({"AccessDeniedException", "AccessDenied"})
_CREDENTIALS_MISSING_OR_OLD = frozenset(
    {
        "NoCredentialsError",
        "ExpiredTokenException",
        "ExpiredToken",
        "RequestExpired",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
    }
)
_NOT_OFFERED = frozenset(
    {"UnknownOperationException", "UnsupportedOperationException", "NotImplementedException"}
)

_VENDOR_TEXT_LIMIT = 400
_APPLICATION = "eventseal:application"


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


_THROTTLED = Meaning(
    KmsUnavailableError, "the requests are more than the account's quota in this Region allows"
)
_INSIDE = Meaning(KmsUnavailableError, "KMS failed inside")
_CREDENTIALS = Meaning(
    KmsForbiddenError,
    "AWS does not accept the credentials",
    "Renew the credentials (`aws sso login`, a new role session, new keys), and check this machine's clock.",
)
_DENIED = Meaning(KmsForbiddenError, "the caller has no permission")
_ROW_CHANGED = "Do not use the wrapping. Find out who changed the key's row, and restore it from a backup."
_MALFORMED = Meaning(ConfigurationError, "KMS does not accept the request")

# botocore's standard mode repeats the first group, and nothing that repeating cannot mend.
_BY_CODE: Mapping[str, Meaning] = {
    # --- try again: throttled, or failed inside
    "ThrottlingException": _THROTTLED,
    "Throttling": _THROTTLED,
    "ThrottledException": _THROTTLED,
    "RequestThrottledException": _THROTTLED,
    "TooManyRequestsException": _THROTTLED,
    "RequestLimitExceeded": _THROTTLED,
    "SlowDown": _THROTTLED,
    "KMSInternalException": _INSIDE,
    "InternalFailure": _INSIDE,
    "InternalServerError": _INSIDE,
    "ServiceUnavailableException": _INSIDE,
    "ServiceUnavailable": _INSIDE,
    "DependencyTimeoutException": Meaning(KmsUnavailableError, "KMS timed out inside"),
    "KeyUnavailableException": Meaning(KmsUnavailableError, "KMS cannot reach the key now"),
    "RequestTimeout": Meaning(KmsUnavailableError, "KMS did not get the whole request in time"),
    "RequestTimeoutException": Meaning(KmsUnavailableError, "KMS did not get the whole request in time"),
    # --- grant, or log in
    "AccessDeniedException": _DENIED,
    "AccessDenied": _DENIED,
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
_BY_NAME: Mapping[str, Meaning] = {
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


@dataclass(frozen=True, slots=True)
class Failure:
    """
    A call that failed.

    Attributes:
        code: AWS's code, or the name of botocore's exception.
        status: Of the HTTP answer; 0 if there was none.
        error: What it means for the caller.
    """

    code: str
    status: int
    error: EventSealError

    @property
    def is_not_offered(self) -> bool:
        """Whether the endpoint lacks the operation, as some emulators do."""
        return self.code in _NOT_OFFERED or self.status == HTTPStatus.NOT_IMPLEMENTED

    @property
    def is_about_credentials(self) -> bool:
        """Whether another look at where credentials come from may mend it."""
        return self.code in _CREDENTIALS_MISSING_OR_OLD

    @property
    def is_denied(self) -> bool:
        """Whether a policy denied the call."""
        return self.code in _ACCESS_DENIED


def failure_of(
    caught: VendorError,
    *,
    operation: str,
    key: KeyArn,
    source: KeyArn | None = None,
    context: Mapping[str, str] | None = None,
) -> Failure:
    """
    Say what *caught* means.

    The error is made, not raised: so no traceback leads into frames that hold a request with a key in it.

    Args:
        caught: What botocore raised.
        operation: The KMS operation that was called, such as ``Decrypt``.
        key: The KMS key, or alias, that it was called for.
        source: Of ReEncrypt: the KMS key that made the wrapping.
        context: The encryption context that was sent, if any.
    """
    if not isinstance(caught, boto.ClientError):
        known = (_BY_NAME[base.__name__] for base in type(caught).__mro__ if base.__name__ in _BY_NAME)
        meaning = next(known, Meaning(KmsError, "the call could not be made"))
        # botocore's text for wrong parameters repeats their values, and a value may be a key.
        text = "" if isinstance(caught, boto.ParamValidationError) else str(caught)
        name = type(caught).__name__
        return Failure(name, 0, _error(meaning, f"kms:{operation}", key, name, text))
    # Typed as complete, but an endpoint answers what it likes.
    response: Mapping[str, Any] = caught.response
    details, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    code, text = str(details.get("Code", "")), str(details.get("Message") or "")
    status = int(metadata.get("HTTPStatusCode", 0))
    unknown = (
        _INSIDE if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Meaning(KmsError, "KMS refused the call")
    )
    meaning = _BY_CODE.get(code, unknown)
    if caught.operation_name != operation:  # botocore's own call for the credentials, to STS or SSO
        return Failure(
            code, status, _error(meaning, f"{caught.operation_name}, for the credentials,", key, code, text)
        )
    error = _error(meaning, f"kms:{operation}", key, code, text)
    if isinstance(error, KmsUnavailableError):
        error.retry_after = _retry_after(metadata.get("HTTPHeaders", {}))
    elif meaning is _DENIED:
        actions = _denied_actions(operation, text)
        resources = [key] if source is None or source == key else [source, key]
        error.remedy = (
            f"Add to the caller's policy, or to the key's: {_statement_for(actions, resources, context)}"
        )
    return Failure(code, status, error)


def error_in(outcome: Value | EventSealError | Failure) -> Value | EventSealError:
    """Return the error of a failed call; every other outcome stays as it is."""
    return outcome.error if isinstance(outcome, Failure) else outcome


def _error(meaning: Meaning, action: str, key: KeyArn, code: str, text: str) -> EventSealError:
    said = f": {text[:_VENDOR_TEXT_LIMIT]}" if text else ""
    message = f"{action} on {key}: {meaning.text} [{code}{said}]"
    return meaning.error(message, remedy=meaning.remedy, kek_uri=key.uri)


def _denied_actions(operation: str, text: str) -> tuple[str, ...]:
    """Name the permissions: ReEncrypt takes two, and KMS's text says which one was missing."""
    if operation != "ReEncrypt":
        return (f"kms:{operation}",)
    both = ("kms:ReEncryptFrom", "kms:ReEncryptTo")
    return tuple(action for action in both if action in text) or both


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, seconds in (("retry-after", 1.0), ("x-amz-retry-after", 0.001)):
        value = headers.get(name, "")
        if value.isdecimal():
            return int(value) * seconds
    return None


def _statement_for(actions: Sequence[str], keys: Sequence[KeyArn], context: Mapping[str, str] | None) -> str:
    """
    Write the statement that grants *actions* on *keys*, as JSON on one line.

    Args:
        actions: Such as ``kms:Decrypt``.
        keys: The KMS keys; a policy knows no alias as a resource.
        context: The encryption context of the denied call; its application becomes the condition.
    """
    resources = [str(key) for key in keys]
    statement: dict[str, object] = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
    if context is not None:
        application = context[_APPLICATION]
        statement["Condition"] = {"StringEquals": {f"kms:EncryptionContext:{_APPLICATION}": application}}
    return json.dumps(statement)
