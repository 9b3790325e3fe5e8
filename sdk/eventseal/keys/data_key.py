"""The handle of an unwrapped key. It uses the key's bytes and never shows them."""

from __future__ import annotations

import hmac
import os
import threading
from typing import TYPE_CHECKING, NoReturn

from eventseal.errors import IntegrityError, KeyNotFoundError
from eventseal.keys.records import BINDING_SIZE, restore_remedy
from eventseal.suites.cbc_hmac import A256CBC_HS512, ContextPool
from eventseal.suites.hkdf import hkdf_sha512, length_prefixed
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from eventseal.keys.records import KeyRecord
    from eventseal.keys.states import KeyPurpose, KeyState
    from eventseal.suites.cbc_hmac import Suite


_WRAPPING = b"eventseal/v1/wrap/" + A256CBC_HS512.name.encode()


class DataKey:
    """
    A key in memory. Its repr hides its bytes, and it cannot be pickled or copied.

    The caller that gets it from a keyring uses it for one batch and then drops it. An evicted key ends with
    its last batch, and a closed key ends immediately.

    Args:
        material: 32 random bytes, or a static key of 16, 24 or 32 bytes. The handle keeps a copy.
        key_id: The key's id, which salts everything derived from the key.
        application: The application that owns the key.
        scope: The scope whose items the key encrypts.
        state: The key's last confirmed state. The keyring updates it.

    Attributes:
        closed: Whether the handle is closed, so that it neither encrypts nor decrypts.
    """

    __slots__ = (
        "__weakref__",
        "_lock",
        "_material",
        "_pools",
        "application",
        "closed",
        "key_id",
        "purpose",
        "scope",
        "state",
    )

    def __init__(
        self,
        material: bytes,
        *,
        key_id: UUID,
        application: str,
        scope: str,
        purpose: KeyPurpose,
        state: KeyState,
    ) -> None:
        self.key_id = key_id
        self.application = application
        self.scope = scope
        self.purpose = purpose
        self.state = state
        self.closed = False
        self._material = bytearray(material)
        self._pools: dict[Suite | bytes, ContextPool] = {}
        self._lock = threading.Lock()

    def derive(self, info: bytes, length: int) -> bytes:
        """
        Derive *length* bytes for *info*: HKDF-SHA-512, salted with the key's id.

        Raises:
            KeyNotFoundError: The handle is closed.
        """
        return self.derive_all([info], length)[0]

    def derive_all(self, infos: Sequence[bytes], length: int) -> list[bytes]:
        """Derive *length* bytes for each of *infos*. Raises as :meth:`derive` does."""
        with self._lock:
            return self._derived(infos, length)

    def pool(self, suite: Suite) -> ContextPool:
        """
        Return the cipher contexts of one suite.

        They are created on first use, and emptied when the handle closes.

        Raises:
            KeyNotFoundError: The handle is closed.
        """
        pool = self._pools.get(suite)
        if pool is not None:
            return pool
        return self._made_pool(suite, suite, f"eventseal/v1/{suite.name}".encode())

    def wrapping_pool(self) -> ContextPool:
        """
        Return the cipher contexts under which a branch key wraps keys.

        No item is encrypted with them.

        Raises:
            KeyNotFoundError: The handle is closed.
        """
        return self._made_pool(_WRAPPING, A256CBC_HS512, _WRAPPING)

    def close(self) -> None:
        """Forget the key. Its bytes are overwritten as far as Python allows, and derived keys are dropped."""
        with self._lock:
            self.closed = True
            pools, self._pools = self._pools, {}
            for pool in pools.values():
                pool.close()
            self._material[:] = bytes(len(self._material))

    def close_in_child(self) -> None:
        """
        Close the handle in a forked child.

        A thread that does not exist in the child may have held the lock.
        """
        self._lock = threading.Lock()
        self.close()

    def _made_pool(self, name: Suite | bytes, suite: Suite, info: bytes) -> ContextPool:
        with self._lock:
            pool = self._pools.get(name)
            if pool is None:
                (derived,) = self._derived([info], suite.key_size)
                pool = self._pools[name] = ContextPool(suite, derived)
            return pool

    def _derived(self, infos: Sequence[bytes], length: int) -> list[bytes]:
        if self.closed:
            raise _closed(self.key_id)
        material, salt = bytes(self._material), self.key_id.bytes
        return [hkdf_sha512(material, salt=salt, info=info, length=length) for info in infos]

    def __repr__(self) -> str:
        shown = "closed" if self.closed else self.state
        return f"<DataKey {self.key_id} purpose={self.purpose} scope={self.scope!r} {shown}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a DataKey cannot be pickled or copied. Store its wrappings.")

    def __copy__(self) -> NoReturn:
        self.__reduce__()

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce__()


def _closed(key_id: UUID) -> KeyNotFoundError:
    return KeyNotFoundError(
        f"the handle of key {key_id} is closed", key_id=key_id, remedy="Ask the keyring for the key again."
    )


def material_of(key: DataKey) -> bytes:
    """
    Return the bytes of *key*. Use them only to wrap the key.

    Raises:
        KeyNotFoundError: The handle is closed.
    """
    with key._lock:  # noqa: SLF001 (a friend of the class: no method of a handle returns its bytes)
        if key.closed:
            raise _closed(key.key_id)
        return bytes(key._material)  # noqa: SLF001


def binding_of(key: DataKey) -> bytes:
    """
    Compute the bytes that bind a key to its row.

    They depend on the key's bytes, id, application, purpose and scope.

    Returns:
        32 bytes of HKDF-SHA-512, salted with the id. The other three are length-prefixed in its info.
    """
    names = (key.application, key.purpose, key.scope)
    info = b"eventseal/v1/binding" + length_prefixed(*[name.encode() for name in names])
    return key.derive(info, BINDING_SIZE)


def is_bound(key: DataKey, record: KeyRecord) -> bool:
    """Return whether *key*, unwrapped for *record*, belongs to it. The comparison takes constant time."""
    return hmac.compare_digest(binding_of(key), record.binding)


KEY_SIZE = 32


def random_key(record: KeyRecord) -> DataKey:
    """Create a random key for a new row."""
    return _handle(os.urandom(KEY_SIZE), record)


def generated_key(material: bytes, record: KeyRecord, *, giver: str) -> DataKey | IntegrityError:
    """
    Return the handle of a KMS-created key for a new row.

    Args:
        material: The bytes of the key.
        record: The row, as far as it is known.
        giver: The source of the bytes, for the message.

    Returns:
        The handle, or an error if the key does not have 32 bytes.
    """
    if len(material) == KEY_SIZE:
        return _handle(material, record)
    return IntegrityError(
        f"{giver} returned {counted(len(material), 'byte')} instead of {KEY_SIZE} for key {record.key_id}. "
        "The key was not used",
        remedy="Report it to the maintainers of the KMS adapter.",
        key_id=record.key_id,
    )


def unwrapped_key(material: bytes, record: KeyRecord, *, giver: str) -> DataKey | IntegrityError:
    """
    Return the handle of a key that was unwrapped for its row.

    Args:
        material: The bytes of the key.
        record: The row.
        giver: The source of the bytes, for the message.

    Returns:
        The handle, or an error if the row was created for another key.
    """
    key = generated_key(material, record, giver=giver)
    if isinstance(key, IntegrityError) or is_bound(key, record):
        return key
    key.close()
    return IntegrityError(
        f"the wrapping of key {record.key_id} holds another key than the row was created for",
        remedy=restore_remedy(),
        key_id=record.key_id,
    )


def _handle(material: bytes, record: KeyRecord) -> DataKey:
    return DataKey(
        material,
        key_id=record.key_id,
        application=record.application,
        scope=record.scope,
        purpose=record.purpose,
        state=record.state,
    )
