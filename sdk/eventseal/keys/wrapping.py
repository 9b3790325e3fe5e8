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
from eventseal.keys.data_key import DataKey, material_of
from eventseal.keys.seals import is_bound
from eventseal.kms.adapter import KmsAdapter, SupportsBatch
from eventseal.kms.context import EncryptionContext

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.keys.counters import KeyringCounters
    from eventseal.keys.records import KeyRecord
    from eventseal.kms.adapter import WrappedKey

KEY_SIZE = 32


class Keks:
    """
    The KEKs that a keyring was given, in their order. Nothing else is ever contacted.

    Unwrapped keys travel as handles from here on, so that no frame of EventSeal's that can raise holds bytes.

    Args:
        adapters: One or several, of different KEKs.
        counters: Told of every call that leaves the process.

    Raises:
        ConfigurationError: There is none, one is no adapter, or one is listed twice.
    """

    def __init__(self, adapters: Sequence[KmsAdapter], *, counters: KeyringCounters) -> None:
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
        self._adapters = tuple(adapters)
        self._counters = counters

    def generate(self, records: Sequence[KeyRecord]) -> list[tuple[DataKey, tuple[WrappedKey, ...]]]:
        """
        Make a key for each of *records*, wrapped under every KEK.

        Raises:
            KmsError: Some KEK could not wrap some key; then none is given.
        """
        first, *others = self._adapters
        keys: list[DataKey] = []
        wrappings: list[list[WrappedKey]] = []
        for record in records:
            key, wrapped = self._generated(first, record)
            keys.append(key)
            wrappings.append([wrapped])
        for adapter in others:
            for held, wrapped in zip(wrappings, self._wrap(adapter, keys), strict=True):
                held.append(wrapped)
        return [(key, tuple(held)) for key, held in zip(keys, wrappings, strict=True)]

    def unwrap(self, records: Sequence[KeyRecord]) -> list[DataKey | EventSealError]:
        """
        Unwrap the key of each of *records* under the first KEK that one of its wrappings is addressed to.

        Returns:
            One outcome a record, in order: a handle whose bytes match the record's binding, or the error.
        """
        outcomes: list[DataKey | EventSealError | None] = [None] * len(records)
        explained: dict[int, NotMyKeyError] = {}
        places = range(max((len(record.wrappings) for record in records), default=0))
        for adapter, place in [(adapter, place) for adapter in self._adapters for place in places]:
            pending = [
                index
                for index, record in enumerate(records)
                if outcomes[index] is None and place < len(record.wrappings)
            ]
            if pending:
                addressed = [(records[index], records[index].wrappings[place]) for index in pending]
                for index, outcome in zip(pending, self._unwrap(adapter, addressed), strict=True):
                    # Only "not mine" leaves the record for the next wrapping or the next KEK.
                    if not isinstance(outcome, NotMyKeyError):
                        outcomes[index] = outcome
                    elif outcome.remedy != NotMyKeyError.default_remedy:
                        explained[index] = outcome
        return [
            self._not_addressed(record, explained.get(index)) if outcome is None else outcome
            for index, (record, outcome) in enumerate(zip(records, outcomes, strict=True))
        ]

    def _generated(self, adapter: KmsAdapter, record: KeyRecord) -> tuple[DataKey, WrappedKey]:
        self._counters.count_kms_calls(1)
        material, wrapped = adapter.generate_data_key(_context_of(record))
        return _handle(material, record, adapter), wrapped

    def _wrap(self, adapter: KmsAdapter, keys: list[DataKey]) -> list[WrappedKey]:
        contexts = [EncryptionContext(key.key_id, str(key.purpose), key.application) for key in keys]
        if len(keys) == 1 or not isinstance(adapter, SupportsBatch):
            self._counters.count_kms_calls(len(keys))
            return [
                adapter.wrap(material_of(key), context) for key, context in zip(keys, contexts, strict=True)
            ]
        self._counters.count_kms_calls(1)
        wrapped: list[WrappedKey] = []
        for outcome in adapter.wrap_many(
            [(material_of(key), context) for key, context in zip(keys, contexts, strict=True)]
        ):
            if isinstance(outcome, EventSealError):
                raise outcome
            wrapped.append(outcome)
        return wrapped

    def _unwrap(
        self, adapter: KmsAdapter, addressed: Sequence[tuple[KeyRecord, WrappedKey]]
    ) -> list[DataKey | EventSealError]:
        if len(addressed) > 1 and isinstance(adapter, SupportsBatch):
            outcomes = _unwrap_together(adapter, addressed)
            calls = int(_called_out(outcomes) > 0)
        else:
            outcomes = [_unwrap_one(adapter, record, wrapped) for record, wrapped in addressed]
            calls = _called_out(outcomes)
        self._counters.count_kms_calls(calls)
        return outcomes

    def _not_addressed(self, record: KeyRecord, explanation: NotMyKeyError | None) -> EventSealError:
        if not record.wrappings:
            return IntegrityError(
                f"key {record.key_id} is {record.state} but has no wrapping: somebody deleted it",
                remedy="Restore the rows of key_wrappings from a backup.",
                key_id=record.key_id,
            )
        if explanation is not None:  # an adapter knows more, such as where its alias points now
            return KekNotConfiguredError(
                f"key {record.key_id}: {explanation}", remedy=explanation.remedy, kek_uri=explanation.kek_uri
            )
        uris = ", ".join(wrapping.kek_uri for wrapping in record.wrappings)
        configured = ", ".join(adapter.uri for adapter in self._adapters)
        return KekNotConfiguredError(
            f"key {record.key_id} is wrapped under {uris}; this keyring was given {configured}",
            kek_uri=record.wrappings[0].kek_uri,
        )


def _context_of(record: KeyRecord) -> EncryptionContext:
    return EncryptionContext(record.key_id, str(record.purpose), record.application)


def _unwrap_one(adapter: KmsAdapter, record: KeyRecord, wrapped: WrappedKey) -> DataKey | EventSealError:
    try:
        return _bound(_handle(adapter.unwrap(wrapped, _context_of(record)), record, adapter), record)
    except EventSealError as error:
        return error


def _unwrap_together(
    adapter: SupportsBatch, addressed: Sequence[tuple[KeyRecord, WrappedKey]]
) -> list[DataKey | EventSealError]:
    asked = [(wrapped, _context_of(record)) for record, wrapped in addressed]
    try:
        answers = adapter.unwrap_many(asked)
    except EventSealError as error:
        return [error] * len(addressed)
    return [
        answer if isinstance(answer, EventSealError) else _checked(answer, record, adapter)
        for answer, (record, _) in zip(answers, addressed, strict=True)
    ]


def _checked(material: bytes, record: KeyRecord, adapter: object) -> DataKey | EventSealError:
    try:
        return _bound(_handle(material, record, adapter), record)
    except IntegrityError as error:
        return error


def _handle(material: bytes, record: KeyRecord, adapter: object) -> DataKey:
    if len(material) != KEY_SIZE:
        raise IntegrityError(
            f"{type(adapter).__name__} gave {len(material)} bytes, not {KEY_SIZE}, for key {record.key_id}",
            remedy="Report it to whoever maintains the KMS adapter; the key was not used.",
            key_id=record.key_id,
        )
    return DataKey(
        material,
        key_id=record.key_id,
        application=record.application,
        scope=record.scope,
        purpose=record.purpose,
        state=record.state,
    )


def _bound(key: DataKey, record: KeyRecord) -> DataKey:
    if not is_bound(key, record):
        key.close()
        raise IntegrityError(
            f"the wrapping of key {record.key_id} holds another key than the row was made for",
            remedy="Find out who changed the key tables, and restore the key's rows from a backup.",
            key_id=record.key_id,
        )
    return key


def _called_out(outcomes: Sequence[object]) -> int:
    """How many outcomes took a call: an adapter says "not mine" before any."""
    return sum(not isinstance(outcome, NotMyKeyError) for outcome in outcomes)
