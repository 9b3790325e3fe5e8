"""What the cipher asks for keys: a keyring, or one static key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from eventseal.keys.states import KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.errors import EventSealError
    from eventseal.keys.data_key import DataKey


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
