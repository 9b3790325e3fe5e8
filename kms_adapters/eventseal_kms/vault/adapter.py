"""Wraps and unwraps keys under a transit key of Vault or OpenBao."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

import hvac

from eventseal.errors import ConfigurationError, EventSealError, KmsKeyStateError
from eventseal_kms.outcomes import KEY_SIZE, value_of, wrong_size_of
from eventseal_kms.vault.calls import RetryPolicy
from eventseal_kms.vault.data_keys import DataKeys
from eventseal_kms.vault.key_state import KeyState, check_key, policy_of, read_state
from eventseal_kms.vault.session import VaultSession
from eventseal_kms.vault.settings import VaultSettings
from eventseal_kms.vault.transit_key import TransitKey, version_number

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any, Self

    from eventseal.kms import (
        EncryptionContext,
        KmsAdapter,
        KmsUse,
        PermissionCheck,
        SupportsBatch,
        SupportsCheck,
        SupportsGeneration,
        SupportsPolicy,
        SupportsRewrap,
        SupportsVersions,
        TellsVersion,
        WrappedKey,
    )
    from eventseal_kms.vault.calls import Answer


class VaultTransitAdapter:
    """
    Wraps keys under a derived transit key of HashiCorp Vault or OpenBao.

    The encryption context is the derivation context of the key. A wrapping opens only with the same context,
    and Vault rewraps it with that context too. The adapter generates data keys, and Vault encrypts them. So
    generating and wrapping keys need one permission: ``update`` on ``<mount>/encrypt/<key name>``.

    Vault's ``encrypt`` may create a missing key, and it binds no context under a key that is not derived. So
    the adapter checks both before the first wrapping. That needs ``read`` on ``<mount>/keys/<key name>``.

    Several threads may use one adapter. After a fork, the child opens its own connections.

    Args:
        mount: The path at which the transit engine is mounted.
        key_name: The name of the transit key. You create it, with ``derived=true``.
        client: An hvac client. Its owner renews its token.
        settings: The address of Vault and the login, by default from the ``VAULT_*`` variables.
        batch_size: The number of keys in one call.
        retries: The limits of one call.

    Raises:
        ConfigurationError: A name, an argument or a variable is invalid. The adapter calls nothing.
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
                "client= and settings= exclude each other, because a client has its own settings"
            )
        if client is not None and not isinstance(client, hvac.Client):
            raise ConfigurationError(
                f"client= is {_kind_of(client)}, not an hvac.Client", remedy=_HVAC_CLIENT
            )
        if settings is not None and not isinstance(settings, VaultSettings):
            raise ConfigurationError(f"settings= is {_kind_of(settings)}, not VaultSettings")
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
        Create the adapter of ``vault-transit://<mount>/<key name>``.

        The ``VAULT_*`` variables say which Vault it calls.

        Raises:
            ConfigurationError: *uri* does not name a transit key, or the ``VAULT_*`` variables are invalid.
        """
        key = TransitKey.from_uri(uri)
        return cls(key.mount, key.name)

    @classmethod
    def policy(cls, uri: str, uses: Collection[KmsUse], _application: str, /) -> str:
        """
        Write the HCL that grants some uses of a transit key.

        Vault cannot tell applications apart.

        Raises:
            ConfigurationError: *uri* does not name a transit key.
        """
        return policy_of(TransitKey.from_uri(uri), uses)

    @property
    def uri(self) -> str:
        """``vault-transit://<mount>/<key name>``, as configured and as stored."""
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
        Wrap *key*, which is 32 bytes.

        Raises:
            ConfigurationError: *key* is not 32 bytes.
            KmsError: Vault refused or failed.
        """
        outcome = wrong_size_of([(key, context)]) or self.wrap_many([(key, context)])[0]
        del key  # a traceback with locals would show it
        return value_of(outcome)

    def unwrap(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes:
        """
        Return the 32 bytes of a wrapped key.

        Raises:
            NotMyKeyError: Another KEK wrapped the key. The adapter does not call Vault.
            KmsError: Vault refused or failed.
            IntegrityError: The wrapping or its context was changed.
        """
        return value_of(self.unwrap_many([(wrapped, context)])[0])

    def wrap_many(self, keys: Sequence[tuple[bytes, EncryptionContext]]) -> list[WrappedKey | EventSealError]:
        """
        Wrap each key. A key that failed has its error in its place.

        Raises:
            ConfigurationError: A key is not 32 bytes. No key was wrapped.
        """
        wrong = wrong_size_of(keys)
        if wrong is not None:
            del keys  # a traceback with locals would show them
            raise wrong
        return self._data_keys.wrapped(keys)

    def unwrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[bytes | EventSealError]:
        """Unwrap each key. A key that failed has its error in its place."""
        return self._data_keys.unwrapped(keys)

    def rewrap_many(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[WrappedKey | EventSealError]:
        """
        Rewrap keys under the newest version of the transit key.

        Vault does it inside, so no plaintext key leaves it. It needs only ``update`` on
        ``<mount>/rewrap/<key name>``.

        Returns:
            One outcome a wrapping, in order. A wrapping under another transit key gets ``NotMyKeyError``,
            because Vault cannot rewrap it.
        """
        return self._data_keys.rewrapped(keys)

    def check(self, _application: str = "default", /) -> list[PermissionCheck]:
        """
        Check the token's permissions on the transit key, and the key's type.

        Raises:
            KmsError: Vault refused the checks, or did not answer.
        """
        return check_key(self._session, self._key)

    def current_version(self) -> str:
        """
        Return the version that wraps keys now, such as ``v3``.

        It needs ``read`` on ``<mount>/keys/<key name>``.

        Raises:
            KmsError: Vault refused or failed.
        """
        return f"v{self._state().latest_version}"

    def rotate(self) -> str:
        """
        Create a new version of the transit key.

        It needs ``update`` on ``<mount>/keys/<key name>/rotate``. There is no retry: if a successful answer
        was lost, a second attempt would create two versions.

        Returns:
            The new version.

        Raises:
            KmsError: Vault refused or failed.
        """
        answer = self._administer("rotate", {}, tries=1)
        state = KeyState.of(answer.data)  # HashiCorp's Vault returns none
        return self.current_version() if state is None else f"v{state.latest_version}"

    def versions_before(self, version: str) -> list[str]:
        """
        Return the versions before *version* that were not deleted.

        It needs ``read`` on ``<mount>/keys/<key name>``.

        Raises:
            ConfigurationError: *version* is not a version such as ``v3``.
            KmsError: Vault refused or failed.
        """
        oldest = max(1, self._state().min_available_version)
        return [f"v{number}" for number in range(oldest, version_number(version))]

    def forbid_versions_before(self, version: str) -> None:
        """
        Forbid Vault to unwrap or rewrap keys under versions before *version*.

        To allow them again, call it with an earlier version.

        It needs ``read`` on ``<mount>/keys/<key name>`` and ``update`` on its ``config``.

        Raises:
            ConfigurationError: *version* is not a version such as ``v3``.
            KmsError: Vault refused or failed.
        """
        body = {"min_decryption_version": version_number(version)}
        # A deletion also leaves a minimum for wrapping. Vault requires it to be at least the other minimum.
        if 0 < self._state().min_encryption_version < body["min_decryption_version"]:
            body["min_encryption_version"] = body["min_decryption_version"]
        self._administer("config", body)

    def delete_versions_before(self, version: str) -> None:
        """
        Permanently delete the versions before *version*. They must be forbidden first.

        It needs ``read`` on ``<mount>/keys/<key name>``, and ``update`` on its ``config`` and its ``trim``.

        Raises:
            ConfigurationError: *version* is not a version such as ``v3``.
            KmsKeyStateError: A version to delete is not forbidden.
            KmsError: Vault refused or failed.
        """
        number, state = version_number(version), self._state()
        if state.min_decryption_version < number:
            raise KmsKeyStateError(
                f"versions of {self._key.uri} before {version} can still unwrap keys "
                f"(min_decryption_version is {state.min_decryption_version})",
                remedy="Run `eventseal rewrap`. Then forbid the versions, check that nothing needs them, and "
                "delete them.",
                kek_uri=self._key.uri,
            )
        # Vault trims a key only if its minimum for wrapping is at least its minimum for unwrapping.
        if state.min_encryption_version < state.min_decryption_version:
            self._administer("config", {"min_encryption_version": state.min_decryption_version})
        self._administer("trim", {"min_available_version": number})

    def __repr__(self) -> str:
        return f"<VaultTransitAdapter {self.uri}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a VaultTransitAdapter cannot be pickled or copied: pass its URI")

    def _state(self) -> KeyState:
        return value_of(read_state(self._session, self._key))

    def _administer(self, verb: str, body: Mapping[str, Any], *, tries: int | None = None) -> Answer:
        return value_of(self._session.ask("post", f"{self._key.path('keys')}/{verb}", body, tries=tries))


_HVAC_CLIENT = (
    "Pass client=hvac.Client(url=..., token=...), which is synchronous. Or leave client= out, and set the "
    "VAULT_* variables."
)


def _kind_of(value: object) -> str:
    kind = value if isinstance(value, type) else type(value)
    return f"{'the class' if kind is value else 'an object of'} {kind.__module__}.{kind.__qualname__}"


if TYPE_CHECKING:
    _adapter: type[KmsAdapter] = VaultTransitAdapter
    _batch: type[SupportsBatch] = VaultTransitAdapter
    _generation: type[SupportsGeneration] = VaultTransitAdapter
    _rewrap: type[SupportsRewrap] = VaultTransitAdapter
    _check: type[SupportsCheck] = VaultTransitAdapter
    _policy: SupportsPolicy = VaultTransitAdapter
    _versions: type[SupportsVersions] = VaultTransitAdapter
    _version: type[TellsVersion] = VaultTransitAdapter
