"""
What a failed call means: which error, what happened to which transit key, and what to do.

One table leads from Vault's status and words to EventSeal's errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KmsError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
)
from eventseal_kms.vault.calls import Answer, NoAnswer

if TYPE_CHECKING:
    from collections.abc import Container

    from eventseal_kms.vault.transit_key import TransitKey

TOO_OLD = "disallowed by policy (too old)"
"""Vault's words for a version below min_decryption_version, and for one that was trimmed."""
TOO_NEW = "version is too new"
"""Vault's words for a version that the transit key does not have yet."""

_SAID_LIMIT = 300
_TOO_COMPLEX = (
    "json input due to high complexity",
    "exceeded maximum",
    "exceeds maximum",
    "request body too large",
)
_TOO_LARGE = 413
_BAD_REQUEST = 400
_SERVER_ERROR = 500
_WRONG_LOGIN = (
    "Check the login: the role, its secret id (it may have expired), and the mount of the login method."
)


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

    statuses: Container[int]
    words: str
    error: type[EventSealError]
    text: str
    remedy: str | None = None


ROW_CHANGED = (
    "Do not use the wrapping. Find out who changed the key's row, and restore it from a backup. If another "
    "Vault answers, or the transit key was deleted and made again, then its key of this name is another one."
)
_MAKE_KEY = "Check the URI, then make the key: `vault write {mount}/keys/{name} derived=true`."

# The first row that fits counts, so the narrower ones stand first.
MEANINGS: tuple[Meaning, ...] = (
    # --- try again --------------------------------------------------------------------------------
    Meaning({412}, "", KmsUnavailableError, "this node has not caught up with the primary"),
    Meaning(
        {429},
        "",
        KmsUnavailableError,
        "more requests than a rate limit quota allows",
        "Try again later; raise the quota (sys/quotas/rate-limit) if this load is meant.",
    ),
    Meaning(
        {503},
        "sealed",
        KmsUnavailableError,
        "Vault is sealed",
        "Unseal it: `vault operator unseal`. Nothing here needs a restart.",
    ),
    Meaning(
        range(500, 600),
        "node not active",
        KmsUnavailableError,
        "this node is a standby and knows no active one",
        "Wait for the election; if it lasts, look at the cluster's nodes.",
    ),
    Meaning(
        {501}, "", KmsUnavailableError, "Vault is not initialised", "Initialise it: `vault operator init`."
    ),
    Meaning(range(500, 600), "", KmsUnavailableError, "Vault failed inside"),
    # --- mend the key -----------------------------------------------------------------------------
    Meaning(
        {400},
        TOO_OLD,
        KmsKeyStateError,
        "the wrapping is of a key version below min_decryption_version",
        "Lower min_decryption_version (`vault write {mount}/keys/{name}/config min_decryption_version=1`), "
        "rewrap, and raise it then. A version that was trimmed is gone for good: use another wrapping of the "
        "key, or a backup of Vault.",
    ),
    Meaning(
        {400},
        TOO_NEW,
        KmsKeyStateError,
        "the wrapping is of a later version than the transit key has",
        "Vault was restored from an older backup, or the key deleted and made again: restore the newer one.",
    ),
    Meaning(
        {400},
        "soft-deleted",
        KmsKeyStateError,
        "the transit key is soft-deleted",
        "Restore it: `bao write -f {mount}/keys/{name}/soft-delete-restore`.",
    ),
    Meaning({400}, "encryption key not found", KmsKeyStateError, "there is no such transit key", _MAKE_KEY),
    Meaning(
        {400},
        "not supported for key type",
        KmsKeyStateError,
        "the transit key does not encrypt",
        "Use a derived key of a type that does: aes256-gcm96.",
    ),
    Meaning(
        {404},
        "no handler for route",
        KmsKeyStateError,
        "nothing is mounted there",
        "Check mount and VAULT_NAMESPACE, or mount it: `vault secrets enable -path={mount} transit`.",
    ),
    Meaning(
        {404},
        "namespace not found",
        KmsKeyStateError,
        "there is no such namespace",
        "Check VAULT_NAMESPACE.",
    ),
    Meaning({404}, "", KmsKeyStateError, "there is no such transit key", _MAKE_KEY),
    Meaning(
        {405},
        "",
        KmsKeyStateError,
        "what is mounted there is no transit engine",
        "Check the URI's mount.",
    ),
    # --- stop -------------------------------------------------------------------------------------
    Meaning(
        {400},
        "message authentication failed",
        IntegrityError,
        "the wrapping does not authenticate: its bytes, or the key it belongs to, were changed",
        ROW_CHANGED,
    ),
    Meaning({400}, "invalid ciphertext", IntegrityError, "the wrapping is not what Vault wrote", ROW_CHANGED),
)


def failure_of(outcome: Answer | NoAnswer, *, path: str, key: TransitKey) -> EventSealError:
    """
    Say what a call that failed means; the error is made, not raised.

    Args:
        outcome: Of a call, or of one item of a batch (then with status 400).
        path: That was called.
        key: For which key.
    """
    if isinstance(outcome, NoAnswer):
        return _unreachable(outcome, path, key)
    if not outcome.from_vault:
        return KmsUnavailableError(
            f"{path}: what answered is not Vault [{outcome.status}]",
            remedy="Check VAULT_ADDR, and the proxy or load balancer before Vault.",
            kek_uri=key.uri,
            retry_after=outcome.retry_after,
        )
    said = _said(outcome)
    meaning = next(
        (row for row in MEANINGS if outcome.status in row.statuses and row.words in said.lower()),
        None,
    )
    where = f"[{outcome.status}{': ' + said if said else ''}]"
    if meaning is None:
        return KmsError(f"{path}: Vault refused the call {where}", kek_uri=key.uri)
    error = meaning.error(
        f"{path}: {meaning.text} {where}",
        remedy=meaning.remedy and meaning.remedy.format(mount=key.mount, name=key.name),
        kek_uri=key.uri,
    )
    if isinstance(error, KmsUnavailableError):
        error.retry_after = outcome.retry_after
    return error


def item_failure(message: str, *, action: str, key: TransitKey) -> EventSealError:
    """
    Say what the error of one item of a batch means.

    Args:
        message: Vault's.
        action: The path, and for which key of ours.
        key: The transit key.
    """
    return failure_of(Answer(_BAD_REQUEST, messages=(message,)), path=action, key=key)


def trimmed(action: str, *, key: TransitKey) -> KmsKeyStateError:
    """The wrapping's key version was deleted."""
    return KmsKeyStateError(
        f"{action}: the wrapping's version of the transit key was trimmed, so it opens no more",
        remedy="Use another wrapping of the key, if it has one. Only a backup of Vault holds the version.",
        kek_uri=key.uri,
    )


def login_failure(outcome: Answer | NoAnswer, *, key: TransitKey) -> EventSealError:
    """Say why there is no token: an outage, or a login that Vault does not accept."""
    if (
        isinstance(outcome, Answer)
        and outcome.from_vault
        and _BAD_REQUEST <= outcome.status < _SERVER_ERROR
        and not outcome.may_heal
    ):
        said = _said(outcome) or "no reason given"
        return KmsForbiddenError(
            f"Vault does not accept the login [{outcome.status}: {said}]",
            remedy=_WRONG_LOGIN,
            kek_uri=key.uri,
        )
    return failure_of(outcome, path="login", key=key)


def denied(path: str, capability: str, *, key: TransitKey) -> KmsForbiddenError:
    """The token is good, and its policies do not grant the call."""
    return KmsForbiddenError(
        f"the token's policies do not grant {capability} on {path}",
        remedy=f"Add to a policy of the token: {policy_line(path, capability)}",
        kek_uri=key.uri,
    )


def token_ended(path: str, *, key: TransitKey) -> KmsForbiddenError:
    """Vault knows the token no more."""
    return KmsForbiddenError(
        f"{path}: the Vault token has expired or was revoked",
        remedy="Give the process a new token, or a login that gets one by itself: AppRole, Kubernetes, or a "
        "token file that an agent renews.",
        kek_uri=key.uri,
    )


def is_too_complex(outcome: Answer) -> bool:
    """Whether fewer items in one call would pass the server's limits on JSON."""
    said = " ".join(outcome.messages).lower()
    return outcome.status == _TOO_LARGE or (
        outcome.status == _BAD_REQUEST and any(words in said for words in _TOO_COMPLEX)
    )


def _said(outcome: Answer) -> str:
    return " ".join("; ".join(outcome.messages).split())[:_SAID_LIMIT]


def _unreachable(outcome: NoAnswer, path: str, key: TransitKey) -> EventSealError:
    if outcome.kind == "address":
        return ConfigurationError(
            f"{path}: no request could be made of Vault's address ({outcome.detail})",
            remedy="Write https://<host>:<port>.",
        )
    text, remedy = {
        "timeout": ("Vault did not answer in time", None),
        "connection": ("the connection to Vault failed", None),
        "tls": (
            "no trusted TLS connection to Vault could be made",
            "Check VAULT_CACERT, VAULT_CLIENT_CERT, VAULT_CLIENT_KEY, this machine's clock, and who answers.",
        ),
    }[outcome.kind]
    return KmsUnavailableError(f"{path}: {text} ({outcome.detail})", remedy=remedy, kek_uri=key.uri)


def policy_line(path: str, capability: str) -> str:
    """Write the HCL statement that grants *capability* on *path*."""
    return f'path "{path}" {{ capabilities = ["{capability}"] }}'
