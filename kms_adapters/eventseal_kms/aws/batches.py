"""Batches over a KMS that has none: a bounded number of calls in flight, one outcome an item."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from eventseal.errors import EventSealError, KmsKeyStateError, KmsUnavailableError
from eventseal_kms.aws.connection import CALLS_IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import BoundedSemaphore

Item = TypeVar("Item")
Value = TypeVar("Value")

_HITS_EVERY_ITEM = (KmsUnavailableError, KmsKeyStateError)


def outcome_of_each(
    items: Sequence[Item], work: Callable[[Item], Value | EventSealError], slots: BoundedSemaphore
) -> list[Value | EventSealError]:
    """
    Do *work* for every item, several at once.

    After the first outcome that every other item would have too (an outage, throttling, a disabled key), no
    further call begins: the rest get an error of the same class that says so.

    Args:
        items: In any number.
        work: Makes the call; returns its failure.
        slots: Shared by all batches of an adapter.

    Returns:
        One outcome an item, in order.
    """
    if len(items) <= 1:
        return [work(item) for item in items]
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


def _not_tried(first: EventSealError) -> EventSealError:
    facts = {name: value for name, value in vars(first).items() if name != "remedy"}
    return type(first)(
        f"not tried, since another call of the batch failed: {first}", remedy=first.remedy, **facts
    )
