"""Hides secrets in texts of AWS and botocore."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HIDDEN = "***"

_SECRET_VARIABLES = re.compile(
    r"AWS_(?:SECRET_ACCESS_KEY|SESSION_TOKEN|SECURITY_TOKEN|CONTAINER_AUTHORIZATION_TOKEN|BEARER_TOKEN\w*)"
)
# Secrets that only their form shows: of a profile, a role or a request. No part of an ARN is that long:
# secret keys have 40 characters, wrapped and plaintext keys at least 43 in base64 and 64 in hex.
_SECRET_FORMS = re.compile(
    r"AWS4-HMAC-SHA256[^\n]*"  # the header Authorization
    r"|\bA[KS]IA[A-Z0-9]{8,}"
    r"|[A-Za-z0-9+/=]{40,}"
    r"|(?<=://)[^/\s@]+(?=@)"
)


def scrubbed(text: str, secrets: Iterable[str] = ()) -> str:
    """
    Return *text* without secrets.

    Args:
        text: Words of AWS or botocore.
        secrets: Secrets to hide, in addition to those in the environment and to everything that looks like a
            key, a token or a password.
    """
    for secret in sorted({*secrets, *_in_environment()}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN) if secret else text
    return _SECRET_FORMS.sub(HIDDEN, text)


def host_of(url: str) -> str:
    """Return only the host and the port of a URL. The rest may be secret."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _in_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if _SECRET_VARIABLES.fullmatch(name):
            yield value
        elif "://" in value and "@" in value:  # such as the password of a proxy
            password = value.partition("://")[2].rpartition("@")[0].partition(":")[2]
            yield from (password, unquote(password))
