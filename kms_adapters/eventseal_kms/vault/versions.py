"""The versions of a transit key: make, forbid, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventseal.errors import EventSealError, KmsKeyStateError
from eventseal_kms.vault.key_facts import KeyFacts, read_key
from eventseal_kms.vault.transit_key import version_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventseal_kms.vault.exchange import Answer
    from eventseal_kms.vault.session import VaultSession
    from eventseal_kms.vault.transit_key import TransitKey


class KeyVersions:
    """
    Administers the versions of a transit key.

    Args:
        session: Calls Vault.
        key: The transit key.
    """

    def __init__(self, session: VaultSession, key: TransitKey) -> None:
        self._session = session
        self._key = key

    def current(self) -> str:
        """Tell the version that wraps."""
        return f"v{self._facts().latest_version}"

    def rotate(self) -> str:
        """Make a new version and tell it."""
        answer = self._do("rotate", {}, tries=1)
        latest = KeyFacts.of(answer.data).latest_version
        return f"v{latest}" if latest else self.current()  # HashiCorp's Vault answers nothing

    def before(self, version: str) -> list[str]:
        """Name the versions before *version* that were not trimmed."""
        oldest = max(1, self._facts().min_available_version)
        return [f"v{number}" for number in range(oldest, version_number(version))]

    def forbid_before(self, version: str) -> None:
        """Let no version before *version* open anything."""
        body = {"min_decryption_version": version_number(version)}
        # A deletion leaves a minimum for wrapping, too, and Vault wants that to be no lower than the other.
        if 0 < self._facts().min_encryption_version < body["min_decryption_version"]:
            body["min_encryption_version"] = body["min_decryption_version"]
        self._do("config", body)

    def delete_before(self, version: str) -> None:
        """Delete the versions before *version*, all of which are forbidden."""
        number = version_number(version)
        facts = self._facts()
        if facts.min_decryption_version < number:
            raise KmsKeyStateError(
                f"versions of {self._key.uri} before {version} still open wrappings "
                f"(min_decryption_version is {facts.min_decryption_version})",
                remedy="Rewrap what is under them, forbid them, see that nothing misses them; then delete.",
                kek_uri=self._key.uri,
            )
        # Vault trims only where there is a minimum for wrapping, no lower than that for opening.
        if facts.min_encryption_version < facts.min_decryption_version:
            self._do("config", {"min_encryption_version": facts.min_decryption_version})
        self._do("trim", {"min_available_version": number})

    def _facts(self) -> KeyFacts:
        facts = read_key(self._session, self._key)
        if isinstance(facts, EventSealError):
            raise facts
        return facts

    def _do(self, verb: str, body: Mapping[str, Any], *, tries: int | None = None) -> Answer:
        answer = self._session.ask("post", f"{self._key.path('keys')}/{verb}", body, tries=tries)
        if isinstance(answer, EventSealError):
            raise answer
        return answer
