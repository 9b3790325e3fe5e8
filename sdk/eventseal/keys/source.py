"""The cipher's source of keys: a keyring, or one static key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from eventseal.errors import ConfigurationError, KeyNotFoundError
from eventseal.keys.data_key import DataKey
from eventseal.keys.records import DEFAULT_SCOPE, checked_application
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.suites.cbc_hmac import A128CBC_HS256, A192CBC_HS384, A256CBC_HS512
from eventseal.suites.hkdf import key_check_id

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.errors import EventSealError
    from eventseal.suites.cbc_hmac import Suite


@runtime_checkable
class KeySource(Protocol):
    """
    Chooses keys that seal, and finds keys that open.

    Several threads may call its methods at the same time.
    """

    @property
    def application(self) -> str:
        """The application that owns these keys."""
        ...

    def sealing_keys(
        self, items_by_scope: Mapping[str, int], *, make: bool = True, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, DataKey]:
        """
        Return each scope's active key, and count the items to encrypt.

        Args:
            items_by_scope: How many items each scope's key will encrypt.
            make: Whether keys may be created. If ``False``, a scope without a key is left out, and no key is
                rotated.
            purpose: Whether the keys encrypt items, or fields inside them.

        Raises:
            ConfigurationError: The source has no keys of this scope or purpose.
            KeyDestroyedError: A scope is closed.
            KeyLimitError: A key has encrypted as many items as one key may.
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        ...

    def opening_keys(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[UUID, DataKey | EventSealError]:
        """
        Return each key by its id, or an error in its place.

        Args:
            key_ids: The ids of keys, from envelopes.
            purpose: Whether the keys are those of items, or of fields inside them.

        Raises:
            StoreError: The key store refused or failed.
        """
        ...

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """
        Return which items of a reopened scope were erased in it earlier.

        Args:
            items: For each item, its associated data without the header, and its envelope.

        Raises:
            StoreError: The key store refused or failed.
        """
        ...

    def stored_scope(self, scope: str) -> str:
        """
        Return a scope as keys name it.

        The name is unchanged, unless the key tables hold digests of scopes.

        Args:
            scope: The scope as the application names it.

        Raises:
            ConfigurationError: The scope is invalid.
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        ...

    def add_place(self, name: str, collection: str) -> None:
        """
        Record that a place outside the registered tables holds items.

        See ``KeyStore``.

        Raises:
            StoreError: The key store refused or failed.
        """
        ...

    def refresh(self) -> None:
        """Look now for keys whose state changed."""
        ...


WHERE_KEYS_COME_FROM = (
    "Pass bytes: create a key once with secrets.token_bytes(32), store it safely, and call AESCipher(key). "
    "Or let a KMS protect the keys: run `eventseal init`, then use EventSeal.from_settings().cipher."
)
"""The remedy for a key that is no key."""
_SUITES_BY_KEY_SIZE = {16: A128CBC_HS256, 24: A192CBC_HS384, 32: A256CBC_HS512}


class StaticKey:
    """
    A key that encrypts and decrypts everything, and never changes.

    Args:
        key: 16, 24 or 32 random bytes. Never use a passphrase, because the key's id is a check value of the
            key.
        application: The application that every encrypted item is bound to.
        suite: The suite that encrypts. By default, it is the suite of the key's size.

    Raises:
        ConfigurationError: The key is not bytes of one of these sizes, or the application's name is invalid.
    """

    def __init__(self, key: bytes, *, application: str = "default", suite: Suite | None = None) -> None:
        if not isinstance(key, bytes):
            raise ConfigurationError(
                f"a key must be bytes or a keyring, not {type(key).__name__}",
                remedy=WHERE_KEYS_COME_FROM,
            )
        by_size = _SUITES_BY_KEY_SIZE.get(len(key))
        if by_size is None:
            raise ConfigurationError(
                f"a static key must have 16, 24 or 32 bytes, not {len(key)}",
                remedy=WHERE_KEYS_COME_FROM,
            )
        self.suite = suite or by_size
        self._key = DataKey(
            key,
            key_id=key_check_id(key),
            application=checked_application(application),
            scope=DEFAULT_SCOPE,
            purpose=KeyPurpose.DATA,
            state=KeyState.ACTIVE,
        )

    @property
    def application(self) -> str:
        """The application that the key's items are bound to."""
        return self._key.application

    @property
    def key_id(self) -> UUID:
        """A version 8 UUID, which is a check value of the key."""
        return self._key.key_id

    def sealing_keys(
        self,
        items_by_scope: Mapping[str, int],
        *,
        make: bool = True,  # noqa: ARG002
        purpose: KeyPurpose = KeyPurpose.DATA,
    ) -> dict[str, DataKey]:
        """
        Return the key, for the only scope that it has.

        Raises:
            ConfigurationError: Another scope or a key for fields is requested. A single key cannot separate
                them.
        """
        if purpose is not KeyPurpose.DATA:
            raise ConfigurationError(
                f"a static key encrypts items only, and has no keys of purpose {purpose}",
                remedy="Use a Keyring, which has a key for each subject.",
            )
        for scope in items_by_scope:
            if scope != DEFAULT_SCOPE:
                raise ConfigurationError(
                    f"a static key encrypts for the scope {DEFAULT_SCOPE!r} only, not for {scope!r}",
                    remedy="Use a Keyring, which has a key for each scope.",
                )
        return dict.fromkeys(items_by_scope, self._key)

    def opening_keys(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[UUID, DataKey | EventSealError]:
        """Return the key for its own id. Other ids and ids of fields get an error."""
        own = self._key.key_id if purpose is KeyPurpose.DATA else None
        return {key_id: self._key if key_id == own else _not_this(key_id) for key_id in key_ids}

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Return that no item was erased, because a static key erases nothing."""
        return [False] * len(items)

    def add_place(self, name: str, collection: str) -> None:
        """Do nothing, because nobody retires a static key."""

    def stored_scope(self, scope: str) -> str:
        """Return the scope unchanged."""
        return scope

    def refresh(self) -> None:
        """Do nothing, because the key never changes."""

    def __repr__(self) -> str:
        return f"<StaticKey {self.key_id} {self.suite.name} application={self.application!r}>"


def _not_this(key_id: UUID) -> KeyNotFoundError:
    return KeyNotFoundError(
        f"key {key_id} is not the static key that this cipher was given",
        key_id=key_id,
        remedy="Use the key that encrypted the item, or the keyring whose key store has its key.",
    )
