"""The options that commands share, and the store that they name."""

from __future__ import annotations

import inspect
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from typer.core import TyperGroup

from eventseal.cli.output import name_key_files
from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from eventseal.configuration import EventSeal, Settings
    from eventseal.configuration.assembly import Stores

# The functions below import what opens a store. `--help` and `--version` do not wait for it.

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The settings file. It wins over EVENTSEAL_CONFIG.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Proceed without a question.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, then exit.")]
_GLOBAL: dict[str, tuple[Any, object]] = {
    "config": (Config, None),
    "as_json": (Json, False),
    "yes": (Yes, False),
    "dry_run": (DryRun, False),
}

Tables = Annotated[
    list[str] | None,
    typer.Option("--table", metavar="TABLE", help="Only this registered table. Repeatable."),
]
SequenceId = Annotated[
    str | None, typer.Option("--sequence", metavar="ID", help="The row's sequence id.", show_default=False)
]
Position = Annotated[
    str | None,
    typer.Option("--position", metavar="POSITION", help="The row's position.", show_default=False),
]
Workers = Annotated[int, typer.Option("--workers", min=1, max=256, help="Processes that share the work.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="The most items in a transaction.")]
Rate = Annotated[
    float | None,
    typer.Option("--items-per-second", metavar="RATE", help="The highest speed of all workers together."),
]
ResumedJob = Annotated[
    UUID | None,
    typer.Option("--resume", metavar="JOB", help="Continue this job. `eventseal status` lists jobs."),
]


@dataclass(frozen=True, slots=True)
class Options:
    """
    The global options of one run.

    Attributes:
        config: The settings file, if one was named.
        as_json: Whether standard output gets only JSON.
        yes: Whether the run proceeds without a question.
        dry_run: Whether the run changes nothing.
    """

    config: Path | None = None
    as_json: bool = False
    yes: bool = False
    dry_run: bool = False

    def settings(self) -> Settings:
        """
        Read the settings, and import their record classes.

        Raises:
            ConfigurationError: A setting is missing or wrong, or a class does not exist.
        """
        from eventseal.configuration import load_settings

        settings = load_settings(self.config)
        name_key_files(settings.kms_key)
        load_modules(tables=settings.tables)
        return settings

    def open_stores(self) -> Stores:
        """
        Open the databases alone, without any KEK.

        Raises:
            StoreUnavailableError: A SQLite file does not exist. Connecting would create an empty one.
        """
        from eventseal.configuration.assembly import Stores

        return _present(Stores(self.settings()))

    def open_seal(self, *, event_modules: bool = False) -> EventSeal:
        """
        Open the databases and the keys.

        Args:
            event_modules: Whether to import the application's event modules.

        Raises:
            ConfigurationError: A module does not exist.
            StoreUnavailableError: A SQLite file does not exist. Connecting would create an empty one.
        """
        from eventseal.configuration import EventSeal

        settings = self.settings()
        if event_modules:
            load_modules(event_modules=settings.event_modules)
        seal = EventSeal(settings)
        _present(seal.stores)
        return seal


def opened_in_worker(config: Path | None, *, event_modules: bool = False) -> EventSeal:
    """Open the databases and the keys in a worker process."""
    return Options(config=config).open_seal(event_modules=event_modules)


def _present(stores: Stores) -> Stores:
    if not stores.are_present():
        raise stores.missing_file()
    return stores


def with_options(*more: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """
    Pass the global options to a command, as its first argument.

    A global option can come before the command or after it. Every command accepts ``--config`` and ``--json``
    after it.

    Args:
        more: The other options that the command accepts after it: ``yes``, ``dry_run``.
    """
    names = ("config", "as_json", *more)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(context: typer.Context, **given: Any) -> None:
            after = {name: value for name in names if (value := given.pop(name))}
            command(replace(context.obj or Options(), **after), **given)

        # Typer reads the options of a command from its signature.
        (_, *own) = inspect.signature(command, eval_str=True).parameters.values()
        first = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=_GLOBAL[name][1], annotation=_GLOBAL[name][0]
            )
            for name in names
        ]
        signature = inspect.Signature([first, *own, *shared])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def command_group(name: str, says: str, examples: str, *, kind: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """
    Create a command that has subcommands.

    Args:
        name: The command's name.
        says: The help text.
        examples: The examples below the help text.
        kind: The class that finds and runs the subcommands.
    """
    return typer.Typer(
        name=name,
        cls=kind,
        help=says,
        epilog=examples,
        rich_markup_mode=None,
        add_completion=False,
        no_args_is_help=True,
        # A traceback with locals would show keys and plaintext.
        pretty_exceptions_enable=False,
    )


def pairs(option: str, given: Sequence[str] | None, *, example: str) -> dict[str, str]:
    """
    Read the values of an option whose values have the form NAME=VALUE.

    Args:
        option: The option's name.
        given: The values, in the order in which they were given.
        example: A valid value, for the error message.

    Raises:
        ConfigurationError: A name or a value is missing.
    """
    found = [pair.partition("=") for pair in given or ()]
    if any(not (name and separator and value) for name, separator, value in found):
        raise ConfigurationError(
            f"{option} needs two names with = between them",
            remedy=f"Write the option as in this example: {option} {example}",
        )
    return {name: value for name, _, value in found}


@contextmanager
def working_directory_last() -> Iterator[None]:
    """
    Search the working directory for modules last, while the block runs.

    The directory is searched no longer than that: an attacker who can write to it could provide a module in
    place of an optional package.
    """
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:  # `python -m eventseal`
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def load_modules(*, tables: Sequence[str] = (), event_modules: Sequence[str] = ()) -> None:
    """
    Import the application's modules from the settings of these names.

    Raises:
        ConfigurationError: A module or a class does not exist.
    """
    from eventseal.configuration.assembly import record_classes
    from eventseal.items.event_modules import EventModules

    with working_directory_last():
        record_classes(tables)
        EventModules(event_modules).load()
