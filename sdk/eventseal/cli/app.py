"""The root command: global options, subcommands, and errors on standard error."""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from eventseal import __version__
from eventseal.cli.exits import RUN_AGAIN, ExitCode, VerbInterrupt, exit_code
from eventseal.cli.output import printable, verbatim
from eventseal.cli.shared_options import Config, DryRun, Json, Options, Yes, command_group
from eventseal.errors import EventSealError

if TYPE_CHECKING:
    from typing import TextIO

_HELP = """Encrypt event stores under KMS keys, and manage the keys.

\b
Settings come from eventseal.toml (or --config, or EVENTSEAL_CONFIG) and from
EVENTSEAL_* variables, which win. You can put global options before or after
the command.

\b
Begin with:
  eventseal init --kms-key local://dev.key --store-url sqlite:///shop.sqlite
  eventseal doctor
  eventseal rotate --reencrypt --retire
"""

_EXIT_CODES = """\b
Exit codes:
    0  Done.
    1  Done, but items or keys failed.
    2  Wrong usage, settings or permissions.
    3  The KMS or the database is unavailable. Try again.
    4  Refused. The error says why, such as an item that still needs a key.
  130  Interrupted.
"""


_COMMANDS = {  # and the first sentence of each one's help
    "init": "Write settings, check the KMS, create tables and first keys.",
    "upgrade": "Bring a store of an earlier release up to date.",
    "doctor": "Check everything that EventSeal needs, and report problems.",
    "policy": "Print the rights that a role needs, for these settings.",
    "keys": "List the application's keys, and the number of their items.",
    "inspect": "Show the header of an envelope, without any key.",
    "rotate": "Create a new active key for every scope, or for named scopes.",
    "rewrap": "Re-wrap data keys under the current KMS keys.",
    "roll-epoch": "Make old backups of the key tables useless.",
    "reencrypt": "Re-encrypt items that are not under their scope's active key.",
    "retire": "Destroy old keys that no item and no other key needs.",
    "verify": "Open every item of every registered table, and count results.",
    "repair": "Replace rows that do not open with the rows of a backup.",
    "set-aside": "Accept damaged rows that no backup has, so `verify` passes.",
    "shred": "Destroy every key of a scope, so its items never open again.",
    "reopen": "Let a shredded scope have keys again.",
    "status": "Show the state of keys, items and jobs, and the next commands.",
    "fields": "List event classes and the protection of their fields.",
    "migrate": "Encrypt plaintext items, or items of older ciphers.",
    "kek": "Check the KMS keys that wrap data keys.",
    "receipt": "Check the receipts that other commands write.",
}


class LazyCommand(TyperCommand):
    """
    A command whose module is imported when it runs.

    The command ``set-aside`` is the function or the group ``set_aside`` in ``set_aside_command.py``. The help
    of the root command needs only its name and the first sentence of its help.
    """

    def __init__(self, name: str, summary: str) -> None:
        super().__init__(name, help=summary, rich_markup_mode=None)
        self._attribute = name.replace("-", "_")

    def load(self) -> Any:
        """Import the module, and return the command with its options."""
        module = import_module(f"eventseal.cli.{self._attribute}_command")
        found = getattr(module, self._attribute)
        if isinstance(found, typer.Typer):
            return typer.main.get_group(found)
        alone = command_group("", "", "")
        alone.command(self.name, epilog=module.EXAMPLES)(found)
        return typer.main.get_command(alone)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the arguments as the command itself does."""
        return self.load().make_context(info_name, args, parent=parent, **extra)


class EventSealGroup(TyperGroup):
    """The root command. It shows every error of EventSeal without a traceback."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = {name: LazyCommand(name, summary) for name, summary in _COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the words name."""
        return super().resolve_command(ctx, _in_new_form(args))

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except EventSealError as error:
                _say("error", str(error))
                _say("remedy", error.remedy)
                raise typer.Exit(exit_code(error)) from None
            except ImportError as error:
                # The message says how to install a missing extra. Or a record class's module fails.
                _say("error", f"{type(error).__name__}: {error}")
                _say("remedy", "Correct the name of the module, or install what the message names.")
                raise typer.Exit(ExitCode.USAGE) from None
            except (KeyboardInterrupt, typer.Abort) as interruption:
                _say("error", "interrupted")
                _say("remedy", interruption.remedy if isinstance(interruption, VerbInterrupt) else RUN_AGAIN)
                raise typer.Exit(ExitCode.INTERRUPTED) from None


def _say(kind: str, text: str) -> None:
    show = verbatim if kind == "remedy" else printable
    shown = "\n".join([show(line) for line in text.splitlines()])
    typer.echo(f"eventseal: {kind}: {shown}", err=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001 - the signature of warnings.showwarning
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    _say("warning", str(message))


_STEPS = ("begin", "finish", "copy")  # of a migration: they were options in earlier releases


def _in_new_form(words: list[str]) -> list[str]:
    """
    Complete `migrate` without a step, and rewrite the forms of earlier releases.

    The old forms work for one release. An option that the new form lacks is refused as wrong usage.
    """
    command, *rest = words
    if command == "retire" and (without := _without("--kek", rest)) is not None:
        _name_new_form("retire --kek", "kek check")
        # `kek check` changes nothing, so it needs neither option. The old form accepted both.
        return ["kek", "check", *[word for word in without if word not in {"--yes", "-y", "--dry-run"}]]
    if command == "migrate":
        for step in _STEPS:
            if (without := _without(f"--{step}", rest)) is not None:
                _name_new_form(f"migrate --{step}", f"migrate {step}")
                return [command, step, *without]
        if not rest or (rest[0].startswith("-") and rest[0] != "--help"):
            return [command, "run", *rest]
    return words


def _name_new_form(old: str, new: str) -> None:
    _say("warning", f"The next release removes `eventseal {old}`. Use `eventseal {new}`.")


def _without(option: str, words: list[str]) -> list[str] | None:
    """Remove an option's name, so that its value becomes an argument. Without the option, return ``None``."""
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == option:
            return [*words[:place], *([value] if value else []), *words[place + 1 :]]
    return None


app = command_group("eventseal", _HELP, _EXIT_CODES, kind=EventSealGroup)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eventseal {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    *,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    del show_version  # its callback printed the version
    context.obj = Options(config=config, as_json=as_json, yes=yes, dry_run=dry_run)


def run() -> None:
    """Run the command."""
    # Workers start with `python -c`, which would search the working directory first for every module.
    os.environ["PYTHONSAFEPATH"] = "1"
    app()
