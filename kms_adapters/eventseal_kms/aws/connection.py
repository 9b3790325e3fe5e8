"""The client that calls AWS KMS: made on first use, once a process, with bounds on its time and retries."""

from __future__ import annotations

import os
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

CALLS_IN_FLIGHT = 20
"""Calls of batches that one adapter has under way at once: a large batch takes a small part of the quota."""

CONNECT_TIMEOUT = 1.0
READ_TIMEOUT = 2.0
ATTEMPTS = 3
"""Seconds, seconds, and tries in all: where nothing answers, a call ends after 3 to 7 seconds."""


class Connection:
    """
    What one adapter's calls share in one process.

    Args:
        region: Where the client calls.
        client: A ready one, whose time-outs, retries and credentials are then its owner's.

    Attributes:
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
        Give the client; making it looks for credentials, which may use the network.

        Raises:
            BotoCoreError: It cannot be made.
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


class ConnectionSource:
    """
    Hands out this process's connection: after a fork, the parent's sockets and locks are no use to the child.

    Args:
        region: Where clients call.
        client: A ready one, used as it is in every process.
    """

    def __init__(self, region: str, client: KMSClient | None) -> None:
        self._region = region
        self._given = client
        self._connection = Connection(region, client)

    def get(self) -> Connection:
        """Give the connection, without calling out."""
        connection = self._connection
        if connection.process != os.getpid():
            connection = self._connection = Connection(self._region, self._given)
        return connection


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
