"""The caller's permissions on a KMS key, tried by dry runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.kms import EncryptionContext, PermissionCheck
from eventseal_kms.aws.failures import Failure
from eventseal_kms.outcomes import value_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventseal_kms.aws.arn import KeyArn
    from eventseal_kms.aws.calls import Answer, KmsCalls
    from eventseal_kms.aws.configured_key import ConfiguredKey

# A service without IGNORE_CIPHERTEXT reads the dummy blob only after it has allowed the call.
_GRANTED = frozenset({"DryRunOperationException", "InvalidCiphertextException"})
_TO_SEAL_AND_OPEN = frozenset({"kms:GenerateDataKey", "kms:Decrypt"})
_TOO_OLD = "This boto3 is too old to check it without a wrapping. Run: pip install --upgrade boto3"
_NO_CIPHERTEXT = b"a dry run needs none"


def check_permissions(kms_key: ConfiguredKey, calls: KmsCalls, application: str) -> Sequence[PermissionCheck]:
    """
    Try each permission that a writer, a reader and a rotator need.

    Args:
        kms_key: The KMS key. An alias is resolved first, which needs ``kms:DescribeKey``.
        calls: The calls to KMS.
        application: The name in the encryption context. Least-privilege policies require it.

    Raises:
        EventSealError: A dry run ended without a yes or a no.
    """
    checks: list[PermissionCheck] = []
    configured = kms_key.configured
    if configured.is_alias:
        checks.append(_outcome("kms:DescribeKey", calls.call("DescribeKey", configured)))
        if not checks[0].granted:
            return checks
    key = value_of(kms_key.current())
    context = EncryptionContext(UUID(int=0), "data", application).as_mapping()
    for operation, action, request in _trials(key):
        required = action in _TO_SEAL_AND_OPEN
        answer = calls.call(operation, key, context=context, DryRun=True, **request)
        # A botocore that does not know the modifiers fails this way.
        if isinstance(answer, Failure) and answer.code == "ParamValidationError":
            if not required:
                checks.append(PermissionCheck(action=action, granted=False, detail=_TOO_OLD, required=False))
                continue
            del request["DryRunModifiers"]
            answer = calls.call(operation, key, context=context, DryRun=True, **request)
        checks.append(_outcome(action, answer, required=required))
    if not configured.is_alias:
        # A rewrap and a roll of the epoch read which material wraps now. Creating and unwrapping keys do not.
        checks.append(_outcome("kms:DescribeKey", calls.call("DescribeKey", key), required=False))
    return checks


def _outcome(action: str, answer: Answer | Failure, *, required: bool = True) -> PermissionCheck:
    if not isinstance(answer, Failure) or answer.code in _GRANTED:
        return PermissionCheck(action=action, granted=True, required=required)
    if answer.is_denied:
        detail = f"{answer.error}. {answer.error.remedy}"
        return PermissionCheck(action=action, granted=False, detail=detail, required=required)
    raise answer.error


def _trials(key: KeyArn) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield operation, permission and request. None needs an existing wrapping."""
    blind = {"CiphertextBlob": _NO_CIPHERTEXT, "DryRunModifiers": ["IGNORE_CIPHERTEXT"]}
    yield "GenerateDataKey", "kms:GenerateDataKey", {"KeySpec": "AES_256"}
    yield "Decrypt", "kms:Decrypt", {**blind}
    yield "Encrypt", "kms:Encrypt", {"Plaintext": bytes(32)}
    yield "ReEncrypt", "kms:ReEncrypt*", {"source": key, **blind}
