"""The fake's keys and aliases, by account and Region."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from eventseal_kms.aws.arn import KeyArn
from eventseal_kms.testing.keys import FakeKey, KeyFamily, Material
from eventseal_kms.testing.refusals import Refusal

if TYPE_CHECKING:
    from eventseal_kms.testing.policies import Document

PARTITION = "aws"

Place = tuple[str, str]
"""Account and Region."""


@dataclass(frozen=True, slots=True)
class Found:
    """
    What a reference led to.

    Attributes:
        key: The key.
        alias: The alias's name, if one was used: ``alias/shop``.
    """

    key: FakeKey
    alias: str | None


@dataclass(slots=True)
class Registry:
    """
    Every key and alias.

    Attributes:
        keys: By place and id.
        aliases: Key ids by place and alias name.
        passed: How far the fake's clock is ahead.
    """

    keys: dict[Place, dict[str, FakeKey]] = field(default_factory=dict)
    aliases: dict[Place, dict[str, str]] = field(default_factory=dict)
    passed: timedelta = timedelta()

    def now(self) -> datetime:
        """The time, as far as the fake is concerned."""
        return datetime.now(UTC) + self.passed

    def add(self, place: Place, policy: Document, *, multi_region: bool, **settings: Any) -> FakeKey:
        """Make a key with material of its own."""
        family = KeyFamily(multi_region, primary=place[1], materials=[Material(self.now())])
        return self.add_member(place, family, policy, **settings)

    def add_member(self, place: Place, family: KeyFamily, policy: Document, **settings: Any) -> FakeKey:
        """Make a key of *family* in another place."""
        account, region = place
        arn = KeyArn(PARTITION, region, account, f"key/{family.id}")
        key = FakeKey(arn, family, policy, self.now(), **settings)
        family.members[region] = key
        self.keys.setdefault(place, {})[family.id] = key
        return key

    def find(self, reference: str, place: Place) -> Found:
        """
        Find a key by its id, its ARN, an alias's name or an alias's ARN.

        Args:
            reference: As a request names it.
            place: The caller's account, and the Region that was called.

        Raises:
            Refusal: There is none.
        """
        resource = reference if reference.startswith("alias/") else f"key/{reference}"
        if reference.startswith("arn:"):
            arn = KeyArn.find(reference)
            if arn is None:
                raise Refusal("NotFoundException", f"Invalid keyId {reference}")
            if arn.region != place[1]:
                raise Refusal("NotFoundException", f"Invalid arn {arn.region}")
            place, resource = (arn.account, arn.region), arn.resource
        kind, _, name = resource.partition("/")
        alias = resource if kind == "alias" else None
        key_id = self.aliases.get(place, {}).get(resource) if alias else name
        key = self._alive(place, key_id or "")
        if key is None:
            arn = KeyArn(PARTITION, place[1], place[0], resource)
            raise Refusal(
                "NotFoundException", f"Alias {arn} is not found." if alias else f"Key '{arn}' does not exist"
            )
        return Found(key, alias)

    def _alive(self, place: Place, key_id: str) -> FakeKey | None:
        key = self.keys.get(place, {}).get(key_id)
        if key is None or key.deletion is None or key.deletion > self.now():
            return key
        del self.keys[place][key_id]
        del key.family.members[place[1]]
        names = self.aliases.get(place, {})
        for name in [name for name, target in names.items() if target == key_id]:
            del names[name]
        return None
