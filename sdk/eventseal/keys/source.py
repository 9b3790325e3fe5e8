"""What the cipher asks for keys: a keyring, or one static key."""

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
    """Says which key seals and which one opens. Methods may be called from several threads at once."""

    @property
    def application(self) -> str:
        """The application whose keys these are."""
        ...

    def sealing_keys(
        self, items_by_scope: Mapping[str, int], *, make: bool = True, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, DataKey]:
        """
        Give each scope's active key, and count what it is about to seal.

        Args:
            items_by_scope: How many items each scope's key will seal.
            make: Whether keys may be made; ``False`` leaves out a scope without one, and rotates none.
            purpose: Whether the keys seal items, or fields inside them.

        Raises:
            ConfigurationError: Keys of this scope or purpose are not given.
            KeyDestroyedError: A scope was closed.
            KeyLimitError: A key has sealed as many items as one key may.
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        ...

    def opening_keys(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[UUID, DataKey | EventSealError]:
        """
        Give each key, or why there is none, for every asked-for id.

        Args:
            key_ids: As envelopes name them.
            purpose: Whether those are of items, or of fields inside them.

        Raises:
            StoreError: The key store refused or failed.
        """
        ...

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """
        Say which items of a scope that was reopened were erased in it before.

        Args:
            items: The associated data of each, without the header, and its envelope.

        Raises:
            StoreError: The key store refused or failed.
        """
        ...

    def stored_scope(self, scope: str) -> str:
        """
        Give a scope as keys name it: the same, unless the key tables hold digests of scopes.

        Args:
            scope: As the application has it.

        Raises:
            ConfigurationError: The scope is refused.
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        ...

    def add_place(self, name: str, collection: str) -> None:
        """
        Note that a place beside the registered tables holds items; see ``KeyStore``.

        Raises:
            StoreError: The key store refused or failed.
        """
        ...

    def refresh(self) -> None:
        """Look at once for keys whose state changed."""
        ...


_SUITES_BY_KEY_SIZE = {16: A128CBC_HS256, 24: A192CBC_HS384, 32: A256CBC_HS512}


class StaticKey:
    """
    A key that seals and opens everything, and never changes.

    Args:
        key: 16, 24 or 32 random bytes, never a passphrase: its id is a check value of it.
        application: Bound to every item that it seals.
        suite: What it seals with; by default the suite of the key's size.

    Raises:
        ConfigurationError: The key is not bytes of one of these sizes, or the application's name is refused.
    """

    def __init__(self, key: bytes, *, application: str = "default", suite: Suite | None = None) -> None:
        if not isinstance(key, bytes):
            raise ConfigurationError(
                f"a key is bytes, or a keyring, not {type(key).__name__}",
                remedy="Give 32 random bytes, such as secrets.token_bytes(32) made once and kept.",
            )
        by_size = _SUITES_BY_KEY_SIZE.get(len(key))
        if by_size is None:
            raise ConfigurationError(
                f"a static key has 16, 24 or 32 bytes, not {len(key)}",
                remedy="Give 32 random bytes, such as secrets.token_bytes(32) made once and kept.",
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
        """A version 8 UUID: a check value of the key."""
        return self._key.key_id

    def sealing_keys(
        self,
        items_by_scope: Mapping[str, int],
        *,
        make: bool = True,  # noqa: ARG002
        purpose: KeyPurpose = KeyPurpose.DATA,
    ) -> dict[str, DataKey]:
        """
        Give the key, for the one scope that it has.

        Raises:
            ConfigurationError: Another scope, or a key for fields, is asked for: one key keeps nothing apart.
        """
        if purpose is not KeyPurpose.DATA:
            raise ConfigurationError(
                f"a static key seals items only; it has no keys of purpose {purpose}",
                remedy="Use a Keyring, which has a key for each subject.",
            )
        for scope in items_by_scope:
            if scope != DEFAULT_SCOPE:
                raise ConfigurationError(
                    f"a static key seals for the scope {DEFAULT_SCOPE!r} only, not for {scope!r}",
                    remedy="Use a Keyring, which has a key for each scope.",
                )
        return dict.fromkeys(items_by_scope, self._key)

    def opening_keys(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[UUID, DataKey | EventSealError]:
        """Give the key for its own id, and an error for every other, and for those of fields."""
        own = self._key.key_id if purpose is KeyPurpose.DATA else None
        return {key_id: self._key if key_id == own else _not_this(key_id) for key_id in key_ids}

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Say of every item that it was not erased: nothing ever is."""
        return [False] * len(items)

    def add_place(self, name: str, collection: str) -> None:
        """Do nothing: nobody retires a static key."""

    def stored_scope(self, scope: str) -> str:
        """Give the scope as it is."""
        return scope

    def refresh(self) -> None:
        """Do nothing: the key never changes."""

    def __repr__(self) -> str:
        return f"<StaticKey {self.key_id} {self.suite.name} application={self.application!r}>"


def _not_this(key_id: UUID) -> KeyNotFoundError:
    return KeyNotFoundError(
        f"key {key_id} is not the static key that this cipher was given",
        key_id=key_id,
        remedy="Give the key that sealed the item, or the keyring whose key store holds it.",
    )
