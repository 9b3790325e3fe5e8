"""Permissions on a KMS key: trials, and policies that grant them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.kms import EncryptionContext, KmsUse, PermissionCheck
from eventseal_kms.aws.failures import Failure
from eventseal_kms.outcomes import value_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from eventseal_kms.aws.arn import KeyArn
    from eventseal_kms.aws.calls import Answer, KmsCalls
    from eventseal_kms.aws.configured_key import ConfiguredKey

# A service without IGNORE_CIPHERTEXT reads the dummy blob only after it has allowed the call.
_GRANTED = frozenset({"DryRunOperationException", "InvalidCiphertextException"})
_TO_SEAL_AND_OPEN = frozenset({KmsUse.GENERATE, KmsUse.UNWRAP})
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
        checks.append(_outcome("kms:DescribeKey", calls.call("DescribeKey", configured), required=True))
        if not checks[0].granted:
            return checks
    key = value_of(kms_key.current())
    context = EncryptionContext(UUID(int=0), "data", application).as_mapping()
    for operation, action, use, request in _trials(key):
        required, uses = use in _TO_SEAL_AND_OPEN, frozenset({use})
        answer = calls.call(operation, key, context=context, DryRun=True, **request)
        # A botocore that does not know the modifiers fails this way.
        is_refused = isinstance(answer, Failure) and answer.code == "ParamValidationError"
        if is_refused and "DryRunModifiers" in request:
            if not required:
                checks.append(
                    PermissionCheck(action=action, granted=False, detail=_TOO_OLD, required=False, uses=uses)
                )
                continue
            del request["DryRunModifiers"]
            answer = calls.call(operation, key, context=context, DryRun=True, **request)
        checks.append(_outcome(action, answer, required=required, uses=uses))
    if not configured.is_alias:
        # A rewrap and a roll of the epoch read which material wraps now. Creating and unwrapping keys do not.
        described = calls.call("DescribeKey", key)
        uses = frozenset({KmsUse.DESCRIBE})
        checks.append(_outcome("kms:DescribeKey", described, required=False, uses=uses))
    return checks


def _outcome(
    action: str, answer: Answer | Failure, *, required: bool, uses: frozenset[KmsUse] = frozenset()
) -> PermissionCheck:
    if not isinstance(answer, Failure) or answer.code in _GRANTED:
        return PermissionCheck(action=action, granted=True, required=required, uses=uses)
    if answer.is_denied:
        detail = f"{answer.error}. {answer.error.remedy}"
        return PermissionCheck(action=action, granted=False, detail=detail, required=required, uses=uses)
    raise answer.error


def _trials(key: KeyArn) -> Iterator[tuple[str, str, KmsUse, dict[str, Any]]]:
    """Yield operation, permission, use and request. None needs an existing wrapping."""
    blind = {"CiphertextBlob": _NO_CIPHERTEXT, "DryRunModifiers": ["IGNORE_CIPHERTEXT"]}
    yield "GenerateDataKey", "kms:GenerateDataKey", KmsUse.GENERATE, {"KeySpec": "AES_256"}
    yield "Decrypt", "kms:Decrypt", KmsUse.UNWRAP, {**blind}
    yield "Encrypt", "kms:Encrypt", KmsUse.WRAP, {"Plaintext": bytes(32)}
    yield "ReEncrypt", "kms:ReEncrypt*", KmsUse.REWRAP, {"source": key, **blind}


_WITH_CONTEXT: Mapping[KmsUse, tuple[str, ...]] = {
    KmsUse.GENERATE: ("kms:GenerateDataKey",),
    KmsUse.WRAP: ("kms:Encrypt",),
    KmsUse.UNWRAP: ("kms:Decrypt",),
    KmsUse.REWRAP: ("kms:ReEncryptFrom", "kms:ReEncryptTo"),
}
_WITHOUT_CONTEXT: Mapping[KmsUse, tuple[str, ...]] = {
    KmsUse.DESCRIBE: ("kms:DescribeKey",),
    KmsUse.END: ("kms:ScheduleKeyDeletion",),
}


def policy_of(key: KeyArn, uses: Collection[KmsUse], application: str) -> str:
    """
    Write the IAM policy that grants one application some uses.

    Args:
        key: The configured ARN. An alias stands for the key that it names, which is looked up first.
        uses: The uses to grant.
        application: The name that the encryption context must have.
    """
    application_only = {"StringEquals": {"kms:EncryptionContext:eventseal:application": application}}
    described = {*uses, KmsUse.DESCRIBE} if key.is_alias else {*uses}
    statements = [
        _statement("UseTheKeysOfTheApplication", key, _actions(_WITH_CONTEXT, uses), application_only),
        _statement("LookAtTheKey", key, _actions(_WITHOUT_CONTEXT, described - {KmsUse.END}), {}),
        _statement("EndTheKey", key, _actions(_WITHOUT_CONTEXT, {*uses} & {KmsUse.END}), {}),
    ]
    granted = [statement for statement in statements if statement["Action"]]
    return json.dumps({"Version": "2012-10-17", "Statement": granted}, indent=2)


def _actions(by_use: Mapping[KmsUse, tuple[str, ...]], uses: Collection[KmsUse]) -> list[str]:
    return [action for use, actions in by_use.items() if use in uses for action in actions]


def _statement(
    sid: str, key: KeyArn, actions: Sequence[str], condition: Mapping[str, object]
) -> dict[str, object]:
    resource, by_alias = key.in_policy()
    conditions = {**condition, **by_alias}
    statement: dict[str, object] = {
        "Sid": sid,
        "Effect": "Allow",
        "Action": list(actions),
        "Resource": resource,
    }
    return {**statement, "Condition": conditions} if conditions else statement
