"""The handle of an unwrapped key: what may be done with it, never its bytes."""

from __future__ import annotations

import hmac
import os
import threading
from typing import TYPE_CHECKING, NoReturn

from eventseal.errors import IntegrityError, KeyNotFoundError
from eventseal.keys.records import BINDING_SIZE
from eventseal.suites.cbc_hmac import A256CBC_HS512, ContextPool
from eventseal.suites.hkdf import hkdf_sha512, length_prefixed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from eventseal.keys.records import KeyRecord
    from eventseal.keys.states import KeyPurpose, KeyState
    from eventseal.suites.cbc_hmac import Suite


_WRAPPING = b"eventseal/v1/wrap/" + A256CBC_HS512.name.encode()


class DataKey:
    """
    A key in memory. Its bytes do not show in its repr, and it is neither pickled nor copied.

    Whoever got it from a keyring holds it for one batch and lets it go: an evicted key ends with its last
    batch, a closed one at once.

    Args:
        material: 32 random bytes, or a static key of 16, 24 or 32. Not kept: copied.
        key_id: Salt of everything derived.
        application: The application that owns the key.
        scope: Whose items it seals.
        purpose: What it is for.
        state: As last confirmed; the keyring moves it.

    Attributes:
        closed: Whether the key seals and opens nothing any more.
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
        """Derive *length* bytes for each of *infos*; raises as :meth:`derive` does."""
        with self._lock:
            return self._derived(infos, length)

    def pool(self, suite: Suite) -> ContextPool:
        """
        Give the cipher contexts of one suite, made on first use and emptied when the handle closes.

        Raises:
            KeyNotFoundError: The handle is closed.
        """
        pool = self._pools.get(suite)
        if pool is not None:
            return pool
        return self._made_pool(suite, suite, f"eventseal/v1/{suite.name}".encode())

    def wrapping_pool(self) -> ContextPool:
        """
        Give the cipher contexts under which a branch key wraps other keys; no item is sealed with them.

        Raises:
            KeyNotFoundError: The handle is closed.
        """
        return self._made_pool(_WRAPPING, A256CBC_HS512, _WRAPPING)

    def close(self) -> None:
        """Forget the key: drop what was derived and overwrite the bytes, as far as Python lets us."""
        with self._lock:
            self.closed = True
            pools, self._pools = self._pools, {}
            for pool in pools.values():
                pool.close()
            self._material[:] = bytes(len(self._material))

    def close_in_child(self) -> None:
        """Close in a forked child, where the lock may have been held by a thread that is not there."""
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
            raise KeyNotFoundError(
                f"the handle of key {self.key_id} is closed",
                key_id=self.key_id,
                remedy="Ask the keyring once more.",
            )
        material, salt = bytes(self._material), self.key_id.bytes
        return [hkdf_sha512(material, salt=salt, info=info, length=length) for info in infos]

    def __repr__(self) -> str:
        shown = "closed" if self.closed else self.state
        return f"<DataKey {self.key_id} purpose={self.purpose} scope={self.scope!r} {shown}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a DataKey is neither pickled nor copied; store its wrappings")

    def __copy__(self) -> NoReturn:
        self.__reduce__()

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce__()


def material_of(key: DataKey) -> bytes:
    """
    Give the bytes of *key*, to be wrapped under a KEK and for nothing else.

    Raises:
        KeyNotFoundError: The handle is closed.
    """
    with key._lock:  # noqa: SLF001 (a friend of the class: no method of a handle gives its bytes)
        if key.closed:
            raise KeyNotFoundError(f"the handle of key {key.key_id} is closed", key_id=key.key_id)
        return bytes(key._material)  # noqa: SLF001


def binding_of(key: DataKey) -> bytes:
    """
    Tie a key's bytes to its id, application, purpose and scope.

    Returns:
        32 bytes: HKDF-SHA-512, salted with the id, the other three length-prefixed in its info.
    """
    names = (key.application, key.purpose, key.scope)
    info = b"eventseal/v1/binding" + length_prefixed(*[name.encode() for name in names])
    return key.derive(info, BINDING_SIZE)


def is_bound(key: DataKey, record: KeyRecord) -> bool:
    """Whether *key*, unwrapped for *record*, is the one that it was made for; compared in constant time."""
    return hmac.compare_digest(binding_of(key), record.binding)


KEY_SIZE = 32


def random_key(record: KeyRecord) -> DataKey:
    """Make a random key for a new row."""
    return _handle(os.urandom(KEY_SIZE), record)


def generated_key(material: bytes, record: KeyRecord, *, giver: str) -> DataKey | IntegrityError:
    """
    Give the handle of a key that a KMS has made for a new row.

    Args:
        material: Its bytes.
        record: The row, as far as it is known.
        giver: Who gave the bytes, for the message.

    Returns:
        The handle, or the error of a key that has not 32 bytes.
    """
    if len(material) == KEY_SIZE:
        return _handle(material, record)
    return IntegrityError(
        f"{giver} gave {len(material)} bytes, not {KEY_SIZE}, for key {record.key_id}",
        remedy="Report it to whoever maintains the KMS adapter; the key was not used.",
        key_id=record.key_id,
    )


def unwrapped_key(material: bytes, record: KeyRecord, *, giver: str) -> DataKey | IntegrityError:
    """
    Give the handle of a key that was unwrapped for its row.

    Args:
        material: Its bytes.
        record: The row.
        giver: Who gave the bytes, for the message.

    Returns:
        The handle, or the error of a key that is not the one that the row was made for.
    """
    key = generated_key(material, record, giver=giver)
    if isinstance(key, IntegrityError) or is_bound(key, record):
        return key
    key.close()
    return IntegrityError(
        f"the wrapping of key {record.key_id} holds another key than the row was made for",
        remedy="Find out who changed the key tables, and restore the key's rows from a backup.",
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
