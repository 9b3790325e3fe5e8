"""The one table from Vault's status and words to EventSeal's errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventseal.errors import IntegrityError, KmsKeyStateError, KmsUnavailableError

if TYPE_CHECKING:
    from eventseal.errors import EventSealError

TOO_OLD = "disallowed by policy (too old)"
"""Vault's words for a version below min_decryption_version, and for one that was trimmed."""
TOO_NEW = "version is too new"
"""Vault's words for a version that the transit key does not have yet."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """
    What an answer means.

    Attributes:
        statuses: Of HTTP; an item that failed in a batch counts as 400.
        words: A part of what Vault says, in lower case; empty: whatever it says.
        error: The class.
        text: What happened.
        remedy: With ``{mount}`` and ``{name}`` of the transit key; ``None``: the class has one.
    """

    statuses: frozenset[int]
    words: str
    error: type[EventSealError]
    text: str
    remedy: str | None = None


def _row(
    statuses: int | range, words: str, error: type[EventSealError], text: str, remedy: str | None = None
) -> Meaning:
    return Meaning(
        frozenset([statuses] if isinstance(statuses, int) else statuses), words, error, text, remedy
    )


ROW_CHANGED = (
    "Do not use the wrapping. Find out who changed the key's row, and restore it from a backup. If another "
    "Vault answers, or the transit key was deleted and made again, then its key of this name is another one."
)
_MAKE_KEY = "Check the URI, then make the key: `vault write {mount}/keys/{name} derived=true`."

# The first row that fits counts, so the narrower ones stand first.
MEANINGS: tuple[Meaning, ...] = (
    # --- try again --------------------------------------------------------------------------------
    _row(412, "", KmsUnavailableError, "this node has not caught up with the primary"),
    _row(
        429,
        "",
        KmsUnavailableError,
        "more requests than a rate limit quota allows",
        "Try again later; raise the quota (sys/quotas/rate-limit) if this load is meant.",
    ),
    _row(
        503,
        "sealed",
        KmsUnavailableError,
        "Vault is sealed",
        "Unseal it: `vault operator unseal`. Nothing here needs a restart.",
    ),
    _row(
        range(500, 600),
        "node not active",
        KmsUnavailableError,
        "this node is a standby and knows no active one",
        "Wait for the election; if it lasts, look at the cluster's nodes.",
    ),
    _row(501, "", KmsUnavailableError, "Vault is not initialised", "Initialise it: `vault operator init`."),
    _row(range(500, 600), "", KmsUnavailableError, "Vault failed inside"),
    # --- mend the key -----------------------------------------------------------------------------
    _row(
        400,
        TOO_OLD,
        KmsKeyStateError,
        "the wrapping is of a key version below min_decryption_version",
        "Lower min_decryption_version (`vault write {mount}/keys/{name}/config min_decryption_version=1`), "
        "rewrap, and raise it then. A version that was trimmed is gone for good: use another wrapping of the "
        "key, or a backup of Vault.",
    ),
    _row(
        400,
        TOO_NEW,
        KmsKeyStateError,
        "the wrapping is of a later version than the transit key has",
        "Vault was restored from an older backup, or the key deleted and made again: restore the newer one.",
    ),
    _row(
        400,
        "soft-deleted",
        KmsKeyStateError,
        "the transit key is soft-deleted",
        "Restore it: `bao write -f {mount}/keys/{name}/soft-delete-restore`.",
    ),
    _row(400, "encryption key not found", KmsKeyStateError, "there is no such transit key", _MAKE_KEY),
    _row(
        400,
        "not supported for key type",
        KmsKeyStateError,
        "the transit key does not encrypt",
        "Use a derived key of a type that does: aes256-gcm96.",
    ),
    _row(
        404,
        "no handler for route",
        KmsKeyStateError,
        "nothing is mounted there",
        "Check mount and VAULT_NAMESPACE, or mount it: `vault secrets enable -path={mount} transit`.",
    ),
    _row(
        404,
        "namespace not found",
        KmsKeyStateError,
        "there is no such namespace",
        "Check VAULT_NAMESPACE.",
    ),
    _row(404, "", KmsKeyStateError, "there is no such transit key", _MAKE_KEY),
    _row(
        405,
        "",
        KmsKeyStateError,
        "what is mounted there is no transit engine",
        "Check the URI's mount.",
    ),
    # --- stop -------------------------------------------------------------------------------------
    _row(
        400,
        "message authentication failed",
        IntegrityError,
        "the wrapping does not authenticate: its bytes, or the key it belongs to, were changed",
        ROW_CHANGED,
    ),
    _row(400, "invalid ciphertext", IntegrityError, "the wrapping is not what Vault wrote", ROW_CHANGED),
)
