"""
Tables of sequenced items: columns, appends, fences, pages, swaps, and the registry.

Only ``PostgreSQLSwaps`` needs psycopg, which is an extra. So its module is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.lazy_names import lazy_names

_HOMES = {"PostgreSQLSwaps": "swaps_on_postgresql"}

if TYPE_CHECKING:
    from eventseal.storage.items.swaps_on_postgresql import PostgreSQLSwaps as PostgreSQLSwaps
else:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
