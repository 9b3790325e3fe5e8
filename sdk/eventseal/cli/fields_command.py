"""``eventseal fields``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventseal.cli.exits import ExitCode
from eventseal.cli.output import print_columns, print_json, printable
from eventseal.cli.shared_options import Options, with_options, working_directory_last
from eventseal.eventstore.field_survey import survey
from eventseal.items.mapper import SequencedItemMapper
from eventseal.wording import counted

if TYPE_CHECKING:
    from eventseal.eventstore.field_survey import Mapper, SurveyedClass
    from eventseal.items.protection import ProtectedField

_MARKED = re.compile(r"Annotated\[(.*?), *(?:\w+\.)*(?:PersonalData|NotPersonal)\(.*\)\]")

EXAMPLES = """\b
Examples:
  eventseal fields shop.events
  eventseal fields shop --word matriculation
  eventseal fields shop.events:Customer.Registered --json
"""


@with_options()
def fields(
    options: Options,
    *,
    modules: Annotated[
        list[str],
        typer.Argument(
            metavar="MODULE...", help="A module, a package with all its modules, or module:Class."
        ),
    ],
    word: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help="A further word that suggests personal data. Repeatable."),
    ] = None,
    always_encrypt: Annotated[
        bool,
        typer.Option(
            "--always-encrypt", help="Assume always_encrypt = true: every item is encrypted as a whole."
        ),
    ] = False,
) -> None:
    """
    List event classes and the protection of their fields.

    It imports the modules, and reads neither settings nor databases.

    The exit code is 1 if the name or type of a plaintext field suggests personal
    data. Annotate such a field with PersonalData, or with NotPersonal and a
    reason. The exit code is also 1 if a mapper would refuse a class.
    """
    with working_directory_last():
        classes = survey(modules, words=word or (), always_encrypt=always_encrypt, mapper_of=_mapper_of)
    suspects = sum(len(one.suspicions) + (one.refused is not None) for one in classes)
    if options.as_json:
        print_json(_as_json(classes, suspects))
    else:
        _print(classes, suspects)
    if suspects:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


def _mapper_of(cls: type[Any]) -> type[Mapper]:
    if any(base.__module__.partition(".")[0] == "eventsourcing" for base in cls.__mro__):
        from eventseal.integrations.eventsourcing import EncryptingMapper  # a separate extra

        return EncryptingMapper
    return SequencedItemMapper


def _as_json(classes: list[SurveyedClass], suspects: int) -> dict[str, Any]:
    return {
        "verb": "fields",
        "complete": True,
        "done": sum(len(one.fields) for one in classes),
        "failed": suspects,
        "classes": [
            {
                "class": one.name,
                "fields": [_field_as_json(one, field) for field in one.fields],
                "refused": one.refused,
            }
            for one in classes
        ],
    }


def _field_as_json(cls: SurveyedClass, field: ProtectedField) -> dict[str, Any]:
    text = field.declared.text
    marked = _MARKED.fullmatch(text)
    return {
        "name": field.name,
        "type": text if marked is None else marked[1],
        "protection": field.protection,
        "subjects": list(field.subjects),
        "suspicion": cls.suspicions.get(field.name),
        "not_personal": field.declared.not_personal,
    }


def _print(classes: list[SurveyedClass], suspects: int) -> None:
    rows = [
        (one.name, field.name, field.protection, _note(one, field)) for one in classes for field in one.fields
    ]
    print_columns(("CLASS", "FIELD", "PROTECTION", "NOTE"), rows)
    for one in classes:
        if one.refused is not None:
            typer.echo(printable(f"{one.name} is refused: {one.refused}"))
        elif not one.fields:
            typer.echo(printable(f"{one.name} declares no fields"))
    refused = sum(one.refused is not None for one in classes)
    found = f"{counted(len(rows), 'field')} in {counted(len(classes), 'class', 'classes')}"
    ending = f", refused classes: {refused:,}" if refused else ""
    typer.echo(f"{found}, plaintext fields that look personal: {suspects - refused:,}{ending}")


def _note(cls: SurveyedClass, field: ProtectedField) -> str:
    if field.subjects:
        return f"of {', '.join(field.subjects)}"
    if field.name in cls.suspicions:
        return f"! {cls.suspicions[field.name]}"
    reason = field.declared.not_personal
    return "" if reason is None else f"not personal: {reason}"
