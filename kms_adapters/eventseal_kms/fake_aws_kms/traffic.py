"""The fake's call log, and its faults and delays on command."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import TYPE_CHECKING

from eventseal_kms.fake_aws_kms.protocol import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NO_ANSWER = "no answer"
"""Instead of a code: the connection ends unanswered, as in an outage."""


@dataclass(frozen=True, slots=True)
class AwsCall:
    """
    One call that reached the fake.

    Attributes:
        action: The permission, such as ``kms:Decrypt``.
        caller: The owner of the credentials that signed it, or empty if there is none.
        region: The Region of the call.
        key: The resolved ARN of the KMS key, or ``None`` if there is none. For ReEncrypt, the destination.
        context: The encryption context, or ``None`` if there is none. For ReEncrypt, that of the source.
        dry_run: Whether it was a dry run.
        grant_tokens: The grant tokens of the call.
        error: The code of the refusal, ``NO_ANSWER``, or ``None`` if it succeeded.
    """

    action: str
    caller: str
    region: str
    key: str | None = None
    context: Mapping[str, str] | None = None
    dry_run: bool = False
    grant_tokens: tuple[str, ...] = ()
    error: str | None = None


@dataclass(slots=True)
class _Fault:
    code: str
    action: str | None
    left: int | None  # None: until recover()

    def hits(self, action: str) -> bool:
        return self.left != 0 and self.action in {None, action}


class Traffic:
    """
    Admits and counts calls, and fails those that were planned to fail.

    Attributes:
        calls: Every call, in the order in which they ended.
        delay: The duration of each call, in seconds.
        peak: The maximum number of concurrent calls.
    """

    def __init__(self) -> None:
        self.calls: list[AwsCall] = []
        self.delay = 0.0
        self.peak = 0
        self._faults: list[_Fault] = []
        self._condition = Condition()
        self._inside = 0
        self._held = 0

    def count(self, *actions: str) -> int:
        """Count the calls of *actions*, such as ``kms:Decrypt``, or all calls."""
        return sum(not actions or call.action in actions for call in self.calls)

    def fail_next(
        self, count: int = 1, code: str = "ThrottlingException", *, action: str | None = None
    ) -> None:
        """
        Fail the next *count* calls.

        Args:
            count: The number of calls that fail.
            code: A code of AWS, such as ``KMSInternalException``, or ``NO_ANSWER``.
            action: Fail only calls of this action, such as ``kms:Decrypt``.
        """
        self._plan(_Fault(code, action, count))

    def fail_always(self, code: str, *, action: str | None = None) -> None:
        """Fail every call, or every call of *action*, until :meth:`recover`."""
        self._plan(_Fault(code, action, None))

    def recover(self) -> None:
        """End every fault."""
        with self._condition:
            self._faults.clear()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """
        Hold every call until the block ends.

        :meth:`wait_inside` waits until a number of calls has arrived.
        """
        with self._condition:
            self._held += 1
        try:
            yield
        finally:
            with self._condition:
                self._held -= 1
                self._condition.notify_all()

    def wait_inside(self, count: int, *, timeout: float = 10.0) -> None:
        """
        Wait until *count* calls are held together.

        Raises:
            TimeoutError: They did not arrive within *timeout* seconds.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._inside >= count, timeout):
                raise TimeoutError(f"{self._inside} calls are inside, not {count}, after {timeout} s")

    def _plan(self, fault: _Fault) -> None:
        with self._condition:
            self._faults.append(fault)

    def _record(self, call: AwsCall) -> None:
        with self._condition:
            self.calls.append(call)

    @contextmanager
    def _letting_in(self, action: str) -> Iterator[None]:
        """
        Admit a call of *action*, hold it and delay it.

        Raises:
            Refusal: The call was planned to fail.
        """
        with self._condition:
            fault = next((fault for fault in self._faults if fault.hits(action)), None)
            if fault is not None and fault.left is not None:
                fault.left -= 1
            self._inside += 1
            self.peak = max(self.peak, self._inside)
            self._condition.notify_all()
            self._condition.wait_for(lambda: not self._held)
        try:
            if self.delay:
                time.sleep(self.delay)
            if fault is not None:
                raise Refusal(fault.code, "on command of the test" if fault.code != NO_ANSWER else "")
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()
