"""Runs the state machine, reproducibly: by a seed that is shown, with the blob of what failed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture import providers
from hypothesis.stateful import run_state_machine_as_test
from tests.lifecycle.machine import Lifecycle

if TYPE_CHECKING:
    from tests.lifecycle.site import Site

SEED = "EVENTSEAL_LIFECYCLE_SEED"
"""Overrides the seed, in both profiles."""


def chosen_seed(otherwise: int) -> int:
    return int(os.environ.get(SEED, otherwise))


def run_lifecycle(
    site: Site, *, seed: int, examples: int, steps: int = 50, shrink: bool = True
) -> type[Lifecycle]:
    """
    Build worlds on *site* and do at random what the rules allow, all of it decided by *seed*.

    Args:
        site: The database.
        seed: Decides everything.
        examples: Worlds.
        steps: In each.
        shrink: Whether to look for the shortest way to what failed.

    Returns:
        The machine's class, with its tally.
    """

    class Run(Lifecycle):
        tally: ClassVar[dict[str, int]] = {}

    Run.site = site
    Run._hypothesis_internal_use_seed = seed
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    # Hypothesis also draws constants from all modules that are loaded. Without this, what a seed does would
    # depend on which other tests are in the same process.
    without_constants = {
        "_get_local_constants": providers.Constants,
        "CONSTANTS_CACHE": providers.LRUCache(1024),
    }
    with patch.multiple(providers, **without_constants):
        run_state_machine_as_test(
            Run,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                phases=phases,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    return Run
