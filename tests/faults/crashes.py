"""kill -9 of the PostgreSQL server under load, again and again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.faults.workers import LARGEST_BATCH, READER, ROTATOR, WRITER, Crew, Worker, length_of, tenant_of
from tests.fixtures.sealed_shops import TENANTS, SealedShop, assert_sound, places_of, scope_of

from eventseal.keys.states import KeyState
from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.postgres_servers import KillableServer
    from tests.fixtures.profiles import Profile

ROLES = (WRITER, WRITER, ROTATOR, READER)
FIRST = slice(1)
"""The first writer, whose steps are short."""
MOST_STEPS = 60
"""How many of its steps lie between a start and the next kill at most."""


def crash_server(server: KillableServer, profile: Profile, folder: Path, *, seed: int | None = None) -> None:
    """
    Kill the server under writers, a rotator and a reader that try again.

    Args:
        server: Of the test's own.
        profile: How often.
        folder: For the KEK's file.
        seed: Determines when the kills are. By default it is a new one, which is printed.
    """
    seed = random.randrange(2**32) if seed is None else seed
    print(f"seed {seed}")
    moments = random.Random(seed)
    key_file = folder / "kek.key"
    LocalKmsAdapter.create(key_file)
    kek = LocalKmsAdapter.from_uri(f"local://{key_file}")
    with SealedShop(server.url, kek) as shop:
        shop.set_up().keyring.prepare([scope_of(tenant) for tenant in TENANTS])
    with Crew(server.url, [f"local://{key_file}"], ROLES, tolerant=True) as crew:
        for _ in range(profile.crashes):
            # When the writer has completed these steps, the other processes are in the middle of theirs.
            crew.wait_for("done", moments.randrange(MOST_STEPS), FIRST)
            server.kill()
            crew.wait_for("outages", 1, FIRST)
            server.start()
        crew.wait_for("done", 1)
        answers = crew.stop()
    assert sum(answer["outages"] for answer in answers) >= profile.crashes
    assert all(answer["done"] > 0 for answer in answers), answers
    positions = {answer["number"]: answer["position"] for answer in answers if answer["role"] == WRITER}
    check_everything_rotates(server.url, kek, positions)


def check_everything_rotates(url: str, kek: LocalKmsAdapter, positions: dict[int, int]) -> None:
    """
    See that nothing acknowledged is lost, and that one rotation more takes everything to the newest keys.

    Args:
        url: Of the store, which nobody uses now.
        kek: Of its keys.
        positions: Events that each writer's stream has at least.
    """
    with SealedShop(url, kek) as shop:
        stored = {number: length_of(shop, number) for number in positions}
        for number, acknowledged in positions.items():
            # The last batch may have been committed without an answer.
            assert 0 <= stored[number] - acknowledged <= LARGEST_BATCH, (number, acknowledged)
        places = {
            place
            for number, count in stored.items()
            for place in places_of(tenant_of(number), count, number=number)
        }
        assert_sound(shop, places)
        Worker(shop, 0, len(positions), tolerant=False).rotator()
    with SealedShop(url, kek) as fresh:
        assert_sound(fresh, places)
        assert fresh.items_by_key().keys() <= set(fresh.active_keys().values())
        assert fresh.key_states().keys() <= {KeyState.ACTIVE, KeyState.DESTROYED}
