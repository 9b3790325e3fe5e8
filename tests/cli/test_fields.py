"""``eventseal fields``: which fields are protected how, and a build that fails on plain personal data."""

from __future__ import annotations

import sys

import pytest

TYPES = """
from typing import Annotated, NewType
from eventseal.items import PersonalData
Email = Annotated[str, PersonalData(subject="originator_id")]
class PhoneNumber(str): pass
class IPv4Address: pass
Nick = NewType("Nick", str)
"""
EVENTS = """
from __future__ import annotations
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar
from eventseal.eventstore import DomainEvent, VersionedEntity
from eventseal.items import NotPersonal, PersonalData
from shop_for_test.values import Address
if TYPE_CHECKING:
    from shop_for_test.kinds import Email, IPv4Address, PhoneNumber

class Kind(enum.Enum):
    A = 1

class NotStored:
    email: str

@dataclass
class Line:
    sku: str
    price: int

class Customer(VersionedEntity):
    class Registered(VersionedEntity.Created):
        MAX: ClassVar[int] = 3
        email: Email
        address: Address
        product_name: Annotated[str, NotPersonal("products have names, too")]
        lines: list[Line]
        email_verified: bool
        shipment: str

    class Renamed(VersionedEntity.Event):
        def __init__(self, *, surname, **kwargs):
            super().__init__(surname=surname, **kwargs)

    class Called(VersionedEntity.Event):
        by: PhoneNumber | None
        host: list[IPv4Address]

    class Sealed(VersionedEntity.Event):
        __always_encrypt__ = True
        workEmail: str
"""
VALUES = """
from dataclasses import dataclass
from typing import Annotated
from eventseal.items import PersonalData
@dataclass(frozen=True)
class Address:
    customer: str
    street: Annotated[str, PersonalData(subject="customer")]
    country: str
"""


@pytest.fixture(autouse=True)
def _shop(tmp_path, monkeypatch):
    package = tmp_path / "shop_for_test"
    package.mkdir()
    for name, text in (("__init__", ""), ("kinds", TYPES), ("events", EVENTS), ("values", VALUES)):
        (package / f"{name}.py").write_text(text)
    (package / "__main__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("shop_for_test")]:
        del sys.modules[name]


def listed(printed):
    return {
        (one["class"].partition(":")[2], field["name"]): field
        for one in printed["classes"]
        for field in one["fields"]
    }


def test_fields_are_listed_by_protection(run_json):
    printed = run_json("fields", "shop_for_test.events", exits=1)
    fields = listed(printed)

    assert {key: field["protection"] for key, field in fields.items()} == {
        ("Customer.Registered", "email"): "sealed field",
        ("Customer.Registered", "address"): "object",
        ("Customer.Registered", "product_name"): "plain",
        ("Customer.Registered", "lines"): "object",
        ("Customer.Registered", "email_verified"): "plain",
        ("Customer.Registered", "shipment"): "plain",
        ("Customer.Renamed", "surname"): "plain",
        ("Customer.Called", "by"): "plain",
        ("Customer.Called", "host"): "plain",
        ("Customer.Sealed", "workEmail"): "sealed item",
        ("Line", "sku"): "plain",
        ("Line", "price"): "plain",
        ("Address", "customer"): "plain",
        ("Address", "street"): "sealed field",
        ("Address", "country"): "plain",
    }
    assert fields["Customer.Registered", "email"]["subjects"] == ["originator_id"]
    assert fields["Customer.Registered", "product_name"]["not_personal"] == "products have names, too"
    assert (printed["verb"], printed["complete"], printed["done"], printed["failed"]) == (
        "fields",
        True,
        15,
        3,
    )


def test_a_build_fails_on_what_looks_personal_and_is_plain(run_json):
    fields = listed(run_json("fields", "shop_for_test.events", exits=1))

    assert {key[1]: field["suspicion"] for key, field in fields.items() if field["suspicion"]} == {
        "surname": "its name says 'surname'",
        "by": "its type PhoneNumber says 'phone'",
        "host": "its type IPv4Address says 'address'",
    }


def test_nothing_plain_looks_personal_where_every_item_is_sealed(run_json):
    fields = listed(run_json("fields", "shop_for_test.events", "--always-encrypt"))

    assert fields["Customer.Renamed", "surname"]["protection"] == "sealed item"
    assert not [field for field in fields.values() if field["suspicion"]]


def test_words_of_ones_own_count(run_json):
    fields = listed(run_json("fields", "shop_for_test.values", "--word", "Country", exits=1))
    assert fields["Address", "country"]["suspicion"] == "its name says 'country'"
    run_json("fields", "shop_for_test.values")


def test_a_package_means_its_modules_and_a_class_itself(run_json):
    everything = run_json("fields", "shop_for_test", exits=1)
    assert {one["class"].partition(":")[0] for one in everything["classes"]} == {
        "shop_for_test.events", "shop_for_test.values",
    }  # fmt: skip
    (only,) = run_json("fields", "shop_for_test.values:Address")["classes"]
    assert only["class"] == "shop_for_test.values:Address"
    plain = run_json("fields", "shop_for_test.events:NotStored", exits=1)
    assert plain["failed"] == 1


def test_people_get_a_table(run):
    shown = run("fields", "shop_for_test.events", exits=1).stdout

    assert "shop_for_test.events:Customer.Renamed" in shown
    assert "! its name says 'surname'" in shown
    assert "not personal: products have names, too" in shown
    assert "of originator_id" in shown
    assert shown.splitlines()[-1] == "15 fields in 6 classes, plaintext fields that look personal: 3"


@pytest.mark.parametrize(
    "name", ["nowhere_to_be_found", "shop_for_test.events:Nobody", "shop_for_test.events:Kind.A"]
)
def test_what_is_not_there_is_wrong_use(run, name):
    assert name.rpartition(":")[2].split(".")[0] in run("fields", name, exits=2).stderr


@pytest.mark.parametrize("text", ["def (", "raise RuntimeError('no settings')"], ids=["syntax", "raises"])
def test_a_module_that_cannot_be_imported_is_wrong_use(run, tmp_path, monkeypatch, text) -> None:
    (tmp_path / "broken_events.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    told = run("fields", "broken_events", exits=2).stderr
    assert "module 'broken_events' cannot be imported" in told
    assert "cannot be imported" in run("fields", "../broken_events", exits=2).stderr


def test_an_annotation_that_contradicts_itself_is_told(run, tmp_path):
    (tmp_path / "shop_for_test" / "wrong.py").write_text(
        "from dataclasses import dataclass\nfrom typing import Annotated\n"
        "from eventseal.items import PersonalData\n"
        "@dataclass\nclass A:\n    b: Annotated[str, PersonalData('c', mask=7)]\n"
    )
    shown = run("fields", "shop_for_test.wrong", exits=1).stdout
    assert "shop_for_test.wrong:A is refused: shop_for_test.wrong:A.b: its mask is a int" in shown
    assert (
        shown.splitlines()[-1]
        == "0 fields in 1 class, plaintext fields that look personal: 0, refused classes: 1"
    )


REFUSED = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from eventseal.eventstore import DomainEvent
from eventseal.items import PersonalData
if TYPE_CHECKING:
    from json import Gone
Email = Annotated[str, PersonalData(subject="originator_id")]

class Unknown(DomainEvent):
    since: Gone

class Contact:
    email: Email

class Holds(DomainEvent):
    contact: Contact

class Constructed(DomainEvent):
    def __init__(self, *, email: Email, **rest):
        super().__init__(email=email, **rest)

class Service:
    def __init__(self, email: Email, gone: Gone):
        pass

@dataclass
class Fine:
    originator_id: str
    email: Email
"""


def test_what_a_mapper_refuses_is_listed_as_refused(run_json, tmp_path, monkeypatch):
    (tmp_path / "refused_for_test.py").write_text(REFUSED)
    monkeypatch.delitem(sys.modules, "refused_for_test", raising=False)
    printed = run_json("fields", "refused_for_test", exits=1)
    refused = {one["class"].partition(":")[2]: one["refused"] for one in printed["classes"]}

    assert printed["failed"] == 3
    assert refused["Fine"] is refused["Contact"] is None
    assert "Service" not in refused
    assert "Gone in its annotation cannot be resolved" in refused["Unknown"]
    assert "Contact.email is personal data, which would not be sealed there. Make Contact" in refused["Holds"]
    assert "no annotation of an attribute in the body of the class says the same" in refused["Constructed"]


LIBRARY = """
from dataclasses import dataclass
from typing import Annotated
from eventsourcing.domain import Aggregate, event
from eventseal.items import PersonalData
Email = Annotated[str, PersonalData(subject="originator_id")]

class Plain(Aggregate):
    @event("Named")
    def name(self, name: str) -> None: ...

class Customer(Aggregate):
    @event("Registered")
    def __init__(self, email: Email) -> None:
        self.email = email
"""


def test_markers_under_the_eventsourcing_library_are_listed_as_refused(run_json, tmp_path, monkeypatch):
    (tmp_path / "library_for_test.py").write_text(LIBRARY)
    monkeypatch.delitem(sys.modules, "library_for_test", raising=False)
    printed = run_json("fields", "library_for_test", exits=1)
    classes = {one["class"].partition(":")[2]: one for one in printed["classes"]}

    assert {one["protection"] for one in classes["Plain.Named"]["fields"]} == {"sealed item"}
    assert classes["Plain.Named"]["refused"] is None
    for name in ("Customer", "Customer.Registered"):
        assert "do not encrypt single fields" in classes[name]["refused"]
