"""Remedies for denied calls. Which policy denied the call decides where a change helps."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventseal_kms.aws.arn import KeyArn

_APPLICATION = "eventseal:application"
_POLICY = r"(?P<policy>[A-Za-z -]*?(?:policy|boundary))\b"
_EXPLICIT_DENY = re.compile(rf"explicit deny(?: in (?:an? |the )?{_POLICY})?")
_NOT_ALLOWED_BY = re.compile(rf"because no {_POLICY}")
# Each other kind of policy limits what these two grant.
_GRANTING = frozenset({"identity-based policy", "resource-based policy"})


def denial_remedy(
    operation: str,
    text: str,
    *,
    key: KeyArn,
    source: KeyArn | None = None,
    context: Mapping[str, str] | None = None,
) -> str:
    """
    Return what to change after KMS has denied a call.

    Args:
        operation: The operation, such as ``Decrypt``.
        text: The message of KMS, which names the kind of policy that denied the call.
        key: The KMS key of the call.
        source: The KMS key that the wrapping is under. Only for ReEncrypt.
        context: The encryption context of the call, if any.
    """
    actions = _denied_actions(operation, text)
    keys = [key] if source is None or source == key else [source, key]
    limit = _limit_remedy(text, allow=f"{' and '.join(actions)} on {' and '.join(map(str, keys))}")
    return limit or f"Add to the caller's policy, or to the key's: {_statement_for(actions, keys, context)}"


def credentials_remedy(operation: str, text: str) -> str:
    """
    Return what to change after AWS has denied a call for credentials.

    Args:
        operation: The operation of STS or SSO, such as ``AssumeRole``.
        text: The message of AWS.
    """
    if not operation.startswith("AssumeRole"):
        return "Check that the profile names an account and a role that its user may use."
    return _limit_remedy(text, allow=f"sts:{operation} on the role") or (
        f"Allow sts:{operation} on the role in the caller's policy, and name the caller in the role's trust "
        "policy."
    )


def _limit_remedy(text: str, *, allow: str) -> str | None:
    """
    Return the remedy if a further Allow statement cannot help.

    It is ``None`` if only such a statement is missing. *allow* names the action and the resource.
    """
    denied = _EXPLICIT_DENY.search(text)
    if denied:
        policy = denied["policy"] or "policy that denies it"
        return (
            f"Find the Deny statement in the {policy}, and change it or its condition so that it spares this "
            "caller. A further Allow statement does not help."
        )
    limit = _NOT_ALLOWED_BY.search(text)
    if limit and limit["policy"] not in _GRANTING:
        return (
            f"Let the {limit['policy']} allow {allow}. It limits what all other policies grant, so a further "
            "Allow statement elsewhere does not help."
        )
    return None


def _denied_actions(operation: str, text: str) -> tuple[str, ...]:
    """Return the missing permissions. ReEncrypt needs two, and KMS's text names one."""
    if operation != "ReEncrypt":
        return (f"kms:{operation}",)
    both = ("kms:ReEncryptFrom", "kms:ReEncryptTo")
    return tuple(action for action in both if action in text) or both


def _statement_for(actions: Sequence[str], keys: Sequence[KeyArn], context: Mapping[str, str] | None) -> str:
    """
    Return the statement that grants *actions* on *keys*, as one-line JSON.

    The application in *context* becomes the condition.
    """
    conditions: dict[str, dict[str, str]] = {}
    if context is not None:
        conditions["StringEquals"] = {f"kms:EncryptionContext:{_APPLICATION}": context[_APPLICATION]}
    resources = []
    for key in keys:
        resource, by_alias = key.in_policy()
        resources.append(resource)
        conditions |= by_alias
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
    return json.dumps({**statement, "Condition": conditions} if conditions else statement)
