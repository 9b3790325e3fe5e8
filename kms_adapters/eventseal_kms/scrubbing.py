"""Hides secrets in texts of vendors and their clients."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HIDDEN = "***"
_SHORTEST_SECRET = 6

_SECRET_VARIABLES = re.compile(
    r"AWS_(?:SECRET_ACCESS_KEY|SESSION_TOKEN|SECURITY_TOKEN|CONTAINER_AUTHORIZATION_TOKEN|BEARER_TOKEN\w*)"
    r"|VAULT_TOKEN"
)
# Secrets that only their form shows: of a profile, a role or a request. No usual part of an ARN is that long:
# secret keys have 40 characters, wrapped and plaintext keys at least 43 in base64 and 64 in hex.
_SECRET_FORMS = re.compile(
    r"AWS4-HMAC-SHA256[^\n]*"  # the header Authorization
    r"|\bA[KS]IA[A-Z0-9]{8,}"
    r"|\b(?:hv[bcrs]|[brs])\.[\w.-]{8,}"  # tokens of Vault
    r"|\beyJ[\w-]+\.[\w-]+(?:\.[\w-]+)?"  # JWTs
    r"|(?<=://)[^/\s]+(?=@)"  # users and passwords in URLs
    r"|[A-Za-z0-9+/=]{40,}"
    r"|[\w-]{43,}=*"
)
_UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")


def scrubbed(text: str, secrets: Iterable[str] = (), *, hides_uuids: bool = False) -> str:
    """
    Return *text* without secrets.

    Args:
        text: Words of a vendor or its client.
        secrets: Secrets to hide, in addition to those in the environment and to everything that looks like a
            key, a token or a password. A secret of fewer than 6 characters is also a part of common words,
            and is not looked for.
        hides_uuids: Whether a UUID is a secret, as Vault's secret ids are. The ids of AWS KMS keys are not.
    """
    for secret in sorted({*secrets, *_in_environment()}, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    text = _SECRET_FORMS.sub(HIDDEN, text)
    return _UUID.sub(HIDDEN, text) if hides_uuids else text


def _in_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if _SECRET_VARIABLES.fullmatch(name):
            yield value
        elif "://" in value and "@" in value:  # such as the password of a proxy
            password = value.partition("://")[2].rpartition("@")[0].partition(":")[2]
            yield from (password, unquote(password))
