"""
The errors of failed calls to AWS KMS.

A table maps the codes of AWS to EventSeal's errors. Exceptions that are no answer of AWS have their own one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KmsError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
)
from eventseal_kms.aws.client_errors import CREDENTIALS, MALFORMED, Meaning, detail_of, meaning_of
from eventseal_kms.aws.client_settings import ClientSettings
from eventseal_kms.aws.clients import Step
from eventseal_kms.aws.denials import credentials_remedy, denial_remedy
from eventseal_kms.scrubbing import scrubbed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventseal_kms.aws.arn import KeyArn
    from eventseal_kms.outcomes import Value

_CREDENTIALS_OLD = frozenset(
    {
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
_QUOTE_LIMIT = 400

_THROTTLED = Meaning(KmsUnavailableError, "the requests exceed the account's quota in this Region")
_INSIDE = Meaning(KmsUnavailableError, "KMS had an internal failure", is_quoted=True)
_REFUSED = Meaning(KmsError, "KMS refused the call", is_quoted=True)
_DENIED = Meaning(KmsForbiddenError, "the caller has no permission", is_quoted=True)
_ROW_CHANGED = "Restore the key's row from a backup, and find out who changed it. Do not use the wrapping."

_REGION_IS_OFF = Meaning(
    KmsForbiddenError, "the account may not use KMS in this Region", "Enable the Region for the account."
)

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
    "IDPCommunicationError": Meaning(KmsUnavailableError, "AWS cannot reach the identity provider"),
    "DependencyTimeoutException": Meaning(KmsUnavailableError, "KMS had an internal time-out"),
    "KeyUnavailableException": Meaning(KmsUnavailableError, "KMS cannot reach the key now"),
    "RequestTimeout": Meaning(KmsUnavailableError, "KMS did not receive the whole request in time"),
    "RequestTimeoutException": Meaning(KmsUnavailableError, "KMS did not receive the whole request in time"),
    # --- grant, or log in
    "AccessDeniedException": _DENIED,
    "AccessDenied": _DENIED,
    "ForbiddenException": _DENIED,  # of SSO
    "InvalidGrantTokenException": Meaning(
        KmsForbiddenError,
        "KMS does not accept a grant token",
        "Pass the token that CreateGrant returned. After some minutes the grant works without a token.",
    ),
    # AWS's texts for these repeat headers of the request.
    "ExpiredTokenException": CREDENTIALS,
    "ExpiredToken": CREDENTIALS,
    "RequestExpired": CREDENTIALS,
    "UnrecognizedClientException": CREDENTIALS,
    "InvalidClientTokenId": CREDENTIALS,
    "InvalidSignatureException": CREDENTIALS,
    "SignatureDoesNotMatch": CREDENTIALS,
    "IncompleteSignature": CREDENTIALS,
    "MissingAuthenticationToken": CREDENTIALS,
    "MissingAuthenticationTokenException": CREDENTIALS,
    "InvalidIdentityToken": CREDENTIALS,
    "IDPRejectedClaim": CREDENTIALS,
    "OptInRequired": _REGION_IS_OFF,
    "RegionDisabledException": _REGION_IS_OFF,
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
    "InvalidArnException": MALFORMED,
    "ValidationException": MALFORMED,
    "ValidationError": MALFORMED,
    "UnknownOperationException": Meaning(
        ConfigurationError, "the service at this endpoint does not know the operation"
    ),
    "UnsupportedOperationException": Meaning(
        ConfigurationError, "KMS does not support the operation for this key"
    ),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """
    A call that failed.

    Attributes:
        code: The code of AWS, or the name of botocore's exception.
        status: The status of the HTTP answer, or 0 if there was none.
        error: The error for the caller.
        is_denied: Whether a policy denied the call to KMS.
    """

    code: str
    status: int
    error: EventSealError
    is_denied: bool = False

    @property
    def is_not_offered(self) -> bool:
        """Whether the endpoint lacks the operation, like some emulators."""
        return self.code in _NOT_OFFERED or self.status == HTTPStatus.NOT_IMPLEMENTED

    @property
    def is_about_credentials(self) -> bool:
        """Whether it may help to read the credentials again."""
        return self.code in _CREDENTIALS_OLD


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """
    A call that has failed.

    Attributes:
        operation: The KMS operation of the call, such as ``Decrypt``.
        key: The KMS key or alias of the call.
        source: The KMS key that the wrapping is under. Only for ReEncrypt.
        context: The encryption context of the call, if any.
        step: The step that failed.
        settings: The settings of the client.
        secrets: The texts that no message may show, in addition to the secrets of the environment.
    """

    operation: str
    key: KeyArn
    source: KeyArn | None = None
    context: Mapping[str, str] | None = None
    step: Step = Step.CALL
    settings: ClientSettings = field(default_factory=ClientSettings)
    secrets: Sequence[str] = field(default=(), repr=False)

    def error(self, meaning: Meaning, what: str, code: str, quoted: str) -> EventSealError:
        """
        Create the error.

        Args:
            meaning: The meaning of the failure.
            what: The action that failed, and the event.
            code: The code of AWS, or the name of the exception.
            quoted: A text of AWS or botocore to quote, or nothing.
        """
        told = f"{code}: {quoted}" if quoted else code
        told = scrubbed(told, self.secrets)[:_QUOTE_LIMIT]
        return meaning.error(f"{what} [{told}]", remedy=meaning.remedy, kek_uri=self.key.uri)


def failure_of(caught: Exception, attempt: Attempt) -> Failure:
    """
    Translate whatever botocore raises.

    The error is created, not raised. So no traceback reaches frames that hold a request with a key in it.

    Args:
        caught: The exception.
        attempt: The call that raised it.
    """
    if isinstance(caught, ClientError):
        return _failure_of_answer(caught, attempt)
    meaning = meaning_of(caught, attempt.step)
    origin = "" if meaning.variables is None else f" (from {attempt.settings.in_use(meaning.variables)})"
    what = f"kms:{attempt.operation} on {attempt.key}: {meaning.text}{origin}"
    name = type(caught).__name__
    error = attempt.error(meaning, what, name, str(caught) if meaning.is_quoted else detail_of(caught))
    return Failure(name, 0, error)


def _failure_of_answer(caught: ClientError, attempt: Attempt) -> Failure:
    # The type says that it is complete, but an endpoint can answer anything.
    response: Mapping[str, Any] = caught.response
    details, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    code, text = str(details.get("Code", "")), str(details.get("Message") or "")
    status = int(metadata.get("HTTPStatusCode", 0))
    meaning = _BY_CODE.get(code, _INSIDE if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _REFUSED)
    is_for_credentials = caught.operation_name != attempt.operation  # botocore's own call, to STS or SSO
    action = f"kms:{attempt.operation}"
    if is_for_credentials:
        role = attempt.settings.role_arn
        action = f"{caught.operation_name}, for the credentials{f' of {role}' if role else ''},"
    what = f"{action} on {attempt.key}: {meaning.text}"
    error = attempt.error(meaning, what, code, text if meaning.is_quoted else "")
    if isinstance(error, KmsUnavailableError):
        error.retry_after = _retry_after(metadata.get("HTTPHeaders", {}))
    elif meaning is _DENIED and is_for_credentials:
        error.remedy = credentials_remedy(caught.operation_name, text)
    elif meaning is _DENIED:
        error.remedy = denial_remedy(
            attempt.operation, text, key=attempt.key, source=attempt.source, context=attempt.context
        )
    return Failure(code, status, error, is_denied=meaning is _DENIED and not is_for_credentials)


def error_in(outcome: Value | EventSealError | Failure) -> Value | EventSealError:
    """Return the error of a failed call, or any other outcome unchanged."""
    return outcome.error if isinstance(outcome, Failure) else outcome


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, seconds in (("retry-after", 1.0), ("x-amz-retry-after", 0.001)):
        value = headers.get(name, "")
        if value.isdecimal():
            return int(value) * seconds
    return None
