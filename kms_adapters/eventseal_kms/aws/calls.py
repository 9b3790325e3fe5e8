"""
Calls to AWS KMS: the client, its limits, its redacted log.

A failure is returned, not raised. A traceback would reach the frames of the HTTP client. They hold the
request, and a key in it.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore import xform_name
from botocore.config import Config

from eventseal.errors import EventSealError, KmsKeyStateError, KmsUnavailableError
from eventseal_kms.aws.failures import VENDOR_ERRORS, Failure, VendorError, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mypy_boto3_kms import KMSClient

    from eventseal_kms.aws.arn import KeyArn
    from eventseal_kms.outcomes import Value

Answer = dict[str, Any]
Item = TypeVar("Item")

CALLS_IN_FLIGHT = 20
"""Concurrent calls of one adapter's batches. The bound keeps a large batch to a small part of the quota."""

CONNECT_TIMEOUT = 1.0
READ_TIMEOUT = 2.0
ATTEMPTS = 3
"""Seconds, seconds, and attempts in all. If KMS does not answer, a call ends after 3 to 7 seconds."""

_HITS_EVERY_ITEM = (KmsUnavailableError, KmsKeyStateError)
_WITHOUT_GRANTS = frozenset({"ScheduleKeyDeletion"})  # no grant allows the deletion of a key
_LOGGERS_WITH_BODIES = ("botocore.endpoint", "botocore.parsers")

_calling: ContextVar[bool] = ContextVar("eventseal_kms_call", default=False)


class Connection:
    """
    The state that one adapter's calls share in one process.

    Args:
        region: The Region that the client calls.
        client: The user's client, if there is one. Its time-outs, retries and credentials stay as they are.

    Attributes:
        process: The id of the process.
        slots: Each call of a batch holds one slot while it runs.
        resolving: The lock that a thread holds while it resolves an alias.
    """

    def __init__(self, region: str, client: KMSClient | None) -> None:
        self.process = os.getpid()
        self.slots = BoundedSemaphore(CALLS_IN_FLIGHT)
        self.resolving = Lock()
        self._region = region
        self._given = client
        self._made: KMSClient | None = None
        self._making = Lock()

    def client(self) -> KMSClient:
        """
        Return the client. Its creation searches for credentials, perhaps over the network.

        Raises:
            BotoCoreError: The client cannot be created.
        """
        if self._given is not None:
            return self._given
        with self._making:
            if self._made is None:
                self._made = _make_client(self._region)
            return self._made

    def renew(self, stale: KMSClient) -> bool:
        """
        Drop the client *stale*. The next client reads the credentials again.

        Returns:
            Whether that can help. It cannot if the user passed the client.
        """
        if self._given is not None:
            return False
        with self._making:
            if self._made is stale:
                self._made = None
        return True


class KmsCalls:
    """
    Calls AWS KMS through this process's connection.

    Args:
        region: The Region that clients call.
        client: The user's client, if there is one. Every process uses it as it is.
        grant_tokens: Tokens sent with every call that a grant can allow.
    """

    def __init__(self, region: str, client: KMSClient | None, grant_tokens: Sequence[str]) -> None:
        self._region = region
        self._given = client
        self._grants: dict[str, Any] = {"GrantTokens": list(grant_tokens)} if grant_tokens else {}
        self._connection = Connection(region, client)

    def connection(self) -> Connection:
        """Return this process's connection. A forked child cannot use its parent's sockets."""
        connection = self._connection
        if connection.process != os.getpid():
            connection = self._connection = Connection(self._region, self._given)
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

        If credentials are missing or rejected, the call reads them once more, because something else may have
        renewed them. botocore does all other retries.

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
            try:
                client = connection.client()
                with _bodies_hidden():
                    answer: Answer = getattr(client, xform_name(operation))(**request)
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


def _make_client(region: str) -> KMSClient:
    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        # The only retry loop. It repeats time-outs, throttling and 5xx, with jitter, and nothing else.
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=CALLS_IN_FLIGHT,
    )
    # A separate session: boto3's default session belongs to the application, and serves only one thread.
    return boto3.session.Session().client("kms", region_name=region, config=config)


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


def _redact(record: logging.LogRecord) -> bool:
    if _calling.get():
        record.msg, record.args = "(hidden by EventSeal: this line may hold a key)", ()
    return True
