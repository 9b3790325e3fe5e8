"""Transit keys: their names, their paths in Vault, and their ciphertexts."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from typing import Self

SCHEME = "vault-transit://"
_SEGMENT = r"\w(?:[\w.-]*\w)?"
_NAME = re.compile(_SEGMENT, re.ASCII)
_MOUNT = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*", re.ASCII)
_CIPHERTEXT = re.compile(rb"vault:(v[1-9][0-9]{0,8}):([A-Za-z0-9+/]+={0,2})")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class TransitKey:
    """
    A key of a transit engine.

    Its URI contains neither address nor namespace, because a Vault can move and can have several addresses.
    If you use the keys of two Vaults together, their mounts or key names must differ.

    Attributes:
        mount: The path of the engine's mount, without slashes at its ends. ``team/transit`` is one mount.
        name: The name of the key.

    Raises:
        ConfigurationError: Vault would refuse the mount or the name.
    """

    mount: str
    name: str

    def __post_init__(self) -> None:
        if not _MOUNT.fullmatch(self.mount):
            raise ConfigurationError(f"{self.mount!r} cannot be a transit engine's mount", remedy=_REMEDY)
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(f"{self.name!r} cannot be the name of a transit key", remedy=_REMEDY)

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """
        Read ``vault-transit://<mount>/<key name>``.

        Raises:
            ConfigurationError: *uri* does not have this form.
        """
        mount, slash, name = uri.removeprefix(SCHEME).rpartition("/")
        if not uri.startswith(SCHEME) or not slash:
            raise ConfigurationError(f"{uri!r} does not name a transit key", remedy=_REMEDY)
        return cls(mount, name)

    @property
    def uri(self) -> str:
        """The URI of the key, as configured and as stored."""
        return f"{SCHEME}{self.mount}/{self.name}"

    def path(self, operation: str) -> str:
        """Return the path of an operation: ``encrypt``, ``decrypt``, ``rewrap`` or ``keys``."""
        return f"{self.mount}/{operation}/{self.name}"


_REMEDY = "Write vault-transit://<mount>/<key name>, such as vault-transit://transit/orders."


def version_of(ciphertext: bytes) -> str | None:
    """
    Read the key version from a ciphertext.

    Returns:
        A version such as ``v3``, or ``None`` if Vault never writes such a ciphertext. Vault decrypts some
        texts that it never writes: ``vault:v0:`` for ``vault:v1:``, and base64 with stray bits. So such a
        ciphertext was edited.
    """
    form = _CIPHERTEXT.fullmatch(ciphertext)
    if form is None:
        return None
    try:
        canonical = base64.b64encode(base64.b64decode(form[2], validate=True)) == form[2]
    except binascii.Error:
        return None
    return form[1].decode() if canonical else None


def version_number(version: str | None) -> int:
    """
    Read the number in ``v3``.

    Raises:
        ConfigurationError: *version* is not of this form.
    """
    form = _VERSION.fullmatch(version or "")
    if form is None:
        raise ConfigurationError(
            f"{version!r} is not a version of a transit key",
            remedy="Write v and a number, such as v3.",
        )
    return int(form[1])
