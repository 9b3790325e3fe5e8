"""The options that commands share, each declared once, and the store that they name."""

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

from eventseal.configuration import EventSeal, load_settings
from eventseal.configuration.assembly import Stores, record_classes
from eventseal.errors import ConfigurationError, StoreUnavailableError
from eventseal.items.event_modules import EventModules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from eventseal.configuration import Settings

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="The settings file; wins over EVENTSEAL_CONFIG.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, then exit.")]
_GLOBAL: dict[str, tuple[Any, object]] = {
    "config": (Config, None),
    "as_json": (Json, False),
    "yes": (Yes, False),
    "dry_run": (DryRun, False),
}

Tables = Annotated[
    list[str] | None,
    typer.Option("--table", metavar="TABLE", help="Only this registered table; several times."),
]
SequenceId = Annotated[
    str | None, typer.Option("--sequence", metavar="ID", help="The row's sequence id.", show_default=False)
]
Position = Annotated[
    str | None,
    typer.Option("--position", metavar="POSITION", help="The row's position.", show_default=False),
]
Workers = Annotated[int, typer.Option("--workers", min=1, max=256, help="Processes that share the work.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Items in a transaction at most.")]
Rate = Annotated[
    float | None,
    typer.Option("--items-per-second", metavar="RATE", help="Not faster than this, all workers together."),
]
ResumedJob = Annotated[
    UUID | None,
    typer.Option("--resume", metavar="JOB", help="Continue this job; `status` lists them."),
]


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
            StoreUnavailableError: A SQLite file is not there; connecting would create an empty one.
        """
        return _present(Stores(self.settings()))

    def open_seal(self, *, event_modules: bool = False) -> EventSeal:
        """
        Open the databases and the keys.

        Args:
            event_modules: Whether the application's event modules are needed, and imported.

        Raises:
            ConfigurationError: A module is not there.
            StoreUnavailableError: A SQLite file is not there; connecting would create an empty one.
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
            remedy="Correct the setting, or run `eventseal init`, which creates the file.",
        )
    return stores


def with_options(*more: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """
    Give a command the global options, as its first argument.

    Each counts before the command, too. After it, every command takes ``--config`` and ``--json``.

    Args:
        more: Which others it takes there: ``yes``, ``dry_run``.
    """
    names = ("config", "as_json", *more)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(context: typer.Context, **given: Any) -> None:
            behind = {name: value for name in names if (value := given.pop(name))}
            command(replace(context.obj or Options(), **behind), **given)

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
    Create a command that has commands of its own.

    Args:
        name: As it is typed.
        says: Its help.
        examples: Shown below its help.
        kind: How it finds and runs them.
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
    Read the values of an option that takes a name and a value with = between them.

    Args:
        option: Its name.
        given: As often as it was given.
        example: A value that would do.

    Raises:
        ConfigurationError: One of the two is missing.
    """
    found = [pair.partition("=") for pair in given or ()]
    if any(not (name and separator and value) for name, separator, value in found):
        raise ConfigurationError(f"{option} takes two names with = between them, such as {example}")
    return {name: value for name, _, value in found}


@contextmanager
def working_directory_last() -> Iterator[None]:
    """
    Let modules be found in the working directory, after all other places, while the block runs.

    Not longer: an attacker who can write there could put a module in place of an optional package.
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
    Import the application's modules that the settings of these names list.

    Raises:
        ConfigurationError: A module or a class is not there.
    """
    with working_directory_last():
        record_classes(tables)
        EventModules(event_modules).load()
