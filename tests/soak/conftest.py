"""
The long profiles: all of them, and nothing else, is what `make soak` runs.

Their counts are in `tests/fixtures/profiles.py`. One of these files alone: `pytest tests/soak/<file>`.
"""

from tests.fixtures.store_copies import postgres_copies, sqlite_copies

__all__ = ["postgres_copies", "sqlite_copies"]
