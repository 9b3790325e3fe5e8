"""The setting ``old_formats``: older formats, with the places of their keys."""

from __future__ import annotations

import binascii
import os
from base64 import b64decode
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError
from eventseal.items.acceptance import Before
from eventseal.items.formats import (
    EventsourcingCBC,
    EventsourcingGCM,
    EventsourcingGCMText,
    PlainJSON,
    StaticKeyEnvelope,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from eventseal.items.formats import OldFormat

_PLAIN: Mapping[str, Callable[[int], OldFormat]] = {
    "plain-json": lambda limit: PlainJSON(max_plaintext=limit),
    "plain-json+zlib": lambda limit: PlainJSON(compressed=True, max_plaintext=limit),
}
_KEYED: Mapping[str, Callable[[bytes, int], OldFormat]] = {
    "eventsourcing-cbc": lambda key, limit: EventsourcingCBC(key, max_plaintext=limit),
    "eventsourcing-gcm-base64": lambda key, limit: EventsourcingGCMText(key, max_plaintext=limit),
    "eventsourcing-gcm": lambda key, limit: EventsourcingGCM(key, max_plaintext=limit),
    "eventsourcing-gcm+zlib": lambda key, limit: EventsourcingGCM(key, compressed=True, max_plaintext=limit),
}
_STATIC = "static-key"
NAMES = (*_PLAIN, *_KEYED, _STATIC)
_WORDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_PLAIN, ("before",)),
    _STATIC: ("key", "application", "before"),
}
"""The words that may follow a name. All other names accept ``key`` and ``before``."""


def configured_formats(entries: Sequence[str], *, max_plaintext: int) -> list[OldFormat]:
    """
    Create the formats that the setting names, with their keys.

    Args:
        entries: The entries of the setting. Each is a name, followed by words: ``key=env:NAME`` or
            ``key=file:PATH``, ``before=POSITION``, ``application=NAME``.
        max_plaintext: The most bytes that the plaintext of an item may have.

    Raises:
        ConfigurationError: A word is unknown, or a key is missing or not valid. No message shows a key.
    """
    return [_format(entry, max_plaintext) for entry in entries]


def check_entries(entries: tuple[str, ...]) -> tuple[str, ...]:
    """
    Check the form of the entries, without any key.

    Raises:
        ValueError: An entry has the wrong form. The message does not repeat the text, which may be a key.
    """
    for number, entry in enumerate(entries, start=1):
        name, *words = entry.split() or [""]
        if name not in NAMES:
            raise ValueError(f"entry {number} does not begin with one of {', '.join(NAMES)}")
        known = _WORDS.get(name, ("key", "before"))
        given = [word.partition("=")[0] for word in words if "=" in word]
        if len(given) != len(words) or len({*given}) != len(given) or not {*given} <= {*known}:
            takes = " ".join([f"{word}=..." for word in known])
            raise ValueError(f"entry {number}: only {takes} may follow {name}, each once")
        if "key" in known and not any(word.startswith(("key=env:", "key=file:")) for word in words):
            raise ValueError(
                f"entry {number}: {name} needs key=env:NAME or key=file:PATH, never a key itself"
            )
    names = [entry.split()[0] for entry in entries]
    for name in names:
        if names.count(name) > 1 and name != _STATIC:
            raise ValueError(f"{name} is listed twice")
    return entries


def _format(entry: str, limit: int) -> OldFormat:
    name, *rest = entry.split()
    words = dict(word.split("=", 1) for word in rest)
    found: OldFormat
    if name in _PLAIN:
        found = _PLAIN[name](limit)
    elif name == _STATIC:
        application = words.get("application", "default")
        found = StaticKeyEnvelope(_key(name, words["key"]), application=application, max_plaintext=limit)
    else:
        found = _KEYED[name](_key(name, words["key"]), limit)
    return Before(found, _position(name, words["before"])) if "before" in words else found


def _position(name: str, text: str) -> Decimal:
    try:
        position = Decimal(text)
    except InvalidOperation:
        position = Decimal("NaN")
    if not position.is_finite():
        raise ConfigurationError(f"old_formats: before= of {name} is not a number")
    return position


def _key(name: str, source: str) -> bytes:
    kind, _, place = source.partition(":")
    shown = f"old_formats: the key of {name}, {kind}:{place},"
    try:
        text = os.environ.get(place, "") if kind == "env" else Path(place).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(
            f"{shown} cannot be read: {error.strerror}",
            remedy="Correct the path of the file, or let this user read it.",
        ) from None
    except UnicodeDecodeError:
        text = ""
    if not text and kind == "env":
        raise ConfigurationError(
            f"{shown} does not exist: no such variable is set, or it is empty",
            remedy="Set the variable, or correct its name.",
        )
    key = _decoded(text)
    del text  # a traceback with locals would show it
    if key is None:
        raise ConfigurationError(
            f"{shown} is not base64 of 16, 24 or 32 bytes",
            remedy="Encode the key, as in CIPHER_KEY of the eventsourcing library: base64 < FILE",
        )
    return key


def _decoded(text: str) -> bytes | None:
    try:
        key = b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) in {16, 24, 32} else None
