"""
Every error that EventSeal raises, split by what the caller does next.

::

    EventSealError
      ConfigurationError            fix the program or its settings       (also a ValueError)
        KekNotConfiguredError         a wrapping's KEK is not listed        .kek_uri
        WrongApplicationError         the key is another application's      .expected, .found
        MissingTableError             create the tables                     .table
      IntegrityError                stop: bytes or rows were changed      never retry
      UnknownFormatError            not an envelope this release reads    .offset
      EncryptionRequiredError       plaintext where it is not allowed
      SerializationError            the event or its place has no bytes   (also a TypeError)
      KeyNotFoundError              no such key in the key store          .key_id
      KeyDestroyedError             the key is gone for good              .key_id, .scope, .destroyed_by
      NotMyKeyError                 another KEK wrapped it: try the next  .kek_uri
      KmsError                      the KMS said no, or nothing           .kek_uri
        KmsUnavailableError           try again                             .retry_after
        KmsForbiddenError             grant the permission
        KmsKeyStateError              enable the KMS key, or restore it     .kek_version
      StoreError                    the database
        StoreUnavailableError         try again
        StoreReadOnlyError            make it writable
        SequencedItemConflictError    the position is taken: reload, decide again
        ItemNotFoundError             no item there                         (also a LookupError)
        KeyClosedError                the key was retired meanwhile         .key_ids
      KeyLimitError                 a key has sealed all it may           .key_id
      ItemTooLargeError             over the configured size              .size, .limit
      JobError                      a maintenance job cannot go on

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
"""What to do about a row that is damaged."""


class EventSealError(Exception):
    """
    The root: ``except EventSealError`` catches everything that EventSeal raises.

    Args:
        message: What happened, to which key or item. Never empty, never secret.
        remedy: What a person does next; each class has one of its own.
        facts: Become attributes, so that a program need not parse the message.
    """

    default_remedy: ClassVar[str] = "Read the message; if it does not help, report it with the traceback."

    remedy: str

    def __init__(self, message: str, *, remedy: str | None = None, **facts: Any) -> None:
        # Only the text is in args, everything else in __dict__: so each error pickles between processes.
        super().__init__(message)
        self.remedy = remedy or self.default_remedy
        self.__dict__.update(facts)


class ConfigurationError(EventSealError, ValueError):
    """The program or its settings are wrong; nothing was written."""

    default_remedy = "Correct the setting or the argument that the message names."


class KekNotConfiguredError(ConfigurationError):
    """A key is wrapped only under KEKs that this keyring was not given."""

    default_remedy = "Add the KEK to kms= or EVENTSEAL_KMS_KEY, or rewrap the key where it is configured."
    kek_uri: str | None = None


class WrongApplicationError(ConfigurationError):
    """The key belongs to another application than the one configured."""

    default_remedy = "Set the application's name (EVENTSEAL_APPLICATION) to the one that sealed the item."
    expected: str | None = None
    found: str | None = None


class MissingTableError(ConfigurationError):
    """A table, or a column of it, that EventSeal needs is not in the database."""

    default_remedy = "Run `eventseal init`, or call datastore.setup_tables()."
    table: str | None = None


class IntegrityError(EventSealError):
    """
    Authentication failed: bytes, their place or a key's row are not what was sealed.

    One class and, for items, one message, whatever was changed: see :data:`OPAQUE_INTEGRITY_MESSAGE`.
    """

    default_remedy = f"Do not use the item. {REPAIR_ROW}"


OPAQUE_INTEGRITY_MESSAGE = "the item does not authenticate: its bytes, its header or its place were changed"
"""The one message for a bad tag and for bad padding, so that neither can be told from the other."""


class UnknownFormatError(EventSealError):
    """The bytes are not an envelope, or one of a version, suite or compression that is not known here."""

    default_remedy = (
        "Open it with the release that wrote it, or name the older format while you migrate. If the row is "
        "damaged: `eventseal repair --from-backup URL`."
    )
    offset: int | None = None


class EncryptionRequiredError(EventSealError):
    """An item is in plain where encryption is required."""

    default_remedy = "Seal the old items first, or read them with a mapper that does not require encryption."


class SerializationError(EventSealError, TypeError):
    """An event, or the place it is stored at, cannot be turned into bytes, or bytes into an event."""

    default_remedy = "Give the event attributes that JSON or the transcoder knows, or register an encoding."


class KeyNotFoundError(EventSealError):
    """The key store has no key of this id."""

    default_remedy = "Check that the key store belongs to these items, and that it was restored with them."
    key_id: UUID | None = None


class KeyDestroyedError(EventSealError):
    """The key is destroyed, or its scope was closed by a shred; nothing brings it back."""

    default_remedy = "Nothing opens this item again. To write for a shredded scope, reopen it explicitly."
    key_id: UUID | None = None
    scope: str | None = None
    destroyed_by: Literal["retired", "shredded"] | None = None
    scope_reopened: bool = False


class NotMyKeyError(EventSealError):
    """A wrapping is not addressed to this KEK: the only error that lets the next KEK be tried."""

    default_remedy = "Try the KEK that the wrapping names."
    kek_uri: str | None = None


class KmsError(EventSealError):
    """The KMS refused or failed; never a sign of tampering or erasure."""

    default_remedy = "Look at the KMS's own log for the request."
    kek_uri: str | None = None


class KmsUnavailableError(KmsError):
    """The KMS did not answer, is throttling, or failed inside."""

    default_remedy = "Try again; check the network and the KMS's status if it lasts."
    retry_after: float | None = None


class KmsForbiddenError(KmsError):
    """The KMS denied the call."""

    default_remedy = "Grant the caller the permission that the message names, on this KEK."


class KmsKeyStateError(KmsError):
    """The KEK is disabled, pending deletion, deleted or of the wrong kind, or one version of it is."""

    default_remedy = "Enable the KMS key or cancel its deletion; retrying does not help."
    kek_version: str | None = None


class StoreError(EventSealError):
    """The database refused or failed."""

    default_remedy = "Look at the database's own log."


class StoreUnavailableError(StoreError):
    """The database is locked, away or not there; nothing was written."""

    default_remedy = "Try again; check that the database is up and that no long transaction holds it."


class StoreReadOnlyError(StoreError):
    """The database, or its file, cannot be written."""

    default_remedy = "Make the database writable for this user, or use a connection to the primary."


class SequencedItemConflictError(StoreError):
    """The position in the sequence is taken; nothing of the batch was written."""

    default_remedy = "Reload the entity and decide again on its newer state."


class ItemNotFoundError(StoreError, LookupError):
    """There is no item at this position, or no entity of this id."""

    default_remedy = "Check the sequence id and the position."


class KeyClosedError(StoreError):
    """The items were sealed under a key that was retired before they were written; nothing was written."""

    default_remedy = (
        "Refresh the keyring, seal the items again, append once more; the event store does it for you."
    )
    key_ids: Collection[UUID] = ()


class KeyLimitError(EventSealError):
    """A data key has sealed as many items as one key may."""

    default_remedy = "Rotate the key: keyring.rotate(scope)."
    key_id: UUID | None = None


class ItemTooLargeError(EventSealError):
    """An item, or what it decompresses to, is over the configured size."""

    default_remedy = "Raise max_plaintext if items of this size are meant, or split the event."
    size: int | None = None
    limit: int | None = None


class JobError(EventSealError):
    """A maintenance job cannot start or go on."""

    default_remedy = "Read the message; the job resumes from where it stopped."


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
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "UnknownFormatError",
    "WrongApplicationError",
]
