"""
Where Vault is, and how to get in: given, or read from the ``VAULT_*`` variables.

A login is called with the client at the first call, and again when the token ends.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import hvac
import requests
from requests.adapters import HTTPAdapter

from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

CONNECTIONS = 20
"""How many connections are kept open: as many as a keyring has calls in flight."""

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
TOKEN_FILE = ".vault-token"  # noqa: S105  (the name of the file in which `vault login` leaves a token)
_TRUE = frozenset({"1", "t", "true"})
_FALSE = frozenset({"0", "f", "false", ""})


class Login(Protocol):
    """
    Gets a token.

    Any of hvac's own login methods will do: ``lambda client: client.auth.aws.iam_login(...)``.
    """

    def __call__(self, client: hvac.Client) -> object:
        """
        Leave a token in ``client.token``.

        Returns:
            Vault's answer to the login, a mapping whose ``auth`` tells the lease; ``None`` if there was no
            login: then the lease is looked up.

        Raises:
            ConfigurationError: There is nothing to log in with.
            VaultError: Vault refused; requests' exceptions if it did not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was given."""

    token: str = field(repr=False)

    def __post_init__(self) -> None:
        _check_token(self.token, "the Vault token")

    def __call__(self, client: hvac.Client) -> object:
        """Take it."""
        client.token = self.token
        return None


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A token in a file, such as a Vault agent writes; read again when the token ends."""

    path: Path

    def __call__(self, client: hvac.Client) -> object:
        """Read it."""
        token = _text_of(self.path, "token file")
        _check_token(token, f"what the token file {self.path} holds")
        client.token = token
        return None


@dataclass(frozen=True, slots=True)
class AppRole:
    """A role id, with a secret id unless the role does without."""

    role_id: str
    secret_id: str | None = field(default=None, repr=False)
    mount: str = "approle"

    def __call__(self, client: hvac.Client) -> object:
        """Log in."""
        return client.auth.approle.login(self.role_id, self.secret_id, mount_point=self.mount)


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """The pod's service account, whose token is read again at each login, since the kubelet renews it."""

    role: str
    mount: str = "kubernetes"
    token_path: Path = SERVICE_ACCOUNT_TOKEN

    def __call__(self, client: hvac.Client) -> object:
        """Log in."""
        jwt = _text_of(self.token_path, "service account token")
        return client.auth.kubernetes.login(self.role, jwt, mount_point=self.mount)


class InsecureVaultWarning(UserWarning):
    """Whoever stands between this process and Vault can read every key that passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultSettings:
    """
    Where Vault or OpenBao is, and how to get in.

    Attributes:
        address: ``https://host:port``.
        login: How to get a token.
        namespace: The namespace that holds the mount, if not the root.
        ca_certificate: A file or a folder of certificates to trust; by default those that requests trusts.
        client_certificate: A certificate and its key, for a Vault that asks for one.
        dangerously_skip_verify: Trust whoever answers at the address. Never in production.

    Raises:
        ConfigurationError: The address is none, or a file is not there.
    """

    address: str
    login: Login
    namespace: str | None = None
    ca_certificate: Path | None = None
    client_certificate: tuple[Path, Path] | None = None
    dangerously_skip_verify: bool = False

    def __post_init__(self) -> None:
        _check_address(self.address)
        for path in (self.ca_certificate, *(self.client_certificate or ())):
            if path is not None and not path.exists():
                raise ConfigurationError(f"there is no certificate or key at {path}")
        if self.dangerously_skip_verify:
            _warn(
                f"the certificate of {self.address} is not verified", "Name its CA in VAULT_CACERT instead."
            )
        elif not _is_private(self.address):
            _warn(f"keys travel in the clear to {self.address}", "Use https.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """
        Read the settings from the variables that Vault's own program reads, and a few beside them.

        They are ``VAULT_ADDR``, ``VAULT_NAMESPACE``, ``VAULT_CACERT``, ``VAULT_CLIENT_CERT`` with
        ``VAULT_CLIENT_KEY``, ``VAULT_SKIP_VERIFY``, and the first of these logins that is there:
        ``VAULT_TOKEN``; ``VAULT_TOKEN_FILE``; ``VAULT_ROLE_ID`` with ``VAULT_SECRET_ID``;
        ``VAULT_KUBERNETES_ROLE``; the file ``~/.vault-token``. ``VAULT_AUTH_MOUNT`` is where the login method
        is mounted, if not at its own name.

        Raises:
            ConfigurationError: ``VAULT_ADDR`` is missing, or a value cannot be used.
        """
        # An empty variable is how a deployment unsets one.
        values = {name: value for name, value in environment.items() if value}
        certificate, key = values.get("VAULT_CLIENT_CERT"), values.get("VAULT_CLIENT_KEY")
        if (certificate is None) != (key is None):
            raise ConfigurationError("VAULT_CLIENT_CERT and VAULT_CLIENT_KEY go together; one is missing")
        if "VAULT_ADDR" not in values:
            raise ConfigurationError(
                "VAULT_ADDR is not set, and there is no Vault to assume",
                remedy="Set VAULT_ADDR=https://<host>:8200, or pass client= or settings=.",
            )
        ca_certificate = values.get("VAULT_CACERT")
        return cls(
            address=values["VAULT_ADDR"],
            login=_login(values),
            namespace=values.get("VAULT_NAMESPACE"),
            ca_certificate=Path(ca_certificate) if ca_certificate else None,
            client_certificate=(Path(certificate), Path(key)) if certificate and key else None,
            dangerously_skip_verify=_truth(values, "VAULT_SKIP_VERIFY"),
        )

    def make_client(self, *, timeout: float, token: str = "") -> hvac.Client:
        """
        Create a client, without any call.

        Args:
            timeout: Seconds for hvac's own methods.
            token: One that was got before; empty if there is none.
        """
        verify: bool | str = not self.dangerously_skip_verify
        if verify and self.ca_certificate is not None:
            verify = str(self.ca_certificate)
        pair = self.client_certificate
        # Seconds may be fractions: hvac hands them to requests as they are.
        seconds: Any = timeout
        # With no token given, hvac would look for one by itself: an empty one keeps it from that.
        return hvac.Client(
            url=self.address,
            token=token,
            namespace=self.namespace,
            verify=verify,
            cert=(str(pair[0]), str(pair[1])) if pair else None,
            timeout=seconds,
            session=_session(verify),
        )


def _session(verify: bool | str) -> requests.Session:
    session = requests.Session()
    session.verify = verify  # hvac goes by the session's, and not by what it is told itself
    for prefix in ("https://", "http://"):
        session.mount(prefix, HTTPAdapter(pool_maxsize=CONNECTIONS))
    return session


def _login(values: Mapping[str, str]) -> Login:
    mount = values.get("VAULT_AUTH_MOUNT", "").strip("/")
    if "VAULT_TOKEN" in values:
        return Token(values["VAULT_TOKEN"])
    if "VAULT_TOKEN_FILE" in values:
        return TokenFile(Path(values["VAULT_TOKEN_FILE"]))
    if "VAULT_ROLE_ID" in values:
        return AppRole(values["VAULT_ROLE_ID"], values.get("VAULT_SECRET_ID"), mount=mount or "approle")
    if "VAULT_KUBERNETES_ROLE" in values:
        return Kubernetes(values["VAULT_KUBERNETES_ROLE"], mount=mount or "kubernetes")
    return TokenFile(Path(values.get("HOME") or Path.home()) / TOKEN_FILE)


def _truth(values: Mapping[str, str], name: str) -> bool:
    value = values.get(name, "").lower()
    if value not in _TRUE | _FALSE:
        raise ConfigurationError(f"{name} is {value!r}; it must be true or false")
    return value in _TRUE


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        _ = parts.port  # parsed when asked for
    except ValueError:
        parts = urlsplit("")
    good = parts.scheme in {"http", "https"} and parts.hostname and not (parts.query or parts.fragment)
    if not good or parts.username is not None:
        # It may hold a password, so it is not shown.
        raise ConfigurationError("the address of Vault is no address", remedy="Write https://<host>:<port>.")


def _is_private(address: str) -> bool:
    parts = urlsplit(address)
    host = parts.hostname or ""
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return parts.scheme == "https" or loopback


def _warn(what: str, instead: str) -> None:
    warnings.warn(
        f"{what}: whoever stands in between can read every key that passes. {instead}",
        InsecureVaultWarning,
        stacklevel=4,
    )


def _text_of(path: Path, what: str) -> str:
    reason = "it is empty"
    try:
        text = path.read_text().strip()
    except OSError as error:
        text, reason = "", error.strerror or type(error).__name__
    except UnicodeDecodeError:
        text, reason = "", "it is not text"
    if not text:
        raise ConfigurationError(
            f"there is no {what} to read at {path}: {reason}",
            remedy="Log in (`vault login`), start the agent that writes it, or configure another login.",
        )
    return text


def _check_token(token: str, what: str) -> None:
    # It travels in a header; what is wrong with it is not shown, since it is a secret.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(f"{what} is no token: empty, or with spaces or signs that no token has")
