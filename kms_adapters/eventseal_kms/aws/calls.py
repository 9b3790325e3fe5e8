"""One call to AWS KMS, and its answer or its failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botocore import xform_name

from eventseal_kms.aws.failures import VENDOR_ERRORS, Failure, VendorError, failure_of
from eventseal_kms.aws.redaction import bodies_hidden

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventseal_kms.aws.arn import KeyArn
    from eventseal_kms.aws.connection import ConnectionSource

Answer = dict[str, Any]


class KmsCalls:
    """
    Calls AWS KMS through this process's connection.

    Args:
        connections: Where the connection comes from.
        grant_tokens: Sent with every call.
    """

    def __init__(self, connections: ConnectionSource, grant_tokens: Sequence[str]) -> None:
        self._connections = connections
        self._common: dict[str, Any] = {"GrantTokens": list(grant_tokens)} if grant_tokens else {}

    def call(
        self,
        operation: str,
        key: KeyArn,
        *,
        source: KeyArn | None = None,
        context: Mapping[str, str] | None = None,
        **request: Any,
    ) -> Answer | Failure:
        """
        Call *operation* for *key*.

        A failure is returned, not raised: so no traceback leads into the frames of the HTTP client, where the
        request lies with a key in it. Credentials that are missing or not accepted are looked for once more,
        as something else may have renewed them; every other repetition is botocore's.

        Args:
            operation: Such as ``Decrypt``.
            key: What to call it in a message; the request names it as the operation has it.
            source: Of ReEncrypt: the key that made the wrapping.
            context: The encryption context in *request*, for the statement that a denied caller needs.
            request: The operation's parameters.
        """
        connection = self._connections.get()
        for last in (False, True):
            client = None
            try:
                client = connection.client()
                with bodies_hidden():
                    answer: Answer = getattr(client, xform_name(operation))(**request, **self._common)
            except VENDOR_ERRORS as error:
                caught: VendorError = error
            else:
                return answer
            failure = failure_of(caught, operation=operation, key=key, source=source, context=context)
            del caught
            if client is None or not failure.is_about_credentials:
                return failure
            if not connection.renew(client) or last:
                return failure
        raise AssertionError("unreachable")
