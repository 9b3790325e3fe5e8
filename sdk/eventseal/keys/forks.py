"""What a forked child does before anything else: renew what must not be shared with its parent."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Renewable(Protocol):
    """Something with locks and keys of its own."""

    def renew_in_child(self) -> None:
        """Drop what the parent holds, without waiting for any lock, and start with new ones."""
        ...


_renewables: WeakSet[Renewable] = WeakSet()


def renew_in_children(renewable: Renewable) -> None:
    """Have *renewable* renewed in every child forked from now on, for as long as it lives."""
    _renewables.add(renewable)


def _renew_all() -> None:
    for renewable in list(_renewables):
        renewable.renew_in_child()


if hasattr(os, "register_at_fork"):  # where there is no fork, there is nothing to renew
    os.register_at_fork(after_in_child=_renew_all)
