"""
Every error that EventSeal raises, by the caller's next step.

::

    EventSealError
      ConfigurationError            fix the program or its settings       (also a ValueError)
        KekNotConfiguredError         a wrapping's KEK is not listed        .kek_uri
        WrongApplicationError         another application owns the key      .expected, .found
        MissingTableError             create the tables                     .table
      IntegrityError                stop: bytes or rows were changed      never retry
      UnknownFormatError            not an envelope this release reads    .offset
      EncryptionRequiredError       plaintext where it is not allowed
      SerializationError            the event or its place has no bytes   (also a TypeError)
      KeyNotFoundError              no such key in the key store          .key_id
      KeyDestroyedError             the key is destroyed permanently      .key_id, .scope, .destroyed_by
      NotMyKeyError                 another KEK wrapped it: try the next  .kek_uri
      KmsError                      the KMS refused, or did not answer    .kek_uri
        KmsUnavailableError           try again                             .retry_after
        KmsForbiddenError             grant the permission
        KmsKeyStateError              enable the KMS key, or restore it     .kek_version
      StoreError                    the database
        StoreUnavailableError         try again
        StoreReadOnlyError            make it writable
        StoreForbiddenError           grant the privilege
        SequencedItemConflictError    the position is taken: reload, decide again
        ItemNotFoundError             no item there                         (also a LookupError)
        KeyClosedError                the key was retired meanwhile         .key_ids
      KeyLimitError                 a key has reached its item limit      .key_id
      ItemTooLargeError             over the configured size              .size, .limit
      JobError                      a maintenance job cannot continue

No message, attribute, repr or pickle of these holds key bytes or plaintext.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID


REPAIR_ROW = (
    "Find out who changed the database. Then run `eventseal repair --from-backup URL`, or `eventseal "
    "set-aside` if no backup has the row."
)
"""The remedy for a damaged row."""


class EventSealError(Exception):
    """
    The root: ``except EventSealError`` catches everything that EventSeal raises.

    Args:
        message: A sentence that says what happened to which key or item. It is never empty and never
            secret.
        remedy: The next step for a person. The default is the remedy of the class.
        facts: Values that become attributes, so that a program need not parse the message.
    """

    default_remedy: ClassVar[str] = "Read the message. If it does not help, report it with the traceback."

    remedy: str

    def __init__(self, message: str, *, remedy: str | None = None, **facts: Any) -> None:
        # args has only the text, and __dict__ has everything else, so that each error can be pickled.
        super().__init__(message)
        self.remedy = remedy or self.default_remedy
        self.__dict__.update(facts)


class ConfigurationError(EventSealError, ValueError):
    """The program or its settings are wrong. Nothing was written."""

    default_remedy = "Correct the setting or the argument that the message names."


class KekNotConfiguredError(ConfigurationError):
    """A key is wrapped only under KEKs that this keyring lacks."""

    default_remedy = (
        "Restore the key file, or add the KMS key to kms_key (EVENTSEAL_KMS_KEY) or kms=. Or run `eventseal "
        "rewrap` where that KMS key is configured."
    )
    kek_uri: str | None = None


class WrongApplicationError(ConfigurationError):
    """The key belongs to another application than the configured one."""

    default_remedy = "Set the application's name (EVENTSEAL_APPLICATION) to the one that encrypted the item."
    expected: str | None = None
    found: str | None = None


class MissingTableError(ConfigurationError):
    """A table or column that EventSeal needs is not in the database."""

    default_remedy = "Run `eventseal init`, or call datastore.setup_tables()."
    table: str | None = None


class IntegrityError(EventSealError):
    """
    Authentication failed: bytes, their place or a key's row were changed.

    There is one class and, for items, one message for all changes: see :data:`OPAQUE_INTEGRITY_MESSAGE`.
    """

    default_remedy = f"Do not use the item. {REPAIR_ROW}"


OPAQUE_INTEGRITY_MESSAGE = "the item does not authenticate: its bytes, its header or its place were changed"
"""
The one message for a bad tag and for bad padding.

It is the same, so that nobody can distinguish the two.
"""


class UnknownFormatError(EventSealError):
    """
    The bytes are not an envelope that this release can read.

    They are not an envelope at all, or their version, suite or compression is unknown.
    """

    default_remedy = (
        "If a newer release wrote the item, use that release. If the item has an older format, name the "
        "format in old_formats. If the row is damaged, run `eventseal repair --from-backup URL`."
    )
    offset: int | None = None


class EncryptionRequiredError(EventSealError):
    """An item is plaintext where encryption is required."""

    default_remedy = (
        "Encrypt the old items first, or read them with a mapper that does not require encryption. See the "
        "page Migrate from plaintext and from older ciphers."
    )


class SerializationError(EventSealError, TypeError):
    """An event, its place or its bytes cannot be converted."""

    default_remedy = "Use attributes that JSON or the transcoder supports, or register an encoding."


class KeyNotFoundError(EventSealError):
    """The key store has no key with this id."""

    default_remedy = "Check that the key store belongs to these items, and that it was restored with them."
    key_id: UUID | None = None


class KeyDestroyedError(EventSealError):
    """The key is destroyed, or a shred closed its scope. Nothing restores it."""

    default_remedy = (
        "Nothing can decrypt this item again. To write new items to a shredded scope, run `eventseal reopen "
        "SCOPE`."
    )
    key_id: UUID | None = None
    scope: str | None = None
    destroyed_by: Literal["retired", "shredded"] | None = None
    scope_reopened: bool = False


class NotMyKeyError(EventSealError):
    """A wrapping belongs to another KEK. Only this error lets EventSeal try the next KEK."""

    default_remedy = "Use the KMS key that the wrapping names."
    kek_uri: str | None = None


class KmsError(EventSealError):
    """The KMS refused or failed. This is never a sign of tampering or erasure."""

    default_remedy = "Look for the request in the log of the KMS."
    kek_uri: str | None = None


class KmsUnavailableError(KmsError):
    """The KMS did not answer, throttled the call, or failed internally."""

    default_remedy = "Try again. If the error persists, check the network and the status of the KMS."
    retry_after: float | None = None


class KmsForbiddenError(KmsError):
    """The KMS denied the call."""

    default_remedy = "Grant the caller the permission that the message names, on this KMS key."


class KmsKeyStateError(KmsError):
    """
    The KEK, or one version of it, is unusable.

    It is disabled, pending deletion, deleted, or of the wrong kind.
    """

    default_remedy = "Enable the KMS key, or cancel its deletion. A retry does not help."
    kek_version: str | None = None


class StoreError(EventSealError):
    """The database refused or failed."""

    default_remedy = "Look at the log of the database."


class StoreUnavailableError(StoreError):
    """The database is locked, unavailable or missing. Nothing was written."""

    default_remedy = (
        "Try again. If the error persists, check the database's URL, that the database runs, and that no "
        "long transaction locks it."
    )


class StoreReadOnlyError(StoreError):
    """The database, or its file, cannot be written."""

    default_remedy = "Grant this user write access to the database, or use a connection to the primary."


class StoreForbiddenError(StoreError):
    """The database denied this user a privilege."""

    default_remedy = (
        "Grant this database user the privilege on the table that the message names. "
        "`eventseal policy --role ROLE` prints all grants of a role."
    )


class SequencedItemConflictError(StoreError):
    """The position in the sequence is taken. Nothing of the batch was written."""

    default_remedy = "Reload the entity, and decide again with its newer state."


class ItemNotFoundError(StoreError, LookupError):
    """No item is at this position, or no entity has this id."""

    default_remedy = "Check the sequence id and the position."


class KeyClosedError(StoreError):
    """The key of the items was retired before they were written. Nothing was written."""

    default_remedy = (
        "Refresh the keyring, seal the items again and append them again. The event store does this for you."
    )
    key_ids: Collection[UUID] = ()


class KeyLimitError(EventSealError):
    """A data key has encrypted as many items as a key may."""

    default_remedy = "Rotate the key: run `eventseal rotate --scope SCOPE`, or call keyring.rotate(scope)."
    key_id: UUID | None = None


class ItemTooLargeError(EventSealError):
    """An item, or its decompressed content, is over the configured size."""

    default_remedy = "If you need items of this size, raise max_plaintext. If not, split the event."
    size: int | None = None
    limit: int | None = None


class JobError(EventSealError):
    """A maintenance job cannot start or continue."""

    default_remedy = "Correct the problem in the message. You can then resume the job."


__all__ = [
    "OPAQUE_INTEGRITY_MESSAGE",
    "REPAIR_ROW",
    "ConfigurationError",
    "EncryptionRequiredError",
    "EventSealError",
    "IntegrityError",
    "ItemNotFoundError",
    "ItemTooLargeError",
    "JobError",
    "KekNotConfiguredError",
    "KeyClosedError",
    "KeyDestroyedError",
    "KeyLimitError",
    "KeyNotFoundError",
    "KmsError",
    "KmsForbiddenError",
    "KmsKeyStateError",
    "KmsUnavailableError",
    "MissingTableError",
    "NotMyKeyError",
    "SequencedItemConflictError",
    "SerializationError",
    "StoreError",
    "StoreForbiddenError",
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "UnknownFormatError",
    "WrongApplicationError",
]
