"""A stand-in that behaves like AWS KMS, in its refusals too."""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from http import HTTPStatus
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from eventseal_kms.fake_aws_kms import key_management, key_use
from eventseal_kms.fake_aws_kms.keys import Registry
from eventseal_kms.fake_aws_kms.policies import Session, load, root_of
from eventseal_kms.fake_aws_kms.protocol import Refusal, Reply, Signed, answer_in_process, serving
from eventseal_kms.fake_aws_kms.traffic import NO_ANSWER, AwsCall, Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import timedelta

    from mypy_boto3_kms import KMSClient

    from eventseal_kms.fake_aws_kms.policies import Document

_OPERATIONS = {**key_use.OPERATIONS, **key_management.OPERATIONS}

_MAKING = Lock()


@cache
def _session() -> boto3.session.Session:
    """
    Return the shared session. A new one reads boto3's model again.

    Only one thread at a time may use it.
    """
    return boto3.session.Session()


class FakeAwsKms(Traffic):
    """
    AWS KMS in memory: keys, aliases, policies, and faults on command.

    Its clients are real boto3 clients. They sign and send requests, and read answers and errors, as with AWS.
    Only the network is missing. :meth:`serve` adds it, on the loopback interface.

    The fake respects key states, pinned keys, key material ids, multi-Region keys, dry runs, different
    encryption contexts, and policies with conditions on contexts. It checks no signature. It does not know
    grants, and only logs their tokens.

    Args:
        account: The account, 12 digits. Its root is the default caller.
        region: The Region of clients that name none.
    """

    def __init__(self, account: str = "111122223333", region: str = "eu-west-1") -> None:
        super().__init__()
        self.account = account
        self.region = region
        self._registry = Registry()
        self._identity: dict[str, list[Document]] = {}
        self._callers: dict[str, str] = {}
        self._generations: dict[str, int] = {}
        self._lock = RLock()

    def create_key(self, *, alias: str | None = None, region: str | None = None, **settings: Any) -> str:
        """
        Create a key as the account's root.

        Args:
            alias: An alias for the key, such as ``alias/shop``.
            region: The Region of the key, by default the fake's.
            settings: The parameters of boto3's ``create_key``.

        Returns:
            The ARN of the alias if there is one, otherwise of the key.
        """
        client = self.client(region=region)
        arn = client.create_key(**settings)["KeyMetadata"]["Arn"]
        if alias is None:
            return arn
        client.create_alias(AliasName=alias, TargetKeyId=arn)
        return f"{arn.partition(':key/')[0]}:{alias}"

    def client(
        self, caller: str | None = None, *, region: str | None = None, config: Config | None = None
    ) -> KMSClient:
        """
        Create a boto3 client whose calls reach the fake.

        Args:
            caller: The ARN of a role or user. By default it is the account's root, which may do everything.
            region: The Region of the client, by default the fake's.
            config: The client's settings, for example retries. By default there is no retry.
        """
        once = Config(retries={"mode": "standard", "total_max_attempts": 1})
        credentials = self.credentials(caller)
        with _MAKING:
            client = _session().client(
                "kms",
                region_name=region or self.region,
                config=once.merge(config) if config else once,
                aws_access_key_id=credentials["aws_access_key_id"],
                aws_secret_access_key=credentials["aws_secret_access_key"],
            )
        client.meta.events.register("before-send.kms", answer_in_process(self._reply))
        return client

    def credentials(self, caller: str | None = None) -> dict[str, str]:
        """
        Create credentials by which the fake recognises *caller*.

        Returns:
            Keyword arguments for boto3. In upper case, they are the environment variables.
        """
        caller = caller or root_of(self.account)
        with self._lock:
            access_key = self._access_key(caller)
            self._callers[access_key] = caller
        return {"aws_access_key_id": access_key, "aws_secret_access_key": "not-checked"}

    def expire_credentials(self, caller: str | None = None) -> None:
        """Expire every credential of *caller*. :meth:`credentials` creates new ones."""
        caller = caller or root_of(self.account)
        with self._lock:
            self._generations[caller] = self._generations.get(caller, 0) + 1

    def attach_policy(self, caller: str, policy: str | Mapping[str, Any]) -> None:
        """
        Attach one more IAM policy to *caller*.

        Raises:
            ValueError: The fake cannot evaluate a part of the policy.
        """
        with self._lock:
            self._identity.setdefault(caller, []).append(load(policy))

    def detach_policies(self, caller: str) -> None:
        """Detach every policy from *caller*."""
        with self._lock:
            self._identity.pop(caller, None)

    def advance(self, time: timedelta) -> None:
        """Advance the fake's clock. Keys whose deletion is due disappear."""
        self._registry.passed += time

    @contextmanager
    def serve(self) -> Iterator[str]:
        """
        Answer over HTTP on the loopback interface.

        Returns:
            The ``endpoint_url``, also for ``AWS_ENDPOINT_URL_KMS``. :meth:`credentials` identify the caller.
        """
        with serving(self._reply) as url:
            yield url

    def _reply(self, signed: Signed, body: bytes) -> Reply:
        """Answer a request, and log the call."""
        action = f"kms:{signed.operation}"
        caller = self._callers.get(signed.access_key, "")
        noted: dict[str, Any] = {"action": action, "region": signed.region, "caller": caller}
        try:
            with self._letting_in(action):
                return Reply(HTTPStatus.OK, self._answer(signed, caller, json.loads(body or b"{}"), noted))
        except Refusal as refusal:
            noted["error"] = refusal.code
            if refusal.code == NO_ANSWER:
                return Reply(0, {})
            return Reply(refusal.status, {"__type": refusal.code, "message": refusal.message})
        finally:
            self._record(AwsCall(**noted))

    def _answer(
        self, signed: Signed, caller: str, asked: dict[str, Any], noted: dict[str, Any]
    ) -> dict[str, Any]:
        with self._lock:
            if not caller:
                text = "The security token included in the request is invalid."
                raise Refusal("UnrecognizedClientException", text)
            noted["dry_run"] = bool(asked.get("DryRun"))
            noted["grant_tokens"] = tuple(asked.get("GrantTokens", ()))
            if self._access_key(caller) != signed.access_key:
                text = "The security token included in the request is expired"
                raise Refusal("ExpiredTokenException", text)
            operation = _OPERATIONS.get(signed.operation)
            if operation is None:
                raise Refusal("UnknownOperationException")
            policies = self._identity.get(caller, ())
            session = Session(signed.operation, self._registry, caller, signed.region, policies, noted)
            return operation(session, asked) or {}

    def _access_key(self, caller: str) -> str:
        generation = self._generations.get(caller, 0)
        return "ASIA" + sha256(f"{caller} {generation}".encode()).hexdigest()[:16].upper()
