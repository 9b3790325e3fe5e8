"""The settings, with their units, defaults and limits."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from datetime import timedelta
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from eventseal.configuration.old_formats import check_entries
from eventseal.items.event_modules import is_module_name
from eventseal.keys.authentication.revocations import NEW_KEY_TABLES
from eventseal.keys.records import checked_application
from eventseal.keys.store import HARD_LIMIT
from eventseal.keys.wrapping.branches import MOST_BRANCHES

ENVIRONMENT_PREFIX = "EVENTSEAL_"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_LONGEST = 1e9  # seconds, some 31 years
_NOT_A_DURATION = "a duration is a number of seconds, or a number with a unit: 90d, 12h, 15m, 60s"
_NOT_OPTIONS = 'the value must be a table for each scheme. As text, it is JSON: {"aws-kms": {"profile": ...}}'
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_TABLE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def _duration(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    seconds = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        seconds = float(match[1]) * _UNITS[match[2] or "s"]
    if not abs(seconds) <= _LONGEST:
        raise ValueError(_NOT_A_DURATION)
    return timedelta(seconds=seconds)


def _duration_or_never(value: object) -> object:
    return None if value == "never" else _duration(value)


def _not_negative(value: timedelta) -> timedelta:
    if value < timedelta(0):
        raise ValueError("a duration must not be negative")
    return value


def _positive(value: timedelta | None) -> timedelta | None:
    if value is not None and value <= timedelta(0):
        raise ValueError("a duration must be positive")
    return value


def _not_a_boolean(value: object) -> object:
    if isinstance(value, bool):  # pydantic would read true as 1: a quorum of one
        raise ValueError("a number is needed, not true or false")  # noqa: TRY004 - what pydantic reports
    return value


def _listed(value: object) -> object:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, str) for entry in value):
        raise ValueError("the value must be a string, several strings with commas, or a list of strings")
    return tuple(stripped for entry in value if (stripped := entry.strip()))


def _key_uris(uris: tuple[str, ...]) -> tuple[str, ...]:
    for number, uri in enumerate(uris, start=1):
        # The message does not repeat the text: it may be a key that a person pasted in place of a URI.
        if "://" not in uri and not uri.startswith("arn:"):
            raise ValueError(f"entry {number} is not a key URI: aws-kms://..., arn:aws:kms:..., local://...")
    if len(set(uris)) != len(uris):
        raise ValueError("a KMS key is listed twice")
    return uris


def _options_by_scheme(value: object) -> object:
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=_without_repetition) if value.strip() else {}
        except (json.JSONDecodeError, RecursionError):
            raise ValueError(_NOT_OPTIONS) from None
    if not isinstance(value, dict) or not all(isinstance(options, dict) for options in value.values()):
        raise ValueError(_NOT_OPTIONS)
    return value


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name!r} is given twice")
    return dict(pairs)


def _record_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if _TABLE.fullmatch(name) is None:
            raise ValueError(f"{name!r} does not name a record class as module:Class")
    return names


def _module_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not is_module_name(name):
            raise ValueError(f"{name!r} does not name a module")
    return names


def _sql_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name.count(".") > 1 or not all(name.split(".")):
            raise ValueError(f"{name!r} does not name a table, such as stored_events or schema.stored_events")
    if len(set(names)) != len(names):
        raise ValueError("a table is listed twice")
    return names


Duration: TypeAlias = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_not_negative)]
PositiveDuration: TypeAlias = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_positive)]
DurationOrNever: TypeAlias = Annotated[
    timedelta | None, BeforeValidator(_duration_or_never), AfterValidator(_positive)
]
WholeNumber: TypeAlias = Annotated[int, BeforeValidator(_not_a_boolean)]
KmsOptions: TypeAlias = Annotated[dict[str, dict[str, Any]], NoDecode, BeforeValidator(_options_by_scheme)]
Texts: TypeAlias = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """
    The settings of EventSeal.

    Each setting has the same name in the file, in the environment and as an argument. Read the settings with
    :func:`eventseal.configuration.load_settings`, which also reads the file and refuses unknown names. The
    constructor reads only the environment. The object is frozen, and its repr does not show URLs.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
    )

    kms_key: Annotated[Texts, AfterValidator(_key_uris)] = Field(
        default=(),
        repr=False,
        description="The key URI of the KMS key, or several: the first generates keys, each wraps them, and "
        "any of them unwraps them.",
    )
    kms_options: KmsOptions = Field(
        default={},
        repr=False,
        description="Options of the KMS adapters, one table for each scheme of key URIs. Never shown.",
    )
    wrap_quorum: Annotated[WholeNumber | None, Field(ge=1)] = Field(
        default=None,
        description="How many of several KMS keys must wrap a new key before it is used. Not set: all.",
    )
    fall_back_on_outage: bool = Field(
        default=False,
        description="Unwrap under the next KMS key if one is unavailable, but never if one refuses.",
    )
    branches: Annotated[WholeNumber | None, Field(ge=1, le=MOST_BRANCHES)] = Field(
        default=None,
        description="Branch keys that wrap new data keys, 1 to 4096. Not set: the KMS keys wrap each.",
    )
    scope_digest: bool = Field(
        default=False,
        description="Store digests of key scopes, which may be personal. Permanent from the first key on.",
    )
    key_tables: Annotated[WholeNumber, Field(ge=1, le=NEW_KEY_TABLES)] = Field(
        default=1,
        description="Set it to 2 after `eventseal upgrade` has run, to refuse old copies of the key tables.",
    )
    store_url: SecretStr | None = Field(
        default=None, description="The items' database, as an SQLAlchemy URL. Never shown."
    )
    key_store_url: SecretStr | None = Field(
        default=None, description="The keys' database, if it is not the items'. Never shown."
    )
    pooler: Literal["transaction"] | None = Field(
        default=None,
        description="Set it to transaction if PgBouncer or another pooler runs in that mode.",
    )
    database_schema: str | None = Field(
        default=None,
        min_length=1,
        description="The PostgreSQL schema of all tables that name no schema. Create it first.",
    )
    ledger: SecretStr | None = Field(
        default=None,
        description="The erasure ledger: the path of a file, or the URL of a separate database. Never shown.",
    )
    application: Annotated[str, AfterValidator(checked_application)] = Field(
        default="default",
        description="The application's name, 1 to 200 bytes. Every key and item is bound to it.",
    )
    tables: Annotated[Texts, AfterValidator(_record_names)] = Field(
        default=(),
        description="Record classes that you wrote, in addition to EventSeal's, each as module:Class.",
    )
    event_modules: Annotated[Texts, AfterValidator(_module_names)] = Field(
        default=(),
        description="Modules that define your events: unauthenticated items cannot name other classes.",
    )
    eventsourcing_tables: Annotated[Texts, AfterValidator(_sql_names)] = Field(
        default=(),
        description="Tables that the eventsourcing library creates and writes, such as stored_events.",
    )
    originator_id_type: Literal["uuid", "text"] | None = Field(
        default=None,
        description="ORIGINATOR_ID_TYPE of that library. Not needed for PostgreSQL, whose columns show it.",
    )
    old_formats: Annotated[Texts, AfterValidator(check_entries)] = Field(
        default=(),
        description="Older formats that are read during a migration, each with the place of its key.",
    )
    old_store_url: SecretStr | None = Field(
        default=None,
        description="The database of the old tables to copy, if it is not the items'. Never shown.",
    )
    unsealed_tables: Texts = Field(
        default=(),
        description="Tables that look as if they hold encrypted items, but hold none.",
    )
    always_encrypt: bool = Field(
        default=True,
        description="Encrypt every event, and refuse plaintext. If false, encrypt only events whose class "
        "sets `__always_encrypt__`.",
    )
    compression: Literal["zstd", "zlib", "none"] = Field(
        default="zstd",
        description="How plaintext is compressed before encryption, if that makes it smaller.",
    )
    max_plaintext: Annotated[ByteSize, BeforeValidator(_not_a_boolean), Field(ge=1)] = Field(
        default=ByteSize(2**24),
        description="The most bytes of an item's plaintext: a number, or a number with a unit.",
    )
    rotation_max_age: DurationOrNever = Field(
        default=timedelta(days=90),
        description="The age at which a write replaces a data key, or never.",
    )
    rotation_max_items: Annotated[WholeNumber, Field(ge=1, le=HARD_LIMIT)] = Field(
        default=2**28, description="The items after which a data key is replaced. At most 2**32."
    )
    cache_ttl: PositiveDuration = Field(
        default=timedelta(minutes=15), description="The time until a key in memory is unwrapped again."
    )
    cache_max_keys: Annotated[WholeNumber, Field(ge=1)] = Field(
        default=10_000, description="The most unwrapped data keys that a process holds."
    )
    cache_refresh_interval: PositiveDuration = Field(
        default=timedelta(seconds=60),
        description="The time after which a process reads the state of a key again before it uses the key.",
    )
    cache_open_grace: Duration = Field(
        default=timedelta(0),
        description="How long a key opens items after the refresh interval. For a separate key database.",
    )
    cache_outage_grace: Duration = Field(
        default=timedelta(hours=1),
        description="How long after the TTL a key stays usable, but only while the KMS is unreachable.",
    )
