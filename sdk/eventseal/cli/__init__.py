"""The ``eventseal`` command: a thin shell over the library."""

from eventseal.cli.app import app, main

__all__ = ["app", "main"]
