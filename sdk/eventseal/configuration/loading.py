"""Loads settings, and writes the first settings file."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import SecretStr, ValidationError

from eventseal.configuration.settings import ENVIRONMENT_PREFIX, Settings
from eventseal.errors import ConfigurationError
from eventseal.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic_core import ErrorDetails


DEFAULT_FILE = "eventseal.toml"
FILE_VARIABLE = f"{ENVIRONMENT_PREFIX}CONFIG"
SECRET_SETTINGS = frozenset({"store_url", "key_store_url", "old_store_url", "ledger"})

# Kubernetes sets these in every pod, for each Service. A Service called eventseal has our prefix.
_SERVICE_VARIABLE = re.compile(
    r"EVENTSEAL(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_PORT = re.compile(r"(tcp|udp|sctp)://.+")  # of a variable such as EVENTSEAL_PORT


def load_settings(path: str | Path | None = None, **overrides: Any) -> Settings:
    """
    Read the settings from arguments, the environment and the file.

    Arguments win over ``EVENTSEAL_*`` variables, which win over the file.

    Args:
        path: The settings file. If it is ``None``, EventSeal reads the file that ``EVENTSEAL_CONFIG`` names,
            else ``eventseal.toml`` in the working directory if it exists.
        overrides: Settings by name.

    Returns:
        The settings, validated.

    Raises:
        ConfigurationError: The file is missing or not TOML, a name is unknown, or a value is not allowed.
    """
    overrides = with_urls_hidden(overrides)
    return settings_from(settings_file(path), **overrides)


def settings_from(file: Path | None, **overrides: Any) -> Settings:
    """
    Read the settings from one file, or from none.

    Args:
        file: The file, or ``None`` for the environment and the arguments alone.
        overrides: Settings by name, with the URLs wrapped by :func:`with_urls_hidden`.

    Raises:
        ConfigurationError: As for :func:`load_settings`.
    """
    in_environment = environment_names()
    in_file = {} if file is None else with_urls_hidden(_read_file(file))
    _refuse_unknown(in_file, f"unknown setting {{}} in {file}")
    _refuse_unknown(overrides, "unknown setting {}")
    _refuse_unknown_variables(in_environment)
    # Settings reads the environment itself, and its arguments win: leave out the values of the file that the
    # environment also sets.
    values = {name: value for name, value in in_file.items() if name not in in_environment} | overrides
    found = _validated(values)
    if isinstance(found, Settings):
        return found
    sources = dict.fromkeys(in_file, str(file)) | in_environment | dict.fromkeys(overrides, "")
    raise _refusal(found, sources)


def settings_file(path: str | Path | None = None) -> Path | None:
    """
    Return the path of the settings file.

    Args:
        path: The path that the caller gives, or ``None``.

    Returns:
        The given path, else the one that ``EVENTSEAL_CONFIG`` names, else ``eventseal.toml`` if it exists,
        else ``None``.
    """
    named = path or os.environ.get(FILE_VARIABLE)
    if named:
        return Path(named)
    default = Path(DEFAULT_FILE)
    return default if default.exists() else None


def environment_names() -> dict[str, str]:
    """
    Return the settings that the environment sets, with their variables.

    Upper and lower case make no difference. An empty variable sets nothing. The variables that Kubernetes
    sets for a Service are left out.
    """
    prefix = ENVIRONMENT_PREFIX.lower()
    found = {
        variable.lower().removeprefix(prefix): (variable, value)
        for variable, value in os.environ.items()
        if value and variable.lower().startswith(prefix) and variable.upper() != FILE_VARIABLE
    }
    return {
        name: variable
        for name, (variable, value) in found.items()
        if name in Settings.model_fields or not _is_service_variable(variable, value)
    }


def _is_service_variable(variable: str, value: str) -> bool:
    if variable.endswith("_PORT") and _SERVICE_PORT.fullmatch(value):
        return True
    return _SERVICE_VARIABLE.fullmatch(variable) is not None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes().decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no settings file {path}",
            remedy="Correct --config or EVENTSEAL_CONFIG. In a new project, run `eventseal init` with "
            "the same --config or EVENTSEAL_CONFIG, which writes the file.",
        ) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(
            f"settings file {path} cannot be read: {reason}",
            remedy="Let this user read the file, or correct --config or EVENTSEAL_CONFIG.",
        ) from error
    except UnicodeDecodeError:
        content = None
    values = None if content is None else _parsed(content)
    if isinstance(values, dict):
        return values
    # Raised here, where no local variable holds the content: it may contain passwords.
    del content
    raise ConfigurationError(
        f"settings file {path} is not TOML: {values or 'it is not UTF-8'}",
        remedy="Correct the place that the message names. Put strings in quotes.",
    )


def _parsed(content: str) -> dict[str, Any] | str:
    try:
        return tomllib.loads(content)
    except (
        ValueError,
        RecursionError,
    ) as error:  # also a number with too many digits, or deeply nested lists
        return str(error)


def _validated(values: Mapping[str, Any]) -> Settings | list[ErrorDetails]:
    try:
        return Settings(**values)
    except ValidationError as error:
        return error.errors(include_url=False, include_context=False, include_input=False)


def _refusal(errors: list[ErrorDetails], sources: Mapping[str, str]) -> ConfigurationError:
    complaints = []
    for error in errors:
        name = str(error["loc"][0]) if error["loc"] else ""
        source = sources.get(name)
        shown = f"{name} ({source})" if source else name
        message = error["msg"].removeprefix("Value error, ")
        complaints.append(f"{shown}: {message[:1].lower()}{message[1:]}")
    return ConfigurationError(". ".join(complaints), remedy=f"Correct the value. {_LISTED}")


_LISTED = "See the page Configuration for every setting and its values."


def _refuse_unknown(names: Iterable[str], message: str) -> None:
    for name in names:
        if name not in Settings.model_fields:
            remedy = did_you_mean(name.lower(), Settings.model_fields, _LISTED)
            raise ConfigurationError(message.format(name), remedy=remedy)


def _refuse_unknown_variables(variables: Mapping[str, str]) -> None:
    known = [setting.upper() for setting in (*Settings.model_fields, "config")]
    for name, variable in variables.items():
        if name.upper() not in known:
            remedy = did_you_mean(name.upper(), known, _LISTED, prefix=ENVIRONMENT_PREFIX)
            raise ConfigurationError(f"unknown environment variable {variable}", remedy=remedy)


def with_urls_hidden(values: Mapping[str, Any]) -> dict[str, Any]:
    """
    Wrap URLs, so that no traceback with locals shows them.

    Args:
        values: Settings by name, as a person wrote them.

    Returns:
        The same settings, with each URL as a ``SecretStr``.
    """
    return {name: _hidden(value) if name in SECRET_SETTINGS else value for name, value in values.items()}


def _hidden(value: object) -> object:
    return value if isinstance(value, SecretStr | None) else SecretStr(str(value))


Value: TypeAlias = "str | int | bool | Sequence[str] | Mapping[str, Value]"

_HEADING = """\
# Settings of EventSeal. EVENTSEAL_* variables win over this file. It may hold passwords, so only its
# owner may read it.
"""


def write_settings_file(path: Path, values: Mapping[str, Value]) -> None:
    """
    Write a new settings file, mode 0600.

    Args:
        path: The path of the file. It must not exist, but its directory must.
        values: Values as for :func:`as_toml`, in the order in which they are written.

    Raises:
        ConfigurationError: The path exists already, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        raise ConfigurationError(
            f"settings file {path} exists already, and EventSeal does not overwrite it",
            remedy="Use the file as it is, or name another path.",
        ) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(
            f"settings file {path} cannot be written: {reason}",
            remedy="Name a file in a folder that exists and that this user can write to.",
        ) from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(as_toml(values))


def as_toml(values: Mapping[str, Value]) -> str:
    """
    Return the text of a settings file.

    Args:
        values: Strings, whole numbers, booleans, lists of strings and tables of these, by name.
    """
    return _HEADING + "".join([f"{name} = {_as_toml(value)}\n" for name, value in values.items()])


def _as_toml(value: Value) -> str:
    if isinstance(value, int):
        return json.dumps(value)  # also true and false
    if isinstance(value, str):
        # JSON strings are TOML strings, except that TOML does not allow DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return f"{{{', '.join([f'{_as_toml(name)} = {_as_toml(entry)}' for name, entry in value.items()])}}}"
    return f"[{', '.join([_as_toml(entry) for entry in value])}]"
