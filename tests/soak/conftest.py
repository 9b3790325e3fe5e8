"""
The long profiles: all of them, and nothing else, is what `make soak` runs.

Their counts are in `tests/fixtures/profiles.py` (``LONG``), but for what is large by nature: a million
subject keys, and the set-ups of the explorer and of the state machine, which stand beside those. One of them
alone: ``python -m pytest tests/soak/test_faults.py -k crowd``.

On two cores that are busy with other things, in minutes:

- ``test_faults.py``: 200 kills inside a rotation, 5 on SQLite and 9 on PostgreSQL; 30 kills of the server, 2;
  rotators, writers and readers, 2; 500 lost answers, 1; one corrupt row among 10,000, less than 1 each; every
  dependency call, up to 5 for an operation and a fault on SQLite (re-encryption of 500 items: 300 calls), and
  more on PostgreSQL, where each call has a copy of the database made for it: some hours for all of them.
- ``test_moving_live.py``: 4.
- The others say in their own files.
"""

from tests.fixtures.store_copies import postgres_copies, sqlite_copies

__all__ = ["postgres_copies", "sqlite_copies"]
