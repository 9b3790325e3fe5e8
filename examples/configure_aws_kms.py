"""
Run one program under a local key and under AWS KMS.

Only one line of its settings file changes::

    python examples/configure_aws_kms.py                        # moto in place of AWS: no account, no network
    python examples/configure_aws_kms.py --key arn:aws:kms:...  # a real key, with your own credentials

It uses a temporary folder, and leaves no data there or in AWS, because KMS stores no data keys.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import boto3
from moto import mock_aws

from eventseal import EventSeal, SQLAlchemyActiveRecordStrategy
from eventseal.configuration.initialise import initialise
from eventseal.items import register_topic
from eventseal.storage import IntegerSequencedItemRecord
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.local import DevelopmentKeyWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = """\
application = "shop"
store_url = "sqlite:///shop.sqlite"
kms_key = "{kms_key}"
"""


@dataclass(frozen=True)
class OrderPlaced:
    """A customer placed an order."""

    originator_id: UUID
    originator_version: int
    customer: str


def main() -> None:
    """Store an event under each KMS key, by the same code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--key", metavar="ARN", help="your own KMS key or alias, in place of moto's")
    arguments = parser.parse_args()
    register_topic("shop:OrderPlaced", OrderPlaced)
    warnings.simplefilter("ignore", DevelopmentKeyWarning)  # the example shows how to replace this key
    with tempfile.TemporaryDirectory() as folder, aws_key(arguments.key) as key:
        texts = [SETTINGS.format(kms_key=kms_key) for kms_key in ("local://dev.key", key)]
        for name, text in zip(("local", "aws"), texts, strict=True):
            (Path(folder) / name).mkdir()
            with chdir(Path(folder) / name):
                Path("eventseal.toml").write_text(text)
                print(f"\n{text}")
                store_and_read()
        before, after = [text.splitlines() for text in texts]
        changed = [lines for lines in zip(before, after, strict=True) if lines[0] != lines[1]]
        print(f"\nLines changed: {len(changed)}")
        print("\nPermissions of this caller for the KMS key:")
        for check in AwsKmsAdapter(key).check("shop"):
            print(f"  {'yes' if check.granted else 'no '}  {check.action}  {check.detail}".rstrip())


def store_and_read() -> None:
    """
    Store an event, and read it again.

    It creates the tables and keys first. The reader starts with no keys in memory, as a new process does.
    """
    initialise()
    order_id = uuid4()
    with EventSeal.from_settings() as seal:
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
        strategy.append(seal.mapper.to_sequenced_items([OrderPlaced(order_id, 0, "Ada")]))
    with EventSeal.from_settings() as seal:
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
        item = strategy.get_item(order_id, eq=0)
        event = seal.mapper.from_sequenced_item(item)
        (wrapped,) = seal.key_store.get([item.key_id])[item.key_id].wrappings
    print(f"  stored    {item.data[:24].hex()}... ({len(item.data)} bytes)")
    print(f"  data key  {item.key_id}, wrapped in {len(wrapped.ciphertext)} bytes under")
    print(f"            {wrapped.kek_uri}")
    print(f"  read      {event.customer!r}, after {seal.keyring.counters.kms_calls} KMS calls")
    if b"Ada" in item.data or event != OrderPlaced(order_id, 0, "Ada"):
        raise SystemExit("failed: the item is not encrypted, or the event did not come back")


@contextmanager
def aws_key(real: str | None) -> Iterator[str]:
    """Yield the ARN of the real key, or of moto's key."""
    if real is not None:
        yield real
        return
    with mock_aws():
        metadata = boto3.client("kms", region_name="eu-west-1").create_key()["KeyMetadata"]
        yield metadata["Arn"]


if __name__ == "__main__":
    main()
