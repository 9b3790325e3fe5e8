"""The settings of a client that EventSeal creates."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from eventseal.errors import ConfigurationError
from eventseal.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mypy_boto3_kms import KMSClient

MAX_GRANT_TOKENS = 10

_GRANT_TOKEN = "grant_token"  # noqa: S105  (the name of an option)
_QUERY_NAMES = ("profile", "role_arn", "region", "endpoint_url", _GRANT_TOKEN)
_FORMS = {
    "profile": (re.compile(r"\S(?:.*\S)?"), "the name of a profile"),
    "role_arn": (
        re.compile(r"arn:aws(?:-[a-z]+)*:iam::[0-9]{12}:role/[\w+=,.@/-]+", re.ASCII),
        "arn:aws:iam::<account of 12 digits>:role/<name>",
    ),
    "region": (re.compile(r"[a-z]{2,}(?:-[a-z]+)+-[0-9]+"), "a Region, such as eu-west-1"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """
    The settings of an adapter's calls.

    Attributes:
        profile: A profile of the AWS configuration files. ``None``: the one of the environment.
        role_arn: A role to assume with the credentials of the profile or of the environment.
        endpoint_url: The endpoint of KMS. ``None``: the one of the environment or of AWS.
        grant_tokens: Tokens sent with every call that a grant can allow.
        is_given: Whether the user passed a client, to which the other settings do not apply.

    Raises:
        ConfigurationError: A value does not have its form. The error does not repeat it.
    """

    profile: str | None = None
    role_arn: str | None = None
    endpoint_url: str | None = field(default=None, repr=False)
    grant_tokens: Sequence[str] = field(default=(), repr=False)
    is_given: bool = False

    def __post_init__(self) -> None:
        for name in ("profile", "role_arn"):
            check_form(name, getattr(self, name))
        if self.endpoint_url is not None and not _is_endpoint(self.endpoint_url):
            raise ConfigurationError(
                "endpoint_url is not the URL of an endpoint",
                remedy="Write http://host:port or https://host, without user, password and query.",
            )
        _check_grant_tokens(self.grant_tokens)
        useless = [
            name for name in ("profile", "role_arn", "endpoint_url") if getattr(self, name) is not None
        ]
        if self.is_given and useless:
            raise ConfigurationError(
                f"{' and '.join(useless)} cannot be combined with client=",
                remedy="Create the client with these settings, or leave out client=.",
            )

    def in_use(self, variables: Iterable[str]) -> str:
        """
        Return the names of the settings that may be wrong.

        Args:
            variables: The variables that can hold such a value. EventSeal names those that are set, and the
                profile.
        """
        if self.is_given:
            return "client="
        found = [name for name in variables if os.environ.get(name)]
        profile = self.profile or os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
        if profile or not found:
            found.append(f"profile {profile or 'default'}")
        return ", ".join(found)


def read_query(uri: str) -> tuple[str, dict[str, Any]]:
    """
    Split a key URI into the key and its options.

    Args:
        uri: ``aws-kms://<ARN>?profile=...``, or a bare ARN with the same query.

    Returns:
        The URI without its query, and the options by the names of the adapter's arguments.

    Raises:
        ConfigurationError: An option is unknown, empty or given twice, or there is a fragment. The error
            repeats no value.
    """
    key, question_mark, query = uri.partition("?")
    if "#" in uri:
        raise ConfigurationError(
            "the URI of an AWS KMS key has no part after #", remedy="Write # within a value as %23."
        )
    if not question_mark:
        return key, {}
    try:
        pairs = parse_qsl(query, strict_parsing=True, keep_blank_values=True)
    except ValueError:
        raise ConfigurationError(
            f"the options of {key} are not written as name=value&name=value",
            remedy=f"These options exist: {', '.join(_QUERY_NAMES)}.",
        ) from None
    options: dict[str, Any] = {}
    for name, value in pairs:
        if name not in _QUERY_NAMES:
            remedy = did_you_mean(name, _QUERY_NAMES, f"These options exist: {', '.join(_QUERY_NAMES)}.")
            raise ConfigurationError(f"the URI of {key} has an unknown option: {name}", remedy=remedy)
        if name == _GRANT_TOKEN:
            options.setdefault("grant_tokens", []).append(value)
        elif name in options:
            raise ConfigurationError(f"the URI of {key} has the option {name} twice")
        else:
            options[name] = value
    return key, options


def check_form(name: str, value: object) -> None:
    """
    Check one option. ``None`` means that it is not set.

    Raises:
        ConfigurationError: The value does not have the form of the option. The error does not repeat it.
    """
    pattern, form = _FORMS[name]
    if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
        raise ConfigurationError(
            f"{name} is not of the form: {form}", remedy=f"Correct {name}, or remove it."
        )


def check_client(client: KMSClient) -> None:
    """
    Check that a user's client calls KMS, and returns answers, not coroutines.

    Raises:
        ConfigurationError: It is another object. The error names its kind.
    """
    kind = type(client)
    service = getattr(getattr(getattr(client, "meta", None), "service_model", None), "service_name", None)
    if not isinstance(service, str):
        wrong = f"a {kind.__module__}.{kind.__qualname__}"
    elif iscoroutinefunction(getattr(client, "_make_api_call", None)):
        wrong = f"an asynchronous client ({kind.__module__}.{kind.__qualname__})"
    elif service != "kms":
        wrong = f"a client of the service {service}"
    else:
        return
    raise ConfigurationError(
        f"client= is {wrong}, not a KMS client of boto3",
        remedy='Pass boto3.client("kms", region_name=...), or leave out client=.',
    )


def _is_endpoint(value: object) -> bool:
    if not isinstance(value, str) or not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018  (raises if it is no number)
    except ValueError:
        return False
    extra = parts.query or parts.fragment or "@" in parts.netloc
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and not extra


def _check_grant_tokens(tokens: object) -> None:
    if (
        not isinstance(tokens, (list, tuple))
        or len(tokens) > MAX_GRANT_TOKENS
        or not all(isinstance(token, str) and token for token in tokens)
    ):
        raise ConfigurationError(f"grant_tokens takes a list of at most {MAX_GRANT_TOKENS} tokens")
