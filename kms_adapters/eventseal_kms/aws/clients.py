"""
The clients of one adapter.

A client is created in two steps: first the credentials, then the endpoint. So a failure shows which setting
is wrong.
"""

from __future__ import annotations

import os
from contextlib import suppress
from enum import StrEnum
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any

from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import BotoCoreError, NoCredentialsError
from botocore.session import Session

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_kms import KMSClient

    from eventseal_kms.aws.client_settings import ClientSettings

CALLS_IN_FLIGHT = 20
"""Concurrent calls of one adapter's batches. The bound keeps a large batch to a small part of the quota."""

CONNECT_TIMEOUT = 1.0
READ_TIMEOUT = 2.0
ATTEMPTS = 3
"""Seconds, seconds, and attempts in all. If KMS does not answer, a call ends after 3 to 7 seconds."""

_ROLE_SESSION = "eventseal"
_SECRETS_OF_PROFILES = ("aws_secret_access_key", "aws_session_token")


class Step(StrEnum):
    """The steps of a call, of which any can fail."""

    CREDENTIALS = "credentials"
    ENDPOINT = "endpoint"
    CALL = "call"


class MfaCodeNeededError(Exception):
    """A profile needs a code from an MFA device. EventSeal never asks for one."""


class Connection:
    """
    The state that one adapter's calls share in one process.

    Args:
        region: The Region that the client calls.
        client: The user's client, if there is one. Its time-outs, retries and credentials stay as they are.
        settings: The settings of a client that the adapter creates.

    Attributes:
        process: The id of the process.
        slots: Each call of a batch holds one slot while it runs.
        resolving: The lock that a thread holds while it resolves an alias.
    """

    def __init__(self, region: str, client: KMSClient | None, settings: ClientSettings) -> None:
        self.process = os.getpid()
        self.slots = BoundedSemaphore(CALLS_IN_FLIGHT)
        self.resolving = Lock()
        self._region = region
        self._given = client
        self._settings = settings
        self._session: Session | None = None
        self._made: KMSClient | None = None
        self._making = Lock()

    def load_credentials(self) -> None:
        """
        Load the credentials, or refresh them. This may call STS, SSO, a program or a metadata service.

        Raises:
            Exception: Whatever botocore raises.
        """
        if self._given is not None:
            return
        with self._making:
            if self._session is None:
                self._session = _new_session(self._settings, self._region)
            credentials = _credentials_of(self._session)
        credentials.get_frozen_credentials()

    def client(self) -> KMSClient:
        """
        Return the client. The credentials are loaded before.

        Raises:
            Exception: Whatever botocore raises.
        """
        if self._given is not None:
            return self._given
        with self._making:
            if self._session is None:  # another thread has dropped it meanwhile
                self._session = _new_session(self._settings, self._region)
            if self._made is None:
                made: Any = self._session.create_client(
                    "kms", region_name=self._region, endpoint_url=self._settings.endpoint_url
                )
                self._made = made
            return self._made

    def renew(self, stale: KMSClient | None) -> bool:
        """
        Drop the client *stale* and its session. The next call reads the AWS settings again.

        Args:
            stale: The client of a failed call. ``None``: the call failed before it got one.

        Returns:
            Whether that can help. It cannot if the user passed the client.
        """
        if self._given is not None:
            return False
        with self._making:
            if stale is None or self._made is stale:
                self._made = self._session = None
        return True

    def secrets(self) -> list[str]:
        """Return the grant tokens and the secrets of the profiles."""
        found = list(self._settings.grant_tokens)
        if self._session is not None:
            with suppress(BotoCoreError):  # no readable profiles, so no answer can repeat their secrets
                for profile in self._session.full_config.get("profiles", {}).values():
                    found += [profile[name] for name in _SECRETS_OF_PROFILES if name in profile]
        return found


def _new_session(settings: ClientSettings, region: str) -> Session:
    """Create a session of our own. That of the application serves only one thread."""
    session = _session_of(settings, region)
    if settings.role_arn is None:
        return session
    fetcher = AssumeRoleCredentialFetcher(
        client_creator=session.create_client,
        source_credentials=_credentials_of(session),
        role_arn=settings.role_arn,
        extra_args={"RoleSessionName": _ROLE_SESSION},
    )
    in_role = _session_of(settings, region)
    in_role.register_component("credential_provider", CredentialResolver([_AssumedRole(fetcher)]))
    return in_role


def _session_of(settings: ClientSettings, region: str) -> Session:
    session = Session(profile=settings.profile)
    session.set_config_variable("region", region)  # also of STS, for a role of the profile
    # Also for botocore's own calls to STS and SSO, whose default is 60 seconds.
    session.set_default_client_config(
        Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            # The only retry loop. It repeats time-outs, throttling and 5xx, with jitter, and nothing else.
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            max_pool_connections=CALLS_IN_FLIGHT,
        )
    )
    # Botocore would ask on the terminal. It has no public way to refuse.
    roles: Any = session.get_component("credential_provider").get_provider("assume-role")
    roles._prompter = _refuse_to_ask  # noqa: SLF001
    return session


def _credentials_of(session: Session) -> Credentials:
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    return credentials


def _refuse_to_ask(_prompt: str) -> str:
    raise MfaCodeNeededError


class _AssumedRole(CredentialProvider):
    """A role, assumed on first use, as the only credentials."""

    METHOD = "assume-role"

    def __init__(self, fetcher: AssumeRoleCredentialFetcher) -> None:
        super().__init__()
        self._fetcher = fetcher

    def load(self) -> DeferredRefreshableCredentials:
        return DeferredRefreshableCredentials(
            refresh_using=self._fetcher.fetch_credentials, method=self.METHOD
        )
