"""Wraps and unwraps keys under a transit key of Vault or OpenBao."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

from eventseal.errors import ConfigurationError, EventSealError, KmsKeyStateError
from eventseal_kms.outcomes import KEY_SIZE, value_of, wrong_size_of
from eventseal_kms.vault.calls import RetryPolicy
from eventseal_kms.vault.data_keys import DataKeys
from eventseal_kms.vault.key_state import KeyState, check_key, read_state
from eventseal_kms.vault.session import VaultSession
from eventseal_kms.vault.settings import VaultSettings
from eventseal_kms.vault.transit_key import TransitKey, version_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Self

    import hvac

    from eventseal.kms import (
        EncryptionContext,
        KmsAdapter,
        PermissionCheck,
        SupportsBatch,
        SupportsCheck,
        SupportsGeneration,
        SupportsRewrap,
        SupportsVersions,
        TellsVersion,
        WrappedKey,
    )
    from eventseal_kms.vault.calls import Answer


class VaultTransitAdapter:
    """
    Wraps keys under a derived transit key of HashiCorp Vault or OpenBao.

    The encryption context is the derivation context of the key: a wrapping opens only with the same one, and
    Vault rewraps it too. Keys are made here and encrypted there, so that making, wrapping and wrapping many
    need one right, ``update`` on ``<mount>/encrypt/<key name>``. Since ``encrypt`` may make a key that is
    missing, and binds nothing under a key that is not derived, both are looked at before the first one, for
    which ``read`` on ``<mount>/keys/<key name>`` is needed.

    Several threads may use one adapter; after a fork the child makes connections of its own.

    Args:
        mount: Where the transit engine is mounted.
        key_name: The transit key; made by you, with ``derived=true``.
        client: A ready hvac client. Its token is then its owner's to renew.
        settings: Where Vault is and how to log in; by default the ``VAULT_*`` variables say it.
        batch_size: Keys in one call.
        retries: The bounds of one call.

    Raises:
        ConfigurationError: A name, an argument or a variable cannot be used. Nothing is called.
    """

    def __init__(
        self,
        mount: str,
        key_name: str,
        *,
        client: hvac.Client | None = None,
        settings: VaultSettings | None = None,
        batch_size: int = 100,
        retries: RetryPolicy | None = None,
    ) -> None:
        if client is not None and settings is not None:
            raise ConfigurationError(
                "client= and settings= exclude each other: a client has its own settings"
            )
        self._key = TransitKey(mount.strip("/"), key_name)
        if client is None and settings is None:
            settings = VaultSettings.from_environment()
        self._session = VaultSession(
            self._key, client=client, settings=settings, retries=retries or RetryPolicy()
        )
        self._data_keys = DataKeys(self._session, self._key, batch_size)

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """
        Create the adapter of ``vault-transit://<mount>/<key name>``, for the Vault in the environment.

        Raises:
            ConfigurationError: *uri* names no transit key, or the ``VAULT_*`` variables cannot be used.
        """
        key = TransitKey.from_uri(uri)
        return cls(key.mount, key.name)

    @property
    def uri(self) -> str:
        """``vault-transit://<mount>/<key name>``: configured and stored."""
        return self._key.uri

    def generate_data_key(self, context: EncryptionContext) -> tuple[bytes, WrappedKey]:
        """
        Generate 32 random bytes and wrap them.

        Raises:
            KmsError: Vault refused or failed.
        """
        return value_of(self.generate_data_keys([context])[0])

    def generate_data_keys(
        self, contexts: Sequence[EncryptionContext]
    ) -> list[tuple[bytes, WrappedKey] | EventSealError]:
        """Generate 32 random bytes for each context, and wrap them together."""
        keys = [(os.urandom(KEY_SIZE), context) for context in contexts]
        return [
            outcome if isinstance(outcome, EventSealError) else (key, outcome)
            for (key, _), outcome in zip(keys, self.wrap_many(keys), strict=True)
        ]

    def wrap(self, key: bytes, context: EncryptionContext) -> WrappedKey:
        """
        Wrap *key*, 32 bytes.

        Raises:
            ConfigurationError: It has not 32 bytes.
            KmsError: Vault refused or failed.
        """
        outcome = wrong_size_of([(key, context)]) or self.wrap_many([(key, context)])[0]
        del key  # a traceback with locals would show it
        return value_of(outcome)

    def unwrap(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes:
        """
        Unwrap to the 32 bytes.

        Raises:
            NotMyKeyError: Another KEK wrapped it; Vault was not asked.
            KmsError: Vault refused or failed.
            IntegrityError: The wrapping or its context was changed.
        """
        return value_of(self.unwrap_many([(wrapped, context)])[0])

    def wrap_many(self, keys: Sequence[tuple[bytes, EncryptionContext]]) -> list[WrappedKey | EventSealError]:
        """
        Wrap every key; one that could not be wrapped has its error in its place.

        Raises:
            ConfigurationError: One has not 32 bytes; nothing was wrapped.
        """
        wrong = wrong_size_of(keys)
        if wrong is not None:
            del keys  # a traceback with locals would show them
            raise wrong
        return self._data_keys.wrapped(keys)

    def unwrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[bytes | EventSealError]:
        """Unwrap every key; one that could not be unwrapped has its error in its place."""
        return self._data_keys.unwrapped(keys)

    def rewrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[WrappedKey | EventSealError]:
        """
        Rewrap under the key's newest version, inside Vault: no key comes out.

        Needs ``update`` on ``<mount>/rewrap/<key name>``, and nothing else.

        Returns:
            One outcome a wrapping, in order; ``NotMyKeyError`` for one of another transit key, since Vault
            rewraps none from another key.
        """
        return self._data_keys.rewrapped(keys)

    def check(self, _application: str = "default", /) -> list[PermissionCheck]:
        """
        Ask Vault what the token may do with the key, and what the key is.

        Raises:
            KmsError: Vault could not be asked.
        """
        return check_key(self._session, self._key)

    def current_version(self) -> str:
        """
        Return the version that wraps, such as ``v3``; needs ``read`` on ``<mount>/keys/<key name>``.

        Raises:
            KmsError: Vault refused or failed.
        """
        return f"v{self._state().latest_version}"

    def rotate(self) -> str:
        """
        Give the transit key a new version; needs ``update`` on ``<mount>/keys/<key name>/rotate``.

        Tried once: an answer that was lost may have been a yes, and a second try would make two versions.

        Returns:
            The new version.

        Raises:
            KmsError: Vault refused or failed.
        """
        answer = self._administer("rotate", {}, tries=1)
        latest = KeyState.of(answer.data).latest_version
        return f"v{latest}" if latest else self.current_version()  # HashiCorp's Vault answers nothing

    def versions_before(self, version: str) -> list[str]:
        """
        Name the versions before *version* that were not deleted; needs ``read`` as above.

        Raises:
            ConfigurationError: *version* is none.
            KmsError: Vault refused or failed.
        """
        oldest = max(1, self._state().min_available_version)
        return [f"v{number}" for number in range(oldest, version_number(version))]

    def forbid_versions_before(self, version: str) -> None:
        """
        Forbid Vault to open or rewrap wrappings of versions before *version*.

        Call it again with an earlier version to allow them again.

        Needs ``read`` on ``<mount>/keys/<key name>`` and ``update`` on its ``config``.

        Raises:
            ConfigurationError: *version* is none.
            KmsError: Vault refused or failed.
        """
        body = {"min_decryption_version": version_number(version)}
        # A deletion leaves a minimum for wrapping, too, and Vault wants that to be no lower than the other.
        if 0 < self._state().min_encryption_version < body["min_decryption_version"]:
            body["min_encryption_version"] = body["min_decryption_version"]
        self._administer("config", body)

    def delete_versions_before(self, version: str) -> None:
        """
        Delete the versions before *version* for good; they must have been forbidden.

        Needs ``read`` on ``<mount>/keys/<key name>``, ``update`` on its ``config`` and its ``trim``.

        Raises:
            ConfigurationError: *version* is none.
            KmsKeyStateError: They are not all forbidden.
            KmsError: Vault refused or failed.
        """
        number, state = version_number(version), self._state()
        if state.min_decryption_version < number:
            raise KmsKeyStateError(
                f"versions of {self._key.uri} before {version} still open wrappings "
                f"(min_decryption_version is {state.min_decryption_version})",
                remedy="Rewrap what is under them, forbid them, see that nothing misses them; then delete.",
                kek_uri=self._key.uri,
            )
        # Vault trims only where there is a minimum for wrapping, no lower than that for opening.
        if state.min_encryption_version < state.min_decryption_version:
            self._administer("config", {"min_encryption_version": state.min_decryption_version})
        self._administer("trim", {"min_available_version": number})

    def __repr__(self) -> str:
        return f"<VaultTransitAdapter {self.uri}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a VaultTransitAdapter is neither pickled nor copied; pass its URI")

    def _state(self) -> KeyState:
        return value_of(read_state(self._session, self._key))

    def _administer(self, verb: str, body: Mapping[str, Any], *, tries: int | None = None) -> Answer:
        return value_of(self._session.ask("post", f"{self._key.path('keys')}/{verb}", body, tries=tries))


if TYPE_CHECKING:
    _adapter: type[KmsAdapter] = VaultTransitAdapter
    _batch: type[SupportsBatch] = VaultTransitAdapter
    _generation: type[SupportsGeneration] = VaultTransitAdapter
    _rewrap: type[SupportsRewrap] = VaultTransitAdapter
    _check: type[SupportsCheck] = VaultTransitAdapter
    _versions: type[SupportsVersions] = VaultTransitAdapter
    _version: type[TellsVersion] = VaultTransitAdapter
