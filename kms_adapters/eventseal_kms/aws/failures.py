"""
The errors of failed calls to AWS KMS.

Two tables map the codes of AWS and the exceptions of botocore to EventSeal's errors.
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
    The meaning of a failure for the caller.

    Attributes:
        error: The class of the error.
        text: The event. In the message, it follows the action and the key.
        remedy: The remedy, if that of the class does not fit.
    """

    error: type[EventSealError]
    text: str
    remedy: str | None = None


_THROTTLED = Meaning(KmsUnavailableError, "the requests exceed the account's quota in this Region")
_INSIDE = Meaning(KmsUnavailableError, "KMS had an internal failure")
_CREDENTIALS = Meaning(
    KmsForbiddenError,
    "AWS does not accept the credentials",
    "Renew the credentials (`aws sso login`, a new role session, new keys), and check this machine's clock.",
)
_DENIED = Meaning(KmsForbiddenError, "the caller has no permission")
_ROW_CHANGED = "Restore the key's row from a backup, and find out who changed it. Do not use the wrapping."
_MALFORMED = Meaning(ConfigurationError, "KMS does not accept the request")

# botocore's standard mode retries the first group. It retries no other, because a retry cannot help there.
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
    "DependencyTimeoutException": Meaning(KmsUnavailableError, "KMS had an internal time-out"),
    "KeyUnavailableException": Meaning(KmsUnavailableError, "KMS cannot reach the key now"),
    "RequestTimeout": Meaning(KmsUnavailableError, "KMS did not receive the whole request in time"),
    "RequestTimeoutException": Meaning(KmsUnavailableError, "KMS did not receive the whole request in time"),
    # --- grant, or log in
    "AccessDeniedException": _DENIED,
    "AccessDenied": _DENIED,
    "InvalidGrantTokenException": Meaning(
        KmsForbiddenError,
        "KMS does not accept a grant token",
        "Pass the token that CreateGrant returned. After some minutes the grant works without a token.",
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
    # --- correct the KMS key
    "DisabledException": Meaning(
        KmsKeyStateError,
        "the KMS key is disabled",
        "Enable the KMS key: `aws kms enable-key`. A retry does not help.",
    ),
    "KMSInvalidStateException": Meaning(
        KmsKeyStateError,
        "the state of the KMS key does not allow it: pending deletion, pending import or unavailable",
        "Run `aws kms describe-key` to see the state. Then cancel the deletion (`aws kms "
        "cancel-key-deletion` and `aws kms enable-key`), import the key material, or connect the custom key "
        "store.",
    ),
    "NotFoundException": Meaning(
        KmsKeyStateError,
        "KMS has no such key in this Region and account",
        "Check the ARN's Region, account and id. A new key may need some seconds to appear. A deleted key "
        "never returns.",
    ),
    "InvalidKeyUsageException": Meaning(
        KmsKeyStateError,
        "the KMS key is of the wrong kind",
        "Use a symmetric key: KeySpec SYMMETRIC_DEFAULT, KeyUsage ENCRYPT_DECRYPT.",
    ),
    # --- stop: something was changed
    "InvalidCiphertextException": Meaning(
        IntegrityError,
        "the wrapping does not authenticate: its bytes or its encryption context were changed",
        _ROW_CHANGED,
    ),
    "IncorrectKeyException": Meaning(
        IntegrityError, "the wrapping is under another KMS key than its row says", _ROW_CHANGED
    ),
    # --- fix the program or its settings
    "InvalidArnException": _MALFORMED,
    "ValidationException": _MALFORMED,
    "UnknownOperationException": Meaning(
        ConfigurationError, "the service at this endpoint does not know the operation"
    ),
    "UnsupportedOperationException": Meaning(
        ConfigurationError, "KMS does not support the operation for this key"
    ),
}

_SIGN_IN = Meaning(
    KmsForbiddenError, "the sign-in session of the credentials has ended", "Sign in again: `aws sso login`."
)
_CREDENTIAL_SOURCE = Meaning(
    KmsUnavailableError,
    "the credentials could not be fetched",
    "Check the source of this process's credentials: the metadata service, or credential_process.",
)
_NO_CREDENTIALS = Meaning(
    ConfigurationError,
    "no AWS credentials were found in the environment, the files, the container or the instance",
    "Give the process a role, set AWS_PROFILE or the AWS_ACCESS_KEY_ID pair, or pass client=.",
)
_SETTINGS = Meaning(ConfigurationError, "the AWS settings of this process cannot be used")

_NO_ANSWER = Meaning(KmsUnavailableError, "KMS did not answer in time")
_NO_CONNECTION = Meaning(KmsUnavailableError, "the connection to KMS failed")

# By the name of the exception's class, or else of its nearest base class in this table. By name, because the
# oldest supported botocore lacks some of these classes.
_BY_NAME: Mapping[str, Meaning] = {
    "ConnectTimeoutError": _NO_ANSWER,
    "ReadTimeoutError": _NO_ANSWER,
    "ConnectionError": _NO_CONNECTION,
    "HTTPClientError": _NO_CONNECTION,
    "IncompleteReadError": _NO_CONNECTION,
    "ResponseParserError": Meaning(
        KmsUnavailableError, "the answer is unreadable, so it does not come from KMS"
    ),
    "SSLError": Meaning(
        KmsUnavailableError,
        "EventSeal cannot open a trusted TLS connection to KMS",
        "Check the CA bundle (AWS_CA_BUNDLE), this machine's clock, and the service at the endpoint.",
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
        code: The code of AWS, or the name of botocore's exception.
        status: The status of the HTTP answer, or 0 if there was none.
        error: The error for the caller.
    """

    code: str
    status: int
    error: EventSealError

    @property
    def is_not_offered(self) -> bool:
        """Whether the endpoint lacks the operation, like some emulators."""
        return self.code in _NOT_OFFERED or self.status == HTTPStatus.NOT_IMPLEMENTED

    @property
    def is_about_credentials(self) -> bool:
        """Whether it may help to read the credentials again."""
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
    Translate an exception of botocore.

    The error is created, not raised. So no traceback reaches frames that hold a request with a key in it.

    Args:
        caught: The exception.
        operation: The KMS operation of the call, such as ``Decrypt``.
        key: The KMS key or alias of the call.
        source: The KMS key that the wrapping is under. Only for ReEncrypt.
        context: The encryption context of the call, if any.
    """
    if not isinstance(caught, boto.ClientError):
        known = (_BY_NAME[base.__name__] for base in type(caught).__mro__ if base.__name__ in _BY_NAME)
        meaning = next(known, Meaning(KmsError, "boto3 could not make the call"))
        # botocore's text for wrong parameters repeats their values, and a value may be a key.
        text = "" if isinstance(caught, boto.ParamValidationError) else str(caught)
        name = type(caught).__name__
        return Failure(name, 0, _error(meaning, f"kms:{operation}", key, name, text))
    # The type says that it is complete, but an endpoint can answer anything.
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
    """Return the error of a failed call, or any other outcome unchanged."""
    return outcome.error if isinstance(outcome, Failure) else outcome


def _error(meaning: Meaning, action: str, key: KeyArn, code: str, text: str) -> EventSealError:
    said = f": {text[:_VENDOR_TEXT_LIMIT]}" if text else ""
    message = f"{action} on {key}: {meaning.text} [{code}{said}]"
    return meaning.error(message, remedy=meaning.remedy, kek_uri=key.uri)


def _denied_actions(operation: str, text: str) -> tuple[str, ...]:
    """Return the missing permissions. ReEncrypt needs two, and KMS's text names one."""
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
    Return the statement that grants *actions* on *keys*, as one-line JSON.

    A policy accepts no alias as a resource. The application in *context* becomes the condition.
    """
    resources = [str(key) for key in keys]
    statement: dict[str, object] = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
    if context is not None:
        application = context[_APPLICATION]
        statement["Condition"] = {"StringEquals": {f"kms:EncryptionContext:{_APPLICATION}": application}}
    return json.dumps(statement)
