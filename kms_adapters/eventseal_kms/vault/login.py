"""The ways to a token. Each is called with the client at the first call, and again when the token ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    import hvac

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


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
