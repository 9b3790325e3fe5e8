"""Hides secrets in words of Vault that a message quotes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HIDDEN = "***"
_SHORTEST_SECRET = 8

# Secrets that their form shows: tokens, secret ids, JWTs, passwords in URLs, and keys in base64 or hex.
_SECRET_FORMS = re.compile(
    r"\b(?:hv[bcrs]|[brs])\.[\w.-]{8,}"
    r"|\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
    r"|\beyJ[\w-]+\.[\w-]+(?:\.[\w-]+)?"
    r"|(?<=://)[^/\s]+(?=@)"
    r"|[A-Za-z0-9+/=]{40,}"
    r"|[\w-]{43,}=*"
)


def scrubbed(text: str, secrets: Iterable[str] = ()) -> str:
    """
    Return *text* without secrets.

    Args:
        text: Words of Vault, hvac or requests.
        secrets: Secrets to hide, in addition to everything that looks like one.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:  # a shorter one, as in a test, is also a part of common words
            text = text.replace(secret, HIDDEN)
    return _SECRET_FORMS.sub(HIDDEN, text)
