"""Many keys in one call, in calls that the server's limits on JSON let through."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from eventseal.errors import ConfigurationError, EventSealError, KmsError
from eventseal_kms.vault.failures import failure_of, is_too_complex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventseal_kms.vault.session import VaultSession
    from eventseal_kms.vault.transit_key import TransitKey


class Batches:
    """
    Sends the items of an operation of the transit engine, so many a call.

    Args:
        session: Calls Vault.
        key: The transit key.
        size: Items a call. It is halved for good where the server finds a call too complex.

    Raises:
        ConfigurationError: *size* is not positive.
    """

    def __init__(self, session: VaultSession, key: TransitKey, size: int) -> None:
        if size < 1:
            raise ConfigurationError(f"batch_size is {size}; it must be at least 1")
        self._session = session
        self._key = key
        self._size = size

    def run(
        self, operation: str, items: Sequence[Mapping[str, str]]
    ) -> list[Mapping[str, Any] | EventSealError]:
        """
        Send all items.

        Args:
            operation: ``encrypt``, ``decrypt`` or ``rewrap``.
            items: What Vault calls the batch input.

        Returns:
            One result an item, in order, as Vault gave it: it may hold an error or a key. A call that fails
            as a whole is the last one: its items and all after them get its error.
        """
        results: list[Mapping[str, Any] | EventSealError] = []
        while len(results) < len(items):
            page = items[len(results) : len(results) + self._size]
            outcome = self._page(operation, page)
            if outcome is None:
                self._size = max(1, len(page) // 2)
            elif isinstance(outcome, EventSealError):
                # Each its own: a raised error carries its caller's traceback.
                results += [copy(outcome) for _ in items[len(results) :]]
            else:
                results += outcome
        return results

    def _page(
        self, operation: str, page: Sequence[Mapping[str, str]]
    ) -> Sequence[Mapping[str, Any]] | EventSealError | None:
        """Send one call; ``None`` if it must be smaller."""
        path = self._key.path(operation)
        answer = self._session.call("post", path, {"batch_input": page})
        if isinstance(answer, EventSealError):
            return answer
        # Where one item fails, the whole answer has status 400 and yet holds every result (a rewrap has 200).
        results = answer.data.get("batch_results")
        if isinstance(results, list) and len(results) == len(page):
            return results
        if is_too_complex(answer) and len(page) > 1:
            return None
        if answer.ok:
            return KmsError(f"{path}: Vault's answer does not fit the question", kek_uri=self._key.uri)
        return failure_of(answer, path=path, key=self._key)
