"""Making ready what the settings describe: the file, the KEK, the tables, the first keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from eventseal.configuration.init_steps import InitStep, InitSteps
from eventseal.configuration.loading import (
    DEFAULT_FILE,
    environment_names,
    settings_file,
    settings_from,
    with_urls_hidden,
)
from eventseal.configuration.toml_file import write_settings_file
from eventseal.errors import ConfigurationError
from eventseal.keys.revocations import NEW_KEY_TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventseal.configuration.settings import Settings


def initialise(path: str | Path | None = None, *, dry_run: bool = False, **options: Any) -> list[InitStep]:
    """
    Make ready what the settings describe; what is there stays as it is, so a second run changes nothing.

    The file is written if there is none, with those *options* that the environment does not give. A KEK that
    its adapter can make is made, as long as there are no keys. The KMS is asked for its permissions, a
    missing ``key_id`` column is added, the tables are made and registered, then the store key and the first
    data key are made.

    Args:
        path: The settings file; ``None``: ``EVENTSEAL_CONFIG``, else ``eventseal.toml``.
        dry_run: Only tell what would be made.
        options: Settings by name: texts, whole numbers, yes or no, or lists of texts.

    Returns:
        The steps, in order.

    Raises:
        ConfigurationError: A setting is missing or wrong, or an option says something else than the settings.
        KmsForbiddenError: The KMS does not grant what is needed; the remedy says what to grant.
        KmsError: The KMS refused or failed.
        StoreError: The database refused or failed.
    """
    options = with_urls_hidden(options)
    file = settings_file(path) or Path(DEFAULT_FILE)
    settings, to_write = _settings(file, options)
    with InitSteps(settings, dry_run=dry_run) as steps:
        return [_write(file, to_write, dry_run=dry_run), *steps.take()]


def _settings(file: Path, options: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Give the settings, and those of the options that a new file has to hold."""
    present = file.exists()
    settings = settings_from(file if present else None, **options)
    without_options = settings_from(file if present else None)
    variables = environment_names()
    for name in options:
        fixed_by = variables.get(name) or (str(file) if present else None)
        if fixed_by and getattr(settings, name) != getattr(without_options, name):
            raise ConfigurationError(
                f"{name} is not what {fixed_by} says",
                remedy=f"Correct {fixed_by}, or leave the option out: `eventseal init` changes no setting.",
            )
    to_write = {} if present else {name: value for name, value in options.items() if name not in variables}
    if to_write:
        to_write.setdefault("key_tables", NEW_KEY_TABLES)  # they are, once this run has ended
    return settings, to_write


def _write(file: Path, values: Mapping[str, Any], *, dry_run: bool) -> InitStep:
    if not values:
        source = f"settings file {file}" if file.exists() else "settings from the environment"
        return InitStep(name="settings", changed=False, detail=source)
    if not dry_run:
        write_settings_file(file, {name: _shown(value) for name, value in values.items()})
    return InitStep(name="settings", changed=True, detail=f"settings file {file}")


def _shown(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
