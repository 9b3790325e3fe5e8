"""What a failed call means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    KmsError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
)
from eventseal_kms.vault.exchange import Answer, NoAnswer
from eventseal_kms.vault.meanings import MEANINGS
from eventseal_kms.vault.policies import policy_line

if TYPE_CHECKING:
    from eventseal_kms.vault.transit_key import TransitKey

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
