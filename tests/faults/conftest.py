"""The fixtures of faults."""

from tests.fixtures.store_copies import postgres_copies, sqlite_copies

__all__ = ["postgres_copies", "sqlite_copies"]
