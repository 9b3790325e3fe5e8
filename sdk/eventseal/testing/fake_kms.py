"""Stand-ins for tests: a KMS whose KEK lives in memory, and a clock that only a test moves."""

from __future__ import annotations

import os
import secrets
import threading
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
    NotMyKeyError,
)
from eventseal.keys.concurrency import renew_in_children
from eventseal.kms.adapter import WrappedKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from eventseal.keys.policy import Clock
    from eventseal.kms.adapter import EncryptionContext, KmsAdapter, SupportsBatch


class ManualClock:
    """
    Satisfies :class:`eventseal.keys.policy.Clock`: give it to a keyring and move time at will.

    Args:
        start: Seconds; any number, as of any clock for intervals.
    """

    def __init__(self, start: float = 1_000.0) -> None:
        self._now = start

    def now(self) -> float:
        """Seconds since some moment."""
        return self._now

    def advance(self, seconds: float) -> None:
        """
        Move on by *seconds*.

        Raises:
            ValueError: *seconds* is negative; a clock for intervals never goes back.
        """
        if seconds < 0:
            raise ValueError(f"cannot go back by {-seconds} s")
        self._now += seconds


if TYPE_CHECKING:
    _: type[Clock] = ManualClock


SCHEME = "fake"
_PREFIX = f"{SCHEME}://"
_NONCE_SIZE = 12
_KEY_SIZE = 32


@dataclass(frozen=True, slots=True)
class FakeKmsCall:
    """
    One call that reached a :class:`FakeKms`.

    Attributes:
        operation: ``generate_data_key``, ``wrap``, ``unwrap``, ``wrap_many`` or ``unwrap_many``.
        key_ids: The keys it was for, one unless it is a batch.
        failed: Whether it was answered with an error on command.
    """

    operation: str
    key_ids: tuple[UUID, ...]
    failed: bool


class FakeKms:
    """
    A KMS adapter whose KEK lives in memory.

    Its wrappings are authenticated (AES-GCM over the encryption context), so an edited wrapping, or one put
    beside another key, is caught as by a real KMS.

    Args:
        name: The KEK is ``fake://<name>``; a random one by default. Two objects never open each other's
            wrappings, whatever their names.
        sleep: Called with the seconds of :attr:`delay` in each call.

    Attributes:
        calls: Every call that reached the KMS, oldest first. A wrapping of another KEK makes none.
        delay: Seconds that each call takes.
        peak: The most calls that were inside at once.
    """

    def __init__(self, name: str | None = None, *, sleep: Callable[[float], object] | None = None) -> None:
        self.calls: list[FakeKmsCall] = []
        self.delay = 0.0
        self.peak = 0
        self._uri = _PREFIX + (secrets.token_hex(8) if name is None else name)
        self._sleep = sleep or threading.Event().wait
        self._kek = AESGCM(os.urandom(_KEY_SIZE))
        self._condition = threading.Condition()
        self._inside = 0
        self._held = 0
        self._faults: list[EventSealError] = []
        self._standing_fault: EventSealError | None = None
        renew_in_children(self)

    def renew_in_child(self) -> None:
        """Go on in a forked child, without the calls of the parent's threads."""
        self._condition = threading.Condition()
        self._inside = self._held = 0

    @classmethod
    def from_uri(cls, uri: str) -> FakeKms:
        """
        Make a new KEK of the name in *uri*.

        Raises:
            ConfigurationError: *uri* is not ``fake://<name>``.
        """
        name = uri.removeprefix(_PREFIX)
        if name in {"", uri}:
            raise ConfigurationError(f"{uri!r} is not the URI of a fake KMS", remedy="Write fake://<name>.")
        return cls(name)

    @property
    def uri(self) -> str:
        """The KEK: ``fake://<name>``."""
        return self._uri

    def generate_data_key(self, context: EncryptionContext) -> tuple[bytes, WrappedKey]:
        """Make 32 random bytes and wrap them."""
        with self._call("generate_data_key", context):
            key = os.urandom(_KEY_SIZE)
            return key, self._sealed(key, context)

    def wrap(self, key: bytes, context: EncryptionContext) -> WrappedKey:
        """Wrap *key*."""
        with self._call("wrap", context):
            return self._sealed(key, context)

    def unwrap(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes:
        """
        Unwrap to the 32 bytes.

        Raises:
            NotMyKeyError: Another KEK wrapped it; not in the call log.
            IntegrityError: The wrapping or its context was changed.
        """
        self._refuse_foreign(wrapped)
        with self._call("unwrap", context):
            return self._opened(wrapped, context)

    def fail_next(self, count: int = 1, error: EventSealError | None = None) -> None:
        """Answer the next *count* calls with *error*; by default the KMS is unavailable."""
        self._faults.extend([error or self._unavailable()] * count)

    def fail_always(self, error: EventSealError | None = None) -> None:
        """Answer every call with *error* until :meth:`recover`; by default the KMS is unavailable."""
        self._standing_fault = error or self._unavailable()

    def disable(self) -> None:
        """Answer every call as if the KEK were disabled, until :meth:`recover`."""
        self.fail_always(KmsKeyStateError(f"{self._uri} is disabled", kek_uri=self._uri))

    def deny(self) -> None:
        """Answer every call as if the caller had no permission, until :meth:`recover`."""
        self.fail_always(KmsForbiddenError(f"{self._uri} denied the call", kek_uri=self._uri))

    def recover(self) -> None:
        """End every fault."""
        self._faults.clear()
        self._standing_fault = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep every call inside until the block ends; :meth:`wait_inside` tells when they have come."""
        with self._condition:
            self._held += 1
        try:
            yield
        finally:
            with self._condition:
                self._held -= 1
                self._condition.notify_all()

    def wait_inside(self, count: int, *, timeout: float = 60.0) -> None:
        """
        Wait until *count* calls are inside at once.

        Raises:
            TimeoutError: They did not come within *timeout* seconds.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._inside >= count, timeout):
                raise TimeoutError(
                    f"{self._inside} calls are inside {self._uri}, not {count}, after {timeout} s"
                )

    def count(self, *operations: str) -> int:
        """How many calls of *operations* reached the KMS; of all, if none is named."""
        return sum(not operations or call.operation in operations for call in self.calls)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._uri} calls={len(self.calls)}>"

    @contextmanager
    def _call(self, operation: str, *contexts: EncryptionContext) -> Iterator[None]:
        with self._condition:
            fault = self._faults.pop(0) if self._faults else self._standing_fault
            key_ids = tuple(context.key_id for context in contexts)
            self.calls.append(FakeKmsCall(operation, key_ids, failed=fault is not None))
            self._inside += 1
            self.peak = max(self.peak, self._inside)
            self._condition.notify_all()
            self._condition.wait_for(lambda: not self._held)
        try:
            if self.delay:
                self._sleep(self.delay)
            if fault is not None:
                raise copy(fault)  # each call its own: a raised error carries its caller's traceback
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    def _sealed(self, key: bytes, context: EncryptionContext) -> WrappedKey:
        nonce = os.urandom(_NONCE_SIZE)
        sealed = self._kek.encrypt(nonce, key, context.canonical())
        return WrappedKey(kek_uri=self._uri, kek_version="1", ciphertext=nonce + sealed)

    def _opened(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes:
        nonce, sealed = wrapped.ciphertext[:_NONCE_SIZE], wrapped.ciphertext[_NONCE_SIZE:]
        try:
            return self._kek.decrypt(nonce, sealed, context.canonical())
        except (InvalidTag, ValueError):
            raise IntegrityError(
                f"{self._uri} does not open the wrapping of key {context.key_id}", key_id=context.key_id
            ) from None

    def _refuse_foreign(self, wrapped: WrappedKey) -> None:
        if wrapped.kek_uri != self._uri:
            raise NotMyKeyError(f"{wrapped.kek_uri} is not {self._uri}", kek_uri=wrapped.kek_uri)

    def _unavailable(self) -> KmsUnavailableError:
        return KmsUnavailableError(f"{self._uri} does not answer", kek_uri=self._uri)


class FakeBatchKms(FakeKms):
    """A :class:`FakeKms` that takes several keys in one call."""

    def wrap_many(self, keys: Sequence[tuple[bytes, EncryptionContext]]) -> list[WrappedKey | EventSealError]:
        """Wrap every key in one call; none is made if there is no key."""
        if not keys:
            return []
        with self._call("wrap_many", *[context for _, context in keys]):
            return [self._sealed(key, context) for key, context in keys]

    def unwrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[bytes | EventSealError]:
        """Unwrap every key of this KEK in one call; none is made if there is none."""
        mine = [context for wrapped, context in keys if wrapped.kek_uri == self._uri]
        if not mine:
            return [self._outcome(wrapped, context) for wrapped, context in keys]
        with self._call("unwrap_many", *mine):
            return [self._outcome(wrapped, context) for wrapped, context in keys]

    def _outcome(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes | EventSealError:
        try:
            self._refuse_foreign(wrapped)
            return self._opened(wrapped, context)
        except EventSealError as error:
            return error


if TYPE_CHECKING:
    _kms: type[KmsAdapter] = FakeKms
    _batch: type[SupportsBatch] = FakeBatchKms
