"""
Erase a customer from events, a read model and a restored backup.

Run it: ``python examples/erase_a_customer.py``. It creates a store of SQLite files and a local key in a new
folder, and leaves the ledger and the receipt there. If any data of the customer came back, it exits with 1.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from eventseal import EventSeal, SequencedItemMapper, SQLAlchemyActiveRecordStrategy
from eventseal.configuration.initialise import initialise
from eventseal.erasure import SubjectErased, after_restore, shred
from eventseal.eventstore import (
    AggregateRoot,
    EventSourcedRepository,
    EventStore,
    PersistencePolicy,
    WithReflexiveMutator,
)
from eventseal.items import PersonalData, register_topic
from eventseal.storage import IntegerSequencedItemRecord
from eventseal_kms.local import DevelopmentKeyWarning

if TYPE_CHECKING:
    from typing import Any
    from uuid import UUID


class Customer(WithReflexiveMutator, AggregateRoot):
    """A customer, who owns the name and address. The shop owns the amounts."""

    class Created(AggregateRoot.Created):
        """The customer registered."""

        name: Annotated[str, PersonalData(subject="originator_id", mask="(erased)")]
        email: Annotated[str, PersonalData(subject="originator_id")]

    class Ordered(AggregateRoot.Event):
        """The customer ordered something, with an address to send it to."""

        amount: int
        address: Annotated[str, PersonalData(subject="originator_id")]

        def mutate(self, customer: Customer) -> None:
            customer.spent += self.amount
            customer.address = self.address

    def __init__(self, *, name: str, email: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.name, self.email = name, email
        self.address, self.spent = "", 0

    def order(self, amount: int, address: str) -> None:
        """Order goods for an amount, sent to an address."""
        self._trigger_event(self.Ordered, amount=amount, address=address)


register_topic("shop:Customer.Created", Customer.Created)
register_topic("shop:Customer.Ordered", Customer.Ordered)


class MailingList:
    """A read model with plaintext addresses, which must follow each erasure."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}

    def add(self, customer: Customer) -> None:
        self.addresses[f"subject:{customer.id}"] = customer.email

    def forget(self, erased: SubjectErased) -> None:
        self.addresses.pop(erased.scope, None)


class Shop:
    """One process of the application."""

    def __init__(self, settings: Path) -> None:
        self.seal = EventSeal.from_settings(settings)
        # Only personal fields are encrypted, each under its customer's own key.
        mapper = SequencedItemMapper(cipher=self.seal.cipher, always_encrypt=False)
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, self.seal.datastore.session)
        self.event_store = EventStore(strategy, mapper)
        self.customers = EventSourcedRepository(self.event_store)

    def register(self, name: str, email: str, *orders: tuple[int, str]) -> UUID:
        with closing(PersistencePolicy(self.event_store, event_type=Customer.Event)):
            customer = Customer.create(name=name, email=email)
            for amount, address in orders:
                customer.order(amount, address)
            customer.save()
        customer_id: UUID = customer.id
        return customer_id

    def show(self, *customers: UUID) -> list[str]:
        """Replay each customer, and print the current state."""
        shown = []
        for customer_id in customers:
            customer = self.customers[customer_id]
            shown.append(f"{customer.name} <{customer.email}>, {customer.address}: spent {customer.spent}")
        for line in shown:
            print(f"    {line}")
        return shown

    def close(self) -> None:
        self.seal.close()


def main() -> int:
    """Run the demonstration, and return the exit code."""
    warnings.simplefilter("ignore", DevelopmentKeyWarning)
    folder = Path(tempfile.mkdtemp(prefix="erase-a-customer-"))
    settings, database, backup = folder / "eventseal.toml", folder / "shop.sqlite", folder / "backup.sqlite"
    initialise(
        settings,
        application="shop",
        kms_key=f"local://{folder}/dev.key",
        store_url=f"sqlite:///{database}",
        ledger=str(folder / "erasures.jsonl"),
    )
    mailing_list = MailingList()

    with closing(Shop(settings)) as shop:
        ada = shop.register("Ada", "ada@example.org", (30, "1 Analytical Way"), (12, "1 Analytical Way"))
        bob = shop.register("Bob", "bob@example.org", (99, "2 Builder Street"))
        for customer in (ada, bob):
            mailing_list.add(shop.customers[customer])
        print("Two customers, replayed from their events:")
        shop.show(ada, bob)
    shutil.copyfile(database, backup)
    print("A backup was taken. Then Ada asks to be erased.")

    with closing(Shop(settings)) as shop:
        result = shred(shop.seal, f"subject:{ada}", notify=mailing_list.forget)
        if result.receipt is None:
            print("The shred is not complete. Run it again.")
            return 1
        (folder / "receipt.html").write_text(result.receipt.to_html())
        erased = shop.show(ada, bob)
    print(f"On the mailing list: {', '.join(mailing_list.addresses.values())}")

    for file in folder.glob(f"{database.name}*"):
        file.unlink()
    shutil.copyfile(backup, database)
    print("The backup was restored, with Ada's key in it.")
    print("Before the application starts, EventSeal compares the keys with the ledger:")
    with closing(Shop(settings)) as shop:
        restored = after_restore(shop.seal, notify=mailing_list.forget)
        print(f"    keys destroyed again: {restored.done}, scopes: {len(restored.scopes)}")
    with closing(Shop(settings)) as shop:
        again = shop.show(ada, bob)

    print(f"The ledger and the receipt are in {folder}")
    expected = ["(erased) <>, : spent 42", "Bob <bob@example.org>, 2 Builder Street: spent 99"]
    is_erased = erased == again == expected and list(mailing_list.addresses.values()) == ["bob@example.org"]
    print("Proved: Ada is erased, and everything else is there." if is_erased else "Something came back.")
    return 0 if is_erased else 1


if __name__ == "__main__":
    sys.exit(main())
