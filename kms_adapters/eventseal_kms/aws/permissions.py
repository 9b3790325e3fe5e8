"""What the caller may do with a KMS key, tried by dry runs."""

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

# Where IGNORE_CIPHERTEXT is not known, the made-up blob is looked at only after the call was allowed.
_GRANTED = frozenset({"DryRunOperationException", "InvalidCiphertextException"})
_TO_SEAL_AND_OPEN = frozenset({"kms:GenerateDataKey", "kms:Decrypt"})
_TOO_OLD = "This boto3 cannot ask for it without a wrapping: pip install --upgrade boto3."
_NO_CIPHERTEXT = b"a dry run needs none"


def check_permissions(kms_key: ConfiguredKey, calls: KmsCalls, application: str) -> Sequence[PermissionCheck]:
    """
    Try what a writer, a reader and a rotator need, each by itself.

    Args:
        kms_key: The key; an alias is resolved first, which needs ``kms:DescribeKey``.
        calls: To call with.
        application: For the encryption context, since least-privilege policies ask for it.

    Raises:
        EventSealError: A trial ended otherwise than by a yes or a no.
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
        # So fails a botocore that does not know the modifiers.
        if isinstance(answer, Failure) and answer.code == "ParamValidationError":
            if not required:
                checks.append(PermissionCheck(action=action, granted=False, detail=_TOO_OLD, required=False))
                continue
            del request["DryRunModifiers"]
            answer = calls.call(operation, key, context=context, DryRun=True, **request)
        checks.append(_outcome(action, answer, required=required))
    if not configured.is_alias:
        # Not for making and opening keys; whoever rewraps or rolls the epoch asks which material wraps now.
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
    """Yield operation, permission and request; none of them needs a wrapping that exists."""
    blind = {"CiphertextBlob": _NO_CIPHERTEXT, "DryRunModifiers": ["IGNORE_CIPHERTEXT"]}
    yield "GenerateDataKey", "kms:GenerateDataKey", {"KeySpec": "AES_256"}
    yield "Decrypt", "kms:Decrypt", {**blind}
    yield "Encrypt", "kms:Encrypt", {"Plaintext": bytes(32)}
    yield "ReEncrypt", "kms:ReEncrypt*", {"source": key, **blind}
