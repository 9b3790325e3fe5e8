"""
Calls to AWS KMS, with one fence and a redacted log.

A failure is returned, not raised. A traceback would reach the frames of the HTTP client. They hold the
request, and a key in it (docs/decisions/0032).
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from botocore import xform_name

from eventseal.errors import ConfigurationError, EventSealError, KmsKeyStateError, KmsUnavailableError
from eventseal_kms.aws.clients import CALLS_IN_FLIGHT, Connection, Step
from eventseal_kms.aws.failures import Attempt, Failure, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mypy_boto3_kms import KMSClient

    from eventseal_kms.aws.arn import KeyArn
    from eventseal_kms.aws.client_settings import ClientSettings
    from eventseal_kms.outcomes import Value

Answer = dict[str, Any]
Item = TypeVar("Item")

_HITS_EVERY_ITEM = (KmsUnavailableError, KmsKeyStateError, ConfigurationError)
_WITHOUT_GRANTS = frozenset({"ScheduleKeyDeletion"})  # no grant allows the deletion of a key
_LOGGERS_WITH_BODIES = ("botocore.endpoint", "botocore.parsers")
_LOGGERS_WITH_TRACEBACKS = ("botocore.credentials", "botocore.tokens")

_calling: ContextVar[bool] = ContextVar("eventseal_kms_call", default=False)


class KmsCalls:
    """
    Calls AWS KMS through this process's connection.

    Args:
        region: The Region that clients call.
        client: The user's client, if there is one. Every process uses it as it is.
        settings: The grant tokens, and the settings of clients that the adapter creates.
    """

    def __init__(self, region: str, client: KMSClient | None, settings: ClientSettings) -> None:
        self._region = region
        self._given = client
        self._settings = settings
        tokens = list(settings.grant_tokens)
        self._grants: dict[str, Any] = {"GrantTokens": tokens} if tokens else {}
        self._connection = Connection(region, client, settings)

    def connection(self) -> Connection:
        """Return this process's connection. A forked child cannot use its parent's sockets."""
        connection = self._connection
        if connection.process != os.getpid():
            connection = self._connection = Connection(self._region, self._given, self._settings)
        return connection

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

        If KMS rejects the credentials, the call reads them once more, because something else may have renewed
        them. botocore does all other retries. Whatever botocore raises becomes a failure.

        Args:
            operation: The name of the operation, such as ``Decrypt``.
            key: The KMS key or alias. For ReEncrypt, the key that will wrap.
            source: The key that the wrapping is under now. Only for ReEncrypt.
            context: The encryption context, which ReEncrypt keeps.
            request: The other parameters of the operation.
        """
        request |= _addressed(key, source, context)
        if operation not in _WITHOUT_GRANTS:
            request |= self._grants
        connection = self.connection()
        for last in (False, True):
            client = None
            step = Step.CREDENTIALS
            try:
                with _bodies_hidden():
                    connection.load_credentials()
                    step = Step.ENDPOINT
                    client = connection.client()
                    step = Step.CALL
                    answer: Answer = getattr(client, xform_name(operation))(**request)
            except Exception as error:  # noqa: BLE001  (botocore's credential chain raises anything)
                caught = error
            else:
                return answer
            attempt = Attempt(
                operation=operation,
                key=key,
                source=source,
                context=context,
                step=step,
                settings=self._settings,
                secrets=connection.secrets(),
            )
            failure = failure_of(caught, attempt)
            del caught
            if client is not None and not failure.is_about_credentials:
                return failure
            renewed = connection.renew(client)
            if last or not (renewed and failure.is_about_credentials):
                return failure
        raise AssertionError("unreachable")

    def for_each(
        self, items: Sequence[Item], work: Callable[[Item], Value | EventSealError]
    ) -> list[Value | EventSealError]:
        """
        Do *work* for every item, with several calls in flight. KMS has no batches.

        An outage, throttling or a disabled key would fail every other item too. After the first such outcome,
        no further call begins. The other items get an error of the same class that says so.

        Args:
            items: Any number of items.
            work: A function that makes the call for one item. It returns a failure, and does not raise it.

        Returns:
            One outcome an item, in order.
        """
        if len(items) <= 1:
            return [work(item) for item in items]
        slots = self.connection().slots
        stopped_by: list[EventSealError] = []

        def in_a_slot(item: Item) -> Value | EventSealError:
            with slots:
                if stopped_by:
                    return _not_tried(stopped_by[0])
                outcome = work(item)
                if isinstance(outcome, _HITS_EVERY_ITEM):
                    stopped_by.append(outcome)
                return outcome

        threads = min(len(items), CALLS_IN_FLIGHT)
        with ThreadPoolExecutor(threads, thread_name_prefix="eventseal-aws-kms") as pool:
            return list(pool.map(in_a_slot, items))


def _addressed(key: KeyArn, source: KeyArn | None, context: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the keys and the encryption context as parameters of the operation."""
    if source is not None:
        return {
            "SourceKeyId": str(source),
            "SourceEncryptionContext": context,
            "DestinationKeyId": str(key),
            "DestinationEncryptionContext": context,
        }
    named = {"KeyId": str(key)}
    return named if context is None else {**named, "EncryptionContext": context}


def _not_tried(first: EventSealError) -> EventSealError:
    facts = {name: value for name, value in vars(first).items() if name != "remedy"}
    return type(first)(
        f"not tried, because another call of the batch failed: {first}", remedy=first.remedy, **facts
    )


@contextmanager
def _bodies_hidden() -> Iterator[None]:
    """Hide botocore's log lines, which hold keys, in this thread only."""
    _install_filters()
    token = _calling.set(True)
    try:
        yield
    finally:
        _calling.reset(token)


@cache
def _install_filters() -> None:
    for name in _LOGGERS_WITH_BODIES:
        logging.getLogger(name).addFilter(_redact)
    for name in _LOGGERS_WITH_TRACEBACKS:
        logging.getLogger(name).addFilter(_drop_traceback)


def _redact(record: logging.LogRecord) -> bool:
    if _calling.get():
        record.msg, record.args = "(hidden by EventSeal: this line may hold a key)", ()
    return True


def _drop_traceback(record: logging.LogRecord) -> bool:
    """Drop the traceback of a failed refresh, which the call reports."""
    if _calling.get():
        record.exc_info = record.exc_text = None
    return True
