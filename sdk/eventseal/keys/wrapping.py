"""Several KEKs as one: the first makes a key, every one wraps it, any one unwraps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KekNotConfiguredError,
    NotMyKeyError,
)
from eventseal.kms.adapter import KmsAdapter, SupportsBatch
from eventseal.kms.context import EncryptionContext

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventseal.keys.records import KeyRecord
    from eventseal.kms.adapter import WrappedKey

KEY_SIZE = 32


def context_of(record: KeyRecord) -> EncryptionContext:
    """What a KMS binds to the wrapped key of *record*: never the scope."""
    return EncryptionContext(record.key_id, str(record.purpose), record.application)


class Keks:
    """
    The KEKs that a keyring was given, in their order. Nothing else is ever contacted.

    Args:
        kms: One adapter or several, of different KEKs.
        count_calls: Told how many calls were made, after each.

    Raises:
        ConfigurationError: There is none, one is no adapter, or one is listed twice.
    """

    def __init__(self, kms: KmsAdapter | Sequence[KmsAdapter], *, count_calls: Callable[[int], None]) -> None:
        adapters = (kms,) if isinstance(kms, KmsAdapter) else tuple(kms)
        if not adapters:
            raise ConfigurationError(
                "no KEK is configured, and there is no default one",
                remedy="Give kms= one KMS adapter or several, or set EVENTSEAL_KMS_KEY.",
            )
        for adapter in adapters:
            if not isinstance(adapter, KmsAdapter):
                raise ConfigurationError(
                    f"kms= holds a {type(adapter).__name__}, which is no KMS adapter",
                    remedy="Give adapters, such as LocalKmsAdapter(...) or adapter_from_uri(uri).",
                )
        uris = [adapter.uri for adapter in adapters]
        if len(set(uris)) < len(uris):
            raise ConfigurationError(f"a KEK is listed twice in kms=: {', '.join(uris)}")
        self._adapters: tuple[KmsAdapter, ...] = adapters
        self._count_calls = count_calls

    def generate(self, contexts: Sequence[EncryptionContext]) -> list[tuple[bytes, tuple[WrappedKey, ...]]]:
        """
        Make a key for each of *contexts*, wrapped under every KEK.

        Raises:
            KmsError: Some KEK could not wrap some key; then none is given.
        """
        first, *others = self._adapters
        keys: list[bytes] = []
        wrappings: list[list[WrappedKey]] = []
        for context in contexts:
            self._count_calls(1)
            key, wrapped = first.generate_data_key(context)
            if len(key) != KEY_SIZE:
                raise ConfigurationError(f"{first.uri} made a key of {len(key)} bytes; keys take {KEY_SIZE}")
            keys.append(key)
            wrappings.append([wrapped])
        for adapter in others:
            for held, wrapped in zip(
                wrappings, self._wrap(adapter, list(zip(keys, contexts, strict=True))), strict=True
            ):
                held.append(wrapped)
        return [(key, tuple(held)) for key, held in zip(keys, wrappings, strict=True)]

    def unwrap(self, records: Sequence[KeyRecord]) -> list[bytes | EventSealError]:
        """
        Unwrap the key of each of *records* under the first KEK that one of its wrappings is addressed to.

        Returns:
            One outcome a record, in order: its 32 bytes, not yet checked against its binding, or the error.
        """
        outcomes: list[bytes | EventSealError | None] = [None] * len(records)
        most = max((len(record.wrappings) for record in records), default=0)
        for adapter in self._adapters:
            for place in range(most):
                pending = [
                    index
                    for index, record in enumerate(records)
                    if outcomes[index] is None and place < len(record.wrappings)
                ]
                if not pending:
                    continue
                wrapped = [(records[index].wrappings[place], context_of(records[index])) for index in pending]
                for index, outcome in zip(pending, self._unwrap(adapter, wrapped), strict=True):
                    if not isinstance(outcome, NotMyKeyError):
                        outcomes[index] = outcome
        return [
            _of_key_size(record, outcome) if outcome is not None else self._not_addressed(record)
            for record, outcome in zip(records, outcomes, strict=True)
        ]

    def _wrap(self, adapter: KmsAdapter, keys: list[tuple[bytes, EncryptionContext]]) -> list[WrappedKey]:
        if len(keys) == 1 or not isinstance(adapter, SupportsBatch):
            self._count_calls(len(keys))
            return [adapter.wrap(key, context) for key, context in keys]
        self._count_calls(1)
        wrapped: list[WrappedKey] = []
        for outcome in adapter.wrap_many(keys):
            if isinstance(outcome, EventSealError):
                raise outcome
            wrapped.append(outcome)
        return wrapped

    def _unwrap(
        self, adapter: KmsAdapter, wrapped: list[tuple[WrappedKey, EncryptionContext]]
    ) -> Sequence[bytes | EventSealError]:
        if len(wrapped) > 1 and isinstance(adapter, SupportsBatch):
            try:
                outcomes = adapter.unwrap_many(wrapped)
            except EventSealError as error:
                outcomes = [error] * len(wrapped)
            self._count_calls(int(_called_out(outcomes) > 0))
        else:
            outcomes = [_unwrap_one(adapter, *pair) for pair in wrapped]
            self._count_calls(_called_out(outcomes))
        return outcomes

    def _not_addressed(self, record: KeyRecord) -> EventSealError:
        if not record.wrappings:
            return IntegrityError(
                f"key {record.key_id} is {record.state} but has no wrapping: somebody deleted it",
                remedy="Restore the rows of key_wrappings from a backup.",
                key_id=record.key_id,
            )
        uris = ", ".join(wrapping.kek_uri for wrapping in record.wrappings)
        configured = ", ".join(adapter.uri for adapter in self._adapters)
        return KekNotConfiguredError(
            f"key {record.key_id} is wrapped under {uris}; this keyring was given {configured}",
            kek_uri=record.wrappings[0].kek_uri,
        )


def _unwrap_one(
    adapter: KmsAdapter, wrapped: WrappedKey, context: EncryptionContext
) -> bytes | EventSealError:
    try:
        return adapter.unwrap(wrapped, context)
    except EventSealError as error:
        return error


def _called_out(outcomes: Sequence[bytes | EventSealError]) -> int:
    """How many outcomes took a call: an adapter says "not mine" before any."""
    return sum(not isinstance(outcome, NotMyKeyError) for outcome in outcomes)


def _of_key_size(record: KeyRecord, outcome: bytes | EventSealError) -> bytes | EventSealError:
    if isinstance(outcome, bytes) and len(outcome) != KEY_SIZE:
        return IntegrityError(f"key {record.key_id} unwrapped to {len(outcome)} bytes; keys take {KEY_SIZE}")
    return outcome
