"""
The address of Vault and the login, from arguments or ``VAULT_*`` variables.

The adapter logs in at the first call, and again when the token expires.
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
"""The connections kept open, as many as a keyring's calls in flight."""

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
TOKEN_FILE = ".vault-token"  # noqa: S105  (the file to which `vault login` writes a token)
_TRUE = frozenset({"1", "t", "true"})
_FALSE = frozenset({"0", "f", "false", ""})


class Login(Protocol):
    """
    A function that logs in to Vault and gets a token.

    You can use any login method of hvac: ``lambda client: client.auth.aws.iam_login(...)``.
    """

    def __call__(self, client: hvac.Client) -> object:
        """
        Store a token in ``client.token``.

        Returns:
            Vault's answer to the login, a mapping whose ``auth`` holds the lease. It is ``None`` if there was
            no login. Then the adapter looks up the lease.

        Raises:
            ConfigurationError: There are no credentials for the login.
            VaultError: Vault refused the login.
            RequestException: Vault did not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Token:
    """A login with a configured token."""

    token: str = field(repr=False)

    def __post_init__(self) -> None:
        _check_token(self.token, "the Vault token")

    def __call__(self, client: hvac.Client) -> object:
        """Use the token."""
        client.token = self.token
        return None


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A login with a token file, such as a Vault agent's."""

    path: Path

    def __call__(self, client: hvac.Client) -> object:
        """Read the file, again whenever the token expires."""
        token = _text_of(self.path, "token file")
        _check_token(token, f"the content of the token file {self.path}")
        client.token = token
        return None


@dataclass(frozen=True, slots=True)
class AppRole:
    """A login with a role id and, if required, a secret id."""

    role_id: str
    secret_id: str | None = field(default=None, repr=False)
    mount: str = "approle"

    def __call__(self, client: hvac.Client) -> object:
        """Log in."""
        return client.auth.approle.login(self.role_id, self.secret_id, mount_point=self.mount)


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """
    A login as the pod's service account.

    Each login reads the account's token again, because the kubelet renews it.
    """

    role: str
    mount: str = "kubernetes"
    token_path: Path = SERVICE_ACCOUNT_TOKEN

    def __call__(self, client: hvac.Client) -> object:
        """Log in."""
        jwt = _text_of(self.token_path, "service account token")
        return client.auth.kubernetes.login(self.role, jwt, mount_point=self.mount)


class InsecureVaultWarning(UserWarning):
    """Someone between this process and Vault can read every key in transit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultSettings:
    """
    The address of Vault or OpenBao, and the login.

    Attributes:
        address: ``https://host:port``.
        login: The function that gets a token.
        namespace: The namespace that holds the mount, if it is not the root.
        ca_certificate: A file or a folder of certificates to trust, by default those of requests.
        client_certificate: A certificate and its key, for a Vault that requires one.
        dangerously_skip_verify: Trust any server at the address. Never set it in production.

    Raises:
        ConfigurationError: The address is invalid, or a file is missing.
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
                f"EventSeal does not verify the certificate of {self.address}",
                "Name its CA in VAULT_CACERT instead.",
            )
        elif not _is_private(self.address):
            _warn(f"keys travel unencrypted to {self.address}", "Use https.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """
        Read the variables of Vault's own program, and some more.

        They are ``VAULT_ADDR``, ``VAULT_NAMESPACE``, ``VAULT_CACERT``, ``VAULT_CLIENT_CERT`` with
        ``VAULT_CLIENT_KEY``, and ``VAULT_SKIP_VERIFY``. The login is the first of these that exists:

        - ``VAULT_TOKEN``
        - ``VAULT_TOKEN_FILE``
        - ``VAULT_ROLE_ID`` with ``VAULT_SECRET_ID``
        - ``VAULT_KUBERNETES_ROLE``
        - the file ``~/.vault-token``

        If the login method is not mounted at its default path, ``VAULT_AUTH_MOUNT`` says where.

        Raises:
            ConfigurationError: ``VAULT_ADDR`` is missing, or a value is invalid.
        """
        # Deployments unset a variable by making it empty.
        values = {name: value for name, value in environment.items() if value}
        certificate, key = values.get("VAULT_CLIENT_CERT"), values.get("VAULT_CLIENT_KEY")
        if (certificate is None) != (key is None):
            raise ConfigurationError("one of VAULT_CLIENT_CERT and VAULT_CLIENT_KEY is missing: set both")
        if "VAULT_ADDR" not in values:
            raise ConfigurationError(
                "VAULT_ADDR is not set, and it has no default",
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
        Create a client. This makes no call.

        Args:
            timeout: The time-out of hvac's own methods, in seconds.
            token: A token from an earlier login, or an empty text.
        """
        verify: bool | str = not self.dangerously_skip_verify
        if verify and self.ca_certificate is not None:
            verify = str(self.ca_certificate)
        pair = self.client_certificate
        # Fractions of seconds work, because hvac passes them to requests unchanged.
        seconds: Any = timeout
        # Without a token, hvac would search for one. An empty token prevents that.
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
    session.verify = verify  # hvac uses the session's setting, and ignores its own argument
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
        raise ConfigurationError(f"{name} must be true or false, not {value!r}")
    return value in _TRUE


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        _ = parts.port  # parsed on access
    except ValueError:
        parts = urlsplit("")
    good = parts.scheme in {"http", "https"} and parts.hostname and not (parts.query or parts.fragment)
    if not good or parts.username is not None:
        # The address may contain a password, so the message does not show it.
        raise ConfigurationError("the address of Vault is not a URL", remedy="Write https://<host>:<port>.")


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
        f"{what}: anyone in between can read every key in transit. {instead}",
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
            f"the {what} {path} cannot be read: {reason}",
            remedy="Log in (`vault login`), start the agent that writes it, or configure another login.",
        )
    return text


def _check_token(token: str, what: str) -> None:
    # It travels in a header. It is a secret, so the message does not show the invalid character.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(f"{what} is not a token: it is empty, or has spaces or invalid characters")
