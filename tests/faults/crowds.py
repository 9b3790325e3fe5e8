"""Rotators, writers and readers on one store at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.faults.crashes import check_everything_rotates
from tests.faults.workers import READER, ROTATOR, WRITER, Crew
from tests.fixtures.sealed_shops import TENANTS, SealedShop, scope_of

from eventseal_kms.local import LocalKmsAdapter

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.profiles import Profile

ROLES = (*[ROTATOR] * 2, *[WRITER] * 4, *[READER] * 2)


def work_at_once(url: str, profile: Profile, folder: Path) -> list[dict[str, Any]]:
    """
    Let two rotators, four writers and two readers work, each a process; none may meet an error.

    Args:
        url: An empty database.
        profile: How many steps each of them completes.
        folder: For the KEK's file.

    Returns:
        What each of them says.
    """
    key_file = folder / "kek.key"
    LocalKmsAdapter.create(key_file)
    kek = LocalKmsAdapter.from_uri(f"local://{key_file}")
    with SealedShop(url, kek) as shop:
        shop.set_up().keyring.prepare([scope_of(tenant) for tenant in TENANTS])
    with Crew(url, [f"local://{key_file}"], ROLES) as crew:
        crew.wait_for("done", profile.steps)
        answers = crew.stop()
    assert all(answer["done"] >= profile.steps and answer["outages"] == 0 for answer in answers), answers
    positions = {answer["number"]: answer["position"] for answer in answers if answer["role"] == WRITER}
    assert all(positions.values())
    check_everything_rotates(url, kek, positions)
    return answers
