"""
The errors of failed calls to Vault.

One table maps the status and the words of Vault to EventSeal's errors.
"""

from __future__ import annotations

import re
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
from eventseal_kms.scrubbing import scrubbed
from eventseal_kms.vault.calls import Answer, Kind, NoAnswer

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from eventseal_kms.vault.transit_key import TransitKey

TOO_OLD = "disallowed by policy (too old)"
"""Vault's words for a trimmed version, or one below min_decryption_version."""
TOO_NEW = "version is too new"
"""Vault's words for a version that the transit key lacks."""

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
    The meaning of an answer.

    Attributes:
        statuses: The HTTP statuses. An item that failed in a batch counts as 400.
        words: A part of Vault's message, in lower case. Empty words match every message.
        error: The class of the error.
        text: The event, for the message.
        remedy: The remedy, with ``{mount}`` and ``{name}`` for the transit key. ``None`` keeps that of the
            class.
    """

    statuses: Container[int]
    words: str
    error: type[EventSealError]
    text: str
    remedy: str | None = None


ROW_CHANGED = (
    "Restore the key's row from a backup, and find out who changed it. If the address names another Vault, "
    "or if the transit key was deleted and created again, restore the former Vault or transit key."
)
_CHECK_PATH_TO_VAULT = "Check VAULT_ADDR, and the proxy or load balancer in front of Vault."
_SENTINEL = re.compile(r"\b(egp|rgp)\b.* policy .*evaluation resulted in denial", re.IGNORECASE)
_CREATE_KEY = "Check the URI, then create the key: `vault write {mount}/keys/{name} derived=true`."

# The first row that matches counts, so the narrower rows come first.
MEANINGS: tuple[Meaning, ...] = (
    # --- try again --------------------------------------------------------------------------------
    Meaning({412}, "", KmsUnavailableError, "this node has not caught up with the primary"),
    Meaning(
        {429},
        "",
        KmsUnavailableError,
        "the requests exceed a rate limit quota",
        "Try again later. If this load is normal, raise the quota (sys/quotas/rate-limit).",
    ),
    Meaning(
        {503},
        "sealed",
        KmsUnavailableError,
        "Vault is sealed",
        "Unseal it: `vault operator unseal`. Your application needs no restart.",
    ),
    Meaning(
        range(500, 600),
        "node not active",
        KmsUnavailableError,
        "this node is a standby, and the cluster has no active node",
        "Wait for the election. If it takes long, check the nodes of the cluster.",
    ),
    Meaning(
        {501}, "", KmsUnavailableError, "Vault is not initialised", "Initialise it: `vault operator init`."
    ),
    Meaning(range(500, 600), "", KmsUnavailableError, "Vault had an internal failure"),
    # --- correct the key --------------------------------------------------------------------------
    Meaning(
        {400},
        TOO_OLD,
        KmsKeyStateError,
        "the wrapping is under a key version below min_decryption_version",
        "Run `vault write {mount}/keys/{name}/config min_decryption_version=1`, then `eventseal rewrap`, and "
        "raise the minimum again. If the version was trimmed, only another wrapping of the key or a backup "
        "of Vault helps.",
    ),
    Meaning(
        {400},
        TOO_NEW,
        KmsKeyStateError,
        "the wrapping is under a later version than the transit key has",
        "Restore the newer transit key: Vault runs from an older backup, or the key was deleted and created "
        "again.",
    ),
    Meaning(
        {400},
        "soft-deleted",
        KmsKeyStateError,
        "the transit key is soft-deleted",
        "Restore it: `bao write -f {mount}/keys/{name}/soft-delete-restore`.",
    ),
    Meaning({400}, "encryption key not found", KmsKeyStateError, "there is no such transit key", _CREATE_KEY),
    Meaning(
        {400},
        "not supported for key type",
        KmsKeyStateError,
        "the transit key's type cannot encrypt",
        "Use a derived key of a type that can encrypt: aes256-gcm96.",
    ),
    Meaning(
        {404},
        "no handler for route",
        KmsKeyStateError,
        "no engine is mounted there",
        "Check mount and VAULT_NAMESPACE, or mount it: `vault secrets enable -path={mount} transit`.",
    ),
    Meaning(
        {404},
        "namespace not found",
        KmsKeyStateError,
        "there is no such namespace",
        "Check VAULT_NAMESPACE.",
    ),
    Meaning({404}, "", KmsKeyStateError, "there is no such transit key", _CREATE_KEY),
    Meaning(
        {405},
        "",
        KmsKeyStateError,
        "the engine at this mount is not a transit engine",
        "Check the URI's mount.",
    ),
    # --- stop -------------------------------------------------------------------------------------
    Meaning(
        {400},
        "message authentication failed",
        IntegrityError,
        "the wrapping does not authenticate: its bytes or its encryption context were changed",
        ROW_CHANGED,
    ),
    Meaning(
        {400}, "invalid ciphertext", IntegrityError, "the wrapping does not come from Vault", ROW_CHANGED
    ),
)


_UNANSWERED: Mapping[Kind, tuple[type[EventSealError], str, str | None]] = {
    # --- try again
    "timeout": (KmsUnavailableError, "Vault did not answer in time", None),
    "connection": (KmsUnavailableError, "the connection to Vault failed", None),
    "proxy": (
        KmsUnavailableError,
        "the proxy does not connect to Vault",
        "Check the proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY. To call Vault directly, set NO_PROXY.",
    ),
    "tls": (
        KmsUnavailableError,
        "EventSeal cannot open a trusted TLS connection to Vault",
        (
            "Check VAULT_CACERT, VAULT_CACERT_BYTES or VAULT_CAPATH, VAULT_TLS_SERVER_NAME, "
            "VAULT_CLIENT_CERT, VAULT_CLIENT_KEY, this machine's clock, and the server."
        ),
    ),
    "answer": (KmsUnavailableError, "the answer does not come from Vault", _CHECK_PATH_TO_VAULT),
    # --- correct the settings
    "certificate": (
        ConfigurationError,
        "a file of certificates cannot be used",
        (
            "Correct the path or the file in VAULT_CACERT, VAULT_CAPATH, VAULT_CLIENT_CERT, "
            "VAULT_CLIENT_KEY or REQUESTS_CA_BUNDLE."
        ),
    ),
    "address": (
        ConfigurationError,
        "Vault's address, or the proxy's, is not a URL to call",
        (
            "Correct VAULT_ADDR, such as https://<host>:8200, or the proxy in HTTPS_PROXY, HTTP_PROXY or "
            "ALL_PROXY."
        ),
    ),
    "header": (
        ConfigurationError,
        "the token or the namespace has characters that no header can hold",
        "Correct VAULT_TOKEN, the token file or VAULT_NAMESPACE: none of them may have a line break.",
    ),
    "client": (
        KmsError,
        "the client could not make the call",
        (
            "Check the client or the login function that the program passes, and the releases of hvac and "
            "requests."
        ),
    ),
}


def failure_of(outcome: Answer | NoAnswer, *, path: str, key: TransitKey) -> EventSealError:
    """
    Return the error of a failed call. It is created, not raised.

    Args:
        outcome: The outcome of a call, or of one item of a batch with the status 400.
        path: The path of the call.
        key: The transit key of the call.
    """
    if isinstance(outcome, NoAnswer):
        return _unreachable(outcome, path, key)
    if not outcome.from_vault:
        return KmsUnavailableError(
            f"{path}: the answer does not come from Vault [{outcome.status}]",
            remedy=_CHECK_PATH_TO_VAULT,
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


def mismatch(action: str, *, key: TransitKey) -> KmsError:
    """Return the error of an answer of another form than Vault's."""
    return KmsError(
        f"{action}: Vault's answer does not match the request",
        remedy=_CHECK_PATH_TO_VAULT,
        kek_uri=key.uri,
    )


def item_failure(message: str, *, action: str, key: TransitKey) -> EventSealError:
    """
    Return the error of one item of a batch.

    Args:
        message: Vault's message.
        action: The path, and the data key of the call.
        key: The transit key.
    """
    return failure_of(Answer(_BAD_REQUEST, messages=(message,)), path=action, key=key)


def trimmed(action: str, *, key: TransitKey) -> KmsKeyStateError:
    """Return the error of a wrapping whose key version was deleted."""
    return KmsKeyStateError(
        f"{action}: the wrapping's version of the transit key was trimmed, so it cannot be unwrapped",
        remedy="Use another wrapping of the key, if it has one. Otherwise restore the version from a backup "
        "of Vault.",
        kek_uri=key.uri,
    )


def login_failure(outcome: Answer | NoAnswer, *, key: TransitKey) -> EventSealError:
    """Return the error of a failed login: an outage, or a refusal."""
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


def denied_by_sentinel(outcome: Answer, *, path: str, key: TransitKey) -> KmsForbiddenError | None:
    """Return the error if a Sentinel policy of Vault denied the call."""
    said = _said(outcome)
    found = _SENTINEL.search(said)
    if found is None:
        return None
    return KmsForbiddenError(
        f"{path}: a Sentinel policy of Vault denies the call [{outcome.status}: {said}]",
        remedy=f"Ask Vault's administrator to change the {found[1].upper()} policy that the message names. "
        "No line in an ACL policy of the token can help.",
        kek_uri=key.uri,
    )


def denied_explicitly(path: str, capability: str, *, key: TransitKey) -> KmsForbiddenError:
    """Return the error of a call that a policy denies explicitly."""
    return KmsForbiddenError(
        f"a policy of the token denies {capability} on {path} explicitly",
        remedy='Remove the capability "deny" for this path from the policies of the token. It wins over '
        "every grant, so another line cannot help.",
        kek_uri=key.uri,
    )


def denied(path: str, capability: str, *, key: TransitKey) -> KmsForbiddenError:
    """Return the error of a valid token whose policies deny the call."""
    return KmsForbiddenError(
        f"the token's policies do not grant {capability} on {path}",
        remedy=f"Add to a policy of the token: {policy_line(path, capability)}",
        kek_uri=key.uri,
    )


def token_ended(path: str, *, key: TransitKey) -> KmsForbiddenError:
    """Return the error of a token that Vault no longer knows."""
    return KmsForbiddenError(
        f"{path}: the Vault token has expired or was revoked",
        remedy="Give the process a new token, or a login that gets tokens itself: AppRole, Kubernetes, or "
        "a token file that an agent renews.",
        kek_uri=key.uri,
    )


def is_too_complex(outcome: Answer) -> bool:
    """Return whether fewer items in one call would pass the JSON limits."""
    said = " ".join(outcome.messages).lower()
    return outcome.status == _TOO_LARGE or (
        outcome.status == _BAD_REQUEST and any(words in said for words in _TOO_COMPLEX)
    )


def _said(outcome: Answer) -> str:
    return scrubbed(" ".join("; ".join(outcome.messages).split()), hides_uuids=True)[:_SAID_LIMIT]


def _unreachable(outcome: NoAnswer, path: str, key: TransitKey) -> EventSealError:
    error, text, remedy = _UNANSWERED[outcome.kind]
    return error(
        f"{path}: {text} ({scrubbed(outcome.detail, hides_uuids=True)})", remedy=remedy, kek_uri=key.uri
    )


def policy_line(path: str, capability: str) -> str:
    """Return the HCL statement that grants *capability* on *path*."""
    return f'path "{path}" {{ capabilities = ["{capability}"] }}'
