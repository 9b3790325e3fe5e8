"""The options that stand before or behind a command, and what they say together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.application_modules import load_modules
from eventseal.configuration import EventSeal, load_settings
from eventseal.configuration.stores import Stores
from eventseal.errors import StoreUnavailableError

if TYPE_CHECKING:
    from eventseal.configuration import Settings

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="The settings file; wins over EVENTSEAL_CONFIG.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")]


@dataclass(frozen=True, slots=True)
class Options:
    """
    The global options of one run.

    Attributes:
        config: The settings file, if one was named.
        as_json: Whether standard output takes JSON and nothing else.
        yes: Whether nothing is asked.
        dry_run: Whether nothing is changed.
    """

    config: Path | None = None
    as_json: bool = False
    yes: bool = False
    dry_run: bool = False

    @classmethod
    def of(
        cls,
        context: typer.Context,
        *,
        config: Path | None,
        as_json: bool,
        yes: bool = False,
        dry_run: bool = False,
    ) -> Options:
        """Join what stood before the command with what stood behind it."""
        before: Options = context.obj or cls()
        return replace(
            before,
            config=config or before.config,
            as_json=as_json or before.as_json,
            yes=yes or before.yes,
            dry_run=dry_run or before.dry_run,
        )

    def settings(self) -> Settings:
        """
        Read the settings, and import their record classes.

        Raises:
            ConfigurationError: A setting is missing or wrong, or a class is not there.
        """
        settings = load_settings(self.config)
        load_modules(tables=settings.tables)
        return settings

    def open_stores(self) -> Stores:
        """
        Open the databases alone, without any KEK.

        Raises:
            StoreUnavailableError: A SQLite file is not there; connecting would make an empty one.
        """
        return _present(Stores(self.settings()))

    def open_seal(self, *, event_modules: bool = False) -> EventSeal:
        """
        Open the databases and the keys.

        Args:
            event_modules: Whether the application's event modules are needed, and imported.

        Raises:
            ConfigurationError: A module is not there.
            StoreUnavailableError: A SQLite file is not there; connecting would make an empty one.
        """
        settings = self.settings()
        if event_modules:
            load_modules(event_modules=settings.event_modules)
        seal = EventSeal(settings)
        _present(seal.stores)
        return seal


def opened_in_worker(config: Path | None, *, event_modules: bool = False) -> EventSeal:
    """Open the databases and the keys in a process that shares the work; see :meth:`Options.open_seal`."""
    return Options(config=config).open_seal(event_modules=event_modules)


def _present(stores: Stores) -> Stores:
    if not stores.are_present():
        raise StoreUnavailableError(
            "the SQLite file that store_url or key_store_url names is not there",
            remedy="Correct the setting, or run `eventseal init`, which makes it.",
        )
    return stores
