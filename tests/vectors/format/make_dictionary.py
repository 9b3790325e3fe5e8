"""
Writes the dictionary of compression 4, from events that nobody ever had.

    python tests/vectors/format/make_dictionary.py sdk/eventseal/cipher/events.zdict

What goes in is made up here: the forms in which the eventsourcing library and EventSeal write JSON, common
names of attributes, and random values. The file is part of the format: it is never written again, and another
one would be another compression.
"""

from __future__ import annotations

import json
import random
import sys
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import zstandard

from eventseal.items import JSONTranscoder

SIZE = 8192
EVENTS = 30_000
SEED = 20
NAMES = """
name title status state amount price quantity total currency description email address first_name last_name
phone city country postal_code street customer_id order_id product_id account_id user_id item_id invoice_id
payment_id tenant_id reason comment type kind code number reference version created_on modified_on
created_at updated_at deleted_at started_at finished_at completed_at occurred_at recorded_at received_at
registered_at requested_at submitted_at approved_at confirmed_at cancelled_at closed_at opened_at paid_at
shipped_at delivered_at sent_at published_at expires_at due_date valid_from valid_until balance credit debit
limit rate tax discount items lines tags notes owner actor source target value count index url path key
label category level priority enabled active
""".split()  # noqa: SIM905 - a list would take a line for each
WORDS = """
open closed pending accepted declined cancelled submitted approved rejected completed started scheduled
active inactive new draft paid shipped delivered EUR USD GBP OK PENDING ACTIVE CLOSED admin system default
the of and for a to in is order customer account product invoice payment
""".split()  # noqa: SIM905


class Maker:
    """Makes up events."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def moment(self) -> datetime:
        microseconds = self.random.randrange(10 * 365 * 86_400 * 10**6)
        moment = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
        if self.random.random() < 0.2:
            hours = self.random.choice((1, 2, -5, -8, 5.5, 8))
            moment = moment.astimezone(timezone(timedelta(hours=hours)))
        kept = self.random.choice((1, 1, 1000, 10**6))
        return moment.replace(microsecond=moment.microsecond // kept * kept)

    def text(self) -> str:
        return " ".join(self.random.choice(WORDS) for _ in range(self.random.randrange(1, 5)))

    def value(self, depth: int = 0) -> Any:
        dice = self.random.random()
        if dice < 0.96 or depth:
            return self.simple_value(dice)
        if dice < 0.98:
            return [self.value(1) for _ in range(self.random.randrange(4))]
        return self.values(self.random.randrange(1, 4), 1)

    def simple_value(self, dice: float) -> Any:
        if dice < 0.25:
            return self.random.choice(WORDS)
        if dice < 0.4:
            return self.random.randrange(10 ** self.random.randrange(1, 7))
        if dice < 0.56:
            return self.moment()
        if dice < 0.7:
            return UUID(int=self.random.getrandbits(128), version=4)
        if dice < 0.78:
            return Decimal(self.random.randrange(10**6)) / 100
        return self.random.choice((True, False, None)) if dice < 0.83 else self.text()

    def values(self, count: int, depth: int = 0) -> dict[str, Any]:
        return {self.random.choice(NAMES): self.value(depth) for _ in range(count)}

    def event(self) -> dict[str, Any]:
        began: dict[str, Any] = {}
        if self.random.random() < 0.25:
            began["originator_topic"] = f"shop.domain:{self.random.choice(('Order', 'Account', 'Customer'))}"
        event = {**began, "timestamp": self.moment(), **self.values(self.random.randrange(1, 7))}
        if self.random.random() < 0.1:
            state = {"_created_on": self.moment(), "_modified_on": self.moment(), **event}
            return {"timestamp": self.moment(), "topic": "shop.domain:Order", "state": state}
        return event


def as_library(value: Any) -> dict[str, str]:
    """The library's way to write what JSON has not."""
    if isinstance(value, datetime):
        return {"_type_": "datetime_iso", "_data_": value.isoformat()}
    if isinstance(value, UUID):
        return {"_type_": "uuid_hex", "_data_": value.hex}
    return {"_type_": "decimal_str", "_data_": str(value)}


def samples() -> list[bytes]:
    """Three of the library's, then one of EventSeal's own, and so on."""
    maker, own = Maker(SEED), JSONTranscoder()
    events = [maker.event() for _ in range(EVENTS)]
    return [
        own.encode(event)
        if number % 4 == 3
        else json.dumps(event, default=as_library, separators=(",", ":"), ensure_ascii=False).encode()
        for number, event in enumerate(events)
    ]


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(zstandard.train_dictionary(SIZE, samples(), level=3).as_bytes())
