"""The certificates of TLS connections to Vault."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter

from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_CHECK_AUTHORITIES = (
    "Check ca_certificate (VAULT_CACERT: a file, VAULT_CAPATH: a folder) or ca_certificate_pem "
    "(VAULT_CACERT_BYTES: the text itself)."
)
_CHECK_CLIENT = (
    "Check client_certificate: VAULT_CLIENT_CERT and VAULT_CLIENT_KEY. The key may have no passphrase."
)


class TLSTransport(HTTPAdapter):
    """
    A transport of requests with its own authorities and server name.

    Args:
        authorities: The certificates to trust, in PEM form. ``None``: those that the session names.
        server_name: The name to request from the server, and to find in its certificate. ``None``: the host
            of the address.
        options: Arguments of the base class.
    """

    def __init__(self, *, authorities: str | None, server_name: str | None, **options: Any) -> None:
        wanted = {"ca_cert_data": authorities, "server_hostname": server_name}
        self._tls = {name: value for name, value in wanted.items() if value is not None}
        super().__init__(**options)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        """Create the pool of direct connections."""
        options |= self._tls
        super().init_poolmanager(connections, maxsize, block=block, **options)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Return the pool of connections through a proxy."""
        return super().proxy_manager_for(proxy, **options, **self._tls)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Set the certificates of a pool."""
        super().cert_verify(conn, url, verify, cert)
        if "ca_cert_data" in self._tls:  # requests would trust its own authorities too
            conn.ca_certs = None


def certificates_in(place: Path) -> str:
    """
    Return the certificates in a file, or in a folder of files.

    Raises:
        ConfigurationError: A file cannot be read, or there is no certificate.
    """
    try:
        # Unlike requests, Vault's own program needs no names that are hashes.
        files = sorted(file for file in place.iterdir() if file.is_file()) if place.is_dir() else [place]
        text = "\n".join([file.read_text(encoding="utf-8", errors="replace") for file in files])
    except OSError as error:
        raise ConfigurationError(
            f"the certificates in {place} cannot be read: {error.strerror}", remedy=_CHECK_AUTHORITIES
        ) from None
    return trusted(text, str(place))


def trusted(text: str, source: str) -> str:
    """
    Return the certificates in a text, in PEM form.

    Args:
        text: The certificates, perhaps with other text between them.
        source: The place of the text, for the message.

    Raises:
        ConfigurationError: There is no certificate, or a damaged one.
    """
    found = "\n".join(_CERTIFICATE.findall(text))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found)
    except (ssl.SSLError, TypeError, ValueError):
        raise ConfigurationError(
            f"{source} has no valid certificate in PEM form", remedy=_CHECK_AUTHORITIES
        ) from None
    return found


def check_client_certificate(certificate: Path, key: Path) -> None:
    """
    Check that a client certificate and its key are usable.

    Raises:
        ConfigurationError: A file is missing or damaged, the two do not match, or the key has a passphrase.
    """
    try:
        # Without a password of its own, OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=str)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise ConfigurationError(
            f"the client certificate {certificate} with the key {key} cannot be used: {reason}",
            remedy=_CHECK_CLIENT,
        ) from None
