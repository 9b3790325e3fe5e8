"""
The address of Vault and the login, from arguments or ``VAULT_*`` variables.

The adapter logs in at the first call, and again when the token expires.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import hvac
import requests

from eventseal.errors import ConfigurationError
from eventseal_kms.vault.certificates import (
    TLSTransport,
    certificates_in,
    check_client_certificate,
    trusted,
)

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
        Get a token.

        Returns:
            Vault's answer to the login, a mapping whose ``auth`` holds the token and its lease. It may be
            ``None``: then the adapter takes ``client.token``, and looks up its lease.

        Raises:
            ConfigurationError: There are no credentials for the login.
            VaultError: Vault refused the login.
            RequestException: Vault did not answer.
        """
        ...


@dataclass(frozen=True, slots=True, init=False)
class Token:
    """
    A login with a configured token.

    Raises:
        ConfigurationError: It cannot be a token.
    """

    token: str = field(repr=False)

    def __init__(self, token: str) -> None:
        object.__setattr__(self, "token", token)
        del token  # a traceback with locals would show it
        if not _is_header_value(self.token):
            raise _no_token("the Vault token (VAULT_TOKEN)")

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
        client.token = _text_of(self.path, "token file")
        if not _is_header_value(client.token):
            raise _no_token(f"the content of the token file {self.path}")
        return None


@dataclass(frozen=True, slots=True)
class AppRole:
    """A login with a role id and, if required, a secret id."""

    role_id: str
    secret_id: str | None = field(default=None, repr=False)
    mount: str = "approle"

    def __call__(self, client: hvac.Client) -> object:
        """Log in."""
        return client.auth.approle.login(
            self.role_id, self.secret_id, use_token=False, mount_point=self.mount
        )


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
        return client.auth.kubernetes.login(self.role, jwt, use_token=False, mount_point=self.mount)


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
        ca_certificate_pem: The certificates to trust, in PEM form, instead of a file or a folder.
        tls_server_name: The name in the server's certificate, by default the host of the address.
        client_certificate: A certificate and its key, for a Vault that requires one.
        dangerously_skip_verify: Trust any server at the address. Never set it in production.

    Raises:
        ConfigurationError: A value is invalid, or a file is missing or holds something else.
    """

    address: str
    login: Login
    namespace: str | None = None
    ca_certificate: Path | None = None
    ca_certificate_pem: str | None = None
    tls_server_name: str | None = None
    client_certificate: tuple[Path, Path] | None = None
    dangerously_skip_verify: bool = False

    def __post_init__(self) -> None:
        _check_address(self.address)
        if self.namespace is not None and not _is_header_value(self.namespace):
            raise ConfigurationError("the namespace (VAULT_NAMESPACE) has spaces or invalid characters")
        if self.tls_server_name is not None and not _is_host(self.tls_server_name):
            raise ConfigurationError("tls_server_name (VAULT_TLS_SERVER_NAME) is not the name of a host")
        if self.ca_certificate is not None and self.ca_certificate_pem is not None:
            raise ConfigurationError("ca_certificate and ca_certificate_pem exclude each other")
        if self.ca_certificate is not None:
            certificates_in(self.ca_certificate)
        if self.ca_certificate_pem is not None:
            trusted(self.ca_certificate_pem, "ca_certificate_pem (VAULT_CACERT_BYTES)")
        if self.client_certificate is not None:
            check_client_certificate(*self.client_certificate)
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

        They are ``VAULT_ADDR``, ``VAULT_NAMESPACE``, ``VAULT_TLS_SERVER_NAME``, ``VAULT_CLIENT_CERT`` with
        ``VAULT_CLIENT_KEY``, and ``VAULT_SKIP_VERIFY``. The certificates to trust are in the first of
        ``VAULT_CACERT``, ``VAULT_CACERT_BYTES`` and ``VAULT_CAPATH`` that is set. An empty variable counts as
        not set. The login is the first of these that exists:

        - ``VAULT_TOKEN``
        - ``VAULT_TOKEN_FILE``
        - ``VAULT_ROLE_ID`` with ``VAULT_SECRET_ID``
        - ``VAULT_KUBERNETES_ROLE``
        - the file ``~/.vault-token``

        If the login method is not mounted at its default path, ``VAULT_AUTH_MOUNT`` says where.

        Raises:
            ConfigurationError: ``VAULT_ADDR`` is missing, or a value is invalid.
        """
        settings = cls._read(environment)
        del environment  # a traceback with locals would show its secrets
        if isinstance(settings, ConfigurationError):
            raise settings
        return settings

    @classmethod
    def _read(cls, environment: Mapping[str, str]) -> Self | ConfigurationError:
        # Deployments unset a variable by making it empty.
        values = {name: value for name, value in environment.items() if value}
        try:
            return cls(**_options(values))
        except ConfigurationError as error:
            return error.with_traceback(None)

    def make_client(self, *, timeout: float, token: str = "") -> hvac.Client:
        """
        Create a client. This makes no call.

        Args:
            timeout: The time-out of hvac's own methods, in seconds.
            token: A token from an earlier login, or an empty text.
        """
        verify: bool | str = not self.dangerously_skip_verify
        authorities = None
        if verify and self.ca_certificate is not None and not self.ca_certificate.is_dir():
            verify = str(self.ca_certificate)  # read again for each connection, so a renewed file counts
        elif verify and self.ca_certificate is not None:
            authorities = certificates_in(self.ca_certificate)
        elif verify and self.ca_certificate_pem is not None:
            authorities = trusted(self.ca_certificate_pem, "ca_certificate_pem")
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
            session=_session(verify, authorities, self.tls_server_name),
        )


def _session(verify: bool | str, authorities: str | None, server_name: str | None) -> requests.Session:
    session = requests.Session()
    session.verify = verify  # hvac uses the session's setting, and ignores its own argument
    session.auth = _only_the_token
    for prefix in ("https://", "http://"):
        transport = TLSTransport(authorities=authorities, server_name=server_name, pool_maxsize=CONNECTIONS)
        session.mount(prefix, transport)
    return session


def _only_the_token(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep requests from reading a password in ``~/.netrc``, which may be damaged."""
    return request


def _options(values: Mapping[str, str]) -> dict[str, Any]:
    """Return the attributes of the settings that the variables set."""
    certificate, key = values.get("VAULT_CLIENT_CERT"), values.get("VAULT_CLIENT_KEY")
    if (certificate is None) != (key is None):
        raise ConfigurationError("one of VAULT_CLIENT_CERT and VAULT_CLIENT_KEY is missing: set both")
    if "VAULT_ADDR" not in values:
        raise ConfigurationError(
            "VAULT_ADDR is not set, and it has no default",
            remedy="Set VAULT_ADDR=https://<host>:8200, or pass client= or settings=.",
        )
    # The order of Vault's own program.
    file, text, folder = (values.get(f"VAULT_CA{name}") for name in ("CERT", "CERT_BYTES", "PATH"))
    place = file or (None if text else folder)
    return {
        "address": values["VAULT_ADDR"],
        "login": _login(values),
        "namespace": values.get("VAULT_NAMESPACE"),
        "ca_certificate": Path(place) if place else None,
        "ca_certificate_pem": None if place else text,
        "tls_server_name": values.get("VAULT_TLS_SERVER_NAME"),
        "client_certificate": (Path(certificate), Path(key)) if certificate and key else None,
        "dangerously_skip_verify": _truth(values, "VAULT_SKIP_VERIFY"),
    }


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
    home = values.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - never raises, unlike Path.home()
    return TokenFile(Path(home) / TOKEN_FILE)


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
        raise ConfigurationError(
            "the address of Vault (VAULT_ADDR) is not a URL", remedy="Write https://<host>:<port>."
        )


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
        text = path.read_text(encoding="utf-8-sig").strip()
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


def _is_header_value(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[!-~]+", value) is not None


def _is_host(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return re.fullmatch(r"(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?", name, re.ASCII) is not None
    return True


def _no_token(what: str) -> ConfigurationError:
    # It is a secret, so the message does not show the invalid character.
    return ConfigurationError(f"{what} is not a token: it is empty, or has spaces or invalid characters")
