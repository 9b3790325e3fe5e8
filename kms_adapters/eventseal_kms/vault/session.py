"""
Calls to Vault with a valid token.

The session gets a token on first use, renews it in time, and replaces it after it has expired.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeGuard

from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar

from eventseal.errors import EventSealError, KmsUnavailableError
from eventseal_kms.scrubbing import scrubbed
from eventseal_kms.vault.calls import Answer, NoAnswer, exchange, unanswered
from eventseal_kms.vault.failures import (
    denied,
    denied_by_sentinel,
    denied_explicitly,
    failure_of,
    login_failure,
    mismatch,
    token_ended,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    import hvac

    from eventseal_kms.vault.calls import RetryPolicy
    from eventseal_kms.vault.settings import Login, VaultSettings
    from eventseal_kms.vault.transit_key import TransitKey

_SHORTEST_PAUSE = 1.0  # s between two attempts to renew a lease
_CAPABILITY = {"get": "read", "post": "update"}
_DENIED = frozenset({401, 403})
_LOOKUP = "auth/token/lookup-self"
_RENEW = "auth/token/renew-self"
_RESULTANT_ACL = "sys/internal/ui/resultant-acl"
# A policy can deny a valid token the look-up of itself. Vault reports that as a list of errors.
_REFUSED_BY_POLICY = "1 error occurred"


@dataclass(frozen=True, slots=True)
class Lease:
    """
    A token and its lifetime.

    Attributes:
        token: The token for Vault.
        renewable: Whether a renewal extends its lifetime. Otherwise only a new login helps.
        due: The time to renew it or to log in again, by the retry policy's clock. ``None`` means never.
        expires: The time when it expires. ``None`` means never, or unknown.
    """

    token: str = field(repr=False)
    renewable: bool = False
    due: float | None = None
    expires: float | None = None

    @classmethod
    def granted(cls, token: str, terms: Mapping[str, Any], *, now: float) -> Self:
        """
        Read the terms of a token. Its renewal is due after two thirds.

        Args:
            token: The token.
            terms: The ``auth`` of a login or a renewal, or the ``data`` of a look-up.
            now: The time just before the request to Vault.
        """
        seconds = terms.get("lease_duration") or terms.get("ttl")
        # A root token, or a look-up without a lifetime
        if not isinstance(seconds, (int, float)) or seconds <= 0:
            return cls(token)
        return cls(
            token,
            renewable=bool(terms.get("renewable")),
            due=now + seconds * 2 / 3,
            expires=now + seconds,
        )

    def renewed(self, terms: Mapping[str, Any], *, now: float) -> Lease:
        """
        Read the terms of a renewal.

        A renewal that gave no more time is the last, because the token has reached its maximum.
        """
        lease = Lease.granted(self.token, terms, now=now)
        capped = lease.expires is None or (self.expires or 0) + _SHORTEST_PAUSE >= lease.expires
        return replace(lease, renewable=False) if capped else lease

    def is_due(self, now: float) -> bool:
        """Return whether it is time to renew the lease."""
        return self.due is not None and now >= self.due

    def has_ended(self, now: float) -> bool:
        """Return whether the token has expired."""
        return self.expires is not None and now >= self.expires

    def later(self, now: float) -> Lease:
        """Schedule another attempt after a third of the remaining lifetime."""
        left = 0.0 if self.expires is None else self.expires - now
        return replace(self, due=now + max(left / 3, _SHORTEST_PAUSE))


@dataclass(slots=True, eq=False)
class _Process:
    """The state that a process's threads share. A forked child creates its own."""

    client: hvac.Client
    lease: Lease | None = field(default=None, repr=False)
    login_lock: Lock = field(default_factory=Lock)


class VaultSession:
    """
    Calls Vault, from any number of threads.

    Args:
        key: The transit key that errors name.
        client: The user's client, if there is one. Its owner renews its token.
        settings: The address and the login, for calls without a client.
        retries: The limits of a call.
    """

    def __init__(
        self,
        key: TransitKey,
        *,
        client: hvac.Client | None,
        settings: VaultSettings | None,
        retries: RetryPolicy,
    ) -> None:
        self._key = key
        self._given = client
        self._settings = settings
        self._retries = retries
        # By process id. A child keeps its parent's state, and does not touch it. A thread of the parent may
        # have held the locks of the connections at the fork, and dropping a connection takes its lock.
        self._processes: dict[int, _Process] = {}
        self._inherited: list[object] = []

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, tries: int | None = None
    ) -> Answer | EventSealError:
        """
        Call *path*.

        Args:
            method: ``get`` or ``post``.
            path: The path below ``/v1/``.
            body: The request, which may contain keys.
            tries: The maximum number of attempts, by default that of the retry policy.

        Returns:
            Vault's answer, which may be a refusal. It is an error if Vault did not answer, if a retry may
            help, or if the token does not allow the call.
        """
        ends_at = self._retries.start()
        process = self._process()
        if isinstance(process, EventSealError):
            return process
        failure = self._sign_in(process, ends_at)
        if failure is not None:
            return failure
        lease = process.lease
        outcome = self._send(process, method, path, body, ends_at, tries)
        if _is_denied(outcome):
            failure = denied_by_sentinel(outcome, path=path, key=self._key)
            failure = failure or self._after_denial(process, lease, method, path, ends_at)
            if failure is not None:
                return failure
            outcome = self._send(process, method, path, body, ends_at, tries)
            if _is_denied(outcome):
                return self._denial(process, method, path, ends_at)
        if isinstance(outcome, NoAnswer) or outcome.may_heal or not outcome.from_vault:
            return failure_of(outcome, path=path, key=self._key)
        return outcome

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, tries: int | None = None
    ) -> Answer | EventSealError:
        """Call *path* like :meth:`call`, but return a refusal as an error."""
        answer = self.call(method, path, body, tries=tries)
        if isinstance(answer, Answer) and not answer.ok:
            return failure_of(answer, path=path, key=self._key)
        return answer

    def _process(self) -> _Process | EventSealError:
        number = os.getpid()
        process = self._processes.get(number)
        if process is not None:
            return process
        try:
            # No lock, because a fork could inherit it locked. If two threads arrive together, one client is
            # unused.
            return self._processes.setdefault(number, self._new_process())
        except EventSealError as error:
            return _without_frames(error)
        except Exception as error:  # noqa: BLE001 - whatever the constructors of hvac and requests raise
            return failure_of(unanswered(error), path=self._key.uri, key=self._key)

    def _new_process(self) -> _Process:
        parents = next(reversed(self._processes.values()), None)
        lease = parents.lease if parents else None
        if self._settings is not None:
            token = lease.token if lease else ""
            client = self._settings.make_client(timeout=self._retries.try_timeout, token=token)
            return _Process(client, lease)
        assert self._given is not None  # noqa: S101  (the adapter gives one of the two)
        if parents is not None:
            self._inherited.append(_detach(self._given))
        return _Process(self._given)

    def _sign_in(self, process: _Process, ends_at: float) -> EventSealError | None:
        """Ensure that there is a token, and renew it in time."""
        if self._settings is None:
            return None
        lease, now = process.lease, self._retries.clock()
        if lease is None or lease.has_ended(now):
            return self._log_in(process, lease, ends_at)
        # One thread renews it while the others continue, because a third of its lifetime remains.
        if lease.is_due(now) and process.login_lock.acquire(blocking=False):
            try:
                if process.lease is lease:
                    process.lease = self._prolonged(process, lease, ends_at)
            finally:
                process.login_lock.release()
        return None

    def _log_in(self, process: _Process, stale: Lease | None, ends_at: float) -> EventSealError | None:
        """Log in, unless another thread has replaced *stale* already."""
        if not process.login_lock.acquire(timeout=max(self._retries.remaining(ends_at), 0)):
            return KmsUnavailableError("the login to Vault did not end in time", kek_uri=self._key.uri)
        try:
            if process.lease is not stale:
                return None
            lease = self._new_lease(process, ends_at)
            if isinstance(lease, EventSealError):
                return lease
            process.lease = lease
            return None
        finally:
            process.login_lock.release()

    def _prolonged(self, process: _Process, lease: Lease, ends_at: float) -> Lease:
        """Renew the token or get another. If both fail, keep the present one."""
        now = self._retries.clock()
        if lease.renewable:
            outcome = self._send(process, "post", _RENEW, {}, ends_at, tries=1)
            if isinstance(outcome, Answer) and outcome.ok:
                terms = outcome.body.get("auth")
                return lease.renewed(terms if isinstance(terms, dict) else {}, now=now)
            if isinstance(outcome, NoAnswer) or outcome.may_heal:
                return lease.later(now)
        new = self._new_lease(process, ends_at, tries=1)
        if isinstance(new, Lease) and new.token != lease.token:
            return new
        process.client.token = lease.token
        return lease.later(now)

    def _new_lease(
        self, process: _Process, ends_at: float, tries: int | None = None
    ) -> Lease | EventSealError:
        assert self._settings is not None  # noqa: S101  (only then there is a login)
        login, client, now = self._settings.login, process.client, self._retries.clock()
        try:
            outcome = self._retries.run(
                lambda _: exchange(lambda: _login_body(login(client))), ends_at, tries=tries
            )
        except EventSealError as error:
            return _without_frames(error)
        outcome = _scrubbed(outcome, process, login)
        if isinstance(outcome, NoAnswer) or not outcome.ok:
            return login_failure(outcome, key=self._key)
        if terms := outcome.body.get("auth"):
            token = terms.get("client_token") if isinstance(terms, dict) else None
            if not isinstance(token, str) or not token:
                return mismatch("login", key=self._key)
            client.token = token
            return Lease.granted(token, terms, now=now)
        return self._looked_up(process, ends_at) or token_ended("login", key=self._key)

    def _looked_up(self, process: _Process, ends_at: float) -> Lease | EventSealError | None:
        """Look up the token's lease. Return ``None`` if Vault does not know it."""
        now = self._retries.clock()
        outcome = self._send(process, "get", _LOOKUP, None, ends_at)
        if _is_denied(outcome):
            lives = _REFUSED_BY_POLICY in " ".join(outcome.messages)
            return Lease(process.client.token) if lives else None
        if isinstance(outcome, NoAnswer) or not outcome.ok:
            return failure_of(outcome, path=_LOOKUP, key=self._key)
        return Lease.granted(process.client.token, outcome.data, now=now)

    def _after_denial(
        self, process: _Process, lease: Lease | None, method: str, path: str, ends_at: float
    ) -> EventSealError | None:
        """Log in again if the token has expired. Otherwise return the denial."""
        if process.lease is not lease:
            return None
        found = self._looked_up(process, ends_at)
        if isinstance(found, EventSealError):
            return found
        if found is not None:
            return self._denial(process, method, path, ends_at)
        if self._settings is None:
            return token_ended(path, key=self._key)
        return self._log_in(process, lease, ends_at)

    def _denial(self, process: _Process, method: str, path: str, ends_at: float) -> EventSealError:
        """Return the error of a valid token that may not call *path*."""
        # Vault's own policy `default` grants this look-up, and its form may change. So it only adds a hint.
        acl = self._send(process, "get", _RESULTANT_ACL, None, ends_at, tries=1)
        is_explicit = isinstance(acl, Answer) and acl.ok and _denies(acl.data, path)
        return (denied_explicitly if is_explicit else denied)(path, _CAPABILITY[method], key=self._key)

    def _send(
        self,
        process: _Process,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        ends_at: float,
        tries: int | None = None,
    ) -> Answer | NoAnswer:
        # On a refusal, hvac's own methods raise an exception that holds the answer with its keys.
        outcome = self._retries.run(
            lambda timeout: exchange(
                lambda: process.client.adapter.request(
                    method, f"/v1/{path}", json=body, raise_exception=False, timeout=timeout
                )
            ),
            ends_at,
            tries=tries,
        )
        return _scrubbed(outcome, process)


def _is_denied(outcome: Answer | NoAnswer) -> TypeGuard[Answer]:
    return isinstance(outcome, Answer) and outcome.status in _DENIED and outcome.from_vault


def _denies(acl: Mapping[str, Any], path: str) -> bool:
    """Return whether the narrowest rule for a path denies it."""
    exact, globs = acl.get("exact_paths"), acl.get("glob_paths")
    rules = globs if isinstance(globs, dict) else {}
    matching = sorted((prefix for prefix in rules if path.startswith(prefix)), key=len)
    rule = exact.get(path) if isinstance(exact, dict) else None
    if rule is None and matching:
        rule = rules[matching[-1]]
    capabilities = rule.get("capabilities") if isinstance(rule, dict) else None
    return isinstance(capabilities, list) and "deny" in capabilities


def _scrubbed(outcome: Answer | NoAnswer, process: _Process, login: Login | None = None) -> Answer | NoAnswer:
    """Hide the secrets of the session in the words of an outcome."""
    secrets = [getattr(login, name, None) or "" for name in ("token", "role_id", "secret_id")]
    secrets.append(str(process.client.token or ""))
    if isinstance(outcome, NoAnswer):
        return replace(outcome, detail=scrubbed(outcome.detail, secrets, hides_uuids=True))
    return replace(
        outcome, messages=tuple(scrubbed(message, secrets, hides_uuids=True) for message in outcome.messages)
    )


def _without_frames(error: EventSealError) -> EventSealError:
    """Return an error whose frames, which may hold a token, are gone."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _login_body(answer: object) -> object:
    """Return an empty answer for a login that made no call."""
    return {} if answer is None else answer


def _detach(client: hvac.Client) -> list[object]:
    """
    Replace the connections of a client in a forked child.

    The inherited connections stay open. A thread of the parent may have held their locks at the fork, and no
    thread of the child can release them.

    Returns:
        The inherited objects. Keep them, because their finalisers take those locks too.
    """
    inherited: list[object] = [client.session.cookies]
    if isinstance(client.session.cookies, RequestsCookieJar):
        client.session.cookies = client.session.cookies.copy()
    for transport in client.session.adapters.values():
        if isinstance(transport, HTTPAdapter):
            inherited += [transport.poolmanager, transport.proxy_manager]
            # Like unpickling: the settings stay, and the pools are new.
            transport.__setstate__(transport.__getstate__())
    return inherited
