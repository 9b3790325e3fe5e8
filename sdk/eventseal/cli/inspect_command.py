"""``eventseal inspect``."""

from __future__ import annotations

import base64
import binascii
import sys
from contextlib import closing
from pathlib import Path  # noqa: TC003 - read at run time, for the options' types
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventseal.cipher import inspect as inspect_envelope
from eventseal.cli.output import print_json, printable
from eventseal.cli.shared_options import Options, Position, SequenceId, with_options
from eventseal.errors import ConfigurationError
from eventseal.rotation.did_you_mean import find_item

if TYPE_CHECKING:
    from uuid import UUID

    from eventseal.configuration.assembly import Stores
    from eventseal.suites import EnvelopeInfo

_VERSION = b"\x01"
_HEX_PREFIXES = (b"\\x", b"0x", b"0X", b"X'", b"x'")

EXAMPLES = """\b
Examples:
  eventseal inspect item.bin
  psql -Atc "SELECT data FROM snapshots LIMIT 1" | eventseal inspect -
  eventseal inspect --text 010300...
  eventseal inspect --table integer_sequenced_items \\
      --sequence 0b0e0c4e-5b1c-4a53-8f2e-8a1f3f6e6f0a --position 0
"""


@with_options()
def inspect(
    options: Options,
    *,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="A file with the envelope. `-` is standard input.", allow_dash=True
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The envelope itself, in hex or base64.")
    ] = None,
    table: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Show a row of this registered table.")
    ] = None,
    sequence: SequenceId = None,
    position: Position = None,
) -> None:
    """
    Show the header of an envelope, without any key.

    The envelope comes from a file or standard input (as bytes, hex or base64),
    from the command line, or from a row of the database. For a row it also shows
    the other columns and the record of its key in the key store. Nothing that it
    shows is authenticated. Only decryption proves that an item is authentic.
    """
    row = {"--table": table, "--sequence": sequence, "--position": position}
    ways = (source is not None, text is not None, any(value is not None for value in row.values()))
    if sum(ways) != 1:
        raise ConfigurationError(
            "inspect needs one envelope: a FILE, --text, or a row by --table, --sequence and --position",
            remedy="See `eventseal inspect --help` for examples.",
        )
    if source is not None:
        facts = _facts(inspect_envelope(sealed_bytes(_read(source))))
    elif text is not None:
        decoded = _decoded(text.encode())
        if decoded is None:
            raise ConfigurationError(
                "--text is neither hex nor base64",
                remedy="Pass the envelope to --text as hex or base64, or name a FILE that has its bytes.",
            )
        facts = _facts(inspect_envelope(decoded))
    else:
        facts = _row_facts(options, table, sequence, position)
    if options.as_json:
        print_json({"verb": "inspect", **facts})
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            shown = "none" if value is None else printable(str(value))
            typer.echo(f"{name.replace('_', ' ').ljust(width)}  {shown}")


def _read(source: Path) -> bytes:
    if str(source) == "-":
        return sys.stdin.buffer.read()
    try:
        return source.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(
            f"{source} cannot be read: {reason}", remedy="Name a file that exists and that you can read."
        ) from error


def sealed_bytes(content: bytes) -> bytes:
    """
    Find the envelope in a file or in a database client's output.

    Args:
        content: The bytes of an envelope, their hex (also as ``psql`` and ``sqlite3`` print it) or their
            base64, with white space around it.

    Returns:
        The bytes of the envelope, or *content* unchanged if it is in none of these forms.
    """
    decoded = _decoded(content)
    return content if decoded is None else decoded


def _decoded(content: bytes) -> bytes | None:
    # Every envelope begins with its version, a byte that no text begins with.
    if content.startswith(_VERSION):
        return content
    text = content.strip()
    for prefix in _HEX_PREFIXES:
        text = text.removeprefix(prefix)
    text = text.removesuffix(b"'")
    try:
        return binascii.unhexlify(text)
    except binascii.Error:
        pass
    try:
        return base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")), validate=True)
    except binascii.Error:
        return None


def _facts(info: EnvelopeInfo) -> dict[str, Any]:
    return {
        "version": info.version,
        "suite": info.suite.name.replace("_", "-"),
        "compression": info.compression.name.lower().replace("_", " "),
        "key_id": str(info.key_id),
        "size": info.size,
        "ciphertext_size": info.ciphertext_size,
    }


def _row_facts(
    options: Options, table: str | None, sequence: str | None, position: str | None
) -> dict[str, Any]:
    if table is None or sequence is None or position is None:
        raise ConfigurationError(
            "a row needs all three options: --table, --sequence and --position",
            remedy="Add the missing ones. See `eventseal inspect --help` for an example.",
        )
    with closing(options.open_stores()) as stores:
        row = find_item(stores.datastore, stores.settings.application, table, sequence, position)
        info = inspect_envelope(row.data)
        return {
            "table": table,
            "sequence_id": str(row.sequence_id),
            "position": str(row.position),
            "topic": row.topic,
            "key_id_column": None if row.key_id is None else str(row.key_id),
            **_facts(info),
            **_key_facts(stores, info.key_id),
        }


def _key_facts(stores: Stores, key_id: UUID) -> dict[str, Any]:
    record = stores.key_store.get([key_id]).get(key_id)
    if record is None:
        return {"key_state": "not in the key store"}
    return {
        "key_state": "unreadable" if record.unreadable else record.state.value,
        "key_scope": record.scope,
        "key_application": record.application,
        "wrapped_by": ", ".join([wrapped.kek_uri for wrapped in record.wrappings]) or None,
    }
