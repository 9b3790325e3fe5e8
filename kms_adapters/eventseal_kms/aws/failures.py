"""From what botocore raised to the error that says what happened, to which key, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from eventseal.errors import EventSealError, KmsError, KmsUnavailableError
from eventseal_kms.aws.meanings import BY_CODE, BY_NAME, DENIED, INSIDE, Meaning
from eventseal_kms.aws.statements import statement_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventseal_kms.aws.arn import KeyArn

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
        known = (BY_NAME[base.__name__] for base in type(caught).__mro__ if base.__name__ in BY_NAME)
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
        INSIDE if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Meaning(KmsError, "KMS refused the call")
    )
    meaning = BY_CODE.get(code, unknown)
    if caught.operation_name != operation:  # botocore's own call for the credentials, to STS or SSO
        return Failure(
            code, status, _error(meaning, f"{caught.operation_name}, for the credentials,", key, code, text)
        )
    error = _error(meaning, f"kms:{operation}", key, code, text)
    if isinstance(error, KmsUnavailableError):
        error.retry_after = _retry_after(metadata.get("HTTPHeaders", {}))
    elif meaning is DENIED:
        actions = _denied_actions(operation, text)
        resources = [key] if source is None or source == key else [source, key]
        error.remedy = (
            f"Add to the caller's policy, or to the key's: {statement_for(actions, resources, context)}"
        )
    return Failure(code, status, error)


def error_in(outcome: EventSealError | Failure) -> EventSealError:
    """Give the error of a failed call, or the error itself."""
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
