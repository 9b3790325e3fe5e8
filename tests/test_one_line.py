"""One line of configuration: the same program under every KMS, with nothing else changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from uuid import UUID, uuid4

import boto3
import pytest
from moto import mock_aws
from tests.fixtures.openbao import openbao

from eventseal import EventSeal, SQLAlchemyActiveRecordStrategy
from eventseal.configuration.initialise import initialise
from eventseal.items import register_topic
from eventseal.rotation import verify
from eventseal.storage import IntegerSequencedItemRecord
from eventseal_kms.testing import FakeAwsKms

__all__ = ["openbao"]

SETTINGS = """\
application = "shop"
store_url = "sqlite:///{folder}/shop.sqlite"
kms_key = "{kms_key}"
"""


@dataclass(frozen=True)
class OrderPlaced:
    originator_id: UUID
    originator_version: int
    customer: str


register_topic("tests:OneLine.OrderPlaced", OrderPlaced)


@pytest.fixture(autouse=True)
def no_vendor_settings(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("AWS_", "VAULT_", "EVENTSEAL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def local(tmp_path):
    return f"local://{tmp_path}/dev.key"


@pytest.fixture
def aws_fake(monkeypatch):
    kms = FakeAwsKms()
    for name, value in kms.credentials().items():
        monkeypatch.setenv(name.upper(), value)
    with kms.serve() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", url)
        yield kms.create_key()


@pytest.fixture
def aws_moto(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        yield boto3.client("kms", region_name="eu-west-1").create_key()["KeyMetadata"]["Arn"]


@pytest.fixture
def vault(monkeypatch, openbao):
    monkeypatch.setenv("VAULT_ADDR", openbao.address)
    monkeypatch.setenv("VAULT_TOKEN", openbao.token)
    name = f"shop-{uuid4().hex}"
    openbao.client().secrets.transit.create_key(name, derived=True)
    return f"vault-transit://transit/{name}"


@pytest.mark.slow
@pytest.mark.parametrize("kms", ["local", "aws_fake", "aws_moto", "vault"])
def test_a_store_goes_under_a_kms_by_one_line(kms, request, tmp_path):
    config = tmp_path / "eventseal.toml"
    config.write_text(SETTINGS.format(folder=tmp_path, kms_key=request.getfixturevalue(kms)))
    if kms == "aws_moto":  # it knows no dry runs, so a check of permissions fails there
        with EventSeal.from_settings(config) as seal:
            seal.datastore.setup_tables(application="shop")
    else:
        initialise(config)

    order_id = uuid4()
    with EventSeal.from_settings(config) as seal:
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session=seal.datastore.session)
        placed = [OrderPlaced(order_id, version, f"Ada {version}") for version in range(10)]
        strategy.append(seal.mapper.to_sequenced_items(placed))
        seal.keyring.rotate()
        placed.append(OrderPlaced(order_id, 10, "Grace"))
        strategy.append(seal.mapper.to_sequenced_items(placed[-1:]))

    with EventSeal.from_settings(config) as seal:  # nothing in memory: the KMS unwraps
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session=seal.datastore.session)
        items = strategy.get_items(order_id)
        assert seal.mapper.from_sequenced_items(items) == placed
        assert len({item.key_id for item in items}) == 2
        result = verify(seal)
        assert (result.complete, result.done, result.failed) == (True, 11, 0)
    assert b"Ada" not in (tmp_path / "shop.sqlite").read_bytes()
