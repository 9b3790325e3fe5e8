"""Pools of idle cipher contexts. PLACEHOLDER OF SHAPE, to be completed."""

from __future__ import annotations


class ContextPool:
    """The keyed contexts of one suite's key."""

    def __init__(self, suite_key: bytes) -> None: ...

    def close(self) -> None: ...
