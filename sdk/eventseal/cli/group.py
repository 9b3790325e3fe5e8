"""How a run ends: errors and warnings as lines on standard error, each error with its exit code."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from eventseal.cli.exit_codes import ExitCode, exit_code
from eventseal.cli.interruption import RUN_AGAIN, VerbInterrupt
from eventseal.cli.output import printable
from eventseal.errors import EventSealError

if TYPE_CHECKING:
    from typing import TextIO


class EventSealGroup(TyperGroup):
    """The root command; no error of EventSeal's leaves it as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except EventSealError as error:
                say("error", str(error))
                say("remedy", error.remedy)
                raise typer.Exit(exit_code(error)) from None
            except ImportError as error:
                # An extra is not installed, and the message says how; or a record class's module fails.
                say("error", f"{type(error).__name__}: {error}")
                raise typer.Exit(ExitCode.USAGE) from None
            except (KeyboardInterrupt, typer.Abort) as interruption:
                say("error", "interrupted")
                say("remedy", interruption.remedy if isinstance(interruption, VerbInterrupt) else RUN_AGAIN)
                raise typer.Exit(ExitCode.INTERRUPTED) from None


def say(kind: str, text: str) -> None:
    """
    Write a line on standard error.

    Args:
        kind: ``error``, ``remedy`` or ``warning``.
        text: One line or more.
    """
    shown = "\n".join([printable(line) for line in text.splitlines()])
    typer.echo(f"eventseal: {kind}: {shown}", err=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001 - the signature of warnings.showwarning
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    say("warning", str(message))
