"""
One call to Vault, with its time limits and retries.

The outcome is a value. Nothing is raised here, because an exception would carry keys: in its frames, or in
hvac's copy of the answer.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable  # noqa: TC003  (a dataclass's field)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import hvac.exceptions as vault
import requests
import urllib3.exceptions

from eventseal.errors import ConfigurationError, EventSealError

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEALING = frozenset({412, 429, *range(500, 600)}) - {501}
_OK = 200
_NO_CONTENT = 204
_REWRITING = frozenset({301, 302, 303})

# hvac raises by status and drops the status itself.
_STATUS_OF: tuple[tuple[type[vault.VaultError], int], ...] = (
    (vault.InvalidRequest, 400),
    (vault.Unauthorized, 401),
    (vault.Forbidden, 403),
    (vault.InvalidPath, 404),
    (vault.PreconditionFailed, 412),
    (vault.RateLimitExceeded, 429),
    (vault.InternalServerError, 500),
    (vault.VaultNotInitialized, 501),
    (vault.BadGateway, 502),
    (vault.VaultDown, 503),
)

Kind = Literal[
    "timeout", "connection", "proxy", "tls", "certificate", "address", "header", "answer", "client"
]

# The first row that matches counts: many exceptions of requests and urllib3 are also a ValueError or OSError.
_KIND_OF: tuple[tuple[tuple[type[Exception], ...], Kind], ...] = (
    ((requests.exceptions.Timeout,), "timeout"),
    ((requests.exceptions.ProxyError,), "proxy"),
    ((requests.exceptions.SSLError, urllib3.exceptions.SSLError), "tls"),
    ((requests.exceptions.InvalidHeader, UnicodeEncodeError), "header"),
    ((requests.exceptions.JSONDecodeError, UnicodeDecodeError, RecursionError), "answer"),
    ((requests.exceptions.TooManyRedirects,), "answer"),
    ((ValueError,), "address"),
    ((requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError), "connection"),
)
_FILE_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_FILE_LIBRARIES = frozenset({"PEM", "X509", "ASN1"})
"""The parts of OpenSSL that read certificates and keys."""
_SHORTEST_TRY = 0.05  # s: an attempt that begins just before the deadline also needs some time


@dataclass(frozen=True, slots=True)
class Answer:
    """
    An answer of Vault.

    Attributes:
        status: The HTTP status, or 0 if hvac does not report it.
        body: The JSON object, empty if there was none. It may contain keys.
        messages: The errors that Vault names.
        from_vault: Whether the answer looks like Vault's. A proxy in front of it may answer in HTML.
        retry_after: The seconds to wait, if the answer names them.
    """

    status: int
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    messages: tuple[str, ...] = ()
    from_vault: bool = True
    retry_after: float | None = None

    @property
    def ok(self) -> bool:
        """Whether Vault fulfilled the request."""
        return self.status in {_OK, _NO_CONTENT} and self.from_vault

    @property
    def data(self) -> Mapping[str, Any]:
        """The requested data, which may contain keys."""
        data = self.body.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def may_heal(self) -> bool:
        """Whether the same call may succeed a moment later."""
        return self.status in _HEALING


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """
    The reason why Vault did not answer.

    Attributes:
        kind: The part that failed. ``address`` means that the address of Vault, or of a proxy, is no URL to
            call. ``certificate`` means a file of this machine, ``answer`` an unreadable answer, and
            ``client`` the client itself.
        detail: The innermost cause, in the client's words, or the name of the exception.
    """

    kind: Kind
    detail: str

    @property
    def retry_after(self) -> None:
        """Always ``None``: without an answer, nothing says how long to wait."""
        return

    @property
    def may_heal(self) -> bool:
        """Whether the same call may succeed a moment later."""
        return self.kind in {"timeout", "connection"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """
    The limits of one call, including its logins and waits.

    A call retries only failures that a retry can solve: 412 (a replica lags), 429 (rate limit), 5xx, and
    broken connections. Between two attempts it waits a random time (full jitter). The upper limit of the wait
    doubles each time.

    Attributes:
        deadline: No attempt begins after this many seconds.
        try_timeout: The seconds that one attempt may take to connect, and then to answer.
        tries: The maximum number of attempts, including the first.
        first_wait: The maximum of the first wait, in seconds.
        clock: A monotonic clock, in seconds.
        sleep: A function that waits for the given seconds.
        jitter: A function that returns a random number, at least 0 and less than 1.
    """

    deadline: float = 3.0
    try_timeout: float = 1.5
    tries: int = 4
    first_wait: float = 0.1
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def __post_init__(self) -> None:
        for name in ("deadline", "try_timeout", "tries", "first_wait"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be more than 0, not {getattr(self, name)}")

    def start(self) -> float:
        """Begin a call, and return its end by the policy's clock."""
        return self.clock() + self.deadline

    def remaining(self, ends_at: float) -> float:
        """Return the seconds until *ends_at*, negative if it has passed."""
        return ends_at - self.clock()

    def run(
        self, attempt: Callable[[float], Answer | NoAnswer], ends_at: float, *, tries: int | None = None
    ) -> Answer | NoAnswer:
        """
        Repeat *attempt* until a retry cannot change its outcome.

        Args:
            attempt: A function that takes the seconds that it may use.
            ends_at: The end of the whole call, as :meth:`start` returns it.
            tries: The maximum number of attempts, by default that of the policy.
        """
        wait = self.first_wait
        left = tries or self.tries
        while True:
            outcome = attempt(min(self.try_timeout, max(self.remaining(ends_at), _SHORTEST_TRY)))
            left -= 1
            pause = max(self.jitter() * wait, outcome.retry_after or 0.0)
            if not left or not outcome.may_heal or pause >= self.remaining(ends_at):
                return outcome
            self.sleep(pause)
            wait *= 2


def exchange(call: Callable[[], object]) -> Answer | NoAnswer:
    """
    Run *call*, a method of an hvac client, and return its outcome.

    Args:
        call: A function that returns a JSON object or a response, or raises any exception.

    Raises:
        EventSealError: *call* raised it.
    """
    try:
        return _answer(call())
    except EventSealError:
        raise
    except vault.VaultError as caught:
        return _refused(caught)
    except Exception as caught:  # noqa: BLE001 - whatever hvac, requests, urllib3 or ssl raises ends here
        return unanswered(caught)


def _answer(result: object) -> Answer:
    if isinstance(result, dict):  # hvac's JSON adapter parses what has status 200
        return Answer(_OK, result, _messages(result))
    if not isinstance(result, requests.Response):
        return Answer(0, from_vault=False)
    body = _json_object(result)
    # A redirection of the older kind turns a POST into a GET, so the answer belongs to another request.
    asked_otherwise = any(step.status_code in _REWRITING for step in result.history)
    return Answer(
        result.status_code,
        body,
        _messages(body),
        from_vault=(bool(body) or result.status_code == _NO_CONTENT) and not asked_otherwise,
        retry_after=_seconds(result.headers.get("Retry-After", "")),
    )


def _refused(caught: vault.VaultError) -> Answer | NoAnswer:
    if isinstance(caught, (vault.ParamValidationError, vault.UnsupportedOperation)):  # before any request
        return NoAnswer("client", type(caught).__name__)
    status = next((status for kind, status in _STATUS_OF if isinstance(caught, kind)), 0)
    body = caught.json if isinstance(caught.json, dict) else {}
    return Answer(status, body, _messages(body), from_vault=bool(body))


def unanswered(caught: Exception) -> NoAnswer:
    """Return the reason why a client failed, from its exception."""
    kind: Kind = next((kind for kinds, kind in _KIND_OF if isinstance(caught, kinds)), "client")
    if kind not in {"connection", "proxy", "tls"}:
        return NoAnswer(kind, type(caught).__name__)
    inner = _innermost(caught)
    words = getattr(inner, "strerror", None) or str(inner).rpartition(": ")[2] or type(inner).__name__
    if type(caught) is OSError and caught.errno is None:  # requests misses a file of certificates
        return NoAnswer("certificate", words)
    if kind == "tls" and _is_about_a_file(inner):
        return NoAnswer("certificate", words)
    return NoAnswer(kind, words)


def _is_about_a_file(inner: BaseException) -> bool:
    if isinstance(inner, ssl.SSLCertVerificationError):
        return False
    in_library = isinstance(inner, ssl.SSLError) and inner.library in _FILE_LIBRARIES
    return in_library or isinstance(inner, _FILE_ERRORS)


def _innermost(caught: BaseException) -> BaseException:
    """Return the exception of the operating system or of TLS."""
    while True:
        inner = getattr(caught, "reason", None) or (caught.args[-1] if caught.args else None)
        if not isinstance(inner, BaseException):
            return caught
        caught = inner


def _json_object(response: requests.Response) -> Mapping[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _messages(body: Mapping[str, Any]) -> tuple[str, ...]:
    errors = body.get("errors")
    return tuple(str(error) for error in errors) if isinstance(errors, list) else ()


def _seconds(text: str) -> float | None:
    return float(text) if text.isdecimal() else None
