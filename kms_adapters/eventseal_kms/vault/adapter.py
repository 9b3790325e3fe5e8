"""Wraps and unwraps keys under a transit key of Vault or OpenBao."""

from __future__ import annotations

import os
from copy import copy
from typing import TYPE_CHECKING, NoReturn

from eventseal.errors import ConfigurationError, EventSealError, KmsKeyStateError
from eventseal_kms.vault.batches import Batches
from eventseal_kms.vault.check import check_key
from eventseal_kms.vault.failures import trimmed
from eventseal_kms.vault.items import (
    KEY_SIZE,
    is_of_version,
    is_too_old,
    item_to_open,
    item_to_wrap,
    key_in,
    refusal_of,
    wrapping_in,
    wrong_size_of,
)
from eventseal_kms.vault.key_facts import read_key
from eventseal_kms.vault.retries import RetryPolicy
from eventseal_kms.vault.session import VaultSession
from eventseal_kms.vault.settings import VaultSettings
from eventseal_kms.vault.transit_key import TransitKey, version_number, version_of
from eventseal_kms.vault.versions import KeyVersions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self, TypeVar

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

    T = TypeVar("T")


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
        self._batches = Batches(self._session, self._key, batch_size)
        self._versions = KeyVersions(self._session, self._key)
        self._key_was_fit = False

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """
        Make the adapter that ``vault-transit://<mount>/<key name>`` names, of the Vault in the environment.

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
        Make 32 random bytes and wrap them.

        Raises:
            KmsError: Vault refused or failed.
        """
        key = os.urandom(KEY_SIZE)
        outcome = self.wrap_many([(key, context)])[0]
        if isinstance(outcome, EventSealError):
            del key  # a traceback with locals would show it
            raise outcome
        return key, outcome

    def generate_data_keys(
        self, contexts: Sequence[EncryptionContext]
    ) -> list[tuple[bytes, WrappedKey] | EventSealError]:
        """Make 32 random bytes for each context, and wrap them together."""
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
        if isinstance(outcome, EventSealError):
            del key  # a traceback with locals would show it
            raise outcome
        return outcome

    def unwrap(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes:
        """
        Unwrap to the 32 bytes.

        Raises:
            NotMyKeyError: Another KEK wrapped it; Vault was not asked.
            KmsError: Vault refused or failed.
            IntegrityError: The wrapping or its context was changed.
        """
        outcome = self.unwrap_many([(wrapped, context)])[0]
        if isinstance(outcome, EventSealError):
            raise outcome
        return outcome

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
        defect = self._defect() if keys else None
        if defect is not None:
            # Each its own: a raised error carries its caller's traceback.
            return [copy(defect) for _ in keys]
        results = self._batches.run("encrypt", [item_to_wrap(*pair) for pair in keys])
        return [
            wrapping_in(result, action=self._action("encrypt", context), key=self._key)
            for result, (_, context) in zip(results, keys, strict=True)
        ]

    def unwrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[bytes | EventSealError]:
        """Unwrap every key; one that could not be unwrapped has its error in its place."""
        return self._for_wrappings("decrypt", keys, key_in)

    def rewrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[WrappedKey | EventSealError]:
        """
        Move every wrapping to the key's newest version, inside Vault: no key comes out.

        Needs ``update`` on ``<mount>/rewrap/<key name>``, and nothing else.

        Returns:
            One outcome a wrapping, in order; ``NotMyKeyError`` for one of another transit key, since Vault
            moves none between keys.
        """
        return self._for_wrappings("rewrap", keys, wrapping_in)

    def check(self, _application: str = "default", /) -> list[PermissionCheck]:
        """
        Ask Vault what the token may do with the key, and what the key is.

        Raises:
            KmsError: Vault could not be asked.
        """
        return check_key(self._session, self._key)

    def current_version(self) -> str:
        """
        Tell the version that wraps, such as ``v3``; needs ``read`` on ``<mount>/keys/<key name>``.

        Raises:
            KmsError: Vault refused or failed.
        """
        return self._versions.current()

    def rotate(self) -> str:
        """
        Give the transit key a new version; needs ``update`` on ``<mount>/keys/<key name>/rotate``.

        Tried once: an answer that was lost may have been a yes, and a second try would make two versions.

        Returns:
            The new version.

        Raises:
            KmsError: Vault refused or failed.
        """
        return self._versions.rotate()

    def versions_before(self, version: str) -> list[str]:
        """
        Name the versions before *version* that were not deleted; needs ``read`` as above.

        Raises:
            ConfigurationError: *version* is none.
            KmsError: Vault refused or failed.
        """
        return self._versions.before(version)

    def forbid_versions_before(self, version: str) -> None:
        """
        Let no wrapping open, or move, that is of a version before *version*; an earlier one takes it back.

        Needs ``read`` on ``<mount>/keys/<key name>`` and ``update`` on its ``config``.

        Raises:
            ConfigurationError: *version* is none.
            KmsError: Vault refused or failed.
        """
        self._versions.forbid_before(version)

    def delete_versions_before(self, version: str) -> None:
        """
        Delete the versions before *version* for good; they must have been forbidden.

        Needs ``read`` on ``<mount>/keys/<key name>``, ``update`` on its ``config`` and its ``trim``.

        Raises:
            ConfigurationError: *version* is none.
            KmsKeyStateError: They are not all forbidden.
            KmsError: Vault refused or failed.
        """
        self._versions.delete_before(version)

    def __repr__(self) -> str:
        return f"<VaultTransitAdapter {self.uri}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a VaultTransitAdapter is neither pickled nor copied; pass its URI")

    def _defect(self) -> EventSealError | None:
        """Say why the key must not wrap; asked until it once was fit, since its kind cannot change."""
        if self._key_was_fit:
            return None
        facts = read_key(self._session, self._key)
        defect = facts if isinstance(facts, EventSealError) else facts.defect(self._key)
        self._key_was_fit = defect is None
        return defect

    def _for_wrappings(
        self,
        operation: str,
        keys: Sequence[tuple[WrappedKey, EncryptionContext]],
        read: Callable[..., T | EventSealError],
    ) -> list[T | EventSealError]:
        refusals = [refusal_of(wrapped, context, key=self._key) for wrapped, context in keys]
        asked = [pair for pair, refusal in zip(keys, refusals, strict=True) if refusal is None]
        results = self._batches.run(operation, [item_to_open(*pair) for pair in asked])
        oldest = self._oldest_version() if any(map(is_too_old, results)) else 0
        outcomes: list[T | EventSealError] = []
        for (wrapped, context), result in zip(asked, results, strict=True):
            action, version = self._action(operation, context), version_of(wrapped.ciphertext)
            outcome = (
                trimmed(action, key=self._key)
                if is_too_old(result) and version_number(version) < oldest
                else read(result, action=action, key=self._key)
            )
            if isinstance(outcome, KmsKeyStateError) and is_of_version(result):
                outcome.kek_version = version
            outcomes.append(outcome)
        remaining = iter(outcomes)
        return [refusal or next(remaining) for refusal in refusals]

    def _oldest_version(self) -> int:
        """Tell the oldest version that was not trimmed; 0 if the token may not ask."""
        facts = read_key(self._session, self._key)
        return 0 if isinstance(facts, EventSealError) else facts.min_available_version

    def _action(self, operation: str, context: EncryptionContext) -> str:
        return f"{self._key.path(operation)} of key {context.key_id}"


if TYPE_CHECKING:
    _adapter: type[KmsAdapter] = VaultTransitAdapter
    _batch: type[SupportsBatch] = VaultTransitAdapter
    _generation: type[SupportsGeneration] = VaultTransitAdapter
    _rewrap: type[SupportsRewrap] = VaultTransitAdapter
    _check: type[SupportsCheck] = VaultTransitAdapter
    _versions: type[SupportsVersions] = VaultTransitAdapter
    _version: type[TellsVersion] = VaultTransitAdapter
