"""Policy statements, written out for whoever has to add them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventseal_kms.aws.arn import KeyArn

_APPLICATION = "eventseal:application"


def statement_for(actions: Sequence[str], keys: Sequence[KeyArn], context: Mapping[str, str] | None) -> str:
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
