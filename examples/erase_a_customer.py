"""
Erase a customer: from the events, from a read model, and from a backup that is restored afterwards.

Run it: ``python examples/erase_a_customer.py``. It makes a store of SQLite files and a local key in a new
folder, and leaves there the ledger and the receipt. It exits with 1 if anything of the customer came back.
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
    """Somebody who orders. The name and the address are theirs, what they spent is the shop's."""

    class Created(AggregateRoot.Created):
        """They registered."""

        name: Annotated[str, PersonalData(subject="originator_id", mask="(erased)")]
        email: Annotated[str, PersonalData(subject="originator_id")]

    class Ordered(AggregateRoot.Event):
        """They ordered something, to be sent somewhere."""

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
        """Order something."""
        self._trigger_event(self.Ordered, amount=amount, address=address)


register_topic("shop:Customer.Created", Customer.Created)
register_topic("shop:Customer.Ordered", Customer.Ordered)


class MailingList:
    """A read model: it holds e-mail addresses in plain, so it must be told of an erasure."""

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
        # Only what is personal is sealed, each field under its customer's own key.
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
        return customer.id

    def show(self, *customers: UUID) -> list[str]:
        """Replay each customer, and tell what is known of them."""
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
    """Run the demonstration; give the exit code."""
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
            print("The shred is not complete: run it again.")
            return 1
        (folder / "receipt.html").write_text(result.receipt.to_html())
        erased = shop.show(ada, bob)
    print(f"On the mailing list: {', '.join(mailing_list.addresses.values())}")

    for file in folder.glob(f"{database.name}*"):
        file.unlink()
    shutil.copyfile(backup, database)
    print("The backup was restored: Ada's key is in it. Before the application starts, the ledger is asked:")
    with closing(Shop(settings)) as shop:
        restored = after_restore(shop.seal, notify=mailing_list.forget)
        print(f"    {restored.done} keys of {len(restored.scopes)} scope were destroyed again")
    with closing(Shop(settings)) as shop:
        again = shop.show(ada, bob)

    print(f"The ledger and the receipt are in {folder}")
    expected = ["(erased) <>, : spent 42", "Bob <bob@example.org>, 2 Builder Street: spent 99"]
    is_erased = erased == again == expected and list(mailing_list.addresses.values()) == ["bob@example.org"]
    print("Proved: Ada is gone, and everything else is there." if is_erased else "Something came back.")
    return 0 if is_erased else 1


if __name__ == "__main__":
    sys.exit(main())
