"""Stand-ins for tests: a KMS in memory, and a manual clock."""

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
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from eventseal.keys.policy import Clock
    from eventseal.kms.adapter import EncryptionContext, KmsAdapter, SupportsBatch


class ManualClock:
    """
    A :class:`eventseal.keys.policy.Clock` that only a test moves.

    Pass it to a keyring.

    Args:
        start: The first time in seconds. Any number is valid, since only intervals count.
    """

    def __init__(self, start: float = 1_000.0) -> None:
        self._now = start

    def now(self) -> float:
        """Return the seconds since an arbitrary moment."""
        return self._now

    def advance(self, seconds: float) -> None:
        """
        Move the clock forward by *seconds*.

        Raises:
            ValueError: *seconds* is negative. A clock for intervals never goes back.
        """
        if seconds < 0:
            raise ValueError(f"the clock cannot go back by {-seconds} s")
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
        key_ids: The keys that the call was for: one, unless it is a batch.
        failed: Whether the call got an error that the test requested.
    """

    operation: str
    key_ids: tuple[UUID, ...]
    failed: bool


class FakeKms:
    """
    A KMS adapter whose KEK is in memory.

    Its wrappings are authenticated (AES-GCM over the encryption context). As with a real KMS, it rejects a
    wrapping that was edited or moved to another key.

    Args:
        name: The KEK is ``fake://<name>``. The default is a random name. Two objects never open each other's
            wrappings, whatever their names.
        sleep: The function that each call waits with. It gets the seconds of :attr:`delay`.

    Attributes:
        calls: Every call that reached the KMS, oldest first. A wrapping of another KEK causes no call.
        delay: The seconds that each call takes.
        peak: The highest number of calls that were inside at the same time.
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
        """Continue in a forked child, without calls of the parent's threads."""
        self._condition = threading.Condition()
        self._inside = self._held = 0

    @classmethod
    def from_uri(cls, uri: str) -> FakeKms:
        """
        Create a new KEK with the name in *uri*.

        Raises:
            ConfigurationError: *uri* is not ``fake://<name>``.
        """
        name = uri.removeprefix(_PREFIX)
        if name in {"", uri}:
            raise ConfigurationError(f"{uri!r} is not the URI of a fake KMS", remedy="Write fake://<name>.")
        return cls(name)

    @property
    def uri(self) -> str:
        """The URI of the KEK, ``fake://<name>``."""
        return self._uri

    def generate_data_key(self, context: EncryptionContext) -> tuple[bytes, WrappedKey]:
        """Create a random key of 32 bytes, and wrap it."""
        with self._call("generate_data_key", context):
            key = os.urandom(_KEY_SIZE)
            return key, self._sealed(key, context)

    def wrap(self, key: bytes, context: EncryptionContext) -> WrappedKey:
        """Wrap *key*."""
        with self._call("wrap", context):
            return self._sealed(key, context)

    def unwrap(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes:
        """
        Unwrap a key of 32 bytes.

        Raises:
            NotMyKeyError: Another KEK wrapped the key. The call log does not have this call.
            IntegrityError: The wrapping or its context was changed.
        """
        self._refuse_foreign(wrapped)
        with self._call("unwrap", context):
            return self._opened(wrapped, context)

    def fail_next(self, count: int = 1, error: EventSealError | None = None) -> None:
        """Answer the next *count* calls with *error*. By default the KMS is unavailable."""
        self._faults.extend([error or self._unavailable()] * count)

    def fail_always(self, error: EventSealError | None = None) -> None:
        """Answer every call with *error* until :meth:`recover`. By default the KMS is unavailable."""
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
        """
        Keep every call inside until the block ends.

        To wait until calls have arrived, use :meth:`wait_inside`.
        """
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
        Wait until *count* calls are inside at the same time.

        Raises:
            TimeoutError: They did not arrive within *timeout* seconds.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._inside >= count, timeout):
                raise TimeoutError(
                    f"{self._uri} holds {counted(self._inside, 'call')} after {timeout} s, not {count:,}"
                )

    def count(self, *operations: str) -> int:
        """
        Return how many calls of *operations* reached the KMS.

        Without *operations*, it counts all calls.
        """
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
                raise copy(fault)  # a copy for each call: a raised error carries its caller's traceback
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
    """A :class:`FakeKms` that accepts several keys in one call."""

    def wrap_many(self, keys: Sequence[tuple[bytes, EncryptionContext]]) -> list[WrappedKey | EventSealError]:
        """Wrap all keys in one call. Without keys, there is no call."""
        if not keys:
            return []
        with self._call("wrap_many", *[context for _, context in keys]):
            return [self._sealed(key, context) for key, context in keys]

    def unwrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[bytes | EventSealError]:
        """Unwrap all keys of this KEK in one call. If no key is of this KEK, the KMS gets no call."""
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
