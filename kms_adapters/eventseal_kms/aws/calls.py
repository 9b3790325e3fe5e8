"""
Calls to AWS KMS: the client, how many calls run at once, how long they take, and what the log may show.

A failure is returned, not raised. A traceback would lead into the frames of the HTTP client, which hold the
request with a key in it.
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
"""Calls of batches that one adapter has under way at once: a large batch takes a small part of the quota."""

CONNECT_TIMEOUT = 1.0
READ_TIMEOUT = 2.0
ATTEMPTS = 3
"""Seconds, seconds, and tries in all: where nothing answers, a call ends after 3 to 7 seconds."""

_HITS_EVERY_ITEM = (KmsUnavailableError, KmsKeyStateError)
_WITHOUT_GRANTS = frozenset({"ScheduleKeyDeletion"})  # no grant lets anybody delete a key
_LOGGERS_WITH_BODIES = ("botocore.endpoint", "botocore.parsers")

_calling: ContextVar[bool] = ContextVar("eventseal_kms_call", default=False)


class Connection:
    """
    What one adapter's calls share in one process.

    Args:
        region: Where the client calls.
        client: A ready one, whose time-outs, retries and credentials are then its owner's.

    Attributes:
        process: The process that it is for.
        slots: Taken by each call of a batch while it is under way.
        resolving: Held while an alias is resolved.
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
        Return the client. Its creation looks for credentials, which may use the network.

        Raises:
            BotoCoreError: It cannot be created.
        """
        if self._given is not None:
            return self._given
        with self._making:
            if self._made is None:
                self._made = _make_client(self._region)
            return self._made

    def renew(self, stale: KMSClient) -> bool:
        """
        Drop the client *stale*, so that the next one reads the credentials again.

        Returns:
            Whether that can help: not with a client that was given.
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
        region: Where clients call.
        client: A ready one, used as it is in every process.
        grant_tokens: Sent with every call that grants can allow.
    """

    def __init__(self, region: str, client: KMSClient | None, grant_tokens: Sequence[str]) -> None:
        self._region = region
        self._given = client
        self._grants: dict[str, Any] = {"GrantTokens": list(grant_tokens)} if grant_tokens else {}
        self._connection = Connection(region, client)

    def connection(self) -> Connection:
        """Return this process's connection: after a fork, a child cannot use its parent's sockets."""
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

        Credentials that are missing or not accepted are looked for once more, as something else may have
        renewed them; every other repetition is botocore's.

        Args:
            operation: Such as ``Decrypt``.
            key: The KMS key, or alias; of ReEncrypt the one to wrap under.
            source: Of ReEncrypt: the key that made the wrapping.
            context: The encryption context, which ReEncrypt keeps.
            request: The operation's other parameters.
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
        Do *work* for every item, several at once, since KMS has no batches.

        After the first outcome that every other item would have too (an outage, throttling, a disabled key),
        no further call begins: the rest get an error of the same class that says so.

        Args:
            items: In any number.
            work: Makes the call; returns its failure.

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
    """Name the keys and the encryption context as the operation has them."""
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
        # The only retry loop: it repeats time-outs, throttling and 5xx, with jitter, and nothing else.
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=CALLS_IN_FLIGHT,
    )
    # A session of its own: boto3's default one is the application's, and a session is for one thread.
    return boto3.session.Session().client("kms", region_name=region, config=config)


def _not_tried(first: EventSealError) -> EventSealError:
    facts = {name: value for name, value in vars(first).items() if name != "remedy"}
    return type(first)(
        f"not tried, since another call of the batch failed: {first}", remedy=first.remedy, **facts
    )


@contextmanager
def _bodies_hidden() -> Iterator[None]:
    """Hide what botocore logs of requests and answers made inside, keys included, in this thread only."""
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
